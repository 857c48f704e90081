"""Is a probability of 0.8 right in 8 voxels of 10? Arrays in, numbers out, images added one by one.

Letters: K classes, *S spatial axes, V voxels judged, M bins. A binary target y is presence in
{0, 1}, or a share of annotators in [0, 1], which counts as that many votes of each kind.

    ECE           = sum over bins of n_b / V |mean p in b - frequency of y in b|
    adaptive ECE  = the same over M bins of equal mass (Nixon et al. 2019)
    Brier         = mean (p - y)^2 per vote; of classes, summed over the K of them, so in [0, 2]
    NLL           = mean -log probability of the truth, in nats, probabilities at least ``FLOOR``

**What is binned.** A structure (binary): the probability of the structure itself over [0, 1], not
of the likelier side. Exclusive classes: the top label, its probability against how often it is the
true one (Guo et al. 2017). The bins of ECE have equal width, bin b holding [b / M, (b + 1) / M),
the last one 1 too.

**Ties.** Adaptive bins are cut from ``CELLS`` narrow cells per bin of ECE. A bin's edge inside a
cell takes a share of the whole cell, so equal probabilities have no order and voxels need not be
kept; true adaptive ECE is met up to what lies inside one cell, 1 / (M CELLS) wide.

**Where.** Over background alone every number flatters. Each result therefore names its region, and
``background_only`` says that nothing in it was marked or predicted. The region near the foreground
is all voxels whose centre is at most ``margin_mm`` from a voxel of the reference (any annotator's)
or of the prediction (p > 0.5; a top label that is not class 0): a dilation by a ball, not a box.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]

BINS = 15
CELLS = 200
MARGIN_MM = 5.0
FLOOR = 1e-7

WHOLE_IMAGE = "whole image"

# Centres are products index * spacing, so a distance on the margin may exceed it in the last bits.
_ROUNDING_MM = 1e-6


@dataclass(frozen=True)
class CalibrationScore:
    """Calibration of all images pooled; NaN where there was no voxel.

    Attributes:
        region: Where: ``"whole image"`` or ``"within ... mm of the foreground"``.
        images: Images added.
        without_voxels: How many of them had no voxel in the region.
        voxels: V.
        background_only: No voxel of the region was marked or predicted as foreground.
        bins: M.
        ece: In [0, 1].
        adaptive_ece: In [0, 1].
        brier: In [0, 1]; of classes in [0, 2].
        nll: In nats, 0 or more.
    """

    region: str
    images: int
    without_voxels: int
    voxels: int
    background_only: bool
    bins: int
    ece: float
    adaptive_ece: float
    brier: float
    nll: float


@dataclass(frozen=True)
class Diagram:
    """Reliability diagram: M bins of equal width.

    Attributes:
        edges: M + 1 of them, from 0 to 1.
        count: Voxels of each bin.
        confidence: Mean probability of each bin; NaN where it is empty.
        frequency: Share of them that came true; NaN where it is empty.
    """

    edges: FloatArray
    count: FloatArray
    confidence: FloatArray
    frequency: FloatArray


class Calibration:
    """Sums from which every score of one structure follows, whatever the number of images.

    Args:
        bins: M, of equal width.
        region: What the voxels added are; see the top of this file.
    """

    def __init__(self, bins: int = BINS, region: str = WHOLE_IMAGE) -> None:
        if bins < 1:
            raise ValueError(f"bins must be 1 or more, not {bins}")
        self.bins = bins
        self.region = region
        self.images = 0
        self.without_voxels = 0
        self._foreground = False
        # Rows: voxels, sum of p, sum of y.
        self._cells = np.zeros((3, bins * CELLS))
        self._brier = 0.0
        self._nll = 0.0

    def add(
        self, probability: NDArray[Any], target: NDArray[Any], where: BoolArray | None = None
    ) -> None:
        """Take one image of a structure.

        Args:
            probability: (*S), in [0, 1].
            target: (*S), in [0, 1]: presence, or the share of annotators who marked it.
            where: Voxels to judge, (*S); None for all.

        Raises:
            ValueError: if shapes differ, or values lie outside [0, 1].
        """
        p, y = _check_binary(probability, target, where)
        brier = (p - y) ** 2 + y * (1 - y)
        nll = -(y * np.log(np.maximum(p, FLOOR)) + (1 - y) * np.log(np.maximum(1 - p, FLOOR)))
        self._take(p, y, brier, nll, bool((p > 0.5).any() or (y > 0).any()))

    def merge(self, other: Self) -> None:
        """Take all that another one took.

        Raises:
            ValueError: if it differs in bins, region or kind.
        """
        if (type(self), self.bins, self.region) != (type(other), other.bins, other.region):
            raise ValueError(
                f"cannot add {type(other).__name__} of {other.bins} bins, {other.region}, to "
                f"{type(self).__name__} of {self.bins} bins, {self.region}"
            )
        self.images += other.images
        self.without_voxels += other.without_voxels
        self._foreground |= other._foreground
        self._cells += other._cells
        self._brier += other._brier
        self._nll += other._nll

    def diagram(self) -> Diagram:
        """Return the reliability diagram of all images so far."""
        count, p, y = self._cells.reshape(3, self.bins, CELLS).sum(2)
        full = np.where(count > 0, count, math.nan)
        return Diagram(np.linspace(0, 1, self.bins + 1), count, p / full, y / full)

    def score(self) -> CalibrationScore:
        """Score all images so far, every voxel weighing the same."""
        voxels = float(self._cells[0].sum())
        ece = adaptive = brier = nll = math.nan
        if voxels:
            _, p, y = self._cells.reshape(3, self.bins, CELLS).sum(2)
            ece = float(np.abs(p - y).sum()) / voxels
            adaptive = _equal_mass_error(self._cells, self.bins)
            brier, nll = self._brier / voxels, self._nll / voxels
        return CalibrationScore(
            region=self.region,
            images=self.images,
            without_voxels=self.without_voxels,
            voxels=int(voxels),
            background_only=not self._foreground,
            bins=self.bins,
            ece=ece,
            adaptive_ece=adaptive,
            brier=brier,
            nll=nll,
        )

    def _take(
        self, p: FloatArray, y: FloatArray, brier: FloatArray, nll: FloatArray, foreground: bool
    ) -> None:
        """Add voxels (V,) of one image."""
        self.images += 1
        self.without_voxels += int(p.size == 0)
        self._foreground |= foreground
        cells = self._cells.shape[1]
        # p * cells may round up to the next edge, or down from it: less than a cell either way.
        index = np.minimum((p * cells).astype(np.int64), cells - 1)
        for row, weights in enumerate((None, p, y)):
            self._cells[row] += np.bincount(index, weights, minlength=cells)
        self._brier += float(brier.sum())
        self._nll += float(nll.sum())


class TopLabelCalibration(Calibration):
    """The same of K exclusive classes; its bins hold the top label's probability."""

    def add(
        self, probability: NDArray[Any], target: NDArray[Any], where: BoolArray | None = None
    ) -> None:
        """Take one image of exclusive classes.

        Args:
            probability: (K, *S), in [0, 1], summing to 1.
            target: Class of each voxel in 0 ... K - 1, (*S) integers; 0 is the background.
            where: Voxels to judge, (*S); None for all. Unjudged ones may hold any target.

        Raises:
            ValueError: if shapes do not fit, or values are no probabilities or classes.
        """
        p, labels = _check_classes(probability, target, where)
        top = p.argmax(0)
        truth = np.take_along_axis(p, labels[None], 0)[0]
        brier = (p**2).sum(0) - 2 * truth + 1
        nll = -np.log(np.maximum(truth, FLOOR))
        correct = (top == labels).astype(np.float64)
        self._take(p.max(0), correct, brier, nll, bool(top.any() or labels.any()))


