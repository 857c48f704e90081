"""Files <-> MONAI MetaTensors: NIfTI and raster images.

The only package that imports nibabel. What it reads it has checked; what it writes is whole or
absent, and lies on the grid of the image it belongs to.
"""

from medseg_diff.io.grid import require_same_grid
from medseg_diff.io.images import (
    label_suffix,
    map_suffix,
    read_channels,
    read_image,
    read_label,
    read_spacing,
    require_volume,
    write_draws,
    write_label,
    write_map,
)
from medseg_diff.io.monai_io import NiftiReader, NiftiWriter, RasterReader, RasterWriter
from medseg_diff.io.names import SUFFIXES, case_stem, is_image_name, output_names, safe_stem
from medseg_diff.io.options import ReadOptions

__all__ = [
    "SUFFIXES",
    "NiftiReader",
    "NiftiWriter",
    "RasterReader",
    "RasterWriter",
    "ReadOptions",
    "case_stem",
    "is_image_name",
    "label_suffix",
    "map_suffix",
    "output_names",
    "read_channels",
    "read_image",
    "read_label",
    "read_spacing",
    "require_same_grid",
    "require_volume",
    "safe_stem",
    "write_draws",
    "write_label",
    "write_map",
]
