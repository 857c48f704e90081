"""Fourier adaptation: source scans with the low-frequency amplitudes of target scans."""

from __future__ import annotations

import zlib

import numpy as np
from monai.data import MetaTensor

from medseg_diff.adaptation.style import Array, fourier_style
from medseg_diff.adaptation.work import Adapted, Work, images_of
from medseg_diff.data.caselist import Case
from medseg_diff.data.derived import derive

BETA = 0.05


def adapt(work: Work) -> Adapted:
    """FDA as published: restyle the source once, train on it, change nothing at test time."""
    target = work.unlabelled
    styles = list(images_of(target))

    def change(image: MetaTensor, case: Case) -> Array:
        rng = np.random.default_rng([work.config.seed, zlib.crc32(case.case.encode())])
        return fourier_style(np.asarray(image), styles[int(rng.integers(len(styles)))], BETA)

    chosen = [c for c in work.source.cases if c.part != "test"]
    made_from = ["fourier", BETA, work.config.seed, [c.case for c in target.cases]]
    restyled = derive(work.source, chosen, work.folder / "fourier", change, made_from=made_from)
    return Adapted(work.train("fourier", restyled))
