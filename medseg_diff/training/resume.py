"""What a training needs to go on exactly where it stopped."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medseg_diff.checkpoint import (
    STATE,
    TENSORS,
    latest_checkpoint,
    load_tensors,
    new_checkpoint,
    save_tensors,
)
from medseg_diff.config import Config, compare
from medseg_diff.data.caselist import CaseList
from medseg_diff.errors import InputError
from medseg_diff.files import atomic_text
from medseg_diff.model import SegmentationModel

# Keys whose change leaves a run what it is: they only say how often it looks at itself.
FREE_KEYS = {"validate_every", "validation_cases", "save_every", "workers", "stop_after_bad_losses"}
FREE_KEYS |= {"patience_minutes"}
# A teacher is known by its weights, wherever they lie.
FREE_KEYS |= {"reflow_from"}
# Entries of an identity that are keys of the configuration begin with it.
CONFIG = "config."


@dataclass
class Progress:
    """Where a training stands."""

    step: int = 0
    # Of a translation 1 - mean absolute error, in the state's units.
    best_dice: float = -1.0
    best_step: int = 0
    bad_cases: list[list[str]] = field(default_factory=list)


class Average:
    """Exponential moving average of the weights (EMA).

    The decay warms up as (1 + n) / (10 + n), so that a short training is not dominated by its
    first weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {k: v.detach().clone() for k, v in model.state_dict().items()}

    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model's weights after optimiser step ``step`` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        state = model.state_dict()
        floating = [k for k, v in self.tensors.items() if v.is_floating_point()]
        torch._foreach_lerp_(
            [self.tensors[k] for k in floating], [state[k].detach() for k in floating], 1 - decay
        )

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """The model with averaged weights for the time of the block."""
        raw = {k: v.detach().clone() for k, v in model.state_dict().items()}
        model.load_state_dict(self.tensors)
        try:
            yield
        finally:
            model.load_state_dict(raw)


@dataclass
class State:
    """Everything a training carries from step to step.

    Attributes:
        model: Raw weights.
        average: Their running average.
        optimiser: With its moments.
        progress: Step, best score, losses that were not finite.
        identity: What must not change between a run and its continuation.
        assumed: Names of the identity that a run of an older version may lack: at their defaults.
        companion: What else has weights; see :class:`medseg_diff.training.companion.Companion`.
    """

    model: SegmentationModel
    average: Average
    optimiser: torch.optim.Optimizer
    progress: Progress
    identity: dict[str, str]
    assumed: frozenset[str] = frozenset()
    companion: nn.Module | None = None


def check_folder(out: Path, *, resume: bool) -> None:
    """Refuse to train into a folder that holds something, or to resume from nothing."""
    used = out.is_dir() and any(out.iterdir())
    if out.exists() and not out.is_dir():
        raise InputError("not a folder", file=out, field="--out")
    if used and not resume:
        raise InputError(
            "the run folder is not empty",
            file=out,
            field="--out",
            remedy="give a new folder, or add --resume to go on with this run",
        )
    if resume:
        latest_checkpoint(out)


def identity(config: Config, cases: CaseList, others: CaseList | None = None) -> dict[str, str]:
    """What must not change between a run and its continuation, one entry a thing.

    Args:
        config: Complete.
        cases: Case list of the training.
        others: The second list of a training without pairs.
    """
    free = [f"training.{key}" for key in FREE_KEYS]
    free += [f"data.{key}" for key in ("root", "cases", "target_root", "target_cases")]
    flat = {f"{CONFIG}{k}": v for k, v in compare.settings(config, free).items()}
    flat["data"] = _listed(cases)
    if others is not None:
        flat["target data"] = _listed(others)
    flat["torch"] = torch.__version__.split(".")[0]
    return flat


def assumed(config: Config) -> frozenset[str]:
    """Entries of :func:`identity` that an older version's may lack."""
    return frozenset(f"{CONFIG}{name}" for name in compare.defaults(config))