class RegionalCalibration:
    """Two pools of the same images: the whole image, and the region near the foreground.

    Args:
        margin_mm: Reach of the region.
        bins: M.
        exclusive: True for top labels of exclusive classes, False for one structure.
    """

    def __init__(
        self, *, margin_mm: float = MARGIN_MM, bins: int = BINS, exclusive: bool = False
    ) -> None:
        kind = TopLabelCalibration if exclusive else Calibration
        self.margin_mm = margin_mm
        self.exclusive = exclusive
        self.whole = kind(bins)
        self.near = kind(bins, f"within {margin_mm:g} mm of the foreground")

    def add(
        self,
        probability: NDArray[Any],
        target: NDArray[Any],
        spacing_mm: Sequence[float],
        where: BoolArray | None = None,
    ) -> None:
        """Take one image: arguments of ``Calibration.add`` or ``TopLabelCalibration.add``.

        Args:
            probability: (*S), or (K, *S) of exclusive classes.
            target: (*S).
            spacing_mm: Voxel size along each axis of *S.
            where: Voxels to judge, (*S). Unjudged ones do not mark foreground.
        """
        self.whole.add(probability, target, where)
        predicted = probability.argmax(0) != 0 if self.exclusive else probability > 0.5
        foreground = predicted | (target > 0)
        judged = _judged(target, where)
        near = near_foreground(foreground & judged, spacing_mm, self.margin_mm)
        self.near.add(probability, target, near & judged)

    def scores(self) -> tuple[CalibrationScore, CalibrationScore]:
        """Return the scores of the whole image and of the region near the foreground."""
        return self.whole.score(), self.near.score()


