"""Showing how far a training or a batch is: a live bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress as Bar

    from medseg_diff.batch.run import Outcome
    from medseg_diff.training.resume import Progress


class TrainingBar:
    """Context that shows a training's progress: a live bar on a terminal, lines elsewhere."""

    def __init__(self, steps: int, label: str = "training") -> None:
        self.steps, self.label = steps, label
        self.bar: Bar | None = None
        self.task: Any = None
        self.score = "validation -"
        self.first: int | None = None

    def __enter__(self) -> TrainingBar:
        self.started = time.monotonic()
        if sys.stdout.isatty():
            from rich import progress as rich_progress

            self.bar = rich_progress.Progress(
                rich_progress.TextColumn("{task.description}"),
                rich_progress.BarColumn(),
                rich_progress.MofNCompleteColumn(),
                rich_progress.TextColumn("{task.fields[values]}"),
                rich_progress.TimeRemainingColumn(),
            )
            self.bar.start()
            self.task = self.bar.add_task(self.label, total=self.steps, values="")
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, progress: Progress, values: dict[str, float]) -> None:
        """Show one step."""
        self.first = progress.step - 1 if self.first is None else self.first
        if "validation_dice" in values:
            self.score = f"Dice {values['validation_dice']:.3f}"
        if "validation_mae" in values:
            self.score = f"MAE {values['validation_mae']:.4g}"
        if "validation_loss" in values:
            self.score = f"validation {values['validation_loss']:.4g}"
        speed = (progress.step - self.first) / max(time.monotonic() - self.started, 1e-9)
        left = (self.steps - progress.step) / speed
        shown = f"loss {values['loss']:.3f}  {self.score}  {speed:.2f} steps/s"
        if self.bar is not None:
            self.bar.update(self.task, completed=progress.step, values=shown)
        elif progress.step % max(1, self.steps // 10) == 0 or progress.step == self.steps:
            where = f"{self.label} {progress.step}/{self.steps}"
            print(f"{where}  {shown}  {left:.0f} s left", flush=True)


def case_lines(total: int) -> Callable[[int, Outcome], None]:
    """Report of `predict_many`: a line as each case is done, with the time left."""
    began, done = time.monotonic(), 0

    def report(before: int, outcome: Outcome) -> None:
        nonlocal done
        done += 1
        status = outcome.error or "; ".join(outcome.record["warnings"]) or "ok"
        left = (time.monotonic() - began) / done * (total - before - 1)
        when = f" ({duration(left)} left)" if before + 1 < total else ""
        print(f"[{before + 1}/{total}] {outcome.case}: {status}{when}", flush=True)

    return report


def duration(seconds: float) -> str:
    """Seconds as a person reads them: ``40 s``, ``12 min``, ``5 h 20 min``, ``3 d 4 h``."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
