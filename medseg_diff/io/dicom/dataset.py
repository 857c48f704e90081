"""Opening one DICOM file that nobody vouches for.

A file is DICOM by its content: ``DICM`` at byte 128, or, for files without that preamble, a first
element that can only be one of DICOM's own. Only the elements asked for are parsed, so a patient's
name never reaches this process's memory by way of a dataset.
"""

from __future__ import annotations

import contextlib
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from medseg_diff.errors import InputError
from medseg_diff.io import safety

PREAMBLE = 128
# A deflated dataset may grow to this, or to this many times its size on the disk. Images seldom
# shrink more than tenfold; zlib itself stops at 1032.
INFLATED_LEAST, INFLATED_RATIO = 64 << 20, 100
# Longer values than this, private ones mostly, stay on the disk.
_DEFER = 1 << 20
_FIRST_ELEMENTS = (b"\x02\x00\x00\x00", b"\x02\x00\x01\x00", b"\x02\x00\x10\x00")
_IDENTIFYING = (b"\x08\x00\x00\x00", b"\x08\x00\x05\x00", b"\x08\x00\x08\x00",
                b"\x08\x00\x16\x00", b"\x08\x00\x18\x00")  # fmt: skip


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom from warning of odd values, which it quotes and which may be names.

    It converts values when they are first asked for, so whoever asks needs this as well.
    """
    with warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter("ignore")
        yield


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its first bytes; False for whatever cannot be opened."""
    try:
        head = safety.file_head(path, PREAMBLE + 4)
    except InputError:
        return False
    return head[PREAMBLE:] == b"DICM" or _starts_like_dicom(head)


def preamble_warning(path: Path) -> str | None:
    """Sentence for files whose preamble makes them another kind of file as well (F63)."""
    head = safety.file_head(path, PREAMBLE + 4)
    if head[PREAMBLE:] == b"DICM" and head.startswith((b"MZ", b"\x7fELF", b"#!")):
        return "its preamble is that of a program; it was ignored and is never copied"
    return None


def open_dataset(path: Path, keywords: Sequence[str], *, pixels: bool = False) -> Dataset:
    """Parse the named elements of one file.

    Args:
        path: A file for which `is_dicom` holds.
        keywords: Top-level elements wanted, by DICOM keyword; sequences come whole.
        pixels: Also read the pixel data, as stored.

    Raises:
        InputError: if the file is damaged, or its deflated part grows beyond reason.
    """
    size = safety.file_size(path)
    wanted: list[Any] = [*keywords, *(("PixelData",) if pixels else ())]
    options: dict[str, Any] = {
        "specific_tags": wanted,
        "stop_before_pixels": not pixels,
        "force": True,  # `is_dicom` has looked: only files without preamble need it
    }
    if not pixels:
        options["defer_size"] = _DEFER
    try:
        with quiet():
            source: Any = _inflated(path, size) or path
            dataset = pydicom.dcmread(source, **options)
    except InputError:
        raise
    except Exception as error:  # pydicom promises no type of its own for damaged files
        raise InputError(
            f"DICOM elements cannot be parsed ({type(error).__name__})",
            file=path,
            remedy="copy or export it again",
        ) from None
    return dataset


def syntax_of(dataset: Dataset) -> str:
    """Transfer syntax UID; the standard's default where a file has no meta part."""
    stated = str(getattr(dataset.file_meta, "TransferSyntaxUID", "") or "")
    if stated:
        return stated
    implicit, little = dataset.original_encoding
    if little is False:
        return "1.2.840.10008.1.2.2"
    return "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1"


def sop_class_of(dataset: Dataset) -> str:
    """What kind of object it is, as the file or its meta part says; empty where neither does."""
    stated = dataset.get("SOPClassUID") or getattr(
        dataset.file_meta, "MediaStorageSOPClassUID", None
    )
    return str(stated or "")


def _starts_like_dicom(head: bytes) -> bool:
    """Without a preamble: group 2, or one of the first elements every image has."""
    if head[:4] in _FIRST_ELEMENTS:
        return head[4:6] in (b"UL", b"OB", b"UI")
    if head[:4] not in _IDENTIFYING:
        return False
    explicit = head[4:6] in (b"UL", b"CS", b"UI")
    return explicit or (head[6:8] == b"\0\0" and int.from_bytes(head[4:8], "little") < 128)


def _inflated(path: Path, size: int) -> DicomBytesIO | None:
    """The file with its deflated part unpacked, or None where nothing is deflated.

    pydicom would unpack without any limit (F60).
    """
    head = safety.file_head(path, 1 << 16)
    if str(DeflatedExplicitVRLittleEndian).encode() not in head[PREAMBLE:]:
        return None
    meta = pydicom.filereader.read_file_meta_info(path)
    if meta.TransferSyntaxUID != DeflatedExplicitVRLittleEndian:
        return None
    # The first element of the meta part, always 12 bytes long, counts the bytes after it.
    start = PREAMBLE + 4 + 12 + int(meta.FileMetaInformationGroupLength)
    limit = max(INFLATED_LEAST, INFLATED_RATIO * size)
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    body = engine.decompress(path.read_bytes()[start:], limit)
    if engine.unconsumed_tail or not engine.eof:
        full = len(body) >= limit
        raise InputError(
            "deflated data grows beyond reason" if full else "deflated data ends early",
            file=path,
            field="TransferSyntaxUID",
            found=f"{'more than ' if full else ''}{len(body)} bytes from {size}",
            expected=f"at most {limit} bytes" if full else None,
            remedy="obtain the file again from a source you trust",
        )
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    whole = DicomBytesIO()
    whole.write(b"\0" * PREAMBLE + b"DICM")
    pydicom.filewriter.write_file_meta_info(whole, meta, enforce_standard=False)
    whole.write(body)
    whole.seek(0)
    return whole
