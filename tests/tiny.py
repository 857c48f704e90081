"""Tiny models for tests: untrained networks, and a hand-made one whose masks mean something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medseg_diff.checkpoint import LoadedRun, save_model
from medseg_diff.codecs import OneHotCodec
from medseg_diff.config import Config, merged, parse_config
from medseg_diff.inference.predictor import Predictor
from medseg_diff.model import Estimate, SegmentationModel, build_model
from medseg_diff.networks.conditioners import Context

KEYS: dict[str, Any] = {
    "name": "tiny",
    "task": {
        "modality": "MR",
        "channels": ["T1"],
        "labels": {"background": 0, "first": 1, "second": 2, "third": 3},
    },
    "plan": {
        "spatial_dims": 3,
        "spacing_mm": [2.5, 2.5, 2.5],
        "patch_size": [16, 16, 16],
        "normalisation": [{"kind": "zscore"}],
        "batch_size": 1,
    },
    "model": {
        "features": [4, 4],
        "conditioner": "pyramid",
        "time_channels": 8,
        "output": "clean",
    },
    "objective": {"dice": 1.0, "cross_entropy": 1.0},
    "prediction": {"draws": 2, "steps": 2, "overlap": 0.0},
}


def tiny_config(**changes: Any) -> Config:
    """A complete configuration; ``changes`` are merged section by section."""
    return parse_config(merged(KEYS, changes))


def save_untrained(folder: Path, config: Config, seed: int = 0) -> Path:
    """Run folder of an untrained network, its output made large enough to decide."""
    torch.manual_seed(seed)
    model = build_model(config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "head.weight" in name:
                value *= 10
    save_model(folder, model, config, {"name": config.name})
    return folder


class Threshold(SegmentationModel):
    """Class k where the first channel lies nearest to k; a draw adds its own noise to the image.

    Args:
        codec: Exclusive classes.
        noise: Gain of the draw's noise; 0 makes a model of one answer.
    """

    def __init__(self, codec: OneHotCodec, noise: float = 0.0) -> None:
        super().__init__()
        self.codec, self.stochastic, self.noise = codec, noise > 0, noise
        self.sharpness = nn.Parameter(torch.tensor(20.0))
        self.contexts = 0

    def loss(self, batch):
        """Never trained."""
        raise NotImplementedError

    def context(self, image: Tensor) -> Context:
        """The image itself."""
        self.contexts += len(image)
        return Context(image)

    def trajectory(self, context, noise, sampling, fresh_noise=None):
        """One estimate."""
        value = context.image[:, :1] + self.noise * noise[:, :1]
        level = torch.arange(self.codec.channels).reshape(1, -1, *[1] * (value.ndim - 2))
        p = (-self.sharpness * (value - level) ** 2).softmax(1)
        # Like a plain U-Net, a model of one answer has given it in `context` already.
        calls = int(self.stochastic)
        yield Estimate(0, 0.0, 2 * p - 1, 2 * p - 1, calls, self.codec.probabilities_from_state)


def threshold_predictor(config: Config, noise: float = 0.0) -> Predictor:
    """Predictor around :class:`Threshold`, without files."""
    codec = OneHotCodec(tuple((v,) for v in sorted(config.task.labels.values())))
    card = {"sha256": {"model.safetensors": "0"}}
    return Predictor([LoadedRun(Path("stub"), Threshold(codec, noise).eval(), config, card)])
