"""DICOM in: one scan from files nobody vouches for.

`sources` finds the files, `dataset` opens one, `headers` reads what it says of its frames,
`series` chooses, `geometry` finds the grid, `pixels` brings the numbers, `reader` joins them.
"""

from medseg_diff.io.dicom.dataset import is_dicom
from medseg_diff.io.dicom.reader import dicom_spacing, list_series, read_dicom
from medseg_diff.io.dicom.series import SeriesInfo
from medseg_diff.io.dicom.sources import (
    Source,
    dicom_files,
    find_scans,
    holds_dicom,
    is_dicom_source,
    is_zip,
)

__all__ = [
    "SeriesInfo",
    "Source",
    "dicom_files",
    "dicom_spacing",
    "find_scans",
    "holds_dicom",
    "is_dicom",
    "is_dicom_source",
    "is_zip",
    "list_series",
    "read_dicom",
]
