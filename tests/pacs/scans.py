"""Series for an archive: a real, openly licensed scan in a synthetic patient's study."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medseg_diff import io
from medseg_diff.data.sample import sample_caselist
from tests.io.dicom_series import LPS, Series

STUDY = "2.25.77"


def hippocampus(folder: Path, tail: str = "1", **extra: object) -> Path:
    """A test case of the embedded sample as a DICOM series, one file per slice."""
    cases = sample_caselist()
    case = cases.part("test")[0]
    image = io.read_image(cases.channel_paths(case)["T1"])
    values, affine = np.asarray(image)[0], np.asarray(image.affine)
    if np.linalg.det((LPS @ affine)[:3, :3]) < 0:  # a series' slices run along the cross product
        values = values[:, :, ::-1]
        affine[:3, 3] += affine[:3, 2] * (values.shape[2] - 1)
        affine[:3, 2] *= -1
    stored = np.rint(values * (4000 / values.max())).astype(np.uint16)
    Series(stored, affine, extra=dict(extra), tail=tail).write(folder)
    return folder
