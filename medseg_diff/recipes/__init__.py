"""Recipes: a paper is a list of arguments. Each function returns the keys that make it.

A YAML with ``recipe: NAME`` starts from these keys and overrides what it likes.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial
from typing import Any

from medseg_diff.errors import UsageError
from medseg_diff.recipes import cascades, segmentation, wider
from medseg_diff.recipes.priors import PRIORS
from medseg_diff.recipes.translators import TRANSLATORS
from medseg_diff.recipes.unpaired import UNPAIRED

Keys = dict[str, Any]

RECIPES: dict[str, Callable[[], Keys]] = {
    "unet": segmentation.unet,
    "mc_dropout": segmentation.mc_dropout,
    "probabilistic_unet": segmentation.probabilistic_unet,
    "anchored": segmentation.anchored,
    "diff_unet": segmentation.diff_unet,
    "ensemdiff": segmentation.ensemdiff,
    "medsegdiff_v1": segmentation.medsegdiff_v1,
    "medsegdiff_v2": segmentation.medsegdiff_v2,
    "lsegdiff": segmentation.lsegdiff,
    "rectified_flow": segmentation.rectified_flow,
    "dit": segmentation.dit,
    "feature_translation": wider.feature_translation,
    "ccdm": wider.ccdm,
    "berdiff": wider.berdiff,
    "hidiff": wider.hidiff,
    "diffatlas": wider.diffatlas,
    "refine": cascades.refine,
}


# The same networks at a paper's own size: too large for the tables, which two CPU cores fill.
SIZED: dict[str, Callable[[], Keys]] = {
    f"medsegdiff_v1_{name}": partial(segmentation.medsegdiff_v1_sized, size)
    for name, size in (("s", "S"), ("b", "B"), ("l", "L"), ("plusplus", "++"))
}


def seed(name: str) -> Keys:
    """Keys of a recipe by name."""
    known = RECIPES | SIZED | TRANSLATORS | UNPAIRED | PRIORS | cascades.RESTORERS
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        remedy = f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(known)}"
        raise UsageError("unknown recipe", field="recipe", found=repr(name), remedy=remedy)
    return known[name]()
