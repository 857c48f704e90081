"""One method trained with several seeds, scored on the same cases: a case stays one case."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medseg_diff.metrics.statistics import summarise

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class OverSeeds:
    """A method trained with several seeds and scored on the same cases.

    Attributes:
        seeds: Trainings.
        cases: Cases with a number from at least one of them.
        incomplete: Cases with a number from some of them only.
        mean: Mean over cases of the case's mean over seeds; ``low`` and ``high`` bound it (BCa
            bootstrap over patients: the seeds are those there are, not a sample).
        sd_cases: Standard deviation over cases of the case's mean over seeds.
        seed_means: Each seed's mean over its own cases.
        sd_seeds: Standard deviation of ``seed_means``; NaN for one seed.
    """

    seeds: int
    cases: int
    incomplete: int
    mean: float
    low: float
    high: float
    sd_cases: float
    seed_means: tuple[float, ...]
    sd_seeds: float


def pool_seeds(values: ArrayLike) -> FloatArray:
    """Return each case's mean over seeds, NaN left out; a case without a number is NaN.

    Seeds are not cases: compare methods on these means, never on seeds stacked as more cases.

    Args:
        values: (seeds, cases), the same cases in the same order for every seed.

    Raises:
        ValueError: if there is no seed, or ``values`` has other than two axes.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or not len(table):
        raise ValueError(f"values must be (seeds, cases), not of shape {table.shape}")
    known = (~np.isnan(table)).sum(0)
    return np.asarray(np.nansum(table, axis=0) / np.where(known > 0, known, math.nan))


def over_seeds(
    values: ArrayLike, *, patients: Sequence[Any] | None = None, seed: int = 0
) -> OverSeeds:
    """Summarise one metric of one method trained with several seeds.

    Args:
        values: (seeds, cases), as ``pool_seeds`` takes.
        patients: Each case's patient.
        seed: Of the bootstrap.

    Raises:
        ValueError: as ``pool_seeds``.
    """
    pooled = pool_seeds(values)
    table = np.asarray(values, dtype=np.float64)
    summary = summarise(pooled, patients=patients, seed=seed)
    own = [row[~np.isnan(row)] for row in table]
    means = np.array([row.mean() if row.size else math.nan for row in own])
    blank = np.isnan(table)
    return OverSeeds(
        seeds=len(table),
        cases=summary.n,
        incomplete=int((blank.any(0) & ~blank.all(0)).sum()),
        mean=summary.mean,
        low=summary.low,
        high=summary.high,
        sd_cases=summary.sd,
        seed_means=tuple(means.tolist()),
        sd_seeds=float(means.std(ddof=1)) if len(means) > 1 else math.nan,
    )
