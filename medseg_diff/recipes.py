"""Recipes: a paper is a list of arguments. Each function returns the keys that make it.

A YAML with ``recipe: NAME`` starts from these keys and overrides what it likes.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from medseg_diff.errors import UsageError

Keys = dict[str, Any]


def unet() -> Keys:
    """Plain U-Net with Dice + cross-entropy: the baseline every table needs."""
    return {
        "model": {"kind": "unet", "features": [16, 32, 64, 168]},
        "objective": {"dice": 1.0, "cross_entropy": 1.0},
        "prediction": {"draws": 1, "steps": 1},
    }


def diff_unet() -> Keys:
    """Diff-UNet (Xing et al. 2023, arXiv 2303.10326).

    Denoiser on concat(x_t, image) with the image pyramid added at every scale; clean output as
    logits; Dice + cross-entropy + squared error; DDPM's linear betas; DDIM, 10 steps.

    Departures: widths are under a quarter of the paper's (64 ... 512), for two CPU cores; exclusive
    classes use softmax and a background channel where the paper uses one sigmoid a structure
    (regions still do); draws are fused by their mean, not by step-uncertainty (SUF); time is added
    before the activation, since after it instance norm removes it (`UNet`).
    """
    return {
        "model": {
            "kind": "diffusion",
            "features": [16, 32, 64, 96],
            "conditioner": "pyramid",
            "conditioner_features": [16, 32, 64, 96],
            "concat_image": True,
            "time_channels": 128,
            "schedule": "linear",
            "output": "clean",
        },
        "objective": {"dice": 1.0, "cross_entropy": 1.0, "squared_error": 1.0},
        "prediction": {"draws": 5, "steps": 10, "sampler": "ddim"},
    }


def anchored() -> Keys:
    """Diff-UNet with an anchor: the package's default.

    The pyramid is a small segmenting U-Net with its own Dice + cross-entropy; its decoder maps
    are added to a narrow denoiser, whose output is a correction to the anchor's logits. The
    state is scaled by 0.5, a harder schedule that keeps one-hot masks from being read off x_t.
    """
    return {
        "model": {
            "kind": "diffusion",
            "features": [8, 16, 32, 64],
            "conditioner": "anchored",
            "conditioner_features": [16, 32, 64, 128],
            "concat_image": True,
            "time_channels": 64,
            "schedule": "linear",
            "input_scale": 0.5,
            "output": "correction",
        },
        "objective": {"dice": 1.0, "cross_entropy": 1.0, "anchor": 1.0},
        "prediction": {"draws": 5, "steps": 2, "sampler": "ddim"},
    }


RECIPES: dict[str, Callable[[], Keys]] = {
    "unet": unet,
    "diff_unet": diff_unet,
    "anchored": anchored,
}


def seed(name: str) -> Keys:
    """Keys of a recipe by name."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        remedy = f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(RECIPES)}"
        raise UsageError("unknown recipe", field="recipe", found=repr(name), remedy=remedy)
    return RECIPES[name]()
