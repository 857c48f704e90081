"""Training cases that cannot be used: named, and passed over as far as the user allows."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from monai.transforms import Transform

from medseg_diff.config import PlanConfig, TaskConfig
from medseg_diff.data.transforms import LoadCase, Preprocess
from medseg_diff.errors import InputError
from medseg_diff.files import atomic_text

FILE_NAME = "skipped_cases.json"
# Key of a case that stands for one that cannot be used, with the line that says why.
BAD = "bad"


class Attempt(Transform):
    """Load and preprocess a case; one that cannot be used becomes its name and the line why.

    The line is data, not an exception, so that it comes whole through threads and worker
    processes.
    """

    def __init__(self, task: TaskConfig, plan: PlanConfig, then: Transform | None = None) -> None:
        self.load, self.preprocess, self.then = LoadCase(task), Preprocess(task, plan), then

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Keys of a preprocessed case, or ``case`` and ``bad``."""
        try:
            found = dict(self.preprocess(self.load(data)))
            return found if self.then is None else dict(self.then(found))
        except InputError as error:
            return {"case": data["case"], BAD: str(error)}


class Skipped:
    """Cases passed over so far.

    Args:
        allowed: How many may be.
        out: Run folder that gets their list; None writes none.
    """

    def __init__(self, allowed: int = 0, out: Path | None = None) -> None:
        self.allowed, self.out = allowed, out
        self.lines: dict[str, str] = {}

    def note(self, case: str, line: str) -> None:
        """Pass over one more case, once.

        Raises:
            InputError: if no more may be.
        """
        if case in self.lines:
            return
        self.lines[case] = line
        if len(self.lines) > self.allowed:
            raise InputError(
                f"case {case} cannot be used: {line.rstrip('.')}",
                found=f"{len(self.lines)} such cases" if self.allowed else None,
                expected=f"at most {self.allowed} (--skip-bad)" if self.allowed else None,
                remedy="repair it, take it off the list, or train with --skip-bad N",
            )
        self.save()

    def save(self) -> None:
        """Write the list, if there is one and a folder for it."""
        if self.out is not None and self.out.is_dir() and self.lines:
            listed = [{"case": case, "error": line} for case, line in self.lines.items()]
            atomic_text(self.out / FILE_NAME, json.dumps(listed, indent=2) + "\n")
