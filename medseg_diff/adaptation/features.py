"""The trainings that the rows of latent feature translation share; see ``model/features.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from medseg_diff.adaptation.source_diffusion import sections
from medseg_diff.adaptation.work import ALONE, Work
from medseg_diff.recipes import RECIPES
from medseg_diff.training.fit import Options

LATENT_ONLY = "latent_source_only"
DRAWS, STEPS = 3, 10


def source_features(
    work: Work,
    condition: Literal["image", "edges", "features"] = "image",
    *,
    name: str | None = None,
    every_depth: bool = False,
    options: Options = ALONE,
) -> Path:
    """Train on the source, a third of the budget on the network, the rest on what draws features.

    Edges condition as they are: they are the same for every contrast, and a changed appearance
    was worth less than none on validation cases (docs/domain_adaptation.md).

    Args:
        work: Nothing of its target is looked at.
        condition: What the denoiser is shown of a scan.
        name: Of the run's folder; a row that changes anything else has its own.
        every_depth: Give the network skips, and draw all of them.
        options: A companion.

    Returns:
        The run folder.
    """
    recipe = RECIPES["feature_translation"]()
    latent = recipe["model"]["latent"]
    latent |= {
        "condition": condition,
        "change": "none" if condition == "edges" else "strong",
        "steps": max(1, work.config.training.steps // 3),
        "depths": len(latent["features"]) if every_depth else 1,
    }
    drawn = {"draws": DRAWS, "steps": STEPS}
    changes = sections(work.config, recipe, prediction=drawn)
    return work.train(name or f"features_{condition}", work.source, options, **changes)
