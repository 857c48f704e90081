"""Recipes that make scans out of noise: with no scan as condition, or given a label map.

``recipes/__init__.py`` finds them by name; see ``docs/synthesis.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Keys = dict[str, Any]


def image_prior() -> Keys:
    """DDPM of scans (Ho et al. 2020, arXiv 2006.11239): noise in, a scan out, no condition.

    The state is the normalised scan. It makes scans without labels (`synthesize`), and it is what
    unpaired translation leans on: SDEdit (Meng et al. 2022, arXiv 2108.01073) and CycleDiffusion
    (Wu & De la Torre 2023, arXiv 2210.05559); see ``translation/unpaired.py``.

    Departures: velocity for noise (`VELOCITY_FOR_NOISE`); the package's continuous linear
    schedule; 50 DDIM steps, close to one another where little noise is left (a last step from far
    smooths what is finer), where the paper walks all 1000 ancestral ones; a U-Net of four levels
    without attention; scans of other sizes than the patch are drawn window by window, the windows
    blended at every step as in MultiDiffusion (Bar-Tal et al. 2023, arXiv 2302.08113).
    """
    return {
        "model": {
            "kind": "diffusion",
            "prior": "unconditional",
            "features": [16, 32, 64, 160],
            "time_channels": 128,
            "schedule": "linear",
            "output": "velocity",
        },
        "objective": {"squared_error": 1.0},
        "prediction": {"draws": 1, "steps": 50, "sampler": "ddim", "grid": "quadratic"},
    }


def mask_to_image() -> Keys:
    """Med-DDPM (Dorjsembe et al. 2024, arXiv 2305.18453): a scan from its label map.

    The label map's one-hot planes are concatenated with the noisy scan; cosine schedule and the
    absolute error. The released code has 250 steps, batch 1, learning rate 1e-5 and an average of
    weights at 0.995 (read second hand); its scans are 3-D MR of the brain.

    Departures: velocity for noise (`VELOCITY_FOR_NOISE`), and so the absolute error is the
    velocity's; continuous time, 50 ancestral steps; one-hot planes are -1 and 1; a U-Net of four
    levels without attention; the optimiser and the average are the package's. In 2-D too; a volume
    is then drawn slice by slice.
    """
    keys = image_prior()
    keys["model"] |= {"prior": "mask", "schedule": "cosine"}
    keys["objective"] = {"absolute_error": 1.0}
    keys["prediction"] |= {"sampler": "ancestral"}
    return keys


def latent_synthesis() -> Keys:
    """Latent diffusion of scans given a label map, after medfusion and MAISI.

    An autoencoder of scans first, a denoiser of its latents next (Mueller-Franzes et al. 2022,
    medfusion, arXiv 2212.07501: 8 channels; Guo et al. 2024, MAISI, arXiv 2409.11169: a
    ControlNet brings the label map in; of both a summary of the code was read).

    Departures: the autoencoder learns the absolute error and a KL divergence, without the
    adversarial and the perceptual loss of both papers, so what it decodes is smooth; its latent is
    standardised per patch, as this package's other latents are; the label map comes in through an
    encoder of its own whose maps are added, trained along, where medfusion has a class and MAISI a
    ControlNet; half as fine a grid, where they have an eighth and a quarter; no noise level of the
    data's body region or spacing; a U-Net of three levels without attention.
    """
    return {
        "model": {
            "kind": "diffusion",
            "prior": "mask",
            "features": [32, 64, 112],
            "conditioner": "pyramid",
            "concat_image": False,
            "time_channels": 128,
            "schedule": "linear",
            "output": "velocity",
            "latent": {"features": [16, 32], "channels": 4, "regulariser": "kl"},
        },
        "objective": {"squared_error": 1.0},
        "prediction": {"draws": 1, "steps": 50, "sampler": "ddim", "grid": "quadratic"},
    }


PRIORS: dict[str, Callable[[], Keys]] = {
    "image_prior": image_prior,
    "mask_to_image": mask_to_image,
    "latent_synthesis": latent_synthesis,
}
