"""The same readers and writers as MONAI's `LoadImaged` and `SaveImaged` want them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.image_reader import ImageReader
from monai.data.image_writer import ImageWriter
from monai.data.meta_tensor import MetaTensor
from monai.transforms.spatial.array import SpatialResample
from numpy.typing import NDArray

from medseg_diff.errors import InputError
from medseg_diff.io import raster
from medseg_diff.io.grid import GRID_TOLERANCE_MM, grid_distance, require_same_grid
from medseg_diff.io.header import NiftiGrid
from medseg_diff.io.images import read_image, read_label, whole_numbers
from medseg_diff.io.nifti import fresh_grid, write_nifti
from medseg_diff.io.options import ReadOptions

DEFAULT = ReadOptions()


class _Reader(ImageReader):
    """One file, or several files of one grid that become channels.

    Args:
        options: As for `read_image`.
        label: Read label maps instead of images.
    """

    suffixes: tuple[str, ...] = ()

    def __init__(self, options: ReadOptions = DEFAULT, *, label: bool = False) -> None:
        super().__init__()
        self.options = options
        self.label = label

    def verify_suffix(self, filename: Any) -> bool:
        """Whether all names end in a suffix of this reader, in whatever case."""
        return all(str(name).lower().endswith(self.suffixes) for name in _several(filename))

    def read(self, data: Any, **_: Any) -> tuple[Path, ...]:
        """Only note the names.

        `LoadImage` swallows what this method raises and lets its other readers try, so a file
        refused here would come back through one that refuses nothing. `get_data` is not caught.
        """
        return tuple(Path(name) for name in _several(data))

    def get_data(self, img: Sequence[Path]) -> tuple[NDArray[Any], dict[str, Any]]:
        """Values (C, *S) and their meta.

        Raises:
            InputError: as `read_image` and `read_label`, or for files of different grids.
        """
        images = []
        for path in img:
            if not self.verify_suffix(path):
                raise InputError("another kind of file", file=path, expected=self.suffixes)
            images.append(
                read_label(path, options=self.options)
                if self.label
                else read_image(path, self.options)
            )
            require_same_grid(images[-1], images[0])
        values = np.concatenate([image.numpy() for image in images])
        return values, dict(images[0].meta)


class NiftiReader(_Reader):
    """NIfTI files for `LoadImaged`: values (C, X, Y, Z)."""

    suffixes = (".nii", ".nii.gz")


class RasterReader(_Reader):
    """PNG, JPEG, TIFF and BMP files for `LoadImaged`: values (C, H, W), rows first."""

    suffixes = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


class _Writer(ImageWriter):
    """What both writers share: the data as (K, *S), its type and its scale.

    Args:
        output_dtype: Type on disk. Integer types take whole numbers that fit, nothing else.
        scale: 255 or 65535 to stretch [0, 1] to whole numbers.
    """

    def __init__(self, output_dtype: Any = np.float32, scale: int | None = None, **_: Any) -> None:
        super().__init__()
        self.output_dtype = output_dtype
        self.scale = scale
        self.meta: dict[str, Any] = {}

    def set_data_array(self, data_array: Any, channel_dim: int | None = 0, **_: Any) -> None:
        """Take the values; ``channel_dim`` None means that there is no channel axis."""
        values = torch.as_tensor(data_array).detach().cpu()
        if isinstance(values, MetaTensor):
            values = values.as_tensor()
        self.data_obj = values[None] if channel_dim is None else values.movedim(channel_dim, 0)

    def _values(self) -> NDArray[Any]:
        values = np.asarray(self.data_obj)
        if self.scale:
            values = np.rint(np.clip(values, 0, 1) * self.scale)
        dtype = np.dtype(self.output_dtype or values.dtype)
        return whole_numbers(values, dtype) if dtype.kind in "iu" else values.astype(dtype)


class NiftiWriter(_Writer):
    """NIfTI for `SaveImaged`: gives back the header's grid wherever the data lies on it."""

    def set_metadata(
        self, meta_dict: Mapping[str, Any] | None, resample: bool = False, **options: Any
    ) -> None:
        """Take the geometry; with ``resample`` bring moved data back to the file's own grid."""
        self.meta = dict(meta_dict or {})
        self.affine = np.asarray(self.meta.get("affine", np.eye(4)), np.float64)
        original = self.meta.get("original_affine")
        if not resample or original is None or self._on_file_grid():
            return
        back = SpatialResample(
            mode=options.get("mode", "nearest"),
            padding_mode=options.get("padding_mode", "border"),
            dtype=np.float64,
        )
        placed = MetaTensor(self.data_obj, affine=torch.as_tensor(self.affine))
        target = tuple(int(n) for n in self.meta["spatial_shape"])
        self.data_obj = torch.as_tensor(
            back(placed, dst_affine=torch.as_tensor(original), spatial_size=target)
        )
        self.affine = np.asarray(original, np.float64)

    def write(self, filename: Any, verbose: bool = False, **_: Any) -> None:
        """Write the file.

        Raises:
            InputError: if the file cannot be written.
            ValueError: if values do not fit an integer type.
        """
        super().write(filename, verbose=verbose)
        values = self._values()
        if self._on_file_grid():
            grid = NiftiGrid.from_meta(self.meta["header"])
        else:
            values = values.reshape(*values.shape, *[1] * (4 - values.ndim))
            grid = fresh_grid(self.affine, values.shape[1:])
        write_nifti(filename, values, grid)

    def _on_file_grid(self) -> bool:
        if self.meta.get("kind") not in ("nifti", "dicom"):
            return False
        shape = NiftiGrid.from_meta(self.meta["header"]).shape3
        original = np.asarray(self.meta["original_affine"], np.float64)
        same_shape = tuple(self.data_obj.shape[1:]) == shape
        return same_shape and grid_distance(self.affine, original, shape) <= GRID_TOLERANCE_MM


class RasterWriter(_Writer):
    """PNG (whole numbers) and TIFF (float32) for `SaveImaged`, by the name's suffix."""

    def set_metadata(self, meta_dict: Mapping[str, Any] | None, **_: Any) -> None:
        """Raster images carry no geometry."""
        self.meta = dict(meta_dict or {})

    def write(self, filename: Any, verbose: bool = False, **_: Any) -> None:
        """Write the file.

        Raises:
            InputError: if the file cannot be written.
            ValueError: if values do not fit the type, or shape and type do not fit the format.
        """
        super().write(filename, verbose=verbose)
        if Path(filename).suffix.lower() == ".png":
            raster.write_png(filename, self._values())
        else:
            raster.write_tiff(filename, self._values())


def _several(names: Any) -> tuple[Any, ...]:
    return (names,) if isinstance(names, (str, Path)) else tuple(names)
