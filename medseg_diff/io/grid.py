"""Where voxels lie: one orthonormal RAS+ affine in mm per file, or a refusal.

A NIfTI file may state its affine twice (sform and qform), its spacing three times, and contradict
itself. Nothing is guessed: contradictions beyond rounding are refused with both sides named.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray

from medseg_diff.errors import InputError
from medseg_diff.io.header import NiftiGrid
from medseg_diff.io.options import ReadOptions

Affine = NDArray[np.float64]

GRID_TOLERANCE_MM = 1e-3
SPACING_RANGE_MM = (0.01, 50.0)
# Cosine of the angle between two axes: below the first it is float32 rounding and left alone,
# above the second it is a true shear.
ROUNDING_SHEAR, TRUE_SHEAR = 1e-6, 1e-3
# Sform and qform of one file: up to the first they are the same (float32 quaternions cost 2e-4
# mm on ordinary scans), up to the others they differ by little enough to go on with a warning.
SAME_FORM_MM, CLOSE_ROTATION_DEG, CLOSE_SHIFT_MM = 1e-2, 0.1, 0.1
SPACING_TOLERANCE = 1e-3
_UNITS_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}


def resolve_affine(grid: NiftiGrid, options: ReadOptions, path: Path) -> tuple[Affine, list[str]]:
    """Affine of a file, voxel index -> mm in RAS+, with orthogonal columns, and warnings.

    Raises:
        InputError: if spacing, units or affines are impossible, missing or contradictory.
    """
    _check_pixdim(grid, path)
    name, affine, warnings = _choose(grid, options, path)
    affine = affine.copy()
    affine[:3] *= _unit(grid, path)
    warnings += _check_spacing(grid, affine, name, options, path)
    return _remove_shear(affine, grid.shape3, name, path), warnings


def spacing_of(affine: Affine) -> NDArray[np.float64]:
    """Voxel size along each array axis, in the affine's units."""
    return np.linalg.norm(affine[:3, :3], axis=0)


def axcodes(affine: Affine) -> str:
    """Directions in which the array axes run, as ``"RAS"`` or ``"LPS"``."""
    return "".join(str(code) for code in aff2axcodes(affine))


def sform_affine(grid: NiftiGrid) -> Affine:
    """The (4, 4) matrix the sform rows state, in the file's units."""
    return np.vstack([grid.srow, [0.0, 0.0, 0.0, 1.0]])


def qform_affine(grid: NiftiGrid, path: Path) -> Affine:
    """The (4, 4) matrix of a qform: rotation by quaternion, scaling by pixdim (nifti1.h).

    Raises:
        InputError: if the quaternion is not that of a rotation.
    """
    b, c, d = grid.quaternion
    rest = 1.0 - float(grid.quaternion @ grid.quaternion)
    if not (np.isfinite(grid.qoffset).all() and rest > -1e-3):
        raise InputError(
            "qform is not a rotation",
            file=path,
            field="quatern_b, quatern_c, quatern_d",
            found=np.array2string(grid.quaternion, precision=4),
            expected="finite, with squares adding up to at most 1",
            remedy="use --affine sform if the sform is right",
        )
    a = math.sqrt(max(rest, 0.0))
    if rest < 0:
        b, c, d = grid.quaternion / np.linalg.norm(grid.quaternion)
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    size = grid.pixdim[1:4].copy()
    size[len(grid.shape) :] = 1.0  # a flat image need not say how thick it is
    size[2] *= -1.0 if grid.pixdim[0] == -1 else 1.0
    affine = np.eye(4)
    affine[:3, :3] = rotation * size
    affine[:3, 3] = grid.qoffset
    return affine


def grid_distance(first: Affine, second: Affine, shape: Sequence[int]) -> float:
    """Largest distance in mm between the places two affines give to one voxel of ``shape``."""
    ends = [(0, n - 1) for n in shape]
    corners = np.array([[*corner, 1.0] for corner in itertools.product(*ends)])
    return float(np.linalg.norm((corners @ (first - second).T)[:, :3], axis=1).max())


def require_same_grid(other: Any, like: Any) -> None:
    """Refuse ``other`` if it does not lie on the grid of ``like`` (MetaTensors from this package).

    Raises:
        InputError: if shapes differ, or any voxel lies more than `GRID_TOLERANCE_MM` apart.
    """
    path, reference = (Path(str(x.meta["filename_or_obj"])) for x in (other, like))
    shapes = tuple(other.shape[1:]), tuple(like.shape[1:])
    if shapes[0] != shapes[1]:
        raise InputError(
            "shape differs",
            file=path,
            field="shape",
            found=shapes[0],
            expected=f"{shapes[1]} as in {reference.name}",
            remedy="check that both belong to one case",
        )
    if other.meta["kind"] == "raster" or like.meta["kind"] == "raster":
        return
    ours, theirs = (np.asarray(x.affine, np.float64) for x in (other, like))
    distance = grid_distance(ours, theirs, shapes[0])
    if not distance <= GRID_TOLERANCE_MM:
        raise InputError(
            f"same shape but another place: voxels lie up to {distance:.4g} mm apart",
            file=path,
            field="affine",
            found=_show(ours),
            expected=f"{_show(theirs)} as in {reference.name}, within {GRID_TOLERANCE_MM} mm",
            remedy=f"resample it onto the grid of {reference.name}",
        )


