"""Writing files so that a reader never sees half of one, and telling by a hash what was written."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from medseg_diff.errors import InputError

# An unfinished file that nobody has written to for this long belongs to nobody.
STALE_S = 10.0
_UNFINISHED = re.compile(r"\.[0-9a-f]{16}\.tmp")


def atomic_text(path: str | Path, text: str) -> Path:
    """Write ``text`` (UTF-8, newlines untouched) to ``path`` in one step; see `atomic_file`."""
    with atomic_file(path) as stream:
        stream.write(text.encode("utf-8"))
    return Path(path)


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a stream whose bytes take the name ``path`` only when all of them are on the disk.

    Until then they lie in a hidden file of the same folder that only its owner can read; it is
    removed if anything fails, and whatever held the name before stays as it was.

    Raises:
        InputError: if the folder is missing, read-only or full.
    """
    path = Path(path)
    # The name is short and says nothing: the final one may be as long as the system allows.
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        # By name, not by descriptor: tifffile asks streams for their name.
        with open(temporary, "x+b", opener=_private) as stream:
            yield stream
            stream.flush()
            # Results follow the user's umask; only the unfinished file is private.
            temporary.chmod(0o666 & ~_umask())
            os.fsync(stream.fileno())
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        raise InputError(
            f"cannot be written: {error.strerror or error}",
            file=path,
            remedy="choose a folder that exists, may be written to and has room",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def remove_leftovers(folder: Path) -> None:
    """Remove the unfinished files of killed processes; what was touched just now may be living."""
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if _UNFINISHED.fullmatch(path.name) and time.time() - path.stat().st_mtime > STALE_S:
                path.unlink()


def _private(name: str, flags: int) -> int:
    """Open a file that only its owner can read."""
    return os.open(name, flags, 0o600)


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Make a file's bytes, or a folder's entries, survive a power cut.

    Does nothing where the system does not let folders be opened (Windows).
    """
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def content_sha256(path: Path) -> str:
    """Hash of a file, or of all files of a folder whatever their names, in hex digits."""
    if not path.is_dir():
        return file_sha256(path)
    digests = sorted(file_sha256(file) for file in path.rglob("*") if file.is_file())
    return hashlib.sha256("".join(digests).encode()).hexdigest()
