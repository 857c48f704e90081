"""Baselines small enough to train and draw from in seconds, and what they are asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from medseg_diff.config import Config, parse_config
from medseg_diff.data.records import Batch
from medseg_diff.inference.ensemble import Fused, Request
from medseg_diff.model import Sampling, build_model

LABELS = {"background": 0, "a": 1, "b": 2}


def config_of(recipe: str, dims: int = 2, **task: Any) -> Config:
    keys = {
        "recipe": recipe,
        "task": {"channels": ["x"], "labels": LABELS, **task},
        "plan": {"spatial_dims": dims},
        "model": {"features": [4, 6]},
    }
    if recipe == "probabilistic_unet":
        keys["model"]["conditioner_features"] = [4, 6]
    return parse_config(keys)


def model_of(recipe: str, dims: int = 2, **task: Any) -> Any:
    torch.manual_seed(0)
    return build_model(config_of(recipe, dims, **task)).eval()


def batch_of(*size: int, classes: int = 3, samples: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(
        torch.randn(samples, 1, *size, generator=generator),
        torch.randint(0, classes, (samples, 1, *size), generator=generator, dtype=torch.int16),
        torch.full((samples,), 0.5, dtype=torch.float64),
        torch.randn(samples, classes, *size, generator=generator),
        torch.rand(samples, 2, generator=generator),
    )


def request(**changes) -> Request:
    settings = {"case": "c", "seed": 0, "draws": 3, "sampling": Sampling("ddim", 1)}
    return Request(**{**settings, **changes})


def image_of(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)


def unpacked(fused: Fused) -> np.ndarray:
    return np.stack(list(fused.masks))
