"""The series that a DICOM answer belongs to: who, which images, and where their planes lie.

An answer repeats from its source only what PS3.3 asks of it: the type 1 and 2 attributes of the
patient and the study, the frame of reference, and references to the images. Comments, addresses,
institutions and private elements stay behind, and no value enters an error or a log.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from monai.data.meta_tensor import MetaTensor
from numpy.typing import NDArray
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.valuerep import format_number_as_ds

from medseg_diff.errors import InputError
from medseg_diff.io.dicom.dataset import is_dicom, open_dataset
from medseg_diff.io.dicom.headers import KEYWORDS, Reader

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Patient and General Study modules, types 1 and 2 (PS3.3, C.7.1.1 and C.7.2.1), and the two that
# tell a reader that the identity is not a real one.
IDENTITY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "StudyID", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
_REMOVED = ("PatientIdentityRemoved", "DeidentificationMethod")
_REFERENCES = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID",
    "FrameOfReferenceUID",
)  # fmt: skip
_OPTIONAL = (
    "Modality", "PositionReferenceIndicator", "LossyImageCompression",
    "LossyImageCompressionRatio", "LossyImageCompressionMethod",
)  # fmt: skip
_READ = (
    "SpecificCharacterSet", "SeriesNumber", "SliceThickness", *IDENTITY, *_REMOVED, *_REFERENCES,
    *_OPTIONAL,
)  # fmt: skip
_ANY_SIZE = 2**62  # the reader has held the series against the caller's limit
_IGNORE = 0  # pydicom.config.IGNORE: a source's odd value is copied, not judged


@dataclass(frozen=True)
class Reference:
    """What an answer needs to know of its source.

    Args:
        images: Stripped headers without identity, for highdicom: one per plane in the order of
            the last spatial axis, or one multi-frame image.
        identity: Elements to copy, as text.
        affine: (4, 4), voxel index (i, j, k) -> mm in LPS+, DICOM's patient coordinates.
        series_number: The source's, 1 if it has none.
    """

    images: tuple[Dataset, ...]
    identity: dict[str, str]
    affine: NDArray[np.float64]
    series_number: int

    @property
    def sop_uids(self) -> tuple[str, ...]:
        """SOP instance UIDs of the images."""
        return tuple(str(image.SOPInstanceUID) for image in self.images)

    @property
    def frame_of_reference(self) -> str:
        """Frame of reference UID."""
        return str(self.images[0].FrameOfReferenceUID)


@dataclass(frozen=True)
class _Plane:
    """One slice as its file places it: (4, 3) corners in mm LPS+, and the file's index."""

    image: int
    frame: int
    corners: NDArray[np.float64]


def read_reference(like: MetaTensor) -> Reference:
    """Read the headers behind an image that came from DICOM, and see that they lie where it lies.

    Planes are matched to the last spatial axis by their positions, never by the order of files
    or frames.

    Args:
        like: Image (C, *S); ``meta["kind"]`` is ``"dicom"`` and ``meta["dicom"]["files"]`` names
            the source files.

    Raises:
        InputError: if ``like`` is not from DICOM, a file cannot be read, lacks a frame of
            reference or a place, or the files are not the series that ``like`` was read from.
    """
    if like.meta.get("kind") != "dicom":
        raise InputError(
            "DICOM output needs DICOM input",
            file=str(like.meta.get("filename_or_obj", "")) or None,
            found=like.meta.get("kind"),
            expected="dicom",
            remedy="predict from the DICOM series, or leave --dicom-seg out",
        )
    files = [Path(str(name)) for name in like.meta["dicom"]["files"]]
    headers = [_read(file) for file in files]
    _check_one_series(headers, files, like)
    affine = LPS_FROM_RAS @ np.asarray(like.affine, np.float64)
    shape = (*(int(n) for n in like.shape[1:]), 1)[:3]
    planes = [p for n, header in enumerate(headers) for p in _planes(header, n, files[n])]
    numbers = like.meta["dicom"].get("frame_numbers")
    if numbers is not None and _is_multiframe(headers[0]):
        # Of several volumes in one file, the one that was read.
        read = {int(number) - 1 for number in numbers}
        planes = [plane for plane in planes if plane.frame in read]
    chosen = _match(planes, affine, shape, files[0])
    if _is_multiframe(headers[0]):
        images: list[Dataset] = [_strip_multiframe(headers[0], chosen, affine, shape)]
    else:
        images = [
            _strip_single(headers[plane.image], affine, k, shape) for k, plane in enumerate(chosen)
        ]
    number = _text(headers[0], "SeriesNumber")
    return Reference(
        tuple(images),
        {k: _text(headers[0], k) for k in IDENTITY}
        | {k: _text(headers[0], k) for k in _REMOVED if k in headers[0]},
        affine,
        int(number) if number.isdecimal() and 0 < int(number) < 10**7 else 1,
    )


