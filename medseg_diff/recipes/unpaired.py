"""Recipes that translate between two sets of images which have no pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Keys = dict[str, Any]


def syndiff() -> Keys:
    """SynDiff-like (Ozbey et al. 2022, arXiv 2207.08208): adversarial diffusion without pairs.

    Four large steps of the variance preserving process (betas 0.1 to 20, the package's linear
    schedule). In each domain a generator predicts the clean image from the noisy one and a source
    image; a step back is a draw of the process's posterior at that estimate, and a discriminator
    that knows the time tells it from a true step (Xiao et al. 2022, arXiv 2112.07804). Sources of
    training images are made by one-pass translators that learn as CycleGAN's do, with
    discriminators of their own. Losses as in the released code: non-saturating, 0.5 times the
    absolute errors of the clean image and of the cycle, R1 with gamma 1 every 10 steps; Adam with
    averages 0.5 and 0.9; prediction conditions the averaged generators on the scan itself.

    Departures: all networks move at once on one batch, where the released code updates the
    discriminators first, draws anew and then updates the generators; one optimiser, hence one
    learning rate (code: 1.6e-4 for generators, 1e-4 for discriminators), one gradient norm that is
    clipped, and AdamW's weight decay; both domains share a sample's time and noise, and a true and
    a made step their noise; the package's U-Net with instance norm in the place of NCSN++ and of
    the ResNet of six blocks; the latent z is a plane of noise among the inputs, so that windows of
    a draw agree, where the paper maps 100 numbers to adaptive group norms; all discriminators judge
    patches, without norms and without the standard deviation of the batch; R1 is counted per logit;
    knots at k / 4, where the code starts at 0.001; two to four patches of a few thousand pixels a
    step for some hundred steps, where the paper trains on slices of 256 x 256.
    """
    return {
        "model": {
            "kind": "diffusion",
            "features": [16, 32, 64, 96],
            "concat_image": True,
            "time_channels": 128,
            "schedule": "linear",
            "output": "clean",
            "adversarial": {
                "steps": 4,
                "latent_planes": 1,
                "discriminator_features": [32, 64, 128],
                "cycle": 0.5,
                "r1": 1.0,
                "r1_every": 10,
            },
        },
        "objective": {"absolute_error": 0.5},
        "training": {"betas": [0.5, 0.9]},
        "prediction": {"draws": 5, "steps": 4, "sampler": "ancestral"},
    }


UNPAIRED: dict[str, Callable[[], Keys]] = {"syndiff": syndiff}
