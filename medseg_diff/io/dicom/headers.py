"""What a DICOM file says of its frames: where they lie and how their numbers become values.

Single-frame files and enhanced multi-frame ones (PS3.3 C.7.6.16) end in the same records.
Nothing here reads an element that identifies a person.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from medseg_diff.errors import InputError
from medseg_diff.io.dicom.dataset import (
    open_dataset,
    preamble_warning,
    quiet,
    sop_class_of,
    syntax_of,
)
from medseg_diff.io.safety import DEFLATE_LIMIT, file_size

_FLAT = (
    "SOPClassUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality", "ImageType",
    "NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "SamplesPerPixel", "PhotometricInterpretation",
    "PlanarConfiguration", "PixelPaddingValue", "PixelPaddingRangeLimit", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept",
    "ModalityLUTSequence", "LossyImageCompression", "BurnedInAnnotation", "InstanceNumber",
)  # fmt: skip
# What tells the volumes of one series apart, surest first: a phase, an echo, a diffusion weight.
VOLUME_KEYS = (
    "TemporalPositionIndex", "TemporalPositionIdentifier", "EffectiveEchoTime", "EchoTime",
    "DiffusionBValue", "TriggerTime", "AcquisitionNumber",
)  # fmt: skip
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
KEYWORDS = (*_FLAT, *(k for k in VOLUME_KEYS if "Index" not in k), *_GROUPS)

# Objects with pixels that are no scan: segmentations and dose grids.
_NOT_SCANS = {
    "1.2.840.10008.5.1.4.1.1.66.4": "SEG",
    "1.2.840.10008.5.1.4.1.1.66.7": "SEG",
    "1.2.840.10008.5.1.4.1.1.481.2": "RTDOSE",
}
_PHOTOMETRIC = (
    "MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT",
)  # fmt: skip
_MOST_FRAMES = 100_000


@dataclass(frozen=True)
class Frame:
    """One plane of pixels.

    Args:
        index: Its place in the file, from 0.
        position: Centre of its first pixel in mm, LPS; None where the file does not say.
        orientation: Unit vectors along a row and along a column, LPS, six numbers.
        spacing: Between rows and between columns, in mm.
        keys: Values of `VOLUME_KEYS` that the file states.
        instance: InstanceNumber, which orders nothing in space.
    """

    path: Path
    index: int
    rows: int
    columns: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    slope: float
    intercept: float
    keys: dict[str, float] = field(default_factory=dict)
    instance: int | None = None


@dataclass(frozen=True)
class Header:
    """One image file, pixels apart.

    Args:
        series: SeriesInstanceUID, empty where there is none.
        syntax: Transfer syntax UID.
        padding: Smallest and largest stored number that mean "no pixel here".
        localizer: Whether ImageType says so.
    """

    path: Path
    series: str
    frame_of_reference: str
    modality: str
    syntax: str
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    samples: int
    photometric: str
    planar: int
    padding: tuple[int, int] | None
    localizer: bool
    frames: tuple[Frame, ...]
    warnings: tuple[str, ...] = ()


def read_header(path: Path, max_voxels: int) -> Header | str:
    """Header of an image file, or in a few words what kind of other object the file is.

    Raises:
        InputError: if the file is damaged, claims more than ``max_voxels``, or holds pixels that
            no reader here understands.
    """
    dataset = open_dataset(path, KEYWORDS)
    try:
        with quiet():
            return _header_of(Reader(dataset, path), max_voxels)
    except InputError:
        raise
    # pydicom parses an element, or a whole sequence, when it is asked for; its own text may quote
    # what stands there, which may be a name.
    except Exception as error:
        raise InputError(
            "damaged DICOM element",
            file=path,
            found=type(error).__name__,
            remedy="copy or download it again",
        ) from None


def _header_of(reader: Reader, max_voxels: int) -> Header | str:
    kind = sop_class_of(reader.dataset)
    if kind in _NOT_SCANS:
        return _NOT_SCANS[kind]
    if "Rows" in reader.dataset:
        return reader.header(max_voxels)
    # A slice cut short must not pass for a document and leave the series silently.
    if not kind or "Image Storage" in UID(kind).name:
        raise reader.refusal("Rows", "file ends early or holds no image", None, "an image")
    return reader.modality() or "other"


@dataclass(frozen=True)
class Reader:
    """Typed access to one dataset; each refusal names the element."""

    dataset: Dataset
    path: Path

    def header(self, max_voxels: int) -> Header:
        """All of it, checked."""
        rows, columns = self.whole("Rows"), self.whole("Columns")
        n_frames = self.whole("NumberOfFrames", 1)
        samples = self.whole("SamplesPerPixel", 1)
        self._check_size(rows, columns, samples, n_frames, max_voxels)
        allocated = self.whole("BitsAllocated")
        stored = self.whole("BitsStored", allocated)
        return Header(
            path=self.path,
            series=self.text("SeriesInstanceUID"),
            frame_of_reference=self.text("FrameOfReferenceUID"),
            modality=self.modality(),
            syntax=syntax_of(self.dataset),
            rows=rows,
            columns=columns,
            bits_allocated=allocated,
            bits_stored=stored,
            high_bit=self._checked_bits(allocated, stored),
            signed=self.whole("PixelRepresentation", 0) == 1,
            samples=samples,
            photometric=self._photometric(),
            planar=self.whole("PlanarConfiguration", 0),
            padding=self._padding(),
            localizer="LOCALIZER" in str(self.dataset.get("ImageType", "")).upper(),
            frames=tuple(self._frames(n_frames, rows, columns)),
            warnings=tuple(self._warnings()),
        )

    def text(self, keyword: str) -> str:
        """A string, empty where there is none."""
        return str(self.dataset.get(keyword, "") or "").strip()

    def modality(self) -> str:
        """Modality, if it looks like the code it must be; anything else could be a name."""
        found = self.text("Modality")
        return found if found.isalnum() and found.isupper() and len(found) <= 8 else ""

    def whole(self, keyword: str, default: int | None = None) -> int:
        """A whole number; refused where it is missing and has no default."""
        found = numbers(self.dataset, keyword, 1, self.path)
        if found is None and default is None:
            raise self.refusal(keyword, "is missing", None, "a whole number")
        value = default if found is None else found[0]
        if value is None or value != int(value):
            raise self.refusal(keyword, "is not whole", value, "a whole number")
        return int(value)

    def refusal(self, keyword: str, problem: str, found: object, expected: object) -> InputError:
        """A refusal of one element."""
        return InputError(
            problem,
            file=self.path,
            field=keyword,
            found=found,
            expected=expected,
            remedy="export the series again from its source",
        )

    def _check_size(self, rows: int, columns: int, samples: int, n: int, max_voxels: int) -> None:
        claimed = rows * columns * samples * n
        if min(rows, columns, n) < 1 or n > _MOST_FRAMES or not 0 < claimed <= max_voxels:
            found = f"{rows} x {columns} x {n} frames"
            expected = f"1 to {max_voxels} voxels, at most {_MOST_FRAMES} frames"
            raise self.refusal("Rows, Columns and NumberOfFrames", "impossible size", found,
                               expected)  # fmt: skip
        # Every frame takes bytes, packed or not; its description is slow to read.
        packed = syntax_of(self.dataset) == DeflatedExplicitVRLittleEndian
        if n > file_size(self.path) * (DEFLATE_LIMIT if packed else 1):
            raise self.refusal("NumberOfFrames", "file ends early", f"{n} frames",
                               "no more than the file has bytes")  # fmt: skip
        if samples not in (1, 3):
            raise self.refusal("SamplesPerPixel", "unsupported pixels", samples, "1 or 3")

    def _checked_bits(self, allocated: int, stored: int) -> int:
        high = self.whole("HighBit", stored - 1)
        if allocated not in (8, 16, 32) or not 1 <= stored <= high + 1 <= allocated:
            found = f"{allocated} allocated, {stored} stored, highest {high}"
            expected = "8, 16 or 32 allocated, and the stored ones among them"
            field = "BitsAllocated, BitsStored and HighBit"
            raise self.refusal(field, "impossible depth of pixels", found, expected)
        return high

    def _photometric(self) -> str:
        found = self.text("PhotometricInterpretation") or "MONOCHROME2"
        if found not in _PHOTOMETRIC:
            found = "PALETTE COLOR" if found.startswith("PALETTE") else "another"
            raise self.refusal("PhotometricInterpretation", "unsupported colour model",
                               found[:16], "MONOCHROME1, MONOCHROME2 or RGB")  # fmt: skip
        return found

    def _padding(self) -> tuple[int, int] | None:
        try:
            value = self.dataset.get("PixelPaddingValue")
            limit = self.dataset.get("PixelPaddingRangeLimit")
            if value is None or isinstance(value, bytes):
                return None
            ends = (int(value), int(value if limit is None else limit))
        except (TypeError, ValueError):
            return None
        return min(ends), max(ends)

    def _warnings(self) -> Iterator[str]:
        odd = preamble_warning(self.path)
        if odd:
            yield odd
        if self.text("LossyImageCompression") == "01":
            yield "its pixels went through lossy compression"
        if self.text("BurnedInAnnotation").upper() == "YES":
            yield "text is burned into its pixels; it may identify a person"
        if self.dataset.get("ModalityLUTSequence"):
            raise self.refusal("ModalityLUTSequence", "values follow a table, not a slope",
                               "a table", "RescaleSlope and RescaleIntercept")  # fmt: skip

    def _frames(self, n: int, rows: int, columns: int) -> Iterator[Frame]:
        per_frame = self.dataset.get("PerFrameFunctionalGroupsSequence")
        shared = (self.dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
        if per_frame is not None and len(per_frame) != n:
            raise self.refusal("PerFrameFunctionalGroupsSequence",
                               "does not describe every frame", len(per_frame), n)  # fmt: skip
        for index in range(n):
            # What a frame states itself goes before what all share, and that before the file's
            # own level, which says nothing of single frames where there are several.
            levels = [shared, self.dataset] if per_frame is None else [
                per_frame[index], shared, self.dataset]  # fmt: skip
            where = levels if n == 1 else levels[:-1]
            slope, intercept = self._scaling(levels)
            yield Frame(
                path=self.path,
                index=index,
                rows=rows,
                columns=columns,
                position=self._nested(where, "PlanePositionSequence", "ImagePositionPatient", 3),
                orientation=self._nested(
                    where, "PlaneOrientationSequence", "ImageOrientationPatient", 6
                ),
                spacing=self._nested(levels, "PixelMeasuresSequence", "PixelSpacing", 2),
                slope=slope,
                intercept=intercept,
                keys=self._keys(levels),
                instance=self._instance() if n == 1 else index,
            )

    def _instance(self) -> int | None:
        try:
            return int(self.dataset.InstanceNumber)
        except (AttributeError, TypeError, ValueError):
            return None

    def _scaling(self, levels: Sequence[Dataset]) -> tuple[float, float]:
        sequence = "PixelValueTransformationSequence"
        slope = self._nested(levels, sequence, "RescaleSlope", 1) or (1.0,)
        intercept = self._nested(levels, sequence, "RescaleIntercept", 1) or (0.0,)
        if slope[0] == 0:
            raise self.refusal("RescaleSlope", "makes every value the same", 0, "another number")
        return slope[0], intercept[0]

    def _keys(self, levels: Sequence[Dataset]) -> dict[str, float]:
        sequences = ("FrameContentSequence", "MREchoSequence", "MRDiffusionSequence")
        found = {}
        for keyword in VOLUME_KEYS:
            for sequence in sequences:
                value = self._nested(levels, sequence, keyword, 1)
                if value is not None:
                    found[keyword] = value[0]
                    break
        return found

    def _nested(
        self, levels: Sequence[Dataset], sequence: str, keyword: str, n: int
    ) -> tuple[float, ...] | None:
        """First statement of an element: in a functional group, or at the file's own level."""
        for level in levels:
            group = level.get(sequence)
            inner = group[0] if group else level if level is self.dataset else None
            found = None if inner is None else numbers(inner, keyword, n, self.path)
            if found is not None:
                return found
        return None


def numbers(dataset: Dataset, keyword: str, n: int, path: Path) -> tuple[float, ...] | None:
    """``n`` finite numbers of one element; None where it is absent or empty.

    Raises:
        InputError: if there are more or fewer, or they are none.
    """
    try:
        value: Any = dataset.get(keyword)
        several: Any = [] if value is None or value == "" else value
        found = tuple(float(v) for v in (several if hasattr(several, "__iter__") else [several]))
    except Exception:  # pydicom converts on access and raises what it likes
        found = (math.nan,)
    if not found:
        return None
    if len(found) != n or not all(map(math.isfinite, found)):
        raise InputError(
            "is not what it must be",
            file=path,
            field=keyword,
            found=f"{len(found)} values" if len(found) != n else "no finite number",
            expected=f"{n} finite number{'s' if n > 1 else ''}",
            remedy="export the series again from its source",
        )
    return found
