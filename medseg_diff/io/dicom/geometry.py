"""From the positions of frames to one grid.

Slices are ordered by their position along the normal of their plane; their distance comes from
the same positions. InstanceNumber, file names, SliceThickness and SpacingBetweenSlices have no say.
A DICOM volume is indexed [i, j, k]: i along a row (the column index), j down a column, k along the
normal, which is the cross product of the two (PS3.3 C.7.6.2.1.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg_diff.errors import InputError
from medseg_diff.io.dicom.headers import VOLUME_KEYS, Frame
from medseg_diff.io.grid import ROUNDING_SHEAR, SPACING_RANGE_MM, TRUE_SHEAR, Affine

# Positions are decimal strings; many scanners round them to 0.01 mm.
ROUNDING_MM = 0.01
# Largest share of the distance by which one slice may be out of step.
UNEVEN = 0.01
SAME_DIRECTION, SAME_SPACING = 1e-4, 1e-4
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Stack:
    """Frames in order, and where they lie.

    Args:
        volumes: V volumes of K frames each, every one in the order of k.
        affine: (4, 4), voxel [i, j, k] -> mm in RAS+.
        told_apart_by: What distinguishes the volumes, where there are several.
        warnings: Sentences for the case's JSON.
    """

    volumes: tuple[tuple[Frame, ...], ...]
    affine: Affine
    told_apart_by: str
    warnings: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Lengths of i, j and k."""
        first = self.volumes[0][0]
        return first.columns, first.rows, len(self.volumes[0])


def stack_frames(frames: Sequence[Frame]) -> Stack:
    """Order the frames of one series and find their grid.

    Raises:
        InputError: for missing positions, mixed geometry, gaps, uneven distances, a tilted
            gantry, or frames at one position that nothing tells apart.
    """
    _require_places(frames)
    _require_one_geometry(frames)
    row, column = _directions(frames[0])
    normal = np.cross(row, column)
    levels = _levels(frames, normal)
    volumes, key = _split_volumes(levels)
    slices = volumes[0]
    positions = np.array([frame.position for frame in slices])
    step, warnings = _step(slices, positions, normal)
    between_rows, between_columns = slices[0].spacing or (1.0, 1.0)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * between_columns, column * between_rows
    affine[:3, 2], affine[:3, 3] = normal * step, positions[0]
    _check_spacing(affine, slices[0])
    return Stack(volumes, _LPS_TO_RAS @ affine, key, tuple(warnings))


def _require_places(frames: Sequence[Frame]) -> None:
    for name in ("position", "orientation", "spacing"):
        without = [f for f in frames if getattr(f, name) is None]
        if not without:
            continue
        keyword = {"position": "ImagePositionPatient", "orientation": "ImageOrientationPatient",
                   "spacing": "PixelSpacing"}[name]  # fmt: skip
        raise InputError(
            f"missing in {len(without)} of {len(frames)} frames",
            file=without[0].path,
            field=keyword,
            expected="a value for every frame",
            remedy="export the series again; places are never guessed",
        )


def _require_one_geometry(frames: Sequence[Frame]) -> None:
    """One matrix, pixel spacing and orientation; otherwise a list of what there is (F55, F50)."""
    groups: list[list[Frame]] = []
    for frame in frames:
        home = next((g for g in groups if _same_geometry(g[0], frame)), None)
        if home is None:
            groups.append([frame])
        else:
            home.append(frame)
    if len(groups) == 1:
        return
    turned = any(not _same_direction(g[0], groups[0][0]) for g in groups)
    small = max(map(len, groups)) < 4
    what = "looks like a localizer: mixed" if turned and small else "mixed"
    shown = "; ".join(_geometry_text(g) for g in groups[:4])
    raise InputError(
        f"{what} {'orientations' if turned else 'matrix or pixel spacing'} in one series",
        file=groups[-1][0].path,
        field="ImageOrientationPatient" if turned else "Rows, Columns and PixelSpacing",
        found=shown + (f"; and {len(groups) - 4} more" if len(groups) > 4 else ""),
        expected="one geometry",
        remedy="put each into a folder of its own",
    )


