"""Opening files nobody vouches for, and writing files that are either whole or absent.

Every claim a header makes about size is held against the size of the file before memory is taken
for it, and a gzip stream is always read to its end: its checksum comes last.
"""

from __future__ import annotations

import contextlib
import gzip
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from medseg_diff.errors import InputError

GZIP_MAGIC = b"\x1f\x8b"
# Deflate cannot do better than 1032:1; the rest covers headers and rounding.
DEFLATE_LIMIT = 1040
TRAILING_LIMIT = 1 << 20
_CHUNK = 1 << 20

_KNOWN = (
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"II+\0", "a TIFF image"),
    (b"MM\0+", "a TIFF image"),
    (b"BM", "a BMP image"),
    (b"GIF8", "a GIF image"),
    (b"PK\x03\x04", "a zip archive"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ", "an xz file"),
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    (b"NRRD", "an NRRD volume"),
    (b"\x89HDF", "an HDF5 file"),
    (b"%PDF", "a PDF document"),
)


def file_size(path: str | Path) -> int:
    """Size in bytes of a regular file that may be read.

    Raises:
        InputError: for a missing file, a broken link, a folder, a pipe or other device, a file
            without read permission, or an empty one.
    """
    path = Path(path)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise InputError("is a folder", file=path, remedy="name the file inside it")
        if not stat.S_ISREG(status.st_mode):
            # Opening a pipe would wait for a writer that may never come.
            raise InputError("is a pipe or device", file=path, expected="a regular file")
        with path.open("rb"):
            pass
    except FileNotFoundError:
        if path.is_symlink():
            raise InputError(
                "link points to a file that is not there", file=path, remedy="restore its target"
            ) from None
        raise InputError("no such file", file=path, remedy="check the path") from None
    except PermissionError:
        raise InputError(
            "no permission to read it", file=path, remedy="ask its owner, or chmod it"
        ) from None
    except OSError as error:
        raise InputError(f"cannot be opened: {error.strerror}", file=path) from None
    except InputError:
        raise
    except ValueError:
        raise InputError("not a file name", field="path", found=ascii(path.name)) from None
    if status.st_size == 0:
        raise InputError("is empty (0 bytes)", file=path, remedy="copy or download it again")
    return status.st_size


def file_head(path: Path, n: int = 512) -> bytes:
    """First ``n`` bytes as they lie on the disk, after `file_size`'s checks."""
    file_size(path)
    with path.open("rb") as stream:
        return stream.read(n)


def describe(head: bytes) -> str | None:
    """What a file is, told from its first bytes, if it is one of the usual impostors."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"version https://git-lfs"):
        return "a Git-LFS pointer, not the file itself: run `git lfs pull`"
    if text.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, probably a failed download"
    if text.startswith((b"<?xml", b"{")):
        return "a text document"
    if head[128:132] == b"DICM":
        return "a DICOM file"
    return next((name for magic, name in _KNOWN if head.startswith(magic)), None)


@contextlib.contextmanager
def open_stream(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading, unpacking gzip by its content, not by its name.

    Raises:
        InputError: as `file_size`, or when reading within the context finds the compressed
            stream cut short or damaged.
    """
    packed = file_head(path, 2) == GZIP_MAGIC
    try:
        with gzip.open(path, "rb") if packed else path.open("rb") as stream:
            yield cast("IO[bytes]", stream)
    except EOFError:
        raise _ends_early(path) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(
            f"compressed data is damaged: {error}", file=path, remedy="copy or download it again"
        ) from None


def check_claim(path: Path, claimed: int, *, packed: bool) -> None:
    """Refuse a claim of ``claimed`` bytes that the file cannot hold, before memory is taken."""
    size = file_size(path)
    if claimed > (size * DEFLATE_LIMIT if packed else size):
        raise InputError(
            "file ends early: it cannot hold what its header promises",
            file=path,
            field="dim",
            found=f"{size} bytes on disk",
            expected=f"{claimed} bytes{' when unpacked' if packed else ''}",
            remedy="copy or download it again",
        )


def read_span(stream: IO[bytes], path: Path, skip: int, n_bytes: int) -> NDArray[np.uint8]:
    """Read bytes ``skip`` to ``skip + n_bytes`` of a stream at its start, and on to its end.

    Going on to the end is what makes gzip compare its checksum. What lies behind the span may
    be at most 1 MiB, so a stream that never ends stops here.

    Raises:
        InputError: if the stream is too short or too long.
    """
    while skip:
        step = len(stream.read(min(skip, _CHUNK)))
        if step == 0:
            raise _ends_early(path)
        skip -= step
    # Pages of an empty array cost nothing until the stream really delivers their bytes.
    span = np.empty(n_bytes, np.uint8)
    view = span.data
    done = 0
    while done < n_bytes:
        target = view[done : done + _CHUNK]
        chunk = stream.read(len(target))
        if not chunk:
            raise _ends_early(path, f"{done} bytes of voxels", f"{n_bytes}")
        target[: len(chunk)] = chunk
        done += len(chunk)
    rest = 0
    while chunk := stream.read(_CHUNK):
        rest += len(chunk)
        if rest > TRAILING_LIMIT:
            raise InputError(
                "holds far more data than its header describes",
                file=path,
                field="dim",
                found=f"more than {rest} bytes after the voxels",
                expected=f"at most {TRAILING_LIMIT}",
                remedy="obtain the file again from a source you trust",
            )
    return span


def _ends_early(path: Path, found: str | None = None, expected: str | None = None) -> InputError:
    return InputError(
        "file ends early",
        file=path,
        found=found,
        expected=expected,
        remedy="copy or download it again",
    )
