"""Histogram matching: each scan gets the source's mean histogram, then the source model."""

from __future__ import annotations

import numpy as np
from monai.data import MetaTensor

from medseg_diff.adaptation.style import Array, histogram_match, mean_histogram
from medseg_diff.adaptation.work import SOURCE_ONLY, Adapted, Work, images_of
from medseg_diff.data.caselist import Case


def adapt(work: Work) -> Adapted:
    """The source model behind a map of greys."""
    source = work.source.with_cases(work.source.part("train"))
    reference = mean_histogram(images_of(source))

    def restyle(image: MetaTensor, case: Case) -> Array:
        return histogram_match(np.asarray(image), reference)

    style = ["histogram", np.round(reference[:, ::100], 3).tolist()]
    return Adapted(work.train(SOURCE_ONLY, work.source), restyle=restyle, style=style)
