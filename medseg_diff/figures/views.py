"""How a case is turned upright, cut into slices and cropped, before anything is drawn.

Letters: ``*S`` spatial axes, ``C`` channels, ``N`` draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Structures = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class CaseView:
    """One case as the overlay shows it.

    Attributes:
        reference: Label map, (*S).
        prediction: Label map, (*S).
        affine: Voxel to RAS+ millimetres, (4, 4); for a 2-D image None: rows run down and columns
            run right.
        image: (C, *S), or None for masks on grey.
        doubt: (*S) in [0, 1], or None.
        draws: Label maps (N, *S), one per draw, or None.
    """

    reference: NDArray[Any]
    prediction: NDArray[Any]
    affine: NDArray[Any] | None = None
    image: NDArray[Any] | None = None
    doubt: NDArray[Any] | None = None
    draws: NDArray[Any] | None = None


@dataclass(frozen=True)
class Plane:
    """A slice ready to draw: rows run down, columns right; ``edges`` = left, right, top, bottom."""

    name: str
    view: CaseView
    spacing: tuple[float, float]
    edges: tuple[str, str, str, str] | None


@dataclass(frozen=True)
class Stack:
    """Slices of one case, cropped alike.

    Attributes:
        planes: From the patient's feet up (coronal: front to back, sagittal: right to left).
        numbers: Place of each in the volume, counted from 1.
        extent: Slices of the whole volume.
        middle: Index of the slice to show first: the one where the reference is largest.
    """

    planes: list[Plane]
    numbers: list[int]
    extent: int
    middle: int


def viewing_axes(affine: NDArray[Any]) -> tuple[list[int], list[bool], list[float]]:
    """Say how to turn a volume so that its axes run to the patient's left, back and feet.

    Returns:
        Voxel axis that becomes each new axis, whether to reverse it, and its spacing in mm.
    """
    matrix = np.asarray(affine, dtype=float)[:3, :3]
    spacing = np.linalg.norm(matrix, axis=0)
    # Oblique scans: the assignment gives each world axis its own voxel axis.
    _, order = linear_sum_assignment(-np.abs(matrix / spacing))
    reverse = [bool(matrix[world, axis] > 0) for world, axis in enumerate(order)]
    return [int(axis) for axis in order], reverse, [float(spacing[axis]) for axis in order]


def planes(view: CaseView, structures: Structures) -> Iterator[Plane]:
    """Cut a case where it shows most: one slice of a 2-D image, up to three of a volume."""
    if view.reference.ndim == 2:
        yield Plane("", view, (1.0, 1.0), None)
        return
    upright, spacing = _upright(view)
    for axis in _KINDS:
        if not _is_line(upright, axis):
            yield _cut(upright, spacing, axis, largest_section(upright, structures, axis))


def stack(view: CaseView, structures: Structures, limit: int) -> Stack:
    """Cut a case through its structures, slice by slice, along its coarsest axis.

    A volume of equal spacing is cut into axial slices. Where no mask holds anything, the middle
    slice stands for all. All slices are cropped alike, to the masks with half as much around.

    Args:
        view: The case.
        structures: Name to label values.
        limit: Most slices to return; they are then evenly spaced, the one where the reference is
            largest among them.
    """
    if view.reference.ndim == 2:
        return Stack(_alike([Plane("", view, (1.0, 1.0), None)], structures), [1], 1, 0)
    upright, spacing = _upright(view)
    axes = [axis for axis in _KINDS if not _is_line(upright, axis)] or [2]
    # Rounded: spacings that differ by a tenth are equal, and the plane is then axial.
    axis = max(axes, key=lambda a: (round(5 * spacing[a] / max(spacing)), a))
    extent = upright.reference.shape[axis]
    # The upright axis runs to the feet (back, left); readers count slices from the feet up.
    order = sorted(_filled(upright, structures, axis, limit), reverse=axis == 2)
    cuts = [_cut(upright, spacing, axis, index) for index in order]
    numbers = [extent - index if axis == 2 else index + 1 for index in order]
    middle = order.index(largest_section(upright, structures, axis))
    return Stack(_alike(cuts, structures), numbers, extent, middle)


def _alike(cuts: Sequence[Plane], structures: Structures) -> list[Plane]:
    """Crop slices of one volume to what all their masks need."""
    union = np.zeros(cuts[0].view.reference.shape, bool)
    for plane in cuts:
        union |= _masks(plane.view, structures)
    box = _box(union, margin=1.0)
    return [replace(p, view=_map(p.view, lambda a: a[..., box[0], box[1]])) for p in cuts]


# Axis of the upright volume to cut along: the plane's name, and what lies at its left, right, top
# and bottom edge.
_KINDS = {
    2: ("axial", ("R", "L", "A", "P")),
    1: ("coronal", ("R", "L", "S", "I")),
    0: ("sagittal", ("A", "P", "S", "I")),
}


def _upright(view: CaseView) -> tuple[CaseView, list[float]]:
    """Turn a volume so that its axes run to the patient's left, back and feet; with its spacing."""
    affine = np.eye(4) if view.affine is None else view.affine
    order, reverse, spacing = viewing_axes(affine)

    def turn(array: NDArray[Any]) -> NDArray[Any]:
        turned = array.transpose([*range(array.ndim - 3), *(a + array.ndim - 3 for a in order)])
        for axis, back in enumerate(reverse, start=array.ndim - 3):
            turned = np.flip(turned, axis) if back else turned
        return turned

    return _map(view, turn), spacing