def set_text(dataset: Dataset, keyword: str, value: str) -> None:
    """Set an element to the source's text without judging it: an odd date stays as odd."""
    tag = tag_for_keyword(keyword)
    assert tag is not None
    dataset.add(DataElement(tag, dictionary_VR(tag), value, validation_mode=_IGNORE))


def _read(file: Path) -> Dataset:
    """Header of one file, only the elements needed here."""
    if not is_dicom(file):
        raise InputError(
            "source image cannot be read again",
            file=file,
            expected="the DICOM file that was predicted",
            remedy="keep the series where it is until the prediction is written",
        )
    return open_dataset(file, (*KEYWORDS, *_READ))


def _check_one_series(headers: Sequence[Dataset], files: Sequence[Path], like: MetaTensor) -> None:
    if not headers:
        raise InputError(
            "an answer in DICOM cannot point at images inside an archive",
            file=str(like.meta.get("filename_or_obj", "")) or None,
            remedy="unpack it and predict from the folder",
        )
    known = {
        "FrameOfReferenceUID": like.meta["dicom"].get("frame_of_reference"),
        "SeriesInstanceUID": like.meta["dicom"].get("series"),
    }
    for header, file in zip(headers, files, strict=True):
        for keyword in _REFERENCES:
            if not _text(header, keyword):
                raise InputError(
                    "a DICOM answer needs it to point at its source",
                    file=file,
                    field=keyword,
                    found="nothing",
                    expected="a UID",
                    remedy="use the NIfTI outputs, or restore the element",
                )
            if keyword in ("SOPClassUID", "SOPInstanceUID"):
                continue
            wanted = known.get(keyword) or headers[0][keyword].value
            if str(header[keyword].value) != str(wanted):
                raise _another_series(file, keyword)
    if len(headers) > 1 and any(_is_multiframe(header) for header in headers):
        raise InputError(
            "several multi-frame files",
            file=files[0],
            expected="one multi-frame file, or single-frame files",
        )


def _another_series(file: Path, field: str) -> InputError:
    return InputError(
        "is not of the series that was read",
        file=file,
        field=field,
        expected="one series with one frame of reference, on the grid of the mask",
        remedy="give the series that the prediction was made from",
    )


def _is_multiframe(header: Dataset) -> bool:
    return "PerFrameFunctionalGroupsSequence" in header


def _planes(header: Dataset, index: int, file: Path) -> Iterator[_Plane]:
    """Every plane of a file, where the file says it lies."""
    for frame in Reader(header, file).header(_ANY_SIZE).frames:
        if frame.position is None or frame.orientation is None or frame.spacing is None:
            raise InputError(
                "says not where its planes lie",
                file=file,
                field="ImagePositionPatient, ImageOrientationPatient, PixelSpacing",
                remedy="use the NIfTI outputs",
            )
        row, column = np.reshape(frame.orientation, (2, 3))
        # PixelSpacing gives the distance between rows first (PS3.3, 10.7.1.3).
        i, j = row * frame.spacing[1], column * frame.spacing[0]
        corners = _corners(np.array(frame.position), i, j, frame.columns, frame.rows)
        yield _Plane(index, frame.index, corners)


def _corners(
    origin: NDArray[np.float64],
    i: NDArray[np.float64],
    j: NDArray[np.float64],
    columns: int,
    rows: int,
) -> NDArray[np.float64]:
    ends = itertools.product((0, columns - 1), (0, rows - 1))
    return np.stack([origin + a * i + b * j for a, b in ends])


