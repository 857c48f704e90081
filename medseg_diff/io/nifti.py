"""NIfTI-1 and NIfTI-2 files, plain or gzipped: arrays and grids in and out.

Shapes: K volumes, X Y Z the file's own axes.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from medseg_diff.errors import InputError
from medseg_diff.files import atomic_file
from medseg_diff.io import safety
from medseg_diff.io.grid import Affine, resolve_affine, spacing_of
from medseg_diff.io.header import HEAD_BYTES, NiftiGrid, NiftiHeader, build_header, parse_header
from medseg_diff.io.options import ReadOptions
from medseg_diff.io.stored import Stored

DEFAULT = ReadOptions()


def read_header(path: Path, options: ReadOptions = DEFAULT) -> NiftiHeader:
    """Read and check a header without touching the voxels.

    Raises:
        InputError: as `header.parse_header`.
    """
    with safety.open_stream(path) as stream:
        return parse_header(stream.read(HEAD_BYTES), path, max_voxels=options.max_voxels)


def read_nifti(path: str | Path, options: ReadOptions = DEFAULT) -> Stored:
    """Read a file whole, its checksum included.

    Raises:
        InputError: if the file is broken, larger than it may be, holds several volumes and
            ``options.volume`` does not choose, or does not say where its voxels lie.
    """
    path = Path(path)
    header = read_header(path, options)
    affine, warnings = resolve_affine(header.grid, options, path)
    chosen = _choose_volume(header, options, path)
    packed = safety.file_head(path, 2) == safety.GZIP_MAGIC
    safety.check_claim(path, header.offset + header.n_bytes, packed=packed)
    with safety.open_stream(path) as stream:
        data = safety.read_span(stream, path, header.offset, header.n_bytes)
    # NIfTI's first axis runs fastest: in memory order the volumes come last axis first.
    shape = header.dims[:3]
    volumes = data.view(header.dtype).reshape(header.n_volumes, *shape[::-1])
    if chosen is not None:
        volumes = volumes[chosen : chosen + 1]
    return Stored(
        path=path,
        kind="nifti",
        values=volumes.transpose(0, 3, 2, 1),
        affine=affine,
        header=header.grid.as_meta(),
        warnings=warnings,
        slope=header.slope,
        intercept=header.intercept,
    )


def nifti_spacing(path: Path, options: ReadOptions = DEFAULT) -> tuple[float, ...]:
    """Voxel size in mm along the file's three axes, from the header alone."""
    affine, _ = resolve_affine(read_header(path, options).grid, options, path)
    return tuple(float(size) for size in spacing_of(affine))


def _choose_volume(header: NiftiHeader, options: ReadOptions, path: Path) -> int | None:
    """Index of the volume to read; None means all of them."""
    n = header.n_volumes
    if options.volume == "all" or (n == 1 and options.volume is None):
        return None
    if options.volume is not None and 0 <= options.volume < n:
        return options.volume
    found = " x ".join(map(str, header.dims))
    raise InputError(
        f"{n} volumes; choose --volume k",
        file=path,
        field="dim",
        found=found if options.volume is None else f"{found}, volume {options.volume} asked for",
        expected=f"one volume, or k from 0 to {n - 1}",
    )


def write_nifti(
    path: str | Path, values: NDArray[Any], grid: NiftiGrid, description: str = ""
) -> None:
    """Write ``values`` (K, X, Y, Z) on ``grid``, atomically and always to the same bytes.

    One volume keeps the grid's own number of axes; several become a 4-D file. The type on disk
    is the array's, with slope 1 and intercept 0.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        values: One of NIfTI's integer or float types.
        grid: Geometry that comes back exactly as it was read.
        description: See :func:`medseg_diff.io.header.build_header`.

    Raises:
        InputError: if the file cannot be written or has another suffix.
        ValueError: if ``values`` does not have the grid's shape.
    """
    path = Path(path)
    if values.shape[1:] != grid.shape3:
        raise ValueError(f"values of shape {values.shape} do not fit the grid {grid.shape3}")
    name = path.name.lower()
    if not name.endswith((".nii", ".nii.gz")):
        raise InputError("not a name for NIfTI", file=path, expected=".nii.gz or .nii")
    shape = grid.shape if len(values) == 1 else (*grid.shape3, len(values))
    head = build_header(grid, shape, values.dtype, description)
    little = values.dtype.newbyteorder("<")
    with atomic_file(path) as stream:
        if not name.endswith(".gz"):
            _write_volumes(stream, head, values, little)
            return
        # No name and no time inside: the same mask gives the same bytes and says nothing.
        with gzip.GzipFile("", "wb", 6, stream, mtime=0) as packed:
            _write_volumes(cast("IO[bytes]", packed), head, values, little)


def _write_volumes(stream: IO[bytes], head: bytes, values: NDArray[Any], kind: Any) -> None:
    """Header, then volume by volume: the file's order of axes takes a copy."""
    stream.write(head)
    for volume in values:
        stream.write(np.ascontiguousarray(volume.transpose(2, 1, 0), kind).data)


def fresh_grid(affine: Affine, shape: tuple[int, ...]) -> NiftiGrid:
    """A grid in mm for data that came from no NIfTI file or was moved to another place.

    Only the sform is coded (2, aligned): a qform cannot hold every affine.
    """
    pixdim = np.array([1.0, *spacing_of(affine), 0, 0, 0, 0], np.float32).astype(np.float64)
    return NiftiGrid(
        version=1,
        shape=shape,
        pixdim=pixdim,
        srow=np.asarray(affine[:3], np.float64),
        quaternion=np.zeros(3),
        qoffset=np.zeros(3),
        sform_code=2,
        qform_code=0,
        xyzt_units=2,
    )
