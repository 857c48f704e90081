"""A run is one folder that describes itself.

    config.yaml         complete configuration
    card.json           model card: what it segments, what it expects, how it was made, sha256
    model.safetensors   averaged (EMA) weights of the best validation so far, used to predict
    adapter.safetensors in its place where a frozen base was adapted: see ``adapters.py``
    error_table.json    how far its clean estimate is off at each time, if that was measured
    checkpoints/        step_00000500/ ...: everything a resume needs; the last two are kept
    log.csv, tensorboard/

Nothing is pickled: weights and optimiser state are safetensors, the rest is JSON and YAML.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from medseg_diff.config import Config, load_config
from medseg_diff.diffusion.samplers import ErrorTable
from medseg_diff.errors import InputError
from medseg_diff.files import atomic_file, atomic_text, file_sha256, sync
from medseg_diff.model import SegmentationModel, build_model

WEIGHTS, CARD, CONFIG, CHECKPOINTS = "model.safetensors", "card.json", "config.yaml", "checkpoints"
ERRORS, ADAPTER = "error_table.json", "adapter.safetensors"
TENSORS, STATE = "tensors.safetensors", "state.json"
KEPT_CHECKPOINTS = 2


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write safetensors, and text about them, in one step."""
    plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    with atomic_file(path) as stream:
        stream.write(save(plain, metadata))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read safetensors; refuse anything else without running it (F71)."""
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(
            "not a readable safetensors file",
            file=path,
            found=str(error).splitlines()[0],
            remedy="copy the file again; other formats are not loaded",
        ) from None
    return tensors


def save_model(
    run: Path, model: SegmentationModel, config: Config, card: Mapping[str, Any]
) -> None:
    """Write weights, configuration and card; the card last, since it vouches for the weights."""
    run.mkdir(parents=True, exist_ok=True)
    save_tensors(run / WEIGHTS, model.state_dict())
    atomic_text(run / CONFIG, config.to_yaml())
    vouched = {**card, "sha256": {WEIGHTS: file_sha256(run / WEIGHTS)}}
    atomic_text(run / CARD, json.dumps(vouched, indent=2) + "\n")


@dataclass(frozen=True)
class LoadedRun:
    """A trained model with its configuration and card; the model is in eval mode."""

    folder: Path
    model: SegmentationModel
    config: Config
    card: dict[str, Any]


def load_run(run: str | Path, device: str | torch.device = "cpu") -> LoadedRun:
    """Load a run folder.

    Raises:
        InputError: if a part is missing, the weights do not match the card's hash, or they do not
            fit the configuration (the first five keys that differ are named).
    """
    folder = Path(run)
    if (folder / ADAPTER).is_file() and not (folder / WEIGHTS).is_file():
        raise InputError(
            "an adapter, not a whole model",
            file=folder,
            remedy="give the run it was trained on with --model, and this with --adapter",
        )
    for part in (CONFIG, CARD, WEIGHTS):
        if not (folder / part).is_file():
            raise InputError(
                f"not a trained model: {part} is missing",
                file=folder,
                remedy="give the folder that `medseg-diff train` wrote",
            )
    config = load_config(folder / CONFIG)
    card = read_card(folder)
    expected = card.get("sha256", {}).get(WEIGHTS)
    if file_sha256(folder / WEIGHTS) != expected:
        raise InputError(
            "the weights are not those that the model card describes",
            file=folder / WEIGHTS,
            field="sha256",
            remedy="copy the run folder again",
        )
    model = build_model(config)
    load_weights(model, load_tensors(folder / WEIGHTS), folder / WEIGHTS)
    model.error_table = load_error_table(folder, expected)
    if model.error_table is not None:
        # Part of what an answer is made from.
        card["sha256"] = {**card["sha256"], ERRORS: file_sha256(folder / ERRORS)}
    return LoadedRun(folder, model.to(device).eval(), config, card)


def save_error_table(run: LoadedRun, table: ErrorTable, *, cases: int) -> Path:
    """Store a table beside the weights it was measured on, whose hash it carries, and its own.

    Args:
        run: Whose table it is; its model takes it up.
        table: Mean squared errors of the clean estimate over time.
        cases: How many cases they were measured on.
    """
    record = {
        "weights": run.card["sha256"][WEIGHTS],
        "cases": cases,
        "times": table.times.tolist(),
        "values": table.values.tolist(),
    }
    run.model.error_table = table
    vouched = {**record, "sha256": _digest(record)}
    return atomic_text(run.folder / ERRORS, json.dumps(vouched, indent=2) + "\n")


def load_error_table(folder: Path, weights: str) -> ErrorTable | None:
    """Table of a run folder, or None if there is none or it belongs to other weights.

    Raises:
        InputError: if it is not the table that was written.
    """
    file = folder / ERRORS
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        whole = record.pop("sha256") == _digest(record)
        if whole and record["weights"] != weights:
            return None
        times, values = (torch.tensor(record[k], dtype=torch.float64) for k in ("times", "values"))
        table = ErrorTable(times, values)
    except (ValueError, TypeError, KeyError, AttributeError):
        whole = False
    if not whole:
        raise InputError(
            "not the error table that was written",
            file=file,
            remedy="delete it and run `medseg-diff estimate-variance` again",
        )
    return table


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def read_card(folder: Path) -> dict[str, Any]:
    """Model card of a run."""
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON: {error}", file=folder / CARD) from None
    if not isinstance(card, dict):
        raise InputError("the model card is not a JSON object", file=folder / CARD)
    return card


def load_weights(model: SegmentationModel, tensors: Mapping[str, Tensor], file: Path) -> None:
    """Copy tensors into a model of the same architecture (F70), whatever their precision."""
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in tensors.items()}
    differing = sorted(k for k in wanted.keys() | given.keys() if wanted.get(k) != given.get(k))
    if differing:
        shown = ", ".join(
            f"{k} (file {given.get(k, 'none')}, model {wanted.get(k, 'none')})"
            for k in differing[:5]
        )
        raise InputError(
            f"{len(differing)} weights do not fit the model: {shown}",
            file=file,
            remedy="use the config.yaml that belongs to these weights",
        )
    model.load_state_dict({name: value.float() for name, value in tensors.items()})


def transfer_weights(model: SegmentationModel, tensors: Mapping[str, Tensor]) -> list[str]:
    """Copy what fits by name and shape (fine-tuning, ``--init``); names of what was left new."""
    state = model.state_dict()
    fits = {k: v.float() for k, v in tensors.items() if k in state and v.shape == state[k].shape}
    model.load_state_dict({**state, **fits})
    return sorted(state.keys() - fits.keys())


@contextmanager
def new_checkpoint(run: Path, step: int) -> Iterator[Path]:
    """A folder to write a resume point into; it takes its name only when it is complete.

    On leaving, every file is synced, hashed into ``sha256.json``, the folder renamed, and older
    resume points beyond the last two removed.

    Raises:
        InputError: if the disk is full or fails (K02); earlier resume points stay as they were.
    """
    parent = run / CHECKPOINTS
    if not parent.is_dir():
        parent.mkdir(parents=True)
        # Or a power cut could take the folder with all that is synced inside it.
        sync(run)
        sync(run.parent)
    temporary = Path(tempfile.mkdtemp(dir=parent, prefix=".new_"))
    try:
        yield temporary
        hashes = {p.name: file_sha256(p) for p in sorted(temporary.iterdir())}
        (temporary / "sha256.json").write_text(json.dumps(hashes), encoding="utf-8")
        for part in temporary.iterdir():
            sync(part)
        sync(temporary)
        final = parent / f"step_{step:08d}"
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        sync(parent)
    except OSError as error:
        kept = [point.name for point in checkpoints(run)]
        raise InputError(
            f"the checkpoint of step {step} cannot be written: {error.strerror or error}",
            file=run,
            found=f"{shutil.disk_usage(parent).free / 2**20:.0f} MiB free",
            expected=f"room for {KEPT_CHECKPOINTS + 1} checkpoints",
            remedy=f"make room, then train with --resume; whole: {', '.join(kept) or 'none'}",
        ) from error
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)
    for old in checkpoints(run)[:-KEPT_CHECKPOINTS]:
        shutil.rmtree(old)


def checkpoints(run: Path) -> list[Path]:
    """Resume points of a run, oldest first."""
    return sorted((run / CHECKPOINTS).glob("step_*"))


def latest_checkpoint(run: Path) -> tuple[Path, list[str]]:
    """Newest resume point that is whole, and a warning for each newer one that is not.

    Raises:
        InputError: if there is none: ``--resume`` never starts a new training silently.
    """
    for leftover in (run / CHECKPOINTS).glob(".new_*"):
        shutil.rmtree(leftover)
    warnings: list[str] = []
    for candidate in reversed(checkpoints(run)):
        if _is_whole(candidate):
            return candidate, warnings
        warnings.append(f"{candidate.name} is damaged and was passed over")
    raise InputError(
        "nothing to resume from: no whole checkpoint",
        file=run,
        remedy="train without --resume, or give the run's own folder with --out",
    )


def _is_whole(folder: Path) -> bool:
    try:
        hashes = json.loads((folder / "sha256.json").read_text(encoding="utf-8"))
        return bool(hashes) and all(file_sha256(folder / k) == v for k, v in hashes.items())
    except (OSError, ValueError, RecursionError, AttributeError):
        return False
