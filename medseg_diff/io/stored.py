"""Numbers as a file stores them, and how they become images and labels."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from numpy.typing import NDArray

from medseg_diff.errors import InputError
from medseg_diff.io.options import ReadOptions

INTEGER_TOLERANCE = 0.01
# Beyond this, neighbouring integers share one float32.
_EXACT_IN_FLOAT32 = 2**24


@dataclass(frozen=True)
class Stored:
    """What a reader found in one file; everything but the intensities has been checked.

    Args:
        path: The file.
        kind: ``"nifti"``, ``"dicom"`` or ``"raster"``.
        values: (C, *S), numbers as stored.
        affine: (4, 4), voxel index -> mm in RAS+; the identity for raster images.
        header: What the writer needs to give the grid back.
        warnings: Sentences for the case's JSON.
        slope: Factor from stored number to value.
        intercept: Value of a stored zero.
        extra: Further entries of the image's meta.
    """

    path: Path
    kind: Literal["nifti", "dicom", "raster"]
    values: NDArray[Any]
    affine: NDArray[np.float64]
    header: dict[str, Any]
    warnings: list[str] = field(default_factory=list)
    slope: float = 1.0
    intercept: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)


def to_image(stored: Stored, options: ReadOptions) -> MetaTensor:
    """Values as float32, (C, *S).

    Raises:
        InputError: for NaN or infinite values, unless ``options.nan_fill`` replaces them.
    """
    exact = _scaled(stored)
    warnings = list(stored.warnings)
    if exact.dtype.kind in "iu" and exact.dtype.itemsize > 2:
        largest = max(abs(int(exact.min())), abs(int(exact.max())))
        if largest > _EXACT_IN_FLOAT32:
            warnings.append(f"values up to {largest} are rounded to float32's 24 bits")
    with np.errstate(over="ignore"):  # an overflow turns infinite and is counted below
        values = np.array(exact, np.float32, order="C")
    if exact.dtype.kind == "f":
        bad = ~np.isfinite(values)
        count = int(np.count_nonzero(bad))
        if count and options.nan_fill is None:
            _refuse_not_finite(values, bad, count, stored.path)
        if count:
            values[bad] = options.nan_fill
            warnings.append(f"{count} NaN or infinite voxels were set to {options.nan_fill:g}")
    return _meta_tensor(stored, values, warnings)


def to_label(stored: Stored, allowed: Collection[int] | None) -> MetaTensor:
    """Values as whole numbers, (1, *S), int16 where the labels fit and int32 otherwise.

    Raises:
        InputError: if values are not whole within `INTEGER_TOLERANCE`, not in ``allowed``, or
            (with no ``allowed``) negative.
    """
    if len(stored.values) != 1:
        raise InputError(
            "a label map has one channel",
            file=stored.path,
            field="channels",
            found=len(stored.values),
            expected=1,
        )
    exact = _scaled(stored)
    values = exact if exact.dtype.kind in "iu" else _whole(exact, stored.path)
    present = [int(value) for value in np.unique(values)]
    limits = np.iinfo(np.int32)
    if allowed is None:
        odd = [v for v in present if not 0 <= v <= limits.max]
        wanted = "whole numbers from 0"
    else:
        odd = sorted(set(present) - {int(v) for v in allowed})
        wanted = ", ".join(str(int(v)) for v in sorted(allowed))
    if odd:
        raise InputError(
            "label values that no class has",
            file=stored.path,
            field="labels",
            found=_some(odd),
            expected=wanted,
            remedy="add them to the labels, declare an ignore label, or correct the mask",
        )
    # The type follows the class map where there is one, not what one case happens to hold.
    extremes = [*(allowed or ()), *present]
    small = np.iinfo(np.int16)
    fits = small.min <= min(extremes) and max(extremes) <= small.max
    whole = np.array(values, np.int16 if fits else np.int32, order="C")
    return _meta_tensor(stored, whole, list(stored.warnings))


def _scaled(stored: Stored) -> NDArray[Any]:
    """Stored numbers, or their values in float64 where the file scales them."""
    if (stored.slope, stored.intercept) == (1.0, 0.0):
        return stored.values
    scaled: NDArray[np.float64] = stored.values.astype(np.float64)
    scaled *= stored.slope
    scaled += stored.intercept
    return scaled


def _whole(values: NDArray[Any], path: Path) -> NDArray[np.int64]:
    """Round values that are whole but for the noise of a stored scaling."""
    bad = ~np.isfinite(values)
    if bad.any():
        _refuse_not_finite(values, bad, int(bad.sum()), path)
    rounded = np.rint(values)
    odd = values[np.abs(values - rounded) > INTEGER_TOLERANCE]
    if odd.size:
        raise InputError(
            f"a label map with fractions in {odd.size} voxels",
            file=path,
            field="labels",
            found=_some([float(v) for v in np.unique(odd)]),
            expected="whole numbers",
            remedy="resample masks with nearest neighbour, not linear interpolation",
        )
    if np.abs(rounded).max() > np.iinfo(np.int64).max // 2:
        raise InputError("label values out of range", file=path, found=float(rounded.max()))
    return rounded.astype(np.int64)


def _refuse_not_finite(
    values: NDArray[Any], bad: NDArray[np.bool_], count: int, path: Path
) -> None:
    first = np.unravel_index(int(bad.argmax()), bad.shape)
    n_nan = int(np.count_nonzero(np.isnan(values)))
    raise InputError(
        "voxels that are not numbers",
        file=path,
        field="intensity",
        found=f"{n_nan} NaN and {count - n_nan} infinite, "
        f"first at voxel {tuple(int(i) for i in first[1:])}",
        expected="finite values",
        remedy="correct the file, or replace them with --nan fill=VALUE (images only)",
    )


def _some(values: list[int] | list[float]) -> str:
    shown = ", ".join(f"{value:.6g}" if isinstance(value, float) else str(value)
                      for value in values[:5])  # fmt: skip
    return shown if len(values) <= 5 else f"{shown} and {len(values) - 5} more"


def _meta_tensor(stored: Stored, values: NDArray[Any], warnings: list[str]) -> MetaTensor:
    affine = torch.from_numpy(stored.affine.copy())
    meta = {
        "filename_or_obj": str(stored.path),
        "kind": stored.kind,
        "header": stored.header,
        "warnings": warnings,
        # What MONAI's own transforms look for.
        "original_affine": affine.clone(),
        "spatial_shape": np.array(values.shape[1:]),
        "original_channel_dim": 0,
        "space": "RAS",
        **stored.extra,
    }
    return MetaTensor(torch.from_numpy(values), affine=affine, meta=meta)
