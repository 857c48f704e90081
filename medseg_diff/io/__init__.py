"""Files <-> MONAI MetaTensors: NIfTI, DICOM and raster images.

The only package that imports nibabel and pydicom. What it reads it has checked; what it writes is
whole or absent, and lies on the grid of the image it belongs to.
"""

from medseg_diff.io.dicom import (
    SeriesInfo,
    dicom_files,
    find_scans,
    holds_dicom,
    is_dicom_source,
    list_series,
)
from medseg_diff.io.dicom_reference import Reference, read_reference
from medseg_diff.io.dicom_seg import Algorithm, write_parametric_map, write_seg
from medseg_diff.io.grid import require_same_grid
from medseg_diff.io.images import (
    count_voxels,
    empty_image,
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
from medseg_diff.io.names import (
    DERIVED,
    SUFFIXES,
    case_stem,
    is_image_name,
    output_names,
    safe_stem,
)
from medseg_diff.io.options import ReadOptions
from medseg_diff.io.segment_codes import StructureCode, structure_codes

__all__ = [
    "DERIVED",
    "SUFFIXES",
    "Algorithm",
    "NiftiReader",
    "NiftiWriter",
    "RasterReader",
    "RasterWriter",
    "ReadOptions",
    "Reference",
    "SeriesInfo",
    "StructureCode",
    "case_stem",
    "count_voxels",
    "dicom_files",
    "empty_image",
    "find_scans",
    "holds_dicom",
    "is_dicom_source",
    "is_image_name",
    "label_suffix",
    "list_series",
    "map_suffix",
    "output_names",
    "read_channels",
    "read_image",
    "read_label",
    "read_reference",
    "read_spacing",
    "require_same_grid",
    "require_volume",
    "safe_stem",
    "structure_codes",
    "write_draws",
    "write_label",
    "write_map",
    "write_parametric_map",
    "write_seg",
]
