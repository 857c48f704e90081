"""The manifest of a batch: which cases are done, by whom, from what, with which result.

One SQLite file in the output folder, ``manifest.sqlite``; one short transaction per change, so a
kill at any moment leaves a case either waiting, claimed by a process that is gone (and then taken
over), or done. What counts as done is what the manifest says and the files confirm, never the
mere existence of a file.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from medseg_diff.errors import InputError

FILE_NAME = "manifest.sqlite"
WAITING, RUNNING, DONE, FAILED = "waiting", "running", "done", "failed"
# A claim of another computer counts as abandoned after this long: its processes cannot be seen.
LEASE_SECONDS = 3600.0
_TABLE = """
CREATE TABLE IF NOT EXISTS cases (
    name TEXT PRIMARY KEY,
    status TEXT NOT NULL,
    made_from TEXT,
    record_sha256 TEXT,
    owner TEXT,
    claimed REAL,
    finished REAL,
    error TEXT
)
"""


@dataclass(frozen=True)
class Entry:
    """One case as the manifest knows it.

    Attributes:
        name: The case.
        status: ``"waiting"``, ``"running"``, ``"done"`` or ``"failed"``.
        made_from: Hash of everything the result depends on: input, model, parameters.
        record_sha256: Hash of the case's JSON, which vouches for its masks.
        owner: Process that claimed it last.
        claimed: When, in seconds since 1970.
        error: Why it failed.
    """

    name: str
    status: str
    made_from: str | None
    record_sha256: str | None
    owner: str | None
    claimed: float | None
    error: str | None


@cache
def this_process() -> str:
    """Computer, process number and its start: a number alone may be given to another process."""
    return f"{socket.gethostname()}|{os.getpid()}|{psutil.Process().create_time():.2f}"


class Manifest:
    """Cases of one output folder, shared by any number of processes.

    Args:
        folder: The output folder.
        lease: Seconds after which another computer's claim is void.
        owner: Who claims; this process unless a test says otherwise.

    Raises:
        InputError: if the file is there and is no manifest.
    """

    def __init__(
        self, folder: Path, *, lease: float = LEASE_SECONDS, owner: str | None = None
    ) -> None:
        self.file, self.lease = folder / FILE_NAME, lease
        self.owner = owner or this_process()
        with self._readable():
            self._base = sqlite3.connect(
                self.file, timeout=60, isolation_level=None, check_same_thread=False
            )
            # The rollback journal, not WAL: archives lie on network drives.
            self._base.execute("PRAGMA journal_mode=DELETE")
            self._base.execute("PRAGMA synchronous=FULL")
            self._base.execute(_TABLE)
            self._base.execute("SELECT * FROM cases LIMIT 1").fetchall()

    def close(self) -> None:
        """Let go of the file."""
        self._base.close()

    def enroll(self, names: Iterable[str], *, afresh: bool) -> None:
        """Take up cases; ``afresh`` forgets what was done before.

        Raises:
            InputError: if ``afresh`` and another process is at work in the folder.
        """
        with self._transaction():
            busy = self._busy() if afresh else []
            if busy:
                raise InputError(
                    f"another process is predicting into this folder ({len(busy)} cases)",
                    file=self.file.parent,
                    field="--out",
                    remedy="wait for it, give another folder, or share the work with --continue",
                )
            if afresh:
                self._base.execute("DELETE FROM cases")
            for name in names:
                self._base.execute(
                    "INSERT OR IGNORE INTO cases (name, status) VALUES (?, ?)", (name, WAITING)
                )

    def while_alone(self, action: Callable[[], object]) -> None:
        """Do something while no other process has a case or can take one; else leave it undone."""
        with self._transaction():
            if not self._busy():
                action()

    def claim(self, name: str, *, seen: Entry | None = None) -> bool:
        """Take a case for this process.

        Args:
            name: The case.
            seen: What the decision to take it rests on.

        Returns:
            False if a living process has it, or has finished it since it was ``seen``.
        """
        with self._transaction():
            entry = self.entry(name)
            if entry.status == RUNNING and self._is_held(entry):
                return False
            if seen is not None and entry != seen and entry.status == DONE:
                return False
            self._base.execute(
                "UPDATE cases SET status = ?, owner = ?, claimed = ?, error = NULL WHERE name = ?",
                (RUNNING, self.owner, time.time(), name),
            )
        return True

    def finish(self, name: str, made_from: str, record_sha256: str, error: str | None) -> None:
        """Write down what became of a claimed case."""
        with self._transaction():
            self._base.execute(
                "UPDATE cases SET status = ?, made_from = ?, record_sha256 = ?, finished = ?, "
                "error = ? WHERE name = ?",
                (FAILED if error else DONE, made_from, record_sha256, time.time(), error, name),
            )

    def release(self, name: str) -> None:
        """Give a claimed case back unfinished."""
        with self._transaction():
            self._base.execute(
                "UPDATE cases SET status = ?, owner = NULL WHERE name = ? AND owner = ?",
                (WAITING, name, self.owner),
            )

    def entry(self, name: str) -> Entry:
        """One case.

        Raises:
            KeyError: if it was never enrolled.
        """
        for entry in self._entries("WHERE name = ?", name):
            return entry
        raise KeyError(name)

    def entries(self) -> list[Entry]:
        """Every case, in the order of enrolment."""
        return self._entries()

    def _entries(self, where: str = "", *values: str) -> list[Entry]:
        with self._readable():
            rows = self._base.execute(
                "SELECT name, status, made_from, record_sha256, owner, claimed, error FROM cases "
                f"{where} ORDER BY rowid",
                values,
            ).fetchall()
        return [Entry(*row) for row in rows]

    def _busy(self) -> list[Entry]:
        """Cases that other living processes have."""
        return [e for e in self._entries("WHERE status = ?", RUNNING) if self._is_held(e)]

    def _is_held(self, entry: Entry) -> bool:
        """Whether another process that may still live has the case."""
        if entry.owner is None or entry.owner == self.owner:
            return False
        try:
            host, pid, started = entry.owner.split("|")
            if host != self.owner.split("|", maxsplit=1)[0]:
                return time.time() - (entry.claimed or 0) < self.lease
            return abs(psutil.Process(int(pid)).create_time() - float(started)) < 1
        except psutil.NoSuchProcess:
            return False
        # No process of ours writes such an owner: the claim is nobody's.
        except (ValueError, TypeError, AttributeError, OverflowError):
            return False

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Everything inside happens, or nothing; other writers wait."""
        with self._readable():
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                if self._base.in_transaction:
                    self._base.execute("ROLLBACK")
                raise
            self._base.execute("COMMIT")

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Turn what SQLite says of a damaged file, or of one that is no manifest, into a line."""
        try:
            yield
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise InputError(
                "not a readable manifest",
                file=self.file,
                found=str(error),
                remedy="delete it; --continue then starts over",
            ) from None


def canonical(content: Mapping[str, Any]) -> str:
    """JSON that is equal where the content is equal."""
    return json.dumps(content, sort_keys=True, default=str)