def _match(
    planes: Sequence[_Plane], affine: NDArray[np.float64], shape: Sequence[int], file: Path
) -> list[_Plane]:
    """The plane at each index of the last axis; none may lie half a voxel off."""
    tolerance = np.linalg.norm(affine[:3, :3], axis=0).min() / 2
    places = np.stack([plane.corners for plane in planes])
    chosen = []
    for k in range(shape[2]):
        origin = affine[:3, 3] + k * affine[:3, 2]
        wanted = _corners(origin, affine[:3, 0], affine[:3, 1], shape[0], shape[1])
        distance = np.linalg.norm(places - wanted, axis=2).max(axis=1)
        nearest = int(distance.argmin())
        if not distance[nearest] < tolerance:
            raise _another_series(file, "ImagePositionPatient")
        chosen.append(planes[nearest])
    return chosen


def _strip(header: Dataset, shape: Sequence[int]) -> Dataset:
    """References and types of one image; the identity is left empty."""
    image = Dataset()
    for keyword in (*_REFERENCES, *_OPTIONAL):
        if keyword in header:
            setattr(image, keyword, header[keyword].value)
    for keyword in IDENTITY:
        setattr(image, keyword, "")
    image.Columns, image.Rows = shape[0], shape[1]
    return image


def _strip_single(
    header: Dataset, affine: NDArray[np.float64], k: int, shape: Sequence[int]
) -> Dataset:
    image = _strip(header, shape)
    image.ImagePositionPatient = _decimals(affine[:3, 3] + k * affine[:3, 2])
    image.ImageOrientationPatient = _orientation(affine)
    image.PixelSpacing = _pixel_spacing(affine)
    image.SliceThickness = _thickness(header, affine)
    return image


def _strip_multiframe(
    header: Dataset,
    chosen: Sequence[_Plane],
    affine: NDArray[np.float64],
    shape: Sequence[int],
) -> Dataset:
    """All frames keep their numbers; the chosen ones lie on the grid, the others before it."""
    image = _strip(header, shape)
    image.NumberOfFrames = len(header.PerFrameFunctionalGroupsSequence)
    index = {plane.frame: k for k, plane in enumerate(chosen)}
    frames = []
    for frame in range(image.NumberOfFrames):
        place = affine[:3, 3] + index.get(frame, -1 - frame) * affine[:3, 2]
        frames.append(_group("PlanePositionSequence", ImagePositionPatient=_decimals(place)))
    shared = _group("PlaneOrientationSequence", ImageOrientationPatient=_orientation(affine))
    shared |= _group(
        "PixelMeasuresSequence",
        PixelSpacing=_pixel_spacing(affine),
        SliceThickness=_thickness(header, affine),
    )
    image.SharedFunctionalGroupsSequence = [_dataset(shared)]
    image.PerFrameFunctionalGroupsSequence = [_dataset(frame) for frame in frames]
    return image


def _group(name: str, **values: Any) -> dict[str, list[Dataset]]:
    return {name: [_dataset(values)]}


def _dataset(values: dict[str, Any]) -> Dataset:
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def _decimals(values: NDArray[np.float64]) -> list[str]:
    return [format_number_as_ds(float(value)) for value in values]


def _orientation(affine: NDArray[np.float64]) -> list[str]:
    axes = affine[:3, :2] / np.linalg.norm(affine[:3, :2], axis=0)
    return _decimals(axes.T.ravel())


def _pixel_spacing(affine: NDArray[np.float64]) -> list[str]:
    columns, rows = np.linalg.norm(affine[:3, :2], axis=0)
    return _decimals(np.array([rows, columns]))


def _thickness(header: Dataset, affine: NDArray[np.float64]) -> str:
    """The source's slice thickness, or the distance between slices where it states none."""
    stated = _text(header, "SliceThickness")
    if _is_multiframe(header):
        measures = header.SharedFunctionalGroupsSequence[0].get("PixelMeasuresSequence")
        stated = _text(measures[0], "SliceThickness") if measures else ""
    try:
        value = float(stated)
    except ValueError:
        value = 0.0
    if not 0 < value < np.inf:
        value = float(np.linalg.norm(affine[:3, 2]))
    return format_number_as_ds(value)


def _text(dataset: Dataset, keyword: str) -> str:
    """An element as text, empty if absent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = dataset.get(keyword)
    if value is None:
        return ""
    if isinstance(value, pydicom.multival.MultiValue):
        return "\\".join(str(part) for part in value)
    return str(value)
