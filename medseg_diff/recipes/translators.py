"""Recipes that translate: a scan in, the same scan in another contrast out.

All of them share one network (a U-Net of four levels), so that rows of a table
differ in what is diffused, not in size. Every table needs `one_step`, that network as a plain
regression: whether sampling beats it is the first question, and draws with their spread are what
sampling has besides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Keys = dict[str, Any]

FEATURES = [16, 32, 64, 160]
# The networks of a noisy state have an embedding of time besides: about as many parameters.
WITHOUT_TIME = [16, 32, 64, 168]


def one_step() -> Keys:
    """One-step regression: the translators' U-Net, image in, target out, on the absolute error.

    No paper of its own: the baseline. The absolute error makes it the median of what may be there,
    which is what MAE rewards; `--set objective.squared_error=1 --set objective.absolute_error=0`
    makes it the mean, which PSNR does. Departures from the other rows: no time and no noisy state
    among its inputs, and a wider last level in their place, so that parameters agree within 10 %.
    """
    return {
        "model": {"kind": "unet", "features": WITHOUT_TIME},
        "objective": {"absolute_error": 1.0},
        "prediction": {"draws": 1, "steps": 1},
    }


def palette() -> Keys:
    """Palette (Saharia et al. 2022, arXiv 2111.05826): source concatenated with the noisy target.

    Noise output and the squared error (the paper's L2, which keeps more diversity than its L1),
    ancestral sampling. Paper: linear betas from 1e-6 to 0.01 in 2000 steps while training, 1000
    refinement steps at prediction.

    Departures: velocity for noise (`VELOCITY_FOR_NOISE`: in a few hundred steps noise is a
    poor thing to learn, and its sampler divides by the signal's gain); the package's continuous
    linear schedule, exp(-(0.1 t + 9.95 t^2)), where the paper's betas give about
    exp(-(0.002 t + 10 t^2)); 50 sampling steps; a U-Net of four levels without attention; medical
    images of one channel, so none of the paper's own tasks is reproduced.
    """
    return {
        "model": {
            "kind": "diffusion",
            "features": FEATURES,
            "concat_image": True,
            "time_channels": 128,
            "schedule": "linear",
            "output": "velocity",
        },
        "objective": {"squared_error": 1.0},
        "prediction": {"draws": 5, "steps": 50, "sampler": "ancestral"},
    }


def bbdm() -> Keys:
    """BBDM (Li et al. 2023, arXiv 2205.07680): a Brownian bridge from the target to the source.

    x_t = (1 - t) clean + t source + sqrt(2 s (t - t^2)) noise, s = 1; the network learns the
    residual x_t - clean (the released code's objective "grad") on the absolute error; eta 1. The
    released pixel template also shows the source to the network (condition key "SpatialRescaler",
    concatenated), as here, and samples 200 of 1000 steps.

    Departures: pixels, where the paper's results are in a VQGAN's latent; continuous time up to
    1, where the released code stops at 0.999; 50 sampling steps; the EMA and the optimiser are the
    package's; a U-Net of four levels without attention.
    """
    return {
        "model": {
            "kind": "diffusion",
            "features": FEATURES,
            "concat_image": True,
            "time_channels": 128,
            "path": "bridge",
            "bridge_scale": 1.0,
            "output": "residual",
        },
        "objective": {"absolute_error": 1.0},
        "prediction": {"draws": 5, "steps": 50, "sampler": "ancestral"},
    }


def bbdm_latent() -> Keys:
    """BBDM (Li et al. 2023, arXiv 2205.07680) in the paper's own form: the bridge in a latent.

    One autoencoder turns images of both contrasts into latents, first trained, then frozen; the
    bridge runs from the target's latent to the source's, and the decoder gives the image. As in
    `bbdm`: s = 1, the residual on the absolute error, eta 1; the source's latent is also
    concatenated with the state. The paper's latent is a pretrained VQGAN's, 4 times coarser.

    Departures: a small autoencoder trained here on the training images of both contrasts by the
    absolute error (no perceptual and no adversarial loss, which keep texture), by default with a KL
    regulariser (`--set model.latent.regulariser=vq` has a code book); its latent is scaled to unit
    variance; half of the steps are its own; and `bbdm`'s departures in time, steps and network.
    """
    keys = bbdm()
    keys["model"] |= {
        "features": [16, 32, 64, 96],
        "concat_image": False,
        "latent": {"features": [16, 32, 48], "channels": 4, "steps": 500},
    }
    return keys


def flow_from_noise() -> Keys:
    """Rectified flow (Liu et al. 2023, arXiv 2209.03003) from noise to target, given the source.

    The straight path, flow velocity output on the squared error, uniform times, Euler steps.

    Departures: the paper translates between unpaired domains, and its flow is not conditioned; here
    pairs are known and the source is concatenated. No reflow.
    """
    return {
        "model": {
            "kind": "diffusion",
            "features": FEATURES,
            "concat_image": True,
            "time_channels": 128,
            "path": "linear",
            "output": "flow_velocity",
        },
        "objective": {"squared_error": 1.0},
        "prediction": {"draws": 5, "steps": 10, "sampler": "euler"},
    }


def flow_from_source() -> Keys:
    """Rectified flow (Liu et al. 2023, arXiv 2209.03003) along the line from source to target.

    x_t = (1 - t) clean + t source: the paper's domain transfer, where the one domain's image stands
    for the noise. There is no noise, so there is one answer and no spread.

    Departures: pairs are known, where the paper's are drawn at random and straightened by reflow;
    the source is also concatenated, so that the state may move away from it.
    """
    keys = flow_from_noise()
    keys["model"] |= {"line_from": "source"}
    keys["prediction"] = {"draws": 1, "steps": 10, "sampler": "euler"}
    return keys


TRANSLATORS: dict[str, Callable[[], Keys]] = {
    "one_step": one_step,
    "palette": palette,
    "bbdm": bbdm,
    "bbdm_latent": bbdm_latent,
    "flow_from_noise": flow_from_noise,
    "flow_from_source": flow_from_source,
}
