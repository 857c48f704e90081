"""`medseg-diff info`: a model or a scan in a few lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from medseg_diff import io
from medseg_diff.checkpoint import read_card
from medseg_diff.errors import InputError
from medseg_diff.inference.loading import SHIPPED, folder_of


def describe(target: str) -> str:
    """Text for a run folder, a shipped model's name or a scan."""
    if target in SHIPPED or (Path(target).is_dir() and not io.holds_dicom(target)):
        return _model_lines(read_card(folder_of(target)))
    if not Path(target).exists():
        raise InputError("no such model or scan", file=target, remedy="check the path")
    return _scan_lines(Path(target))


def _model_lines(card: dict[str, Any]) -> str:
    rows = {
        "model": f"{card['name']} ({card['recipe']}, {card['parameters']:,} parameters)",
        "expects": f"{card['modality']}: {', '.join(card['channels'])}; {card['spatial_dims']}-D",
        "spacing": " x ".join(f"{s:g}" for s in card["spacing_mm"]) + " mm",
        **_made(card),
        "trained": f"{card['data']['training_cases']} cases of {card['data']['name']}",
        "validation": _validation(card["training"]),
        "licence": card["data"]["licence"],
        "use": card["intended_use"],
    }
    if "adapter" in card:
        made = card["adapter"]
        rows["adapter"] = (
            f"rank {made['rank']}, {made['parameters']:,} parameters, of {made['base_name']} "
            f"({made['base'][:12]}): predict with both"
        )
    return "\n".join(f"{key:<11}{value}" for key, value in rows.items())


def _made(card: dict[str, Any]) -> dict[str, str]:
    """What comes out: labels, the image that a translation makes, or scans."""
    target, prior = card.get("target"), card.get("prior")
    if prior is not None:
        given = "label maps" if prior["condition"] == "mask" else "noise alone"
        return {"makes": f"{', '.join(card['channels'])} from {given}, SYNTHETIC"}
    if target is None:
        return {"labels": ", ".join(f"{value} {name}" for name, value in card["labels"].items())}
    if target["range"] is None:
        return {"makes": f"{target['name']} restored from itself, SYNTHETIC"}
    low, high = target["range"]
    return {"makes": f"{target['name']} ({target['modality']}), {low:g} to {high:g}, SYNTHETIC"}


def _validation(training: dict[str, Any]) -> str:
    if "validation_loss" in training:
        loss = training["validation_loss"]
        return f"{'none' if loss is None else f'loss {loss:.4g}'} at step {training['steps']}"
    if "validation_mae" in training:
        error = training["validation_mae"]
        return f"{'none' if error is None else f'MAE {error:.4g}'} at step {training['steps']}"
    score = training["validation_dice"]
    shown = "none" if score is None else f"Dice {score:.3f}"
    return f"{shown} at step {training['steps']}"


def _scan_lines(path: Path) -> str:
    if io.is_dicom_source(path):
        series = io.list_series(path)
        if len(series) > 1:
            heads = ["scan", *["series"] * len(series)]
            lines = [f"{path.name}, {len(series)} series; choose one with --series", *series]
            return "\n".join(f"{head:<11}{line}" for head, line in zip(heads, lines, strict=True))
    image = io.read_image(path)
    values = np.asarray(image)
    rows = {
        "scan": path.name,
        "planes": len(image),
        "shape": " x ".join(str(n) for n in image.shape[1:]),
        "spacing": " x ".join(f"{s:.4g}" for s in io.read_spacing(path)),
        "values": f"{values.min():.6g} to {values.max():.6g}, mean {values.mean():.6g}",
        "warnings": "; ".join(image.meta["warnings"]) or "none",
    }
    return "\n".join(f"{key:<11}{value}" for key, value in rows.items())
