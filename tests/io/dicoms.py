"""DICOM series of the phantom, written by pydicom alone, tag by tag."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medseg_diff import io
from medseg_diff.errors import InputError
from tests.phantoms import grid_affine, make_phantom, turn

Array = NDArray[Any]
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SHAPE = (15, 13, 11)
SPACING = (3.0, 3.2, 3.6)
CT, MR, ENHANCED_MR = (f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("2", "4", "4.1"))
SERIES, FRAME = "2.25.1111111", "2.25.99"
# What no message, meta or output may ever show.
CANARY = "CANARY^Jane"
IDENTITY = {
    "PatientName": CANARY, "PatientID": "CANARY-1", "PatientBirthDate": "19000101",
    "InstitutionName": "CANARY Hospital", "AccessionNumber": "CANARY2", "StudyDate": "20200101",
    "SeriesDescription": "CANARY Jane head", "StudyDescription": "CANARY", "StudyID": "CANARY3",
    "ReferringPhysicianName": "CANARY^Doc", "OperatorsName": "CANARY^Op",
}  # fmt: skip
GRIDS = {
    "axial": grid_affine("LPS", SPACING, SHAPE),
    "axial, columns forward": grid_affine("LAS", SPACING, SHAPE),
    "sagittal": grid_affine("PIR", SPACING, SHAPE),
    "coronal": grid_affine("LIP", SPACING, SHAPE),
    "oblique": grid_affine("LPS", SPACING, SHAPE, rotation=turn(31, 0) @ turn(17, 2)),
    "written against the normal": grid_affine("LPI", SPACING, SHAPE),
}
AXIAL = GRIDS["axial"]
PHANTOM = make_phantom(AXIAL, SHAPE)
DATA = PHANTOM.image.astype(np.uint16)
Edit = Callable[[Dataset, int], None]


def plane(
    pixels: Array, affine: Array, k: int, *, sop: str = MR, edit: Edit | None = None
) -> Dataset:
    """One single-frame image: slice ``k`` of ``affine`` (RAS+, [i, j, k]), pixels (I, J)."""
    ds = base(pixels.T, sop)
    lps = LPS @ affine
    ds.InstanceNumber = k + 1
    ds.ImagePositionPatient = texts(lps[:3, 3] + k * lps[:3, 2])
    ds.ImageOrientationPatient = orientation(affine)
    sizes = np.linalg.norm(affine[:3, :2], axis=0)
    ds.PixelSpacing = texts(sizes[::-1])
    if edit is not None:
        edit(ds, k)
    return ds


def base(rows: Array, sop: str = MR) -> Dataset:
    """An image without a place; ``rows`` is (rows, columns) or (frames, rows, columns)."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for keyword, value in IDENTITY.items():
        setattr(ds, keyword, value)
    ds.SOPClassUID, ds.SOPInstanceUID = sop, generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "2.25.5", SERIES, FRAME
    ds.Modality = "CT" if sop == CT else "MR"
    ds.Rows, ds.Columns = rows.shape[-2:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    bits = rows.dtype.itemsize * 8
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = bits, bits, bits - 1
    ds.PixelRepresentation = int(rows.dtype.kind == "i")
    ds.PixelData = np.ascontiguousarray(rows).tobytes()
    ds["PixelData"].VR = "OB" if bits == 8 else "OW"
    return ds


def orientation(affine: Array) -> list[str]:
    """ImageOrientationPatient of a RAS+ affine."""
    cosines = (LPS @ affine)[:3, :2]
    return texts((cosines / np.linalg.norm(cosines, axis=0)).T.ravel())


def texts(values: Any) -> list[str]:
    """Decimal strings of at most 16 characters."""
    return [f"{float(v):.10f}"[:16] for v in np.asarray(values).ravel()]


def planes(
    affine: Array = AXIAL, data: Array | None = None, *, sop: str = MR, edit: Edit | None = None
) -> list[Dataset]:
    """Single-frame images of the phantom (or of ``data``, (I, J, K)) on a grid."""
    if data is None:
        data = make_phantom(affine, SHAPE).image.astype(np.uint16)
    return [plane(data[..., k], affine, k, sop=sop, edit=edit) for k in range(data.shape[2])]


def save(datasets: list[Dataset], folder: Path, name: str = "s{:03d}.dcm") -> Path:
    """Write to a folder, in the order given."""
    folder.mkdir(exist_ok=True, parents=True)
    for number, ds in enumerate(datasets):
        ds.save_as(folder / name.format(number), enforce_file_format=True)
    return folder


def enhanced(affine: Array, data: Array, order: Array | None = None) -> Dataset:
    """One enhanced multi-frame image of ``data`` (I, J, K), frames in the order given."""
    order = np.arange(data.shape[2]) if order is None else order
    ds = base(np.stack([data[..., k].T for k in order]), ENHANCED_MR)
    ds.NumberOfFrames, ds.InstanceNumber = len(order), 1
    lps = LPS @ affine
    shared, directions, measures = Dataset(), Dataset(), Dataset()
    directions.ImageOrientationPatient = orientation(affine)
    measures.PixelSpacing = texts(np.linalg.norm(affine[:3, :2], axis=0)[::-1])
    shared.PlaneOrientationSequence = Sequence([directions])
    shared.PixelMeasuresSequence = Sequence([measures])
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for k in order:
        group, position, scaling = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = texts(lps[:3, 3] + k * lps[:3, 2])
        scaling.RescaleSlope, scaling.RescaleIntercept, scaling.RescaleType = "1", "0", "US"
        group.PlanePositionSequence = Sequence([position])
        group.PixelValueTransformationSequence = Sequence([scaling])
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = Sequence(groups)
    return ds


def refused(source: Path | list[Path], *words: str) -> str:
    """Read, expect one line that holds ``words`` and tells neither folders nor identity."""
    with pytest.raises(InputError) as caught:
        io.read_image(source)
    line = str(caught.value)
    for word in words:
        assert word in line, line
    assert "\n" not in line
    assert "CANARY" not in line
    assert "/" not in line.replace("...", ""), line
    return line


def assert_clean(image, *warnings: str) -> None:
    """Voxels and affine of the axial phantom, and one warning for each of ``warnings``."""
    np.testing.assert_array_equal(np.asarray(image)[0], PHANTOM.image)
    np.testing.assert_allclose(np.asarray(image.affine), AXIAL, atol=1e-7)
    found = image.meta["warnings"]
    assert len(found) == len(warnings), found
    for words, sentence in zip(warnings, found, strict=True):
        assert words in sentence


def write_dicomdir(folder: Path, files: list[list[str]]) -> None:
    """A DICOMDIR that names files, each by its parts."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    ds.file_meta.MediaStorageSOPInstanceUID = "2.25.7"
    records = [Dataset()]
    records[0].PatientName = CANARY
    for parts in files:
        record = Dataset()
        record.ReferencedFileID = parts
        records.append(record)
    ds.DirectoryRecordSequence = Sequence(records)
    ds.save_as(folder / "DICOMDIR", enforce_file_format=True)
