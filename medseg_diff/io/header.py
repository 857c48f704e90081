"""The fields of a NIfTI header that matter here: parsed, checked, and given back.

Field names and their meanings follow the NIfTI-1.1 header (nifti1.h). Everything is checked while
only the header's few hundred bytes have been read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medseg_diff.errors import InputError
from medseg_diff.io import safety

HEAD_BYTES = 540
_SIZES = {1: 348, 2: 540}
_DTYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1",
    512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
_REFUSED = {
    1: "1-bit data",
    32: "complex data",
    1792: "complex data",
    2048: "complex data",
    1536: "128-bit floating point data",
    128: "a colour image (RGB24)",
    2304: "a colour image (RGBA32)",
}


@dataclass(frozen=True)
class NiftiGrid:
    """What a NIfTI header says about its grid, untouched, so that it can be given back exactly.

    Args:
        version: 1 or 2.
        shape: Lengths of the spatial axes as stated, one to three of them.
        pixdim: (8,), in the file's own units; element 0 is the handedness of the qform.
        srow: (3, 4), first three rows of the sform.
        quaternion: (3,), b, c and d of the qform.
        qoffset: (3,), translation of the qform.
        xyzt_units: The units' code.
    """

    version: int
    shape: tuple[int, ...]
    pixdim: NDArray[np.float64]
    srow: NDArray[np.float64]
    quaternion: NDArray[np.float64]
    qoffset: NDArray[np.float64]
    sform_code: int
    qform_code: int
    xyzt_units: int

    @property
    def shape3(self) -> tuple[int, ...]:
        """Three spatial lengths; absent ones are 1."""
        return (*self.shape, 1, 1)[:3]

    def as_meta(self) -> dict[str, Any]:
        """Plain numbers and arrays, so that MONAI's collation can carry them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> NiftiGrid:
        """Undo `as_meta`, also after MONAI has turned arrays into tensors."""
        content: dict[str, Any] = {"shape": tuple(int(n) for n in meta["shape"])}
        content |= {name: int(meta[name]) for name in _WHOLE}
        content |= {name: np.asarray(meta[name], np.float64) for name in _REAL}
        return cls(**content)


_WHOLE = ("version", "sform_code", "qform_code", "xyzt_units")
_REAL = ("pixdim", "srow", "quaternion", "qoffset")


@dataclass(frozen=True)
class NiftiHeader:
    """A header that has passed all checks that need no voxels.

    Args:
        grid: Geometry as stated.
        dims: All lengths, at least three; those behind the third count volumes.
        dtype: Type of the stored numbers, in the file's byte order.
        offset: Where the voxels start, in bytes.
        slope: Factor from stored number to value; 1 where the header gives none.
        intercept: Value of a stored zero.
    """

    grid: NiftiGrid
    dims: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float

    @property
    def n_voxels(self) -> int:
        """Number of voxels of all volumes, exactly."""
        return math.prod(self.dims)

    @property
    def n_volumes(self) -> int:
        """Number of 3-D volumes."""
        return math.prod(self.dims[3:])

    @property
    def n_bytes(self) -> int:
        """Size of the voxel data."""
        return self.n_voxels * self.dtype.itemsize


def parse_header(head: bytes, path: Path, *, max_voxels: int) -> NiftiHeader:
    """Parse and check the first `HEAD_BYTES` bytes of an (unpacked) NIfTI-1 or NIfTI-2 file.

    Raises:
        InputError: for anything that is not such a file, and for dimensions, data types, offsets
            or scalings that are impossible, unsupported or larger than ``max_voxels``.
    """
    version = _version(head, path)
    order = _byte_order(head, _SIZES[version], path)
    kind = nib.Nifti1Header if version == 1 else nib.Nifti2Header
    raw = kind(head[: _SIZES[version]], order, check=False).structarr
    dims = _dims(raw["dim"], path)
    if math.prod(dims) > max_voxels:
        raise InputError(
            "more voxels than allowed",
            file=path,
            field="dim",
            found=" x ".join(map(str, dims)),
            expected=f"at most {max_voxels} voxels",
            remedy="check the header, or raise max_voxels",
        )
    slope, intercept = _scaling(float(raw["scl_slope"]), float(raw["scl_inter"]), path)
    rows = [raw[name] for name in ("srow_x", "srow_y", "srow_z")]
    grid = NiftiGrid(
        version=version,
        shape=dims[: min(3, int(raw["dim"][0]))],
        pixdim=raw["pixdim"].astype(np.float64),
        srow=np.stack(rows).astype(np.float64),
        quaternion=np.array([raw[f"quatern_{k}"] for k in "bcd"], np.float64),
        qoffset=np.array([raw[f"qoffset_{k}"] for k in "xyz"], np.float64),
        sform_code=int(raw["sform_code"]),
        qform_code=int(raw["qform_code"]),
        xyzt_units=int(raw["xyzt_units"]),
    )
    dtype = _dtype(int(raw["datatype"]), path).newbyteorder(order)
    offset = _offset(float(raw["vox_offset"]), _SIZES[version] + 4, path)
    return NiftiHeader(grid, dims, dtype, offset, slope, intercept)