def near_foreground(
    foreground: BoolArray, spacing_mm: Sequence[float], margin_mm: float = MARGIN_MM
) -> BoolArray:
    """Return the voxels whose centre is at most ``margin_mm`` from a foreground voxel's, (*S).

    Nothing is near an empty foreground.

    Raises:
        ValueError: if spacing does not fit the axes or is not positive, or the margin is negative.
    """
    if len(spacing_mm) != foreground.ndim:
        raise ValueError(f"need {foreground.ndim} spacings, got {len(spacing_mm)}")
    if not all(math.isfinite(s) and s > 0 for s in spacing_mm):
        raise ValueError(f"spacing must be positive, not {tuple(spacing_mm)}")
    if not (math.isfinite(margin_mm) and margin_mm >= 0):
        raise ValueError(f"margin_mm must be 0 or more, not {margin_mm}")
    near = np.zeros(foreground.shape, dtype=bool)
    if not foreground.any():
        return near
    # Only the box that the margin can reach is searched.
    box = []
    for axis, step in enumerate(spacing_mm):
        others = tuple(a for a in range(foreground.ndim) if a != axis)
        filled = np.flatnonzero(foreground.any(axis=others))
        reach = math.floor((margin_mm + _ROUNDING_MM) / step)
        box.append(slice(max(0, int(filled[0]) - reach), int(filled[-1]) + reach + 1))
    cut = tuple(box)
    distance = distance_transform_edt(~foreground[cut], sampling=tuple(spacing_mm))
    near[cut] = np.asarray(distance) <= margin_mm + _ROUNDING_MM
    return near


def _equal_mass_error(cells: FloatArray, bins: int) -> float:
    """Adaptive ECE of cells (3, C) in the order of p, each split among bins in proportion."""
    count = cells[0]
    filled = np.concatenate([[0.0], np.cumsum(count)])
    edges = np.linspace(0, filled[-1], bins + 1)
    kept = np.flatnonzero(count)
    knots = np.concatenate([filled[kept], filled[-1:]])
    # Sums of p - y up to each edge: linear inside a cell, since a share of it stands for all.
    gaps = np.concatenate([[0.0], np.cumsum((cells[1] - cells[2])[kept])])
    return float(np.abs(np.diff(np.interp(edges, knots, gaps))).sum() / filled[-1])


def _check_binary(
    probability: NDArray[Any], target: NDArray[Any], where: BoolArray | None
) -> tuple[FloatArray, FloatArray]:
    """Judged voxels of both, (V,) float64."""
    judged = _judged(target, where)
    if probability.shape != target.shape:
        raise ValueError(f"probability {probability.shape} and target {target.shape} differ")
    p, y = (values[judged].astype(np.float64) for values in (probability, target))
    for name, values in (("probability", p), ("target", y)):
        if values.size and not (values.min() >= 0 and values.max() <= 1):
            raise ValueError(f"{name} must lie in [0, 1], not {values.min()} to {values.max()}")
    return p, y


def _check_classes(
    probability: NDArray[Any], target: NDArray[Any], where: BoolArray | None
) -> tuple[FloatArray, NDArray[np.int64]]:
    """Judged voxels as (K, V) probabilities and (V,) classes."""
    judged = _judged(target, where)
    if probability.shape[1:] != target.shape:
        raise ValueError(f"probability (K, *S) {probability.shape} does not fit {target.shape}")
    p, labels = probability[:, judged].astype(np.float64), target[judged]
    if p.size and not (p.min() >= 0 and np.abs(p.sum(0) - 1).max() < 1e-3):
        raise ValueError("probabilities of exclusive classes must be 0 or more and sum to 1")
    if labels.size and not (labels.min() >= 0 and labels.max() < len(p)):
        raise ValueError(
            f"classes must lie in 0 to {len(p) - 1}, not {labels.min()} to {labels.max()}"
        )
    return p, labels.astype(np.int64)


def _judged(target: NDArray[Any], where: BoolArray | None) -> BoolArray:
    if where is None:
        return np.ones(target.shape, dtype=bool)
    if where.dtype != np.bool_ or where.shape != target.shape:
        raise ValueError(
            f"where must be bool of shape {target.shape}, not {where.dtype} {where.shape}"
        )
    return where
