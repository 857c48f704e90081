"""Which sample each data-loading process is at, so that a killed one can be named."""

from __future__ import annotations

import os
import re
import time

import psutil
import torch
from torch.utils.data import get_worker_info

# What torch says when one of a DataLoader's processes is gone.
_GONE = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)")


# What the parent meets where it reads from one of them that is gone.
BROKEN_PIPE = (ConnectionError, EOFError)


# Seconds from a broken pipe to the death that broke it: a dying process closes its files first.
GRACE = 2.0


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Watch:
    """A row of shared memory per process: its number, and the sample it is at."""

    def __init__(self, workers: int) -> None:
        self.rows = torch.full((workers, 2), -1, dtype=torch.int64).share_memory_()

    def note(self, number: int) -> None:
        """Say, inside a data-loading process, which sample is being made."""
        worker = get_worker_info()
        if worker is not None:
            self.rows[worker.id] = torch.tensor([os.getpid(), number])

    def lost(self, error: Exception) -> list[int] | None:
        """Samples at which processes died, or None if the error is about something else.

        Which comes first is chance: torch's own word, or the broken pipe to the process.
        """
        found = _GONE.search(str(error))
        if found is not None:
            dead = {int(pid) for pid in found[1].split(",")}
        elif isinstance(error, BROKEN_PIPE):
            dead = self._gone(within=GRACE)
        else:
            dead = set()
        if not dead:
            return None
        return sorted({number for pid, number in self.rows.tolist() if pid in dead})

    def _gone(self, within: float) -> set[int]:
        """Processes that are dead, as soon as there is one; none after so many seconds."""
        end = time.monotonic() + within
        while True:
            dead = {pid for pid in self.rows[:, 0].tolist() if pid > 0 and not _lives(pid)}
            if dead or time.monotonic() > end:
                return dead
            time.sleep(0.01)
