"""Scores of a predicted mask against a reference: arrays in, numbers out.

Letters: ``*S`` spatial axes, two or three of them; spacing is in mm, one number per axis.

**Surface.** A mask's surface is its boundary voxels: those with a face neighbour (4 in 2-D, 6 in
3-D) outside the mask. The image border and ignored voxels count as outside. Distances run from
voxel centre to voxel centre, in mm, and every boundary voxel weighs the same:

    d(P, R) = for each boundary voxel of P, the distance to the nearest boundary voxel of R
    HD95    = max(95th percentile of d(P, R), 95th percentile of d(R, P))
    ASSD    = mean of d(P, R) and d(R, P) pooled
    NSD     = share of d(P, R) and d(R, P) pooled that is at most the tolerance

Percentiles interpolate linearly. This is MONAI's definition without sub-voxel areas, so the
numbers agree with that implementation wherever both masks hold something.

**Empty masks** follow one table, so that a missed structure can never improve a mean:

    prediction  reference  outcome         Dice  NSD  HD95 and ASSD
    empty       empty      both_empty      -     -    -               (excluded, counted)
    some        empty      false_positive  0     0    -               (counted)
    empty       some       missed          0     0    image diagonal  (counted)
    some        some       scored          computed
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion
from scipy.spatial import cKDTree

Outcome = Literal["scored", "missed", "false_positive", "both_empty"]
BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]

METRICS = ("dice", "nsd", "hd95_mm", "assd_mm", "volume_difference_ml")

SURFACE_DEFINITION = (
    "boundary voxels (a face neighbour outside the mask; the image border counts as outside), "
    "centre to centre in mm, each boundary voxel weighted equally"
)
HD95_DEFINITION = "larger of the two directed 95th percentiles (linear interpolation)"
ASSD_DEFINITION = "mean of both directed surface distances, pooled"

# Centres are products index * spacing: a distance equal to the tolerance on paper may exceed
# it in the last bits. One nanometre is far below any scanner and far above rounding.
_ROUNDING_MM = 1e-6


@dataclass(frozen=True)
class Score:
    """One structure of one case; NaN where the table of empty masks leaves a blank.

    ``volume_difference_ml`` is prediction minus reference. A 2-D image is taken to be 1 mm thick.
    """

    dice: float
    nsd: float
    hd95_mm: float
    assd_mm: float
    volume_ref_ml: float
    volume_pred_ml: float
    volume_difference_ml: float
    outcome: Outcome


def structures_of(
    labels: Mapping[str, int] | None = None, regions: Mapping[str, Sequence[int]] | None = None
) -> dict[str, tuple[int, ...]]:
    """Return what is scored: each name with the label values that make it up.

    Regions (which may overlap) win over labels; the background, value 0, is no structure.

    Raises:
        ValueError: if nothing is left, or a region is empty or holds the background.
    """
    if regions:
        structures = {name: tuple(int(v) for v in values) for name, values in regions.items()}
    else:
        structures = {name: (int(v),) for name, v in (labels or {}).items() if int(v) != 0}
    if not structures:
        raise ValueError("no structure to score: give labels or regions besides the background")
    for name, values in structures.items():
        if not values or 0 in values:
            raise ValueError(f"region {name!r} must hold label values other than 0, not {values}")
    return structures


def image_diagonal_mm(shape: Sequence[int], spacing_mm: Sequence[float]) -> float:
    """Return the length of the field of view's diagonal, voxel edges included, in mm."""
    return math.hypot(*(n * s for n, s in zip(shape, spacing_mm, strict=True)))


def score_case(
    prediction: NDArray[Any],
    reference: NDArray[Any],
    spacing_mm: Sequence[float],
    structures: Mapping[str, Sequence[int]],
    *,
    ignore_label: int | None = None,
    tolerance_mm: float = 1.0,
) -> dict[str, Score]:
    """Score every structure of one case.

    Args:
        prediction: Label map, (*S).
        reference: Label map, (*S); its ``ignore_label`` voxels are cleared in both masks.
        spacing_mm: Voxel size along each axis.
        structures: Name to label values, as ``structures_of`` returns.
        ignore_label: Value of the reference that marks voxels nobody judged.
        tolerance_mm: Largest surface distance that NSD forgives.

    Raises:
        ValueError: if shapes, spacing, tolerance or structures are not usable.
    """
    _check(prediction, reference, spacing_mm, tolerance_mm)
    if ignore_label is not None and any(ignore_label in v for v in structures.values()):
        raise ValueError(f"ignore_label {ignore_label} is also the value of a structure")
    diagonal = image_diagonal_mm(reference.shape, spacing_mm)
    box = _bounding_box((prediction != 0) | (reference != 0))
    prediction, reference = prediction[box], reference[box]
    judged = None if ignore_label is None else reference != ignore_label
    scores = {}
    for name, values in structures.items():
        masks = [np.isin(labels, list(values)) for labels in (prediction, reference)]
        if judged is not None:
            masks = [mask & judged for mask in masks]
        scores[name] = _score(masks[0], masks[1], spacing_mm, tolerance_mm, diagonal)
    return scores


