"""DICOM series with a synthetic identity, written by pydicom alone, for tests of what is written.

An image and its grid go in, one file per slice (or one enhanced multi-frame file) comes out. The
array is indexed [i, j, k]: i along a row, j down a column, k along their cross product.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

MR, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1"
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SPACING, SHAPE = (1.2, 0.9, 2.5), (12, 10, 8)
IDENTITY = {
    "PatientName": "Canary^Nightingale",
    "PatientID": "CANARY-0001",
    "PatientBirthDate": "19010203",
    "PatientSex": "O",
    "StudyDate": "20200102",
    "StudyTime": "101112",
    "StudyID": "CANARYSTUDY",
    "AccessionNumber": "CANARYACC",
    "ReferringPhysicianName": "Canary^Referrer",
}


def grid(orientation: tuple[float, ...], spacing: Any = SPACING) -> NDArray[np.float64]:
    """Affine of a series in RAS+ from its ImageOrientationPatient."""
    row, column = np.reshape(np.array(orientation, float), (2, 3))
    affine = np.eye(4)
    affine[:3, :3] = np.stack([row, column, np.cross(row, column)], axis=1) * spacing
    affine[:3, 3] = (-31.5, 17.25, 44.0)
    return LPS @ affine


def turned(degrees: tuple[float, float]) -> tuple[float, ...]:
    """ImageOrientationPatient of an axial slice turned about x and then z."""
    a, b = np.deg2rad(degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    return tuple(float(v) for v in (about_z @ about_x)[:, :2].T.ravel())


@dataclass
class Series:
    """A series to write.

    Args:
        values: (I, J, K), stored as unsigned 16-bit numbers.
        affine: (4, 4) in RAS+.
        extra: Elements to add to every file.
        tail: Keeps the UIDs of two series apart.
    """

    values: NDArray[Any]
    affine: NDArray[np.float64]
    extra: dict[str, Any] = field(default_factory=dict)
    tail: str = "1"

    def write(self, folder: Path) -> list[Path]:
        """One file per slice; the names' order is not that of the slices. Paths in order of k."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for k in range(self.values.shape[2]):
            dataset = self._dataset(MR, f"{k + 1}")
            dataset.ImagePositionPatient = self._position(k)
            dataset.ImageOrientationPatient = self._orientation()
            dataset.PixelSpacing = self._pixel_spacing()
            dataset.SliceThickness = "2.0"
            dataset.InstanceNumber = k + 1
            self._pixels(dataset, self.values[:, :, k].T)
            paths.append(_save(dataset, folder / f"{(7 * k + 3) % 97:02d}.dcm"))
        return paths

    def write_enhanced(self, folder: Path, order: list[int]) -> list[Path]:
        """One multi-frame file whose frames show slices in the given order."""
        folder.mkdir(parents=True, exist_ok=True)
        dataset = self._dataset(ENHANCED_MR, "1")
        dataset.NumberOfFrames = len(order)
        measures, plane = Dataset(), Dataset()
        measures.PixelSpacing, measures.SliceThickness = self._pixel_spacing(), "2.0"
        plane.ImageOrientationPatient = self._orientation()
        shared = Dataset()
        shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
        dataset.SharedFunctionalGroupsSequence = [shared]
        frames = []
        for k in order:
            place, frame = Dataset(), Dataset()
            place.ImagePositionPatient = self._position(k)
            frame.PlanePositionSequence = [place]
            frames.append(frame)
        dataset.PerFrameFunctionalGroupsSequence = frames
        self._pixels(dataset, self.values[:, :, order].transpose(2, 1, 0))
        return [_save(dataset, folder / "multi.dcm")]

    def like(self, files: list[Path]) -> MetaTensor:
        """The image as the package's reader gives it."""
        values = torch.from_numpy(self.values.astype(np.float32))[None]
        meta = {
            "filename_or_obj": str(files[0].parent),
            "kind": "dicom",
            "dicom": {"files": [str(file) for file in files]},
            "warnings": [],
        }
        return MetaTensor(values, affine=torch.from_numpy(self.affine), meta=meta)

    def _dataset(self, sop_class: str, number: str) -> Dataset:
        dataset = Dataset()
        dataset.SpecificCharacterSet = "ISO_IR 100"
        dataset.SOPClassUID, dataset.Modality = sop_class, "MR"
        dataset.SOPInstanceUID = f"2.25.77.{self.tail}.{number}"
        dataset.StudyInstanceUID = "2.25.77"
        dataset.SeriesInstanceUID = f"2.25.77.{self.tail}"
        dataset.FrameOfReferenceUID = f"2.25.78.{self.tail}"
        dataset.PositionReferenceIndicator = ""
        dataset.SeriesNumber = 4
        for keyword, value in {**IDENTITY, **self.extra}.items():
            if value is None:
                if keyword in dataset:
                    delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)
        return dataset

    def _pixels(self, dataset: Dataset, values: NDArray[Any]) -> None:
        dataset.Rows, dataset.Columns = values.shape[-2:]
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation, dataset.SamplesPerPixel = 15, 0, 1
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.PixelData = np.ascontiguousarray(values, "<u2").tobytes()

    def _position(self, k: int) -> list[str]:
        return _decimals((LPS @ self.affine @ [0, 0, k, 1])[:3])

    def _orientation(self) -> list[str]:
        axes = (LPS @ self.affine)[:3, :2]
        return _decimals((axes / np.linalg.norm(axes, axis=0)).T.ravel())

    def _pixel_spacing(self) -> list[str]:
        columns, rows = np.linalg.norm(self.affine[:3, :2], axis=0)
        return _decimals([rows, columns])


def _decimals(values: Any) -> list[str]:
    return [f"{value:.8f}" for value in values]


def _save(dataset: Dataset, path: Path) -> Path:
    dataset.InstanceCreationDate = datetime.date(2020, 1, 2).strftime("%Y%m%d")
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path


def make_labels(shape: tuple[int, int, int] = SHAPE) -> NDArray[np.uint8]:
    """Two structures that no flip or swap of axes maps to themselves, on some planes only."""
    labels = np.zeros(shape, np.uint8)
    labels[1:5, 2:4, 1:4] = 1
    labels[2, 3, 4] = 1
    labels[7:9, 5:9, 3:6] = 2
    labels[9:11, 6, 3] = 2
    return labels