def _known(stored: dict[str, str]) -> dict[str, str]:
    """A stored identity, in which older versions have a list of sections in one piece."""
    known = {k: v for k, v in stored.items() if not (k.startswith(CONFIG) and v.startswith("[{"))}
    whole = {k: json.loads(v) for k, v in stored.items() if k not in known}
    return known | compare.flat(whole)


def _listed(cases: CaseList) -> str:
    """Hash of what a case list names."""
    listed = [
        [c.case, c.part, sorted(c.sha256.items()), sorted(c.channels.items()), list(c.references)]
        + ([] if c.target is None else [c.target])
        for c in cases.cases
    ]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]


def save(out: Path, state: State) -> None:
    """Write a resume point."""
    tensors = {f"model/{k}": v for k, v in state.model.state_dict().items()}
    tensors |= {f"average/{k}": v for k, v in state.average.tensors.items()}
    tensors |= {f"memory/{k}": v for k, v in state.model.memory().items()}
    if state.companion is not None:
        tensors |= {f"companion/{k}": v for k, v in state.companion.state_dict().items()}
    for index, moments in state.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{index}/{k}": torch.as_tensor(v) for k, v in moments.items()}
    tensors["random/torch"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random/cuda"] = torch.cuda.get_rng_state()
    record = {
        "progress": asdict(state.progress),
        "identity": state.identity,
        "random": {"python": random.getstate(), "numpy": _numpy_state()},
    }
    with new_checkpoint(out, state.progress.step) as folder:
        save_tensors(folder / TENSORS, tensors)
        atomic_text(folder / STATE, json.dumps(record))


def restore(out: Path, state: State, *, allow_mismatch: bool = False) -> list[str]:
    """Fill the state in from the last whole checkpoint; sentences about what was passed over."""
    folder, warnings = latest_checkpoint(out)
    record = _read_record(folder / STATE)
    differing = compare.changed(_known(record["identity"]), state.identity, state.assumed)
    changed = [f"{name}: {before} -> {now}" for name, (before, now) in differing.items()]
    if changed and not allow_mismatch:
        raise InputError(
            f"the run was started with other settings: {'; '.join(changed[:5])}",
            file=out,
            field="--resume",
            remedy="restore them, or add --allow-mismatch",
        )
    warnings += [f"resumed although {line}" for line in changed]
    tensors = load_tensors(folder / TENSORS)
    state.model.load_state_dict(_below(tensors, "model/"))
    state.model.recall(_below(tensors, "memory/"))
    if state.companion is not None:
        state.companion.load_state_dict(_below(tensors, "companion/"))
    for name, value in _below(tensors, "average/").items():
        state.average.tensors[name].copy_(value)
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in _below(tensors, "optimiser/").items():
        index, key = name.split("/")
        moments.setdefault(int(index), {})[key] = value
    state.optimiser.load_state_dict({**state.optimiser.state_dict(), "state": moments})
    for key, value in record["progress"].items():
        setattr(state.progress, key, value)
    _restore_random(record["random"], tensors)
    return warnings


def _read_record(file: Path) -> dict[str, Any]:
    """What `save` wrote beside the tensors; refused if it is anything else."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or not {"progress", "identity", "random"} <= record.keys():
        raise InputError(
            "not the state of a training",
            file=file,
            expected="JSON as a checkpoint holds it",
            remedy="remove this checkpoint; the one before it is used then",
        )
    return record


def save_bad_cases(out: Path, progress: Progress) -> None:
    """Record which cases gave a NaN or Inf loss, batch by batch."""
    record = {"step": progress.step, "batches": progress.bad_cases}
    atomic_text(out / "bad_losses.json", json.dumps(record, indent=2) + "\n")


def _restore_random(state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(tensors["random/torch"])
    if torch.cuda.is_available() and "random/cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random/cuda"])


def _numpy_state() -> list[Any]:
    # The legacy global state is what third-party transforms draw from.
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return [kind, np.asarray(keys).tolist(), *rest]


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
