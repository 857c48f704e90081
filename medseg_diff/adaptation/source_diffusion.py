"""Diffusion models trained on the source, at the experiment's own widths and budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from medseg_diff.config import Config, ModelConfig, ObjectiveConfig
from medseg_diff.recipes import Keys, seed


def sections(
    config: Config, recipe: str | Keys, *, prediction: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Sections of a configuration that make a recipe of it; its ``training`` and data stay.

    The networks get the widths of the experiment's own network. An anchored recipe gives them to
    its conditioner; its denoiser has three eighths of them, as in the recipe.

    Args:
        config: Of the experiment, complete.
        recipe: Name of a recipe, or keys of its form.
        prediction: On top of the recipe's own, e.g. fewer steps.
    """
    keys = seed(recipe) if isinstance(recipe, str) else recipe
    model, widths = dict(keys["model"]), config.model.features
    if model.get("conditioner") == "anchored":
        model["conditioner_features"] = widths
        model["features"] = [max(2, math.ceil(3 * n / 8)) for n in widths]
    else:
        model["features"] = widths
    whole = ModelConfig.model_validate(model).model_dump(mode="json")
    objective = ObjectiveConfig.model_validate(keys["objective"]).model_dump(mode="json")
    drawn = {**keys["prediction"], **(prediction or {})}
    return {"model": whole, "objective": objective, "prediction": drawn}
