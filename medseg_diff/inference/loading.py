"""Trained runs by folder or by the name of a shipped model, on a device."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import torch

from medseg_diff.adapters import adapted
from medseg_diff.checkpoint import LoadedRun, load_run
from medseg_diff.errors import UsageError

SHIPPED = ("hippocampus",)


def load_runs(
    model: str | Path | Sequence[str | Path],
    device: str = "auto",
    adapter: str | Path | None = None,
) -> list[LoadedRun]:
    """The runs of a model or an ensemble, whatever they make; see :func:`medseg_diff.load`."""
    chosen = [model] if isinstance(model, str | Path) else list(model)
    if not chosen:
        raise UsageError("no model given", field="--model")
    if adapter is not None and len(chosen) != 1:
        raise UsageError(
            "an adapter belongs to one model", field="--adapter", found=f"{len(chosen)} models"
        )
    where = choose_device(device)
    runs = [load_run(folder_of(each), where) for each in chosen]
    return runs if adapter is None else [adapted(runs[0], adapter)]


def choose_device(name: str) -> torch.device:
    """Device by name; ``"auto"`` takes the GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(
            "unknown device", field="--device", found=name, expected="auto, cpu or cuda"
        ) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "no GPU here", field="--device", found=name, remedy="use --device cpu or auto"
        )
    return device


def folder_of(model: str | Path) -> Path:
    """Folder of a run, or of a shipped model by its name."""
    if str(model) in SHIPPED and not Path(model).exists():
        return Path(str(files("medseg_diff") / "models" / str(model)))
    return Path(model)
