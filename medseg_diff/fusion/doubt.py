"""Doubt of an ensemble: per voxel from its probabilities, in mm and ml from its masks.

Legend: N draws, K classes or regions, *S spatial axes; spacing is in mm, one number per axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion
from scipy.spatial import cKDTree

from medseg_diff.fusion.moments import (
    RunningMoments,
    channel_entropy,
    predictive_entropy,
)
from medseg_diff.fusion.votes import majority_mask

Array = NDArray[np.float32]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class DoubtMaps:
    """Four maps (*S), float32; the first three in [0, 1], with predictive = expected + mutual.

    Attributes:
        predictive: Entropy of the mean probability: all doubt.
        expected: Mean entropy of the single draws: what each doubts by itself.
        mutual: Mutual information between the answer and the draw: where draws contradict.
        variance: Variance between draws, averaged over K, divided by N.
    """

    predictive: Array
    expected: Array
    mutual: Array
    variance: Array


class Doubt:
    """Doubt of N draws, gathered one by one; what is kept does not grow with N.

    Entropies are normalised as in :func:`medseg_diff.fusion.predictive_entropy`. Of overlapping
    regions each voxel shows the one with the largest predictive entropy in all three entropies,
    so that they add up; the split is Depeweg et al. (2018), arXiv 1710.07283.

    Args:
        exclusive: Whether the K channels exclude one another.
    """

    def __init__(self, *, exclusive: bool) -> None:
        self.exclusive = exclusive
        self._probabilities = RunningMoments()
        self._entropies = RunningMoments()

    def add(self, probabilities: Array) -> None:
        """Take one draw's probabilities, (K, *S), in [0, 1]."""
        self._probabilities.add(probabilities)
        self._entropies.add(self._entropy(probabilities))

    def maps(self) -> DoubtMaps:
        """The four maps of all draws so far.

        Raises:
            ValueError: if no draw was added.
        """
        mean, expected = self._probabilities.mean, self._entropies.mean
        if mean is None or expected is None:
            raise ValueError("no draw was added")
        predictive = self._entropy(mean)
        largest = predictive.argmax(0)[None]
        total = np.take_along_axis(predictive, largest, 0)[0]
        # Entropy is concave, so only rounding puts the mean entropy above the mean's.
        own = np.minimum(np.take_along_axis(expected, largest, 0)[0], total)
        return DoubtMaps(total, own, total - own, self._probabilities.variance.mean(0))

    def _entropy(self, probabilities: Array) -> Array:
        """(1, *S) for exclusive classes, (K, *S) for regions."""
        if self.exclusive:
            return predictive_entropy(probabilities, exclusive=True)[None]
        return channel_entropy(probabilities)


def boundary_doubt_mm(masks: Iterable[BoolArray], spacing_mm: Sequence[float]) -> float:
    """How far one structure's boundary moves between draws, in mm.

    At each boundary voxel of the majority mask, the standard deviation (divided by N) over draws
    of the signed distance to the draw's boundary; the mean over those voxels. Distances run from
    voxel centre to voxel centre, negative inside, to the mask's boundary voxels: those with a
    face neighbour in the image outside the mask. So a flat boundary that moves by one voxel
    changes the distance by one voxel. The image border is no boundary.

    A draw without the structure lies the image diagonal away, and one that fills the image minus
    that, as a missed structure does in the distances of :mod:`medseg_diff.metrics.masks`.

    Args:
        masks: N masks (*S), two or three axes; gone through twice, so no generator.
        spacing_mm: Voxel size along each axis.

    Returns:
        At least 0; nan where the majority mask has no boundary.

    Raises:
        ValueError: if there is no draw, shapes differ, or spacing does not fit.
    """
    mean = majority_mask(masks)
    spacing = _checked_spacing(spacing_mm, mean.ndim)
    points = np.argwhere(_boundary(mean))
    if len(points) == 0:
        return float("nan")
    distances = RunningMoments()
    for mask in masks:
        distances.add(_signed_distances(mask, points, spacing).astype(np.float32))
    return float(np.sqrt(distances.variance.astype(np.float64)).mean())


@dataclass(frozen=True)
class VolumeInterval:
    """Volume of one structure over draws, in ml: its mean, 2.5 and 97.5 percentile."""

    mean_ml: float
    low_ml: float
    high_ml: float


def volume_interval_ml(masks: Iterable[BoolArray], spacing_mm: Sequence[float]) -> VolumeInterval:
    """Mean volume of one structure and the interval that holds 95 % of its draws.

    Percentiles interpolate linearly, so few draws give a narrow interval (two of them 95 % of
    their range). It tells how draws differ, not how far they are from the truth.

    Args:
        masks: N masks (*S), two or three axes.
        spacing_mm: Voxel size along each axis; a 2-D image is taken to be 1 mm thick.

    Raises:
        ValueError: if there is no draw, or spacing does not fit.
    """
    volumes = []
    for mask in masks:
        voxel_mm3 = float(np.prod(_checked_spacing(spacing_mm, mask.ndim)))
        volumes.append(int(np.count_nonzero(mask)) * voxel_mm3 / 1000)
    return interval_of_volumes(volumes)


def interval_of_volumes(volumes_ml: Sequence[float]) -> VolumeInterval:
    """Interval of volumes that are known already, one per draw, in ml.

    Raises:
        ValueError: if there is none.
    """
    if len(volumes_ml) == 0:
        raise ValueError("at least one draw is needed")
    low, high = np.percentile(volumes_ml, [2.5, 97.5])
    return VolumeInterval(float(np.mean(volumes_ml)), float(low), float(high))


def _boundary(mask: BoolArray) -> BoolArray:
    """Voxels of a mask with a face neighbour outside it; the image border counts as inside."""
    # Erosion by anything but the voxel itself is slow on the empty part of a scan.
    box = _box(mask)
    inside: BoolArray = binary_erosion(mask[box], border_value=1)
    result = np.zeros_like(mask)
    result[box] = mask[box] & ~inside
    return result


def _box(mask: BoolArray) -> tuple[slice, ...]:
    """Bounding box of a mask and one voxel around it, within the image."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        found = np.flatnonzero(mask.any(others))
        first, last = (int(found[0]), int(found[-1])) if len(found) else (0, 0)
        box.append(slice(max(first - 1, 0), last + 2))
    return tuple(box)


def _signed_distances(
    mask: BoolArray, points: NDArray[np.int64], spacing: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Distance in mm from each voxel (B, axes) to a mask's boundary voxels, negative inside."""
    surface = np.argwhere(_boundary(mask))
    inside = mask[tuple(points.T)]
    if len(surface) == 0:
        far = float(np.linalg.norm(np.array(mask.shape) * spacing))
        return np.where(inside, -far, far)
    distance, _ = cKDTree(surface * spacing).query(points * spacing)
    return np.where(inside, -distance, distance)


def _checked_spacing(spacing_mm: Sequence[float], axes: int) -> NDArray[np.float64]:
    spacing = np.asarray(spacing_mm, np.float64)
    if spacing.shape != (axes,) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise ValueError(f"spacing must be {axes} positive numbers in mm, not {spacing_mm}")
    return spacing
