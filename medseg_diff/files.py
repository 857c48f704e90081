"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def atomic_text(path: str | Path, text: str) -> Path:
    """Write ``text`` (UTF-8, newlines untouched) to ``path`` in one step.

    The text goes to a temporary file in the same folder, reaches the disk, and takes the
    name with ``os.replace``: whoever opens ``path`` finds the old text or the new, and a
    failed write leaves the old one in place.

    Raises:
        OSError: if the folder is missing or cannot be written.
    """
    target = Path(path)
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes files only their owner can read; results follow the user's umask.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    return target


def _umask() -> int:
    """Read the process's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
