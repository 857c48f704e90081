"""Scans as the size of their gradient: the same for a scan and its negative."""

from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor

from medseg_diff.adaptation.work import Array, Work
from medseg_diff.data.caselist import Case, CaseList
from medseg_diff.data.derived import derive
from medseg_diff.model.features import edges

STYLE = ["edge_input"]


def edges_of(image: MetaTensor, case: Case) -> Array:
    """Edges along every axis of the array, (C, *S); see ``model.features.edges``."""
    values = torch.from_numpy(np.asarray(image, np.float32))
    return np.asarray(edges(values[None])[0], np.float32)


def source_edges(work: Work) -> CaseList:
    """The source's training and validation cases as edges; masks stay."""
    chosen = [c for c in work.source.cases if c.part != "test"]
    return derive(work.source, chosen, work.shared / "edge_input", edges_of, made_from=STYLE)
