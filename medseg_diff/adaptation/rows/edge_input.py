"""Edge input: a plain U-Net that sees the size of a scan's gradient in the place of the scan."""

from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor

from medseg_diff.adaptation.style import Array
from medseg_diff.adaptation.work import Adapted, Work
from medseg_diff.data.caselist import Case
from medseg_diff.data.derived import derive
from medseg_diff.model.features import edges

STYLE = ["edge_input"]


def adapt(work: Work) -> Adapted:
    """What `latent_edges` has to beat: the same invariance without any diffusion."""
    chosen = [c for c in work.source.cases if c.part != "test"]
    listed = derive(work.source, chosen, work.shared / "edge_input", _edges, made_from=STYLE)
    return Adapted(work.train("edge_input", listed), restyle=_edges, style=STYLE)


def _edges(image: MetaTensor, case: Case) -> Array:
    """Edges along every axis of the array, (C, *S)."""
    values = torch.from_numpy(np.asarray(image, np.float32))
    return np.asarray(edges(values[None])[0], np.float32)