def _show(affine: Affine) -> str:
    rows = ["[" + " ".join(f"{v:.6g}" for v in row) + "]" for row in affine[:3]]
    return f"{axcodes(affine)} [{' '.join(rows)}]"


def _check_pixdim(grid: NiftiGrid, path: Path) -> None:
    for axis in range(1, len(grid.shape) + 1):
        if not (math.isfinite(grid.pixdim[axis]) and grid.pixdim[axis] > 0):
            raise InputError(
                f"impossible spacing along axis {axis}",
                file=path,
                field=f"pixdim[{axis}]",
                found=grid.pixdim[axis],
                expected="a positive number",
                remedy="write the file again from its source",
            )


def _choose(grid: NiftiGrid, options: ReadOptions, path: Path) -> tuple[str, Affine, list[str]]:
    """Name and matrix of the affine to believe, in the file's units."""
    coded = {"sform": grid.sform_code > 0, "qform": grid.qform_code > 0}
    if options.affine != "auto":
        if not coded[options.affine]:
            raise InputError(
                f"has no {options.affine}",
                file=path,
                field=f"{options.affine}_code",
                found=getattr(grid, f"{options.affine}_code"),
                expected="1 or more",
                remedy="leave --affine at auto",
            )
        one = _checked_sform(grid, path) if options.affine == "sform" else qform_affine(grid, path)
        return options.affine, one, []
    if not any(coded.values()):
        return _assume(grid, options, path)
    if not coded["sform"]:
        return "qform", qform_affine(grid, path), []
    sform = _checked_sform(grid, path)
    if not coded["qform"]:
        return "sform", sform, []
    return "sform", sform, _compare_forms(sform, qform_affine(grid, path), grid, path)


def _assume(grid: NiftiGrid, options: ReadOptions, path: Path) -> tuple[str, Affine, list[str]]:
    if options.assume_axcodes is None:
        raise InputError(
            "orientation unknown",
            file=path,
            field="sform_code and qform_code",
            found="both 0",
            expected="at least one above 0",
            remedy="restore the header, or say how it lies with --assume-axcodes RAS "
            "(never for patient care)",
        )
    affine = np.zeros((4, 4))
    affine[3, 3] = 1.0
    for axis, code in enumerate(options.assume_axcodes):
        world = next(i for i, pair in enumerate(("RL", "AP", "SI")) if code in pair)
        size = grid.pixdim[axis + 1] if axis < len(grid.shape) else 1.0
        affine[world, axis] = size if code in "RAS" else -size
    affine[:3, 3] = -affine[:3, :3] @ (np.array(grid.shape3) - 1) / 2
    assumed = f"the header states no orientation; {options.assume_axcodes} was assumed"
    return "assumed affine", affine, [assumed]


def _checked_sform(grid: NiftiGrid, path: Path) -> Affine:
    affine = sform_affine(grid)
    bad = [axis for axis in range(4) if not np.isfinite(affine[:, axis]).all()]
    if bad:
        axis = bad[0] + 1
        raise InputError(
            f"affine is not finite along axis {axis}" if axis < 4 else "origin is not finite",
            file=path,
            field=f"sform column {axis}",
            found=np.array2string(affine[:3, bad[0]], precision=4),
            expected="finite numbers",
            remedy="use --affine qform if the qform is right",
        )
    norms = spacing_of(affine)
    flat = norms.min() == 0 or abs(np.linalg.det(affine[:3, :3] / norms)) < 1e-6
    if not flat:
        return affine
    zero = [str(axis + 1) for axis in range(3) if norms[axis] == 0]
    raise InputError(
        "singular sform" + (", qform looks valid" if _qform_is_valid(grid, path) else ""),
        file=path,
        field="sform",
        found=f"zero column of axis {', '.join(zero)}" if zero else "dependent columns",
        expected="three independent columns",
        remedy="use --affine qform" if _qform_is_valid(grid, path) else "restore the header",
    )


def _qform_is_valid(grid: NiftiGrid, path: Path) -> bool:
    try:
        qform_affine(grid, path)
    except InputError:
        return False
    return grid.qform_code > 0


