"""TENT: entropy of each scan's prediction minimised over the batch norms, reset after it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np
from numpy.typing import NDArray

from medseg_diff.adaptation.rows.source_only_batchnorm import NAME
from medseg_diff.adaptation.rows.source_only_batchnorm import adapt as source_only
from medseg_diff.adaptation.test_time import entropy_minimised, scan_windows
from medseg_diff.adaptation.work import Adapted, Work
from medseg_diff.model import SegmentationModel

STEPS, RATE = 5, 1e-3


def adapt(work: Work) -> Adapted:
    """The source model, adapted to each scan by itself."""
    # Beside the answer: statistics twice, size before and after, and the steps with gradients.
    return Adapted(source_only(work).run, around=_around, passes=5 + STEPS, baseline=NAME)


def _around(
    model: SegmentationModel, values: NDArray[np.float32], patch: Sequence[int]
) -> AbstractContextManager[object]:
    return entropy_minimised(model, scan_windows(values, patch), steps=STEPS, rate=RATE)