def _is_line(upright: CaseView, axis: int) -> bool:
    """Whether slices across ``axis`` are one voxel thin: such a volume has one plane to show."""
    across, down = (a for a in range(3) if a != axis)
    return 1 in (upright.reference.shape[across], upright.reference.shape[down])


def _cut(upright: CaseView, spacing: Sequence[float], axis: int, index: int) -> Plane:
    name, edges = _KINDS[axis]
    across, down = (a for a in range(3) if a != axis)

    def cut(array: NDArray[Any]) -> NDArray[Any]:
        # The first remaining axis runs across the picture, the second down.
        return np.take(array, index, axis=axis + array.ndim - 3).swapaxes(-1, -2)

    return Plane(name, _map(upright, cut), (spacing[down], spacing[across]), edges)


def _filled(upright: CaseView, structures: Structures, axis: int, limit: int) -> list[int]:
    """Indices of the slices that hold a mask and one beyond each end, at most ``limit``."""
    others = tuple(a for a in range(3) if a != axis)
    held = np.flatnonzero(_masks(upright, structures).any(axis=others))
    middle = largest_section(upright, structures, axis)
    if held.size == 0:
        return [middle]
    extent = upright.reference.shape[axis]
    wanted = np.arange(max(0, held[0] - 1), min(extent, held[-1] + 2))
    if wanted.size <= limit:
        return [int(index) for index in wanted]
    # Evenly spaced through the largest section, whose slice is shown first.
    stride = math.ceil(wanted.size / limit)
    return [int(index) for index in wanted if (index - middle) % stride == 0]


def _masks(view: CaseView, structures: Structures) -> NDArray[np.bool_]:
    """Where reference, prediction or any draw holds a structure."""
    union = _foreground(view.reference, structures) | _foreground(view.prediction, structures)
    if view.draws is not None:
        union |= _foreground(view.draws, structures).any(axis=0)
    return union


def _map(view: CaseView, change: Callable[[NDArray[Any]], NDArray[Any]]) -> CaseView:
    """Apply one change to every array of a view."""
    return replace(
        view,
        reference=change(view.reference),
        prediction=change(view.prediction),
        image=None if view.image is None else change(view.image),
        doubt=None if view.doubt is None else change(view.doubt),
        draws=None if view.draws is None else change(view.draws),
    )


def _foreground(labels: NDArray[Any], structures: Structures) -> NDArray[np.bool_]:
    return np.isin(labels, sorted({v for values in structures.values() for v in values}))


def largest_section(view: CaseView, structures: Structures, axis: int) -> int:
    """Return the slice with most reference, else most prediction, else the middle one."""
    others = tuple(a for a in range(3) if a != axis)
    for labels in (view.reference, view.prediction):
        area = _foreground(labels, structures).sum(axis=others)
        if area.any():
            return int(area.argmax())
    return view.reference.shape[axis] // 2


def zoom(plane: Plane, structures: Structures) -> Plane:
    """Crop to the masks with as much again around them, but never below a third of the slice."""
    view = plane.view
    union = _foreground(view.reference, structures) | _foreground(view.prediction, structures)
    box = _box(union, margin=2.0)
    return replace(plane, view=_map(view, lambda array: array[..., box[0], box[1]]))


def _box(union: NDArray[np.bool_], *, margin: float) -> tuple[slice, slice]:
    """Rows and columns of a mask and ``margin`` times its size around it.

    At least a third of the slice, and all of it if the mask is empty.
    """
    if not union.any():
        return slice(None), slice(None)
    box = []
    for axis, extent in enumerate(union.shape):
        filled = np.flatnonzero(union.any(axis=1 - axis))
        middle, size = (filled[0] + filled[-1] + 1) / 2, filled[-1] + 1 - filled[0]
        half = max((0.5 + margin / 2) * size, extent / 6)
        box.append(slice(max(0, math.floor(middle - half)), min(extent, math.ceil(middle + half))))
    return box[0], box[1]


def grey_window(image: NDArray[Any] | None) -> tuple[float, float]:
    """Return display limits: the 1st and 99th percentile of the whole image's first channel."""
    if image is None:
        return 0.0, 1.0
    values = image[0][np.isfinite(image[0])]
    low, high = np.percentile(values, [1, 99]) if values.size else (0.0, 1.0)
    return float(low), float(max(high, low + 1e-6))


def background(view: CaseView, window: tuple[float, float]) -> NDArray[Any]:
    """Return what lies under the masks: grey, colour, or a flat middle grey."""
    if view.image is None:
        return np.full(view.reference.shape, 0.45)
    if view.image.shape[0] in (3, 4) and view.affine is None:
        colour = np.nan_to_num(np.moveaxis(view.image[:3].astype(float), 0, -1))
        return np.clip(colour / (255.0 if colour.max() > 1 else 1.0), 0, 1)
    return np.nan_to_num(view.image[0].astype(float), nan=window[0])
