"""Intervals, paired tests and the sentence that says what they allow one to claim.

Cases of one patient are not independent: where patients are given, bootstrap and test resample
patients, never cases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from medseg_diff.metrics.masks import METRICS

FloatArray = NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 2000
# A claim about a training method takes this many trainings.
SEEDS_FOR_A_CLAIM = 3
MEAN_OF_STRUCTURES = "mean of structures"


@dataclass(frozen=True)
class Summary:
    """A sample in six numbers; NaN where ``n`` is too small for one of them.

    ``low`` and ``high`` bound the mean with 95 % confidence (BCa bootstrap).
    """

    n: int
    mean: float
    sd: float
    low: float
    high: float
    median: float


@dataclass(frozen=True)
class Comparison:
    """Paired difference ``a - b``.

    Attributes:
        n: Pairs where both sides hold a number.
        units: Independent units among them: patients where given, else cases.
        difference: Mean of ``a - b``; ``low`` and ``high`` bound it (BCa bootstrap).
        effect_size: Mean over standard deviation of the units' differences (Cohen's d_z).
        p: Two-sided Wilcoxon signed-rank p, not corrected.
    """

    n: int
    units: int
    difference: float
    low: float
    high: float
    effect_size: float
    p: float


def summarise(
    values: ArrayLike, *, patients: Sequence[Any] | None = None, seed: int = 0
) -> Summary:
    """Summarise a sample, leaving out NaN; ``patients`` names each value's patient."""
    sample, groups = _finite(values, patients)
    if sample.size == 0:
        return Summary(0, *[math.nan] * 5)
    sd = float(sample.std(ddof=1)) if sample.size > 1 else math.nan
    low, high = bootstrap_interval(sample, patients=groups, seed=seed)
    return Summary(sample.size, float(sample.mean()), sd, low, high, float(np.median(sample)))


