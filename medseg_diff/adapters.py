"""Adapters of a trained run: made beside it, kept in one small file, merged into it to predict.

The file is self-contained: the learned tensors, and in its metadata the configuration they were
trained with, their card, the hash of the weights they belong to, and their own digest. A run
folder of such a training holds it as ``adapter.safetensors``, with ``config.yaml`` and
``card.json`` for people; the base stays where it is and is never written to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from medseg_diff.checkpoint import (
    ADAPTER,
    CARD,
    CONFIG,
    WEIGHTS,
    LoadedRun,
    load_tensors,
    save_tensors,
)
from medseg_diff.config import Config, LoraConfig, parse_config
from medseg_diff.errors import InputError, UsageError
from medseg_diff.files import atomic_text, file_sha256
from medseg_diff.model import SegmentationModel
from medseg_diff.networks import lora

# Layers of a latent's autoencoder: its latents are what the frozen denoiser knows.
LEFT_ALONE = "autoencoder"


def adapt(model: SegmentationModel, base: LoadedRun, config: Config) -> None:
    """Give an untrained model the base's weights, frozen, and adapters that change nothing yet.

    Raises:
        InputError: if the base's weights do not fit, as where the new data have other channels or
            structures.
        UsageError: if a pattern of ``training.lora`` fits nothing.
    """
    wanted = _wanted(config)
    ours, theirs = model.state_dict(), base.model.state_dict()
    for name, value in ours.items():
        if value.shape != theirs[name].shape:
            raise InputError(
                "the data have other channels or structures than the run that is adapted",
                file=base.folder,
                field=name,
                found=tuple(theirs[name].shape),
                expected=tuple(value.shape),
                remedy="adapt a run of as many channels and structures",
            )
    model.load_state_dict(theirs)
    try:
        lora.attach(
            model, wanted.rank, wanted.alpha, wanted.layers, wanted.whole, without=LEFT_ALONE
        )
    except ValueError as error:
        raise UsageError(str(error), field="training.lora") from None


def save_adapter(
    run: Path, model: SegmentationModel, config: Config, card: Mapping[str, Any], base: LoadedRun
) -> None:
    """Write the adapters with what they belong to; the card last."""
    run.mkdir(parents=True, exist_ok=True)
    learned = {name: value.cpu() for name, value in lora.tensors(model).items()}
    numbers = sum(value.numel() for value in learned.values())
    base_hash = str(base.card["sha256"][WEIGHTS])
    whole = {
        **card,
        "adapter": {
            "base": base_hash,
            "base_name": base.card.get("name"),
            "parameters": numbers,
            **_wanted(config).model_dump(mode="json"),
        },
    }
    metadata = {
        "base": base_hash,
        "digest": _digest(learned),
        "config": config.model_dump_json(),
        "card": json.dumps(whole),
    }
    save_tensors(run / ADAPTER, learned, metadata)
    atomic_text(run / CONFIG, config.to_yaml())
    vouched = {**whole, "sha256": {ADAPTER: file_sha256(run / ADAPTER), "base": base_hash}}
    atomic_text(run / CARD, json.dumps(vouched, indent=2) + "\n")


@dataclass(frozen=True)
class Adapter:
    """A loaded adapter.

    Attributes:
        file: Where it lies.
        tensors: As :func:`medseg_diff.networks.lora.tensors` gives them.
        config: Of its training, complete.
        card: Model card of its training.
        base: Hash of the weights it belongs to.
    """

    file: Path
    tensors: dict[str, Tensor]
    config: Config
    card: dict[str, Any]
    base: str


def load_adapter(source: str | Path) -> Adapter:
    """Read an adapter's file, or the one in a run folder.

    Raises:
        InputError: if it is none, or not as it was written.
    """
    file = Path(source) / ADAPTER if Path(source).is_dir() else Path(source)
    tensors = load_tensors(file)
    try:
        with safe_open(file, framework="pt") as opened:
            found = opened.metadata() or {}
        given, card = json.loads(found["config"]), json.loads(found["card"])
        base, whole = found["base"], found["digest"] == _digest(tensors)
        known = given["training"]["lora"] is not None and "base_name" in card["adapter"]
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError):
        known = False
    if not known:
        raise InputError(
            "not an adapter", file=file, remedy="give what training with training.lora wrote"
        )
    if not whole:
        raise InputError(
            "the adapter's numbers are not those that were written",
            file=file,
            field="digest",
            remedy="copy the file again",
        )
    return Adapter(file, tensors, parse_config(given, file=file), card, base)


def adapted(run: LoadedRun, source: str | Path) -> LoadedRun:
    """A run with an adapter merged into its weights: as large and as fast as before.

    The plan, the task and the prediction settings are the adapter's. What was measured on the
    base's own weights (temperature, error table) does not hold any more and is left out.

    Args:
        run: Freshly loaded base; its model is changed in place.
        source: The adapter's file or run folder.

    Raises:
        InputError: if the adapter belongs to other weights.
    """
    adapter = load_adapter(source)
    own = str(run.card["sha256"][WEIGHTS])
    if adapter.base != own:
        raise InputError(
            "the adapter belongs to another base",
            file=adapter.file,
            field="base",
            found=adapter.base[:12],
            expected=own[:12],
            remedy=f"give the run it was trained on, {adapter.card['adapter']['base_name']}",
        )
    wanted = _wanted(adapter.config)
    device = next(run.model.parameters()).device
    learned = {name: value.to(device) for name, value in adapter.tensors.items()}
    try:
        with torch.no_grad():
            lora.merge(run.model, learned, wanted.alpha / wanted.rank)
    except ValueError as error:
        raise InputError(str(error), file=adapter.file) from None
    run.model.error_table = None
    hashes = {WEIGHTS: own, ADAPTER: file_sha256(adapter.file)}
    return replace(run, config=adapter.config, card={**adapter.card, "sha256": hashes})


def _wanted(config: Config) -> LoraConfig:
    wanted = config.training.lora
    if wanted is None:
        raise ValueError("the configuration has no training.lora")
    return wanted


def _digest(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        found.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        found.update(value.numpy().tobytes())
    return found.hexdigest()