def _same_geometry(a: Frame, b: Frame) -> bool:
    same_size = (a.rows, a.columns) == (b.rows, b.columns)
    near = np.allclose(a.spacing or 0, b.spacing or 0, rtol=SAME_SPACING, atol=0)
    return same_size and bool(near) and _same_direction(a, b)


def _same_direction(a: Frame, b: Frame) -> bool:
    return bool(np.allclose(a.orientation or 0, b.orientation or 0, rtol=0, atol=SAME_DIRECTION))


def _geometry_text(group: Sequence[Frame]) -> str:
    first = group[0]
    spacing = " x ".join(f"{s:.4g}" for s in first.spacing or ())
    cosines = " ".join(f"{c:.3g}" for c in first.orientation or ())
    return f"{len(group)} of {first.columns} x {first.rows}, {spacing} mm, [{cosines}]"


def _directions(frame: Frame) -> tuple[Vector, Vector]:
    """Unit vectors along a row and a column, made exactly orthogonal."""
    cosines = np.array(frame.orientation).reshape(2, 3)
    lengths = np.linalg.norm(cosines, axis=1)
    crossed = abs(float(cosines[0] @ cosines[1]))
    if np.abs(lengths - 1).max() > TRUE_SHEAR or crossed > TRUE_SHEAR:
        raise InputError(
            "row and column are not unit vectors at right angles",
            file=frame.path,
            field="ImageOrientationPatient",
            found=f"lengths {lengths[0]:.5g} and {lengths[1]:.5g}, cosine {crossed:.3g}",
            expected=f"1, 1 and 0 within {TRUE_SHEAR:g}",
            remedy="export the series again from its source",
        )
    cosines /= lengths[:, None]
    if crossed > ROUNDING_SHEAR:
        u, _, vt = np.linalg.svd(cosines, full_matrices=False)
        cosines = u @ vt
    return cosines[0], cosines[1]


def _levels(frames: Sequence[Frame], normal: Vector) -> list[list[Frame]]:
    """Frames by position along the normal, ascending; those of one position together."""
    along = {id(f): float(np.array(f.position) @ normal) for f in frames}
    ordered = sorted(frames, key=lambda f: along[id(f)])
    levels = [[ordered[0]]]
    for frame in ordered[1:]:
        if along[id(frame)] - along[id(levels[-1][0])] <= ROUNDING_MM / 2:
            levels[-1].append(frame)
        else:
            levels.append([frame])
    return levels


def _split_volumes(levels: Sequence[Sequence[Frame]]) -> tuple[tuple[tuple[Frame, ...], ...], str]:
    """Volumes at the same positions, and what tells them apart; nothing is told by file names."""
    n = max(map(len, levels))
    if n == 1:
        return (tuple(level[0] for level in levels),), ""
    _require_columns(levels)
    first = next(level for level in levels if len(level) > 1)
    problem, field = f"up to {n} frames at one position", "ImagePositionPatient"
    if min(map(len, levels)) == n:
        for key in VOLUME_KEYS:
            sets = [{f.keys.get(key) for f in level} for level in levels]
            if None not in sets[0] and len(sets[0]) == n and all(s == sets[0] for s in sets):
                ranked = [sorted(level, key=lambda f: f.keys[key]) for level in levels]
                values = ", ".join(f"{f.keys[key]:.6g}" for f in ranked[0])
                return tuple(zip(*ranked, strict=True)), f"{key} {values}"
        numbers = [f.instance for level in levels for f in level]
        if None not in numbers and len(set(numbers)) == len(numbers):
            ranked = [sorted(level, key=lambda f: f.instance or 0) for level in levels]
            return tuple(zip(*ranked, strict=True)), "InstanceNumber alone"
        problem += " that nothing tells apart"
    counts = sorted({len(level) for level in levels})
    raise InputError(
        problem,
        file=first[1].path,
        field=field,
        found=f"{len(levels)} positions with {' or '.join(map(str, counts))} frames, "
        f"as in {first[0].path.name} and {first[1].path.name}",
        expected="one frame at each position, or complete volumes",
        remedy="put each phase or repeat into a folder of its own",
    )


