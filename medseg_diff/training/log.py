"""What a training leaves to read: ``log.csv``, TensorBoard curves, and the model card."""

from __future__ import annotations

import csv
import io
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from medseg_diff.config import Config
from medseg_diff.data.prepare import DataFacts
from medseg_diff.files import atomic_text
from medseg_diff.model import SegmentationModel

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

COLUMNS = (
    "step", "loss", "validation_dice", "validation_mae", "validation_loss", "learning_rate",
    "seconds", "parts",
)  # fmt: skip


class TrainingLog:
    """One row a step; a resumed run drops the rows after its checkpoint."""

    def __init__(self, out: Path, step: int, *, enabled: bool = True) -> None:
        self.file, self.enabled = out / "log.csv", enabled
        self.board: SummaryWriter | None = None
        if not enabled:
            return
        out.mkdir(parents=True, exist_ok=True)
        self._keep_until(step)
        from torch.utils.tensorboard import SummaryWriter

        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def _keep_until(self, step: int) -> None:
        rows = []
        if self.file.is_file():
            with self.file.open(newline="", encoding="utf-8") as stream:
                rows = [r for r in csv.DictReader(stream) if int(r["step"]) <= step]
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        atomic_text(self.file, text.getvalue())

    def row(self, step: int, values: dict[str, float]) -> None:
        """Append one step's values."""
        if self.board is None:
            return
        parts = {k: v for k, v in values.items() if k not in COLUMNS}
        shown = {k: f"{values[k]:.6g}" for k in COLUMNS if k in values}
        shown |= {"step": str(step), "parts": " ".join(f"{k}={v:.6g}" for k, v in parts.items())}
        with self.file.open("a", newline="", encoding="utf-8") as stream:
            csv.DictWriter(stream, COLUMNS, restval="", lineterminator="\n").writerow(shown)
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def warn(self, sentence: str) -> None:
        """Tell the user on standard error."""
        if self.enabled:
            print(f"warning: {sentence}", file=sys.stderr)

    def close(self) -> None:
        """Flush the curves."""
        if self.board is not None:
            self.board.close()


def target_card(config: Config) -> dict[str, object]:
    """What a translation makes: name, modality, planes, and the values its output can take."""
    task, plan = config.task, config.plan
    if task is None or (plan.target_range is None and not task.restores):
        raise ValueError("the configuration is not complete")
    return {
        "name": task.target,
        "modality": task.target_modality or task.modality,
        "planes": task.target_planes,
        "range": None if plan.target_range is None else list(plan.target_range),
        "units": "the scan's own" if task.restores else "those of the training targets; HU for CT",
    }


def prior_card(config: Config) -> dict[str, object]:
    """What a model of scans is told, and the values of each plane that it makes."""
    return {
        "condition": config.model.prior,
        "ranges": [list(ends) for ends in config.plan.image_ranges or ()],
        "units": "those of the training scans; HU for CT",
    }


def model_card(config: Config, facts: DataFacts, model: SegmentationModel) -> dict[str, object]:
    """What a user must know before trusting the model; no path, no case, no patient."""
    task, plan = config.task, config.plan
    if task is None:
        raise ValueError("the configuration is not complete")
    return {
        "name": config.name,
        "recipe": config.recipe,
        "intended_use": "Research only. Not a medical device; not for clinical decisions.",
        "modality": task.modality,
        "channels": list(task.channels),
        "labels": task.labels,
        "regions": task.regions,
        "ignore_label": task.ignore_label,
        "target": None if task.target is None else target_card(config),
        "prior": None if config.model.prior is None else prior_card(config),
        "spatial_dims": plan.spatial_dims,
        "orientation": plan.orientation,
        "spacing_mm": plan.spacing_mm,
        "patch_size": plan.patch_size,
        "intensity": [n.model_dump() for n in plan.normalisation or ()],
        "parameters": sum(p.numel() for p in model.parameters()),
        "data": {
            "name": facts.name,
            "licence": facts.licence,
            "training_cases": facts.train,
            "validation_cases": facts.validation,
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
