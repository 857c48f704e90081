"""Recipes that work from a poorer answer: a coarse mask or image made finer, a hole filled.

The table of all recipes is in ``recipes/__init__.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from medseg_diff.recipes.translators import palette

Keys = dict[str, Any]


def refine() -> Keys:
    """A cascade for masks, after CDM (Ho et al. 2022, arXiv 2106.15282): coarse first, then fine.

    A segmenter of the image averaged over blocks of 2 voxels a side (4 in `nuclei_refine`) gives a
    coarse mask; a diffusion at full resolution, conditioned on the image and on that mask brought
    up linearly and noised, makes the mask. The noise's level is uniform while training and told to
    the network by an embedding of its own; at prediction it is 0.1. Imagen (Saharia et al. 2022,
    arXiv 2205.11487) has the same augmentation; Relay Diffusion (Teng et al. 2023, arXiv
    2309.03350) instead begins the fine stage from the blurred coarse result. These facts are from
    memory of the papers, not from their text.

    Departures: the papers make images, from classes or text; here both stages segment a given
    image. The coarse stage is one pass of a U-Net, not a diffusion of its own, trained by Dice +
    cross-entropy at the same time as the fine one, which learns from the segmenter's own masks (cut
    off from its gradient) where CDM takes the true one at low resolution. The fine network
    answers with logits (Dice + cross-entropy, as `diff_unet`), not with the noise. The coarse stage
    sees the same window as the fine one, more context for its size but no voxel beyond; a window as
    large as the scan gives both all there is. The largest level, 0.5 (CDM tunes it per stage), and
    0.1 are choices, not results.
    """
    return {
        "model": {
            "kind": "diffusion",
            "features": [16, 32, 64, 128],
            "concat_image": True,
            "time_channels": 64,
            "schedule": "linear",
            "output": "clean",
            "coarse": {"factor": 2, "features": [16, 32, 64]},
            "condition_noise": 0.5,
        },
        "objective": {"dice": 1.0, "cross_entropy": 1.0, "anchor": 1.0},
        "prediction": {"draws": 5, "steps": 2, "sampler": "ddim", "condition_noise": 0.1},
    }


def super_resolution() -> Keys:
    """SR3 (Saharia et al. 2021, arXiv 2104.07636): a scan made finer, from itself made coarser.

    The low-resolution image, brought up to the full grid, is concatenated with the noisy one and a
    U-Net predicts the noise. The paper's cascades and CDM (Ho et al. 2022, arXiv 2106.15282) add
    noise conditioning augmentation, as here: the condition is noised at a random level that the
    network is told, at prediction at a fixed small one. From memory of the papers, not their text.

    The source is made from the scan by `data.restoration.degraded`, block means along chosen axes
    interpolated back, so that any case list will do; factors 2 and 4 are drawn in turn.

    Departures: linear interpolation, where the paper has bicubic; the largest level (0.3) and the
    one at prediction (0.05) are choices; the network is told no noise level in the place of time
    (the paper's conditioning on alpha-bar) but time itself; all that `translators.palette` departs
    in (velocity for noise, 50 steps, a small U-Net without attention).
    """
    keys = palette()
    keys["model"] |= {"condition_noise": 0.3}
    keys["prediction"] |= {"condition_noise": 0.05}
    return keys | {"restoration": {"kind": "super_resolution"}}


def inpainting() -> Keys:
    """Palette's inpainting (Saharia et al. 2022, arXiv 2111.05826): the masked part of a scan.

    The scan with a hole is concatenated with the noisy one; the loss counts inside the hole alone.
    Training draws a box or an ellipsoid into every patch (`data.restoration.random_hole`), by the
    sample's number. At prediction the hole is a mask's; outside it the answer is the scan.

    Departures: the paper's hole is filled with noise, here with 0, and a further plane says where
    it is; the paper's masks are free-form strokes and rectangles; the noisy state is hidden outside
    the hole; all that `translators.palette` departs in. The facts are from memory of the paper.
    """
    return palette() | {"restoration": {"kind": "inpainting"}}


RESTORERS: dict[str, Callable[[], Keys]] = {
    "super_resolution": super_resolution,
    "inpainting": inpainting,
}