def _require_columns(levels: Sequence[Sequence[Frame]]) -> None:
    """Frames of one height must lie over each other, or they are no repeats of a slice."""
    for level in levels:
        places = np.array([frame.position for frame in level])
        off = np.linalg.norm(places - places[0], axis=1)
        if off.max() > 2 * ROUNDING_MM:
            raise InputError(
                "two slices lie in one plane, side by side",
                file=level[int(off.argmax())].path,
                field="ImagePositionPatient",
                found=f"{off.max():.4g} mm from {level[0].path.name}",
                expected="one slice in each plane",
                remedy="put each stack into a folder of its own",
            )


def _step(frames: Sequence[Frame], positions: Vector, normal: Vector) -> tuple[float, list[str]]:
    """Distance between slices, after all of them have been found in step."""
    if len(frames) == 1:
        return 1.0, ["one slice: the distance to the next is not known, 1 mm was written"]
    along = positions @ normal
    gaps = np.diff(along)
    usual = float(np.median(gaps))
    tolerance = max(UNEVEN * usual, ROUNDING_MM)
    odd = np.flatnonzero(np.abs(gaps - usual) > tolerance)
    if odd.size:
        _refuse_uneven(frames, along, usual, odd)
    step = float((along[-1] - along[0]) / (len(frames) - 1))
    drift = float(np.abs(along - along[0] - step * np.arange(len(frames))).max())
    if drift > max(UNEVEN * step, ROUNDING_MM):
        _refuse_uneven(frames, along, step, np.array([int(np.abs(gaps - step).argmax())]))
    moved = positions - positions[0]
    sideways = float(np.linalg.norm(moved - np.outer(moved @ normal, normal), axis=1).max())
    angle = math.degrees(math.atan2(sideways, float(along[-1] - along[0])))
    if sideways > 2 * ROUNDING_MM and math.radians(angle) > TRUE_SHEAR:
        raise InputError(
            f"slices are shifted sideways: tilted gantry of {angle:.2f} degrees",
            file=frames[-1].path,
            field="ImagePositionPatient",
            found=f"{sideways:.4g} mm off the normal over {len(frames)} slices",
            expected="slices stacked along their normal",
            remedy="correct the tilt with a shear first, and check the result",
        )
    return step, []


def _refuse_uneven(
    frames: Sequence[Frame], along: Vector, usual: float, odd: NDArray[np.int_]
) -> None:
    at = int(odd[0])
    gap = float(along[at + 1] - along[at])
    steps = round(gap / usual)
    missing = steps >= 2 and abs(gap - steps * usual) <= max(UNEVEN, 0.05) * gap
    first, second = frames[at], frames[at + 1]
    names = f"{_name(first)} and {_name(second)}"
    if missing:
        problem = f"{steps - 1} slice{'s' if steps > 2 else ''} missing between {names}"
        if odd.size > 1:
            problem += f", and {odd.size - 1} more gaps"
    else:
        problem = f"uneven distance between slices, as between {names}"
    raise InputError(
        problem,
        file=second.path,
        field="ImagePositionPatient",
        found=f"{gap:.4g} mm between positions {along[at]:.6g} and {along[at + 1]:.6g} mm",
        expected=f"{usual:.4g} mm, as elsewhere, within 1 %",
        remedy="export the whole series again" if missing else "resample it to even slices first",
    )


def _name(frame: Frame) -> str:
    return f"{frame.path.name} frame {frame.index + 1}" if frame.index else frame.path.name


def _check_spacing(affine: Affine, frame: Frame) -> None:
    low, high = SPACING_RANGE_MM
    for axis, size in enumerate(np.linalg.norm(affine[:3, :3], axis=0)):
        if not low <= size <= high:
            raise InputError(
                f"implausible spacing along axis {axis + 1}",
                file=frame.path,
                field="ImagePositionPatient" if axis == 2 else "PixelSpacing",
                found=f"{size:.4g} mm",
                expected=f"{low} to {high} mm",
                remedy="export the series again from its source",
            )