def bootstrap_interval(
    values: ArrayLike,
    *,
    patients: Sequence[Any] | None = None,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the BCa bootstrap interval of the mean, drawing patients with all their values.

    Fewer than two patients give no interval (NaN, NaN); patients who all have the same mean
    give an interval of length zero.
    """
    sample, groups = _finite(values, patients)
    sums, counts = _per_patient(sample, groups)
    if sums.size < 2:
        return math.nan, math.nan
    means = sums / counts
    if np.ptp(means) <= 1e-12 * max(1.0, float(np.abs(means).max())):
        return float(means[0]), float(means[0])

    def ratio(total: FloatArray, count: FloatArray, axis: int = -1) -> FloatArray:
        return np.asarray(total.sum(axis=axis) / count.sum(axis=axis))

    interval = stats.bootstrap(
        (sums, counts),
        ratio,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        # Batches keep the table of drawn indices small for large test sets.
        batch=max(1, min(resamples, 4_000_000 // sums.size)),
        confidence_level=confidence,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def bca_interval(
    statistic: Callable[..., float],
    *columns: ArrayLike,
    patients: Sequence[Any] | None = None,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the BCa bootstrap interval of any statistic of paired columns (Efron 1987).

    Patients are drawn with all their cases, and left out one by one for the acceleration. Cases
    with a NaN in a column are left out. Resamples in which the statistic does not exist (a
    correlation of equal values) are left out too.

    Args:
        statistic: Takes the columns, NaN where it does not exist.
        columns: One value a case each, (n,).
        patients: Each case's patient; None takes each case as its own.
        confidence: Of the interval.
        resamples: Bootstrap samples drawn.
        seed: Of the draws.

    Returns:
        The two ends. Fewer than three patients, or a statistic that does not exist in half of
        the resamples or more, give (NaN, NaN); one that is always the same gives length zero.

    Raises:
        ValueError: if columns or patients differ in length.
    """
    table = np.asarray(columns, dtype=np.float64)
    names = np.arange(table.shape[1]) if patients is None else np.asarray([*map(str, patients)])
    if names.size != table.shape[1]:
        raise ValueError(f"{names.size} patients for {table.shape[1]} values")
    known = np.flatnonzero(~np.isnan(table).any(0))
    units = [known[names[known] == name] for name in np.unique(names[known])]
    if len(units) < 3:
        return math.nan, math.nan

    def of(chosen: Iterable[int]) -> float:
        return float(statistic(*table[:, np.concatenate([units[i] for i in chosen])]))

    everyone = range(len(units))
    draws = np.random.default_rng(seed).integers(len(units), size=(resamples, len(units)))
    return _bca_ends(
        observed=of(everyone),
        drawn=np.array([of(chosen) for chosen in draws]),
        without_one=np.array([of(i for i in everyone if i != out) for out in everyone]),
        confidence=confidence,
    )


def wilcoxon_p(differences: ArrayLike) -> float:
    """Return the two-sided signed-rank p; zero differences are dropped, none left gives 1.

    Exact up to 50 differences without ties and up to 13 with ties; beyond, normal approximation.
    """
    sample = np.asarray(differences, dtype=np.float64)
    sample = sample[np.isfinite(sample) & (sample != 0)]
    if sample.size == 0:
        return 1.0
    return float(stats.wilcoxon(sample).pvalue)


def smallest_p(n: int) -> float:
    """Return the smallest two-sided signed-rank p that ``n`` pairs can give: 2 / 2^n."""
    return min(1.0, 2.0 ** (1 - n))


def cases_needed(difference: float, sd: float, *, power: float = 0.8, alpha: float = 0.05) -> int:
    """Return how many pairs a two-sided paired t-test needs to find ``difference``.

    Normal approximation plus half a squared normal quantile, which makes up for estimating the
    standard deviation. A signed-rank test needs about 5 % more on normal differences.
    """
    z_alpha = float(stats.norm.ppf(1 - alpha / 2))
    z_power = float(stats.norm.ppf(power))
    return math.ceil(((z_alpha + z_power) * sd / difference) ** 2 + z_alpha**2 / 2)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p values, in the order given; NaN stays NaN."""
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p.shape, math.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = p[order] * np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return [float(value) for value in adjusted]


def compare(
    a: ArrayLike, b: ArrayLike, *, patients: Sequence[Any] | None = None, seed: int = 0
) -> Comparison:
    """Compare two methods on the same cases, ``a[i]`` paired with ``b[i]``.

    A pair with a NaN on either side is left out; ``n`` says how many remained.

    Raises:
        ValueError: if ``a`` and ``b`` differ in length.
    """
    first, second = (np.asarray(x, dtype=np.float64) for x in (a, b))
    if first.shape != second.shape:
        raise ValueError(f"paired samples differ in length: {first.size} and {second.size}")
    sample, groups = _finite(first - second, patients)
    if sample.size == 0:
        return Comparison(0, 0, *[math.nan] * 5)
    sums, counts = _per_patient(sample, groups)
    units = sums / counts
    low, high = bootstrap_interval(sample, patients=groups, seed=seed)
    sd = float(units.std(ddof=1)) if units.size > 1 else math.nan
    # Equal differences have an sd of rounding noise, and no effect size.
    effect = float(units.mean()) / sd if sd > 1e-12 else math.nan
    return Comparison(
        n=sample.size,
        units=units.size,
        difference=float(sample.mean()),
        low=low,
        high=high,
        effect_size=effect,
        p=wilcoxon_p(units),
    )


def verdict(
    a: str,
    b: str,
    comparison: Comparison,
    *,
    p_adjusted: float,
    higher_is_better: bool = True,
    unit: str = "",
    alpha: float = 1 - CONFIDENCE,
    seeds: int | None = None,
) -> str:
    """Say in one sentence what the numbers allow: who is better, or no evidence.

    A difference is claimed only if the adjusted p is below ``alpha`` and the interval leaves
    out zero. Where ``units`` is so small that the test cannot reach ``alpha``, that is said, and
    so is a claim that rests on fewer than three training ``seeds`` (None: not known, not said).
    """
    c = comparison
    if c.n == 0:
        return f"No case could be compared between {a} and {b}."
    mean = f"{c.difference:+.3g}{unit}"
    interval = "" if math.isnan(c.low) else f" [{c.low:+.3g}, {c.high:+.3g}]"
    numbers = f"mean difference {mean}{interval}, p = {p_adjusted:.2g}, n = {c.n}"
    if p_adjusted < alpha and (c.low > 0 or c.high < 0):
        word = "better" if (c.difference > 0) == higher_is_better else "worse"
        claim = f"{a} is {word} than {b} ({numbers})."
        if seeds is not None and seeds < SEEDS_FOR_A_CLAIM:
            claim += f" Training seeds: {seeds}; the claim takes {SEEDS_FOR_A_CLAIM} or more."
        return claim
    sentence = f"No evidence of a difference between {a} and {b} ({numbers})."
    if smallest_p(c.units) >= alpha:
        sentence += (
            f" n = {c.units} is too small for any evidence: "
            f"the smallest p it can give is {smallest_p(c.units):.3g}."
        )
    return sentence


def case_means(per_case: pd.DataFrame) -> pd.DataFrame:
    """Return one row per case: each metric's mean over the case's structures, blanks left out.

    The index is ``case``, sorted; the columns are ``METRICS``.
    """
    return per_case.groupby("case", sort=True)[list(METRICS)].mean()


def _bca_ends(
    *, observed: float, drawn: FloatArray, without_one: FloatArray, confidence: float
) -> tuple[float, float]:
    """Return the BCa ends from the resampled and the leave-one-out statistics."""
    found = drawn[~np.isnan(drawn)]
    if math.isnan(observed) or 2 * found.size <= drawn.size:
        return math.nan, math.nan
    # Equal but for rounding: a correlation of exactly 1 comes out a few bits apart.
    rounding = 1e-12 * max(1.0, abs(observed))
    if np.ptp(found) <= rounding:
        return observed, observed
    ties = np.abs(found - observed) <= rounding
    share = float(np.mean((found < observed) & ~ties) + np.mean(ties) / 2)
    z0 = float(stats.norm.ppf(np.clip(share, 0.5 / found.size, 1 - 0.5 / found.size)))
    left = without_one[~np.isnan(without_one)]
    apart = left.mean() - left if left.size else np.zeros(1)
    spread = float((apart**2).sum()) ** 1.5
    acceleration = float((apart**3).sum()) / (6 * spread) if spread > 0 else 0.0
    z = z0 + np.asarray(stats.norm.ppf([(1 - confidence) / 2, (1 + confidence) / 2]))
    ends = np.quantile(found, stats.norm.cdf(z0 + z / (1 - acceleration * z)))
    return float(ends[0]), float(ends[1])


def _finite(
    values: ArrayLike, patients: Sequence[Any] | None
) -> tuple[FloatArray, list[Any] | None]:
    """Drop NaN values, and their patients with them."""
    sample = np.asarray(values, dtype=np.float64)
    keep = ~np.isnan(sample)
    if patients is None:
        return sample[keep], None
    if len(patients) != sample.size:
        raise ValueError(f"{len(patients)} patients for {sample.size} values")
    return sample[keep], [patient for patient, kept in zip(patients, keep, strict=True) if kept]


def _per_patient(sample: FloatArray, patients: list[Any] | None) -> tuple[FloatArray, FloatArray]:
    """Return each patient's sum and count of values; without patients each value is its own."""
    if patients is None:
        return sample, np.ones_like(sample)
    groups = pd.Series(sample).groupby(np.asarray([str(p) for p in patients]))
    sums, counts = groups.sum(), groups.count()
    return np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)
