"""Recipes whose network sees its condition under noise: a coarse mask or a coarse image made finer.

See ``recipes.py``, which lists them with the others.
"""

from __future__ import annotations

from typing import Any

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
        "prediction": {"draws": 5, "steps": 5, "sampler": "ddim", "condition_noise": 0.1},
    }
