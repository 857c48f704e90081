"""The front door: read an image or a label map whatever its format, and write answers beside it.

Shapes: C channels, K maps, `*S` spatial axes (three for NIfTI, two for raster images).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from numpy.typing import ArrayLike, NDArray

from medseg_diff.errors import InputError
from medseg_diff.io import dicom, nifti, raster, safety
from medseg_diff.io.dicom.align import onto_grid, same_frame
from medseg_diff.io.grid import GRID_TOLERANCE_MM, grid_distance, require_same_grid
from medseg_diff.io.header import NiftiGrid
from medseg_diff.io.names import SUFFIXES
from medseg_diff.io.options import ReadOptions
from medseg_diff.io.stored import Stored, to_image, to_label

DEFAULT = ReadOptions()


def read_image(path: dicom.Source, options: ReadOptions = DEFAULT) -> MetaTensor:
    """Read one image as float32 (C, *S), values as the file scales them.

    Args:
        path: A NIfTI or raster file; or a DICOM series as a folder, a zip, a DICOMDIR, one file or
            a list of files.
        options: How to read files that do not speak for themselves.

    Raises:
        InputError: if the file is broken, contradicts itself or holds NaN (see `ReadOptions`).
    """
    return to_image(_read(path, options), options)


def read_channels(files: Mapping[str, dicom.Source], options: ReadOptions = DEFAULT) -> MetaTensor:
    """Read the channels of one case, in the order given, as float32 (C, *S).

    Geometry and file name are the first channel's; ``meta["channels"]`` lists the names. DICOM
    series of one frame of reference are resampled onto the first's grid, with a warning.

    Raises:
        InputError: as `read_image`, or if the channels do not lie on one grid.
        ValueError: if no files are given.
    """
    if not files:
        raise ValueError("a case needs at least one channel")
    images = [read_image(path, options) for path in files.values()]
    first = images[0]
    for at, other in enumerate(images[1:], start=1):
        if same_frame(other, first):
            images[at] = onto_grid(other, first)
        else:
            require_same_grid(other, first)
    values = torch.cat([image.as_tensor() for image in images])
    names = [n for n, image in zip(files, images, strict=True) for _ in range(len(image))]
    meta = {key: value for key, value in first.meta.items() if key != "affine"}
    meta["channels"] = names
    meta["warnings"] = [
        f"{name}: {sentence}" if len(images) > 1 else sentence
        for name, image in zip(files, images, strict=True)
        for sentence in image.meta["warnings"]
    ]
    return MetaTensor(values, affine=first.affine, meta=meta)


def read_label(
    path: str | Path,
    *,
    allowed: Collection[int] | None = None,
    like: MetaTensor | None = None,
    options: ReadOptions = DEFAULT,
) -> MetaTensor:
    """Read one label map as int16 or int32 (1, *S).

    Args:
        path: NIfTI, PNG, TIFF or BMP file.
        allowed: The class map's values, with the ignore label if there is one.
        like: Image (as read by this package) whose grid the map must share.
        options: As for images; ``nan_fill`` has no say here.

    Raises:
        InputError: if values are fractional, negative or not allowed, or the grid is another.
    """
    label = to_label(_read(path, options, as_label=True), allowed)
    if like is not None:
        require_same_grid(label, like)
    return label


def read_spacing(path: dicom.Source, options: ReadOptions = DEFAULT) -> tuple[float, ...]:
    """Voxel size in mm along the array's axes; (1, 1) for raster images, which state none.

    Raises:
        InputError: if the header is broken or contradicts itself.
    """
    if not isinstance(path, str | Path) or _is_dicom(Path(path)):
        return dicom.dicom_spacing(path, options)
    path = Path(path)
    return (1.0, 1.0) if _is_raster(path) else nifti.nifti_spacing(path, options)


def count_voxels(path: dicom.Source, options: ReadOptions = DEFAULT) -> int | None:
    """Voxels that reading a NIfTI file would bring, from its header; None for other files.

    Raises:
        InputError: if the header is broken.
    """
    if not isinstance(path, str | Path) or _is_dicom(Path(path)) or _is_raster(Path(path)):
        return None
    return nifti.read_header(Path(path), options).n_voxels


def empty_image(
    shape: Sequence[int], spacing_mm: Sequence[float], orientation: str, *, raster: bool = False
) -> MetaTensor:
    """A grid of zeros, (1, *S), that no file brought: what is written like it lies at the origin.

    Args:
        shape: Voxels along the axes, three of them, or two of a raster image.
        spacing_mm: Along each axis; a raster image has none.
        orientation: Where the axes point, e.g. ``"RAS"``.
        raster: Whether it stands for a 2-D file.
    """
    affine, header = np.eye(4), {"shape": tuple(shape)}
    if not raster:
        affine = np.zeros((4, 4))
        affine[3, 3] = 1
        for axis, code in enumerate(orientation):
            world = next(k for k, ends in enumerate(("LR", "PA", "IS")) if code in ends)
            affine[world, axis] = spacing_mm[axis] * (1 if code in "RAS" else -1)
        header = nifti.fresh_grid(affine, tuple(shape)).as_meta()
    values = np.zeros((1, *shape), np.float32)
    stored = Stored(Path("none"), "raster" if raster else "nifti", values, affine, header)
    return to_image(stored, DEFAULT)


def write_label(path: str | Path, labels: ArrayLike, like: MetaTensor, *, n_classes: int) -> None:
    """Write a label map (1, *S) on the file grid of ``like``: NIfTI, or PNG for raster images.

    The type on disk follows the class map, not the case: uint8 up to 255 classes, else uint16.

    Args:
        path: Where to; ends in `label_suffix`.
        labels: Whole numbers.
        like: The image as it was read.
        n_classes: Number of classes, background included.

    Raises:
        InputError: if the file cannot be written.
        ValueError: if ``labels`` has another shape or place than ``like``, is not whole, or holds
            values beyond the type.
    """
    values = whole_numbers(_array(labels, like), np.uint8 if n_classes <= 255 else np.uint16)
    if len(values) != 1:
        raise ValueError(f"a label map has one channel, not {len(values)}")
    if like.meta["kind"] == "raster":
        raster.write_png(path, values)
    else:
        nifti.write_nifti(path, values, NiftiGrid.from_meta(like.meta["header"]))


def write_map(
    path: str | Path, values: ArrayLike, like: MetaTensor, *, description: str = ""
) -> None:
    """Write maps (K, *S) as float32 on the file grid of ``like``: NIfTI, or TIFF pages.

    The description (ASCII, at most 79 characters) stands in the file's header.

    Raises:
        InputError: if the file cannot be written.
        ValueError: if ``values`` has another shape or place than ``like``.
    """
    maps = _array(values, like).astype(np.float32, copy=False)
    if like.meta["kind"] == "raster":
        raster.write_tiff(path, maps, description)
    else:
        nifti.write_nifti(path, maps, NiftiGrid.from_meta(like.meta["header"]), description)


def write_draws(path: str | Path, draws: ArrayLike, like: MetaTensor, *, n_classes: int) -> None:
    """Write the label maps of N draws (N, *S) into one file: 4-D NIfTI, or pages of a TIFF.

    Compressed, and typed as `write_label` does. A single draw of a NIfTI is a 3-D file.

    Raises:
        InputError: if the file cannot be written.
        ValueError: if ``draws`` has another shape or place than ``like``, or is not whole.
    """
    values = whole_numbers(_array(draws, like), np.uint8 if n_classes <= 255 else np.uint16)
    if like.meta["kind"] == "raster":
        raster.write_tiff(path, values)
    else:
        nifti.write_nifti(path, values, NiftiGrid.from_meta(like.meta["header"]))


def label_suffix(like: MetaTensor) -> str:
    """Suffix of label maps written for an image."""
    return ".png" if like.meta["kind"] == "raster" else ".nii.gz"


def map_suffix(like: MetaTensor) -> str:
    """Suffix of maps written for an image."""
    return ".tif" if like.meta["kind"] == "raster" else ".nii.gz"


def require_volume(image: MetaTensor, *, least: int = 2) -> None:
    """Refuse images that are too flat for a 3-D model.

    Raises:
        InputError: if there are not three spatial axes of at least ``least`` voxels.
    """
    shape = tuple(image.shape[1:])
    if len(shape) != 3 or min(shape) < least:
        raise InputError(
            "too flat for a 3-D model",
            file=str(image.meta["filename_or_obj"]),
            field="shape",
            found=" x ".join(map(str, shape)),
            expected=f"three axes of at least {least} voxels",
            remedy="use a 2-D model, or give the whole volume",
        )


def whole_numbers(values: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """Convert to an integer type without rounding or wrapping around.

    Raises:
        ValueError: if a value is fractional, not finite, or beyond the type.
    """
    limits = np.iinfo(dtype)
    if values.dtype.kind == "f" and not (np.isfinite(values) & (values == np.rint(values))).all():
        raise ValueError("label maps must hold whole numbers")
    if values.size and not limits.min <= values.min() <= values.max() <= limits.max:
        raise ValueError(
            f"values from {values.min()} to {values.max()} do not fit {np.dtype(dtype).name}"
        )
    return values.astype(dtype)


def _is_raster(path: Path) -> bool:
    """By content; a file that claims to be NIfTI goes to the reader that will say it is not."""
    claims_nifti = path.name.lower().endswith((".nii", ".nii.gz"))
    if raster.format_of(safety.file_head(path)) is not None:
        return not claims_nifti
    return path.name.lower().endswith((".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"))


def _is_dicom(path: Path) -> bool:
    """By content, unless the name claims NIfTI or raster; every other folder is for DICOM."""
    if path.name.lower().endswith(SUFFIXES):
        return False
    return path.is_dir() or path.name.upper() == "DICOMDIR" or dicom.is_dicom_source(path)


def _read(source: dicom.Source, options: ReadOptions, *, as_label: bool = False) -> Stored:
    if not isinstance(source, str | Path) or _is_dicom(Path(source)):
        if as_label:
            raise InputError(
                "DICOM images are no label maps",
                file=source if isinstance(source, str | Path) else source[0],
                expected="NIfTI, PNG, TIFF or BMP",
                remedy="convert the mask to NIfTI",
            )
        return dicom.read_dicom(source, options)
    path = Path(source)
    if _is_raster(path):
        return raster.read_raster(path, options, as_label=as_label)
    return nifti.read_nifti(path, options)


def _array(values: ArrayLike, like: MetaTensor) -> NDArray[Any]:
    """As numpy, after making sure that they lie where ``like`` lay in its file."""
    shape = tuple(int(n) for n in like.meta["header"]["shape"])
    if like.meta["kind"] != "raster":
        shape = NiftiGrid.from_meta(like.meta["header"]).shape3
        if isinstance(values, MetaTensor):
            here = np.asarray(values.affine, np.float64)
            there = np.asarray(like.meta["original_affine"], np.float64)
            distance = grid_distance(here, there, shape)
            if not distance <= GRID_TOLERANCE_MM:
                raise ValueError(f"values lie up to {distance:.4g} mm off the image's file grid")
    array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values
    result = np.asarray(array)
    if result.shape[1:] != shape:
        raise ValueError(f"values of shape {result.shape} do not fit the image's {shape}")
    return result
