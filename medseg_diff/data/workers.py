"""Which sample each data-loading process is at, so that a killed one can be named."""

from __future__ import annotations

import os
import re

import torch
from torch.utils.data import get_worker_info

# What torch says when one of a DataLoader's processes is gone.
_GONE = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)")


class Watch:
    """A row of shared memory per process: its number, and the sample it is at."""

    def __init__(self, workers: int) -> None:
        self.rows = torch.full((workers, 2), -1, dtype=torch.int64).share_memory_()

    def note(self, number: int) -> None:
        """Say, inside a data-loading process, which sample is being made."""
        worker = get_worker_info()
        if worker is not None:
            self.rows[worker.id] = torch.tensor([os.getpid(), number])

    def lost(self, error: RuntimeError) -> list[int] | None:
        """Samples at which processes died, or None if the error is about something else."""
        found = _GONE.search(str(error))
        if found is None:
            return None
        dead = {int(pid) for pid in found[1].split(",")}
        return sorted({number for pid, number in self.rows.tolist() if pid in dead})