def _compare_forms(sform: Affine, qform: Affine, grid: NiftiGrid, path: Path) -> list[str]:
    """Warnings where the two differ a little, a refusal where they differ more."""
    unit = _unit(grid, path)
    if grid_distance(sform, qform, grid.shape3) * unit <= SAME_FORM_MM:
        return []
    spacings = spacing_of(sform), spacing_of(qform)
    centre = np.array([*(np.array(grid.shape3) - 1) / 2, 1.0])
    shift = float(np.linalg.norm((sform - qform) @ centre)) * unit
    turn = _rotation(sform, path) @ _rotation(qform, path).T
    mirrored = np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0
    # The sine, through the antisymmetric part, resolves small angles that the cosine loses.
    sine = np.linalg.norm(turn - turn.T) / math.sqrt(8)
    angle = math.degrees(math.atan2(sine, (np.trace(turn) - 1) / 2))
    close = (
        not mirrored
        and np.allclose(spacings[0], spacings[1], rtol=SPACING_TOLERANCE, atol=0)
        and angle < CLOSE_ROTATION_DEG
        and shift < CLOSE_SHIFT_MM
    )
    if close:
        return [f"sform and qform differ by {angle:.3g} degrees and {shift:.3g} mm; sform used"]
    texts = [
        f"{name} {axcodes(affine)} spacing {' x '.join(f'{s:.4g}' for s in spacing)}"
        for name, affine, spacing in zip(("sform", "qform"), (sform, qform), spacings, strict=True)
    ]
    how = "mirrored" if mirrored else f"{angle:.3g} degrees and {shift:.3g} mm apart"
    raise InputError(
        f"sform and qform contradict each other ({how})",
        file=path,
        field="sform and qform",
        found=" but ".join(texts),
        expected="the same affine",
        remedy="say which is right with --affine sform or --affine qform",
    )


def _rotation(affine: Affine, path: Path) -> NDArray[np.float64]:
    """Nearest matrix with orthonormal columns (the polar factor), scalings removed.

    Raises:
        InputError: if the numbers are too large or too small to have one.
    """
    try:
        u, _, vt = np.linalg.svd(affine[:3, :3] / spacing_of(affine))
    except np.linalg.LinAlgError:
        raise InputError(
            "impossible affine",
            file=path,
            field="affine",
            found=_show(affine),
            expected="finite spacings and directions",
        ) from None
    return u @ vt


def _unit(grid: NiftiGrid, path: Path) -> float:
    code = grid.xyzt_units & 7
    if code not in _UNITS_MM:
        raise InputError(
            "unknown unit of length",
            file=path,
            field="xyzt_units",
            found=code,
            expected="0 (unknown, taken as mm), 1 (m), 2 (mm) or 3 (micrometre)",
        )
    return _UNITS_MM[code]


def _check_spacing(
    grid: NiftiGrid, affine: Affine, name: str, options: ReadOptions, path: Path
) -> list[str]:
    """Hold the affine's spacing (mm) against the plausible range and against pixdim."""
    warnings = []
    spacing = spacing_of(affine)
    low, high = SPACING_RANGE_MM
    for axis in range(len(grid.shape)):
        size = float(spacing[axis])
        if not low <= size <= high:
            raise InputError(
                f"implausible spacing along axis {axis + 1}",
                file=path,
                field="pixdim and xyzt_units",
                found=f"{size:.4g} mm",
                expected=f"{low} to {high} mm",
                remedy="set the right spacing and xyzt_units in the header",
            )
        stated = float(grid.pixdim[axis + 1]) * _unit(grid, path)
        ratio = abs(stated / size - 1)
        if ratio > 0.01 and options.affine == "auto":
            raise InputError(
                f"spacing of axis {axis + 1} differs between pixdim and {name}",
                file=path,
                field=f"pixdim[{axis + 1}]",
                found=f"{stated:.4g} mm",
                expected=f"{size:.4g} mm as in the {name}",
                remedy=f"use --affine {name} if that is right, or correct the header",
            )
        if ratio > 1e-4:
            warnings.append(
                f"pixdim[{axis + 1}] is {stated:.5g} mm but the {name} says {size:.5g} mm"
            )
    return warnings


def _remove_shear(affine: Affine, shape: Sequence[int], name: str, path: Path) -> Affine:
    """Nearest affine with orthogonal axes and the same spacing and centre.

    Raises:
        InputError: if the axes are truly oblique to each other, not just rounded.
    """
    spacing = spacing_of(affine)
    directions = affine[:3, :3] / spacing
    cosines = np.abs(directions.T @ directions - np.eye(3))
    shear = float(cosines.max())
    if shear <= ROUNDING_SHEAR:
        return affine
    if shear > TRUE_SHEAR:
        first, second = sorted(np.unravel_index(int(cosines.argmax()), cosines.shape))
        angle = math.degrees(math.acos(float(directions[:, first] @ directions[:, second])))
        raise InputError(
            f"axes are sheared: axes {first + 1} and {second + 1} meet at {angle:.2f} degrees",
            file=path,
            field=name,
            found=f"{abs(90 - angle):.2f} degrees of shear",
            expected="90 degrees between axes",
            remedy="resample the scan onto a rectangular grid first",
        )
    snapped = affine.copy()
    snapped[:3, :3] = _rotation(affine, path) * spacing
    centre = (np.array(shape) - 1) / 2
    snapped[:3, 3] += (affine[:3, :3] - snapped[:3, :3]) @ centre
    return snapped
