"""Does doubt tell the bad cases from the good ones? One risk and one doubt per case in.

Cases are sorted by doubt, the surest first. At coverage k / n the k surest are answered and the
others handed to a person:

    r(k)    = mean risk of the k surest cases, k = 1 ... n
    AURC    = mean of r(1) ... r(n)
    E-AURC  = AURC - AURC of the best order there is, that of the risk itself

(Geifman, Uziel & El-Yaniv 2019). The risk is 1 - Dice unless stated otherwise, so lower is better;
E-AURC is 0 where doubt ranks the cases perfectly, and useless doubt has an AURC near the mean risk.

**Ties.** Cases of equal doubt have no order: r(k) is its mean over all orders of the tied cases,
which is what one gets when each of them has their mean risk. The answer does not depend on the
order in which cases are listed. Doubt that is equal everywhere has AURC = mean risk exactly.

A confidence (mean pairwise Dice between draws, say) is a doubt once it is given a minus sign.
Cases with a NaN (Dice of two empty masks) are left out and counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medseg_diff.metrics import statistics

FloatArray = NDArray[np.float64]

AURC_DEFINITION = "mean selective risk over coverages 1/n ... 1, ties averaged over their orders"


@dataclass(frozen=True)
class RiskCoverage:
    """A risk-coverage curve.

    Attributes:
        coverage: Share of cases answered, (n,): 1 / n ... 1.
        risk: Mean risk of the answered, (n,).
        optimum: The same in the order of the risk itself, (n,): the lowest curve there is.
        aurc: Mean of ``risk``; NaN without cases.
        e_aurc: Excess of ``aurc`` over the mean of ``optimum``, 0 or more.
    """

    coverage: FloatArray
    risk: FloatArray
    optimum: FloatArray
    aurc: float
    e_aurc: float


@dataclass(frozen=True)
class DoubtScore:
    """How well a doubt ranks the cases of a test set.

    Attributes:
        n: Cases with a risk and a doubt.
        left_out: Cases where either is NaN.
        mean_risk: AURC of doubt that says nothing.
        aurc: See the top of this file.
        e_aurc: See the top of this file.
        spearman: Rank correlation of doubt and risk, in [-1, 1]; NaN where either is constant.
        low: Lower end of the 95 % BCa bootstrap interval of ``spearman``, over patients.
        high: Its upper end.
    """

    n: int
    left_out: int
    mean_risk: float
    aurc: float
    e_aurc: float
    spearman: float
    low: float
    high: float


def dice_risk(dice: ArrayLike) -> FloatArray:
    """Return 1 - Dice, case by case; NaN stays NaN.

    Raises:
        ValueError: if a Dice lies outside [0, 1].
    """
    values = np.asarray(dice, dtype=np.float64)
    if ((values < 0) | (values > 1)).any():
        raise ValueError("Dice must lie in [0, 1]")
    return 1 - values


def risk_coverage(risk: ArrayLike, doubt: ArrayLike) -> RiskCoverage:
    """Return the risk-coverage curve of a test set.

    Args:
        risk: Of each case, (n,), lower is better.
        doubt: Of each case, (n,), in any unit; infinite is allowed.

    Raises:
        ValueError: if the two differ in length.
    """
    kept_risk, kept_doubt = _paired(risk, doubt)
    selective, optimum = _selective(kept_risk, kept_doubt), _selective(kept_risk, kept_risk)
    n = kept_risk.size
    aurc = float(selective.mean()) if n else math.nan
    # Rounding could put the best order's mean above that of an order just as good.
    excess = max(0.0, aurc - float(optimum.mean())) if n else math.nan
    return RiskCoverage(np.arange(1, n + 1) / max(n, 1), selective, optimum, aurc, excess)


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Return Spearman's rank correlation, ties sharing their mean rank.

    NaN pairs are left out; fewer than two pairs, or one side constant, give NaN.
    """
    first, second = (_centred_ranks(values) for values in _paired(a, b))
    scale = float((first @ first) * (second @ second))
    return float(first @ second) / math.sqrt(scale) if scale > 0 else math.nan


def score_doubt(
    risk: ArrayLike, doubt: ArrayLike, *, patients: Sequence[Any] | None = None, seed: int = 0
) -> DoubtScore:
    """Score how well ``doubt`` foretells ``risk``.

    Args:
        risk: Of each case, (n,); usually ``dice_risk``.
        doubt: Of each case, (n,).
        patients: Each case's patient, resampled as one; None takes each case as its own.
        seed: Of the bootstrap.

    Raises:
        ValueError: if lengths differ.
    """
    kept_risk, kept_doubt = _paired(risk, doubt)
    curve = risk_coverage(kept_risk, kept_doubt)
    low, high = statistics.bca_interval(spearman, risk, doubt, patients=patients, seed=seed)
    return DoubtScore(
        n=kept_risk.size,
        left_out=np.size(risk) - kept_risk.size,
        mean_risk=float(kept_risk.mean()) if kept_risk.size else math.nan,
        aurc=curve.aurc,
        e_aurc=curve.e_aurc,
        spearman=spearman(kept_risk, kept_doubt),
        low=low,
        high=high,
    )


def _centred_ranks(values: FloatArray) -> FloatArray:
    """Ranks less their mean, ties sharing their mean rank: exact multiples of one half.

    Several times as fast as scipy's ``rankdata``; a bootstrap asks thousands of times.
    """
    _, group, size = np.unique(values, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(size) - (size - 1) / 2
    return np.asarray(mean_rank[group] - (values.size + 1) / 2)


def _selective(risk: FloatArray, doubt: FloatArray) -> FloatArray:
    """r(1) ... r(n), each the mean over all orders of tied cases."""
    _, group, size = np.unique(doubt, return_inverse=True, return_counts=True)
    # Sorted, so that sums do not depend on the order of the cases, not even in the last bits.
    order = np.lexsort((risk, group))
    shared = np.bincount(group[order], risk[order]) / size
    expected = np.repeat(shared, size)
    return np.asarray(np.cumsum(expected) / np.arange(1, risk.size + 1), dtype=np.float64)


def _paired(a: ArrayLike, b: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Both samples as vectors, without the cases where either is NaN."""
    first, second = (np.asarray(values, dtype=np.float64) for values in (a, b))
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"need one value of each per case: {first.shape} and {second.shape}")
    known = ~(np.isnan(first) | np.isnan(second))
    return first[known], second[known]
