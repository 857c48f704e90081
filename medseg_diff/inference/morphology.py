"""Clean-up of label maps by shape: what LSegDiff does after its decoder, and the largest component.

:func:`clean_labels` does one thing to all structures; :func:`clean_by_rules` keeps a rule for each.
Arrays only; the probabilities beside a cleaned mask stay as the ensemble gave them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, distance_transform_edt
from skimage.measure import label as components
from skimage.morphology import closing, opening

Cleanup = Literal["none", "morphology", "largest"]


def clean_labels(
    labels: NDArray[np.integer[Any]], values: Sequence[int], how: Cleanup
) -> NDArray[np.integer[Any]]:
    """Label map with every structure cleaned on its own.

    Args:
        labels: Label map (*S), two or three axes; axes of length 1 are left out of the shapes.
        values: Label values to clean.
        how: ``"morphology"`` fills holes, then opens and closes by one voxel along each
            axis;
            ``"largest"`` keeps the largest connected component; ``"none"`` returns ``labels``.

    Returns:
        A new map. A voxel taken from a structure becomes background; one given to it was
        background before, so that no structure grows over another.
    """
    if how == "none":
        return labels
    flat = labels.squeeze()
    result = flat.copy()
    for value in values:
        before = flat == value
        after = _largest(before) if how == "largest" else _smoothed(before)
        result[before & ~after] = 0
        result[after & (flat == 0)] = value
    return result.reshape(labels.shape)


@dataclass(frozen=True)
class ShapeRule:
    """What one structure should look like; each part is off unless asked for.

    Attributes:
        fill_holes: Give background that the structure encloses to it.
        min_volume_mm3: Take away components smaller than this, after filling.
        keep_largest: Take away all components but the largest; of equal ones the first in the
            array stays.
    """

    fill_holes: bool = False
    min_volume_mm3: float = 0.0
    keep_largest: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.min_volume_mm3) and self.min_volume_mm3 >= 0):
            raise ValueError(f"min_volume_mm3 must be at least 0, not {self.min_volume_mm3}")


def clean_by_rules(
    labels: NDArray[np.integer[Any]], rules: Mapping[int, ShapeRule], spacing_mm: Sequence[float]
) -> NDArray[np.integer[Any]]:
    """Label map with each structure cleaned by its own rule.

    Components touch by faces, edges or corners; holes are closed in by faces, in all axes longer
    than 1. A hole that several structures enclose goes to the nearest, which is the inner one.

    Args:
        labels: Label map (*S), two or three axes.
        rules: Label value to rule; values without one stay as they are. Their order is of no
            consequence.
        spacing_mm: Voxel size along each axis; a 2-D image is taken to be 1 mm thick.

    Returns:
        A new map. As in :func:`clean_labels` no structure grows over another, and what one loses
        becomes background, inside another structure too. A minimum volume may leave nothing.

    Raises:
        ValueError: if spacing does not fit, or a rule is given for the background.
    """
    spacing = np.asarray(spacing_mm, np.float64)
    if spacing.shape != (labels.ndim,) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise ValueError(f"spacing must be {labels.ndim} positive numbers in mm, not {spacing_mm}")
    if 0 in rules:
        raise ValueError("the background, label 0, has no shape to clean")
    flat = labels.squeeze()
    background = flat == 0
    result = flat.copy()
    claims = {}
    for value in sorted(rules):
        before = flat == value
        after = _ruled(before, background, rules[value], float(spacing.prod()))
        result[before & ~after] = 0
        claims[value] = after & background
    owners = _owners(claims, result)
    return np.where(owners != 0, owners, result).reshape(labels.shape)


def _owners(
    claims: dict[int, NDArray[np.bool_]], labels: NDArray[np.integer[Any]]
) -> NDArray[np.integer[Any]]:
    """Value that each claimed voxel goes to, 0 elsewhere: of several the nearest structure's.

    Of nested structures that is the inner one, which lies between the voxel and the outer one.
    """
    owners, nearest = np.zeros_like(labels), np.full(labels.shape, np.inf)
    disputed = np.sum(list(claims.values()), axis=0) > 1
    for value, claim in claims.items():
        distance = np.zeros(labels.shape)
        if (claim & disputed).any():
            distance = distance_transform_edt(labels != value)
        closer = claim & (distance < nearest)
        owners[closer] = value
        nearest[closer] = distance[closer]
    return owners


def _ruled(
    mask: NDArray[np.bool_], background: NDArray[np.bool_], rule: ShapeRule, voxel_mm3: float
) -> NDArray[np.bool_]:
    """One structure's mask after its rule."""
    after = mask
    if rule.fill_holes:
        after = mask | (binary_fill_holes(mask) & background)
    if rule.min_volume_mm3 > 0:
        numbered = components(after)
        # Rounding of the product must not take away a component of exactly that volume.
        enough = np.bincount(numbered.ravel()) * voxel_mm3 * (1 + 1e-9) >= rule.min_volume_mm3
        enough[0] = False
        after = enough[numbered]
    return _largest(after) if rule.keep_largest else after


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Largest connected component, faces and corners touching."""
    numbered = components(mask)
    sizes = np.bincount(numbered.ravel())
    sizes[0] = 0
    kept: NDArray[np.bool_] = (numbered == sizes.argmax()) & mask
    return kept


def _smoothed(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Filling, opening, closing. A structure that opening would erase is left as it was."""
    # Filled first: opening would widen a hole. Padded, so that the border erodes nothing.
    padded = np.pad(binary_fill_holes(mask), 2, mode="edge")
    opened = opening(padded)
    smooth = closing(opened if opened.any() else padded)
    inside = tuple(slice(2, -2) for _ in range(mask.ndim))
    result: NDArray[np.bool_] = binary_fill_holes(smooth[inside])
    return result
