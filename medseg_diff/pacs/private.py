"""The folder in which fetched scans wait: private, and gone afterwards.

It is removed on success and on failure; what a killed process left behind is removed at the next
start. Its name says which process it belongs to, so one that is still at work keeps its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from medseg_diff.errors import InputError

_PREFIX = "medseg_diff_pacs"
_NAME = re.compile(rf"{_PREFIX}-([0-9a-f]{{8}})-([0-9]+)-([0-9]+)-[0-9a-f]+")


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A new folder below the system's temporary one (``TMPDIR``) that only its owner may enter.

    Raises:
        InputError: if it cannot be made.
    """
    root = Path(tempfile.gettempdir())
    remove_leftovers(root)
    born = round(psutil.Process().create_time() * 1000)
    name = f"{_PREFIX}-{_host()}-{os.getpid()}-{born}-{secrets.token_hex(6)}"
    folder = root / name
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise InputError(
            f"no temporary folder for the scan: {error.strerror or 'error'}",
            remedy="let TMPDIR name a folder that may be written to and has room",
        ) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(root: Path) -> None:
    """Remove folders of this user whose processes, on this computer, are gone."""
    for folder in root.glob(f"{_PREFIX}-*"):
        found = _NAME.fullmatch(folder.name)
        if found is None or found[1] != _host() or not _is_ours(folder):
            continue
        if not _is_alive(int(found[2]), int(found[3])):
            shutil.rmtree(folder, ignore_errors=True)


def _host() -> str:
    """Computers that share a temporary folder know each other's processes not at all."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _is_ours(folder: Path) -> bool:
    """A folder itself, no link to one, and of this user where the system has users."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    mine = not hasattr(os, "getuid") or status.st_uid == os.getuid()
    return stat.S_ISDIR(status.st_mode) and mine


def _is_alive(pid: int, born_ms: int) -> bool:
    try:
        return abs(psutil.Process(pid).create_time() * 1000 - born_ms) < 1000
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True