def _version(head: bytes, path: Path) -> int:
    """1 or 2, from the magic string; everything else is refused by what it looks like."""
    for version, at, stem in ((1, 344, b"1"), (2, 4, b"2")):
        magic = head[at : at + 4]
        if len(head) >= _SIZES[version] and magic == b"n+" + stem + b"\0":
            return version
        if magic == b"ni" + stem + b"\0":
            raise InputError(
                "is the header of a two-file NIfTI (.hdr and .img)",
                file=path,
                remedy="convert the pair to a single .nii.gz",
            )
    known = safety.describe(head)
    if known is None and len(head) < 348:
        raise InputError(
            "file ends early",
            file=path,
            found=f"{len(head)} bytes, less than a header",
            remedy="copy or download it again",
        )
    raise InputError(
        f"is not NIfTI but {known}" if known else "is not a NIfTI file",
        file=path,
        field="magic",
        found=None if known else repr(head[344:348]),
        expected="n+1 or n+2",
        remedy="convert it to NIfTI first" if known else "check what wrote this file",
    )


def _byte_order(head: bytes, size: int, path: Path) -> Literal["<", ">"]:
    """``"<"`` or ``">"``: the order in which the header's first field is its own size."""
    if int.from_bytes(head[:4], "little") == size:
        return "<"
    if int.from_bytes(head[:4], "big") == size:
        return ">"
    raise InputError(
        "header does not state its size",
        file=path,
        field="sizeof_hdr",
        found=int.from_bytes(head[:4], "little"),
        expected=size,
        remedy="write the file again from its source",
    )


def _dims(dim: NDArray[np.integer[Any]], path: Path) -> tuple[int, ...]:
    n = int(dim[0])
    if not 1 <= n <= 7:
        raise InputError(
            "impossible number of axes", file=path, field="dim[0]", found=n, expected="1 to 7"
        )
    dims = [int(d) for d in dim[1 : n + 1]]
    for axis, length in enumerate(dims, 1):
        if length < 1:
            raise InputError(
                "impossible length of an axis",
                file=path,
                field=f"dim[{axis}]",
                found=length,
                expected="1 or more",
                remedy="write the file again from its source",
            )
    return tuple(dims + [1] * (3 - n))


def _dtype(code: int, path: Path) -> np.dtype[Any]:
    if code in _DTYPES:
        return np.dtype(_DTYPES[code])
    raise InputError(
        f"holds {_REFUSED[code]}" if code in _REFUSED else "unknown data type",
        file=path,
        field="datatype",
        found=code,
        expected="one real number per voxel (8- to 64-bit integer, 32- or 64-bit float)",
        remedy="convert it to a grey-value volume",
    )


def _offset(value: float, least: int, path: Path) -> int:
    if value == 0:
        return least
    if not (math.isfinite(value) and value >= least):
        raise InputError(
            "voxels would start inside the header",
            file=path,
            field="vox_offset",
            found=value,
            expected=f"{least} or more",
        )
    return int(value)


def _scaling(slope: float, intercept: float, path: Path) -> tuple[float, float]:
    """Slope 0 and NaN mean unscaled, whatever the intercept says."""
    if slope == 0 or math.isnan(slope):
        return 1.0, 0.0
    for name, value in (("scl_slope", slope), ("scl_inter", intercept)):
        if not math.isfinite(value):
            raise InputError(
                "scaling is not a finite number",
                file=path,
                field=name,
                found=value,
                expected="a finite number",
                remedy="write the file again from its source",
            )
    return slope, intercept


def build_header(
    grid: NiftiGrid, shape: tuple[int, ...], dtype: np.dtype[Any], description: str = ""
) -> bytes:
    """A fresh little-endian header on ``grid``, up to the byte where the voxels start.

    Every field not named here is empty: descriptions, file names, intents and extensions of the
    input may carry a patient's name, so none of them is passed on.

    Args:
        grid: Geometry to give back.
        shape: Lengths of all axes of the data to be written.
        dtype: Type of the data to be written.
        description: What the file is, in at most 79 ASCII characters (``descrip``).
    """
    kind = nib.Nifti1Header if grid.version == 1 else nib.Nifti2Header
    header = kind(endianness="<")
    raw = header.structarr
    header.set_data_dtype(dtype)
    raw["descrip"] = description.encode("ascii")
    raw["dim"] = [len(shape), *shape, *[1] * (7 - len(shape))]
    raw["pixdim"] = [*grid.pixdim[:4], *[1.0 if len(shape) > 3 else 0.0] * 4]
    for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
        raw[name] = grid.srow[row]
    for index, (b, x) in enumerate(zip("bcd", "xyz", strict=True)):
        raw[f"quatern_{b}"] = grid.quaternion[index]
        raw[f"qoffset_{x}"] = grid.qoffset[index]
    raw["sform_code"], raw["qform_code"] = grid.sform_code, grid.qform_code
    raw["xyzt_units"] = grid.xyzt_units
    raw["scl_slope"], raw["scl_inter"] = 1.0, 0.0
    raw["vox_offset"] = _SIZES[grid.version] + 4
    return bytes(raw.tobytes()) + b"\0\0\0\0"