def score_masks(
    prediction: NDArray[Any],
    reference: NDArray[Any],
    spacing_mm: Sequence[float],
    *,
    tolerance_mm: float = 1.0,
) -> Score:
    """Score one binary mask, (*S), against another on the same grid; see ``score_case``."""
    _check(prediction, reference, spacing_mm, tolerance_mm)
    diagonal = image_diagonal_mm(reference.shape, spacing_mm)
    return _score(
        prediction.astype(bool), reference.astype(bool), spacing_mm, tolerance_mm, diagonal
    )


def dice(prediction: BoolArray, reference: BoolArray) -> float:
    """Return 2 |P and R| / (|P| + |R|); NaN when both masks are empty."""
    total = np.count_nonzero(prediction) + np.count_nonzero(reference)
    if total == 0:
        return math.nan
    return 2.0 * float(np.count_nonzero(prediction & reference)) / float(total)


def surface_distances(
    prediction: BoolArray, reference: BoolArray, spacing_mm: Sequence[float]
) -> tuple[FloatArray, FloatArray]:
    """Return d(P, R) and d(R, P) in mm, one number per boundary voxel of the first mask.

    Raises:
        ValueError: if a mask is empty (it has no surface).
    """
    if not (prediction.any() and reference.any()):
        raise ValueError("surface distances need two masks that hold something")
    points = [_surface_points(mask, spacing_mm) for mask in (prediction, reference)]
    to_reference, _ = cKDTree(points[1]).query(points[0])
    to_prediction, _ = cKDTree(points[0]).query(points[1])
    return np.asarray(to_reference), np.asarray(to_prediction)


def _score(
    prediction: BoolArray,
    reference: BoolArray,
    spacing_mm: Sequence[float],
    tolerance_mm: float,
    diagonal_mm: float,
) -> Score:
    box = _bounding_box(prediction | reference)
    prediction, reference = prediction[box], reference[box]
    voxel_ml = math.prod(spacing_mm) / 1000.0
    volume_pred = float(np.count_nonzero(prediction)) * voxel_ml
    volume_ref = float(np.count_nonzero(reference)) * voxel_ml
    outcome: Outcome
    if volume_pred and volume_ref:
        outcome = "scored"
        forward, backward = surface_distances(prediction, reference, spacing_mm)
        pooled = np.concatenate([forward, backward])
        overlap = dice(prediction, reference)
        nsd = float(np.mean(pooled <= tolerance_mm + _ROUNDING_MM))
        hd95 = float(max(np.percentile(forward, 95), np.percentile(backward, 95)))
        assd = float(pooled.mean())
    elif volume_ref:
        outcome, overlap, nsd, hd95, assd = "missed", 0.0, 0.0, diagonal_mm, diagonal_mm
    elif volume_pred:
        outcome, overlap, nsd, hd95, assd = "false_positive", 0.0, 0.0, math.nan, math.nan
    else:
        outcome, overlap, nsd, hd95, assd = "both_empty", math.nan, math.nan, math.nan, math.nan
    difference = math.nan if outcome == "both_empty" else volume_pred - volume_ref
    return Score(overlap, nsd, hd95, assd, volume_ref, volume_pred, difference, outcome)


def _surface_points(mask: BoolArray, spacing_mm: Sequence[float]) -> FloatArray:
    """Return centres of the boundary voxels in mm, (n, axes)."""
    # scipy's default element is the face neighbourhood and its border value is outside.
    boundary = mask & ~binary_erosion(mask)
    return np.argwhere(boundary).astype(np.float64) * np.asarray(spacing_mm, dtype=np.float64)


def _bounding_box(mask: BoolArray) -> tuple[slice, ...]:
    """Return the slices of the smallest box around a mask; all zero long when it is empty.

    No margin is needed: outside the box there is no mask, which is what erosion assumes.
    """
    box = []
    for axis in range(mask.ndim):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        filled = np.flatnonzero(mask.any(axis=others))
        box.append(slice(int(filled[0]), int(filled[-1]) + 1) if filled.size else slice(0, 0))
    return tuple(box)


def _check(
    prediction: NDArray[Any],
    reference: NDArray[Any],
    spacing_mm: Sequence[float],
    tolerance_mm: float,
) -> None:
    if prediction.shape != reference.shape:
        raise ValueError(
            f"prediction {prediction.shape} and reference {reference.shape} differ in shape"
        )
    if reference.ndim not in (2, 3):
        raise ValueError(f"masks must have 2 or 3 axes, not {reference.ndim}")
    if len(spacing_mm) != reference.ndim:
        raise ValueError(f"need {reference.ndim} spacings, got {len(spacing_mm)}")
    if not all(math.isfinite(s) and s > 0 for s in spacing_mm):
        raise ValueError(f"spacing must be positive, not {tuple(spacing_mm)}")
    if not (math.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise ValueError(f"tolerance_mm must be 0 or more, not {tolerance_mm}")
