"""One temperature for all probabilities, fitted on validation cases (Guo et al. 2017).

Letters: K classes or regions, *S spatial axes, V voxels of all cases.

    exclusive classes    p -> softmax(log p / T)
    overlapping regions  p -> sigmoid(logit(p) / T)

T above 1 softens, below 1 sharpens, and no voxel changes its side or its top label. Logits need
no path of their own: their softmax (or sigmoid) gives the same answer. Probabilities are first
clipped to ``FLOOR`` from 0 and 1, so that saturated ones can soften. A mean over draws is a
probability like any other: fit T on the same number of draws it will be applied to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_expit, log_softmax

from medseg_diff.calibration import FLOOR

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]

# Separable validation cases would drive T to 0 and every probability to certainty.
LOWEST = 0.05
HIGHEST = 20.0


@dataclass(frozen=True)
class Temperature:
    """A fitted temperature.

    Attributes:
        value: T, in [``LOWEST``, ``HIGHEST``].
        at_bound: T is one of the two bounds: the fit says little.
        nll_before: Mean NLL at T = 1, in nats, per voxel (of regions, per voxel and region).
        nll_after: The same at T; never above ``nll_before``.
        voxels: V the fit saw.
    """

    value: float
    at_bound: bool
    nll_before: float
    nll_after: float
    voxels: int


def fit_temperature(
    probabilities: Sequence[NDArray[Any]],
    targets: Sequence[NDArray[Any]],
    *,
    exclusive: bool,
    where: Sequence[BoolArray] | None = None,
) -> Temperature:
    """Find the T of the smallest NLL over the voxels of all cases.

    The NLL is convex in 1 / T, so the bounded search finds its only minimum.

    Args:
        probabilities: One (K, *S) array a case, in [0, 1]; exclusive classes sum to 1.
        targets: Per case, classes (*S) in 0 ... K - 1, or presence (K, *S) in [0, 1] of regions.
        exclusive: True for classes, False for regions.
        where: Per case, voxels to fit on, (*S); None for all. Background far from any structure
            outvotes the rest: ``calibration.near_foreground`` leaves it out.

    Raises:
        ValueError: if there is no voxel, or shapes or values do not fit.
    """
    scores, truth = _gather(probabilities, targets, exclusive, where)

    def nll(log_t: float) -> float:
        scaled = scores / math.exp(log_t)
        if exclusive:
            chosen = np.take_along_axis(log_softmax(scaled, axis=0), truth.astype(np.int64), 0)
            return -float(chosen.mean())
        return -float((truth * log_expit(scaled) + (1 - truth) * log_expit(-scaled)).mean())

    bounds = (math.log(LOWEST), math.log(HIGHEST))
    inner = minimize_scalar(nll, bounds=bounds, method="bounded", options={"xatol": 1e-5})
    # The search never reaches a bound itself, and T = 1 must not lose to its tolerance.
    candidates = (*bounds, 0.0, float(inner.x))
    values = [nll(candidate) for candidate in candidates]
    best = int(np.argmin(values))
    return Temperature(
        value=(LOWEST, HIGHEST, 1.0, math.exp(candidates[3]))[best],
        at_bound=best < 2,
        nll_before=values[2],
        nll_after=values[best],
        voxels=scores.shape[1],
    )


def apply_temperature(
    probability: NDArray[Any], temperature: float, *, exclusive: bool
) -> NDArray[Any]:
    """Return a probability map at another temperature: (K, *S), floating, same shape and dtype.

    Raises:
        ValueError: if ``temperature`` is below ``LOWEST`` or not finite.
    """
    if not (math.isfinite(temperature) and temperature >= LOWEST):
        raise ValueError(f"temperature must be at least {LOWEST}, not {temperature}")
    scaled = _scores(probability, exclusive) / temperature
    result = log_softmax(scaled, axis=0) if exclusive else log_expit(scaled)
    return np.exp(result).astype(probability.dtype)


def _scores(probability: NDArray[Any], exclusive: bool) -> FloatArray:
    """What is divided by T: log p of classes, logit p of regions, float64."""
    p = np.clip(probability.astype(np.float64), FLOOR, 1 - FLOOR)
    return np.log(p) if exclusive else np.log(p) - np.log1p(-p)


def _gather(
    probabilities: Sequence[NDArray[Any]],
    targets: Sequence[NDArray[Any]],
    exclusive: bool,
    where: Sequence[BoolArray] | None,
) -> tuple[FloatArray, FloatArray]:
    """Scores (K, V) and the truth: classes (1, V), or presence (K, V)."""
    if where is not None and len(where) != len(probabilities):
        raise ValueError(f"{len(where)} regions for {len(probabilities)} probabilities")
    if len(targets) != len(probabilities):
        raise ValueError(f"{len(targets)} targets for {len(probabilities)} probabilities")
    scores, truths = [], []
    for index, (p, target) in enumerate(zip(probabilities, targets, strict=True)):
        grid = p.shape[1:]
        if target.shape != (grid if exclusive else p.shape):
            raise ValueError(f"target {target.shape} does not fit probability {p.shape}")
        judged = np.ones(grid, dtype=bool) if where is None else where[index]
        if judged.shape != grid or judged.dtype != np.bool_:
            raise ValueError(f"where must be bool of shape {grid}, not {judged.shape}")
        truth = target[None] if exclusive else target
        highest = len(p) - 1 if exclusive else 1
        kept = truth[:, judged].astype(np.float64)
        if kept.size and not (kept.min() >= 0 and kept.max() <= highest):
            raise ValueError(f"targets must lie in 0 to {highest}")
        if not (p.min(initial=0) >= 0 and p.max(initial=0) <= 1):
            raise ValueError("probabilities must lie in [0, 1]")
        scores.append(_scores(p[:, judged], exclusive))
        truths.append(kept)
    if not sum(score.shape[1] for score in scores):
        raise ValueError("no voxel to fit a temperature on")
    return np.concatenate(scores, axis=1), np.concatenate(truths, axis=1)
