"""Recipes whose state is not a mask under Gaussian noise: drawn classes, image and mask together.

The table of all recipes is in ``recipes/__init__.py``.
"""

from __future__ import annotations

from typing import Any

Keys = dict[str, Any]


def feature_translation() -> Keys:
    """Latent feature translation, this project's own idea (no paper); see `model/features.py`.

    First stage: a segmenting network of residual blocks, image to 8 channels of features at half
    the resolution (one halving) to mask, no skip. Second: a denoiser of these features, conditioned
    on the image after random convolutions, gain fields and coarse axes; velocity, and Dice +
    cross-entropy of the decoded estimate, so that features count by the mask they mean.

    Departures from the idea as first written down, each a key or an adaptation's row away: the
    condition learns from changed source images alone, not from target scans by cycle consistency
    (row `latent_cycle`); features of one depth (`latent.depths`); the condition is added, with no
    cross-attention (`mixer`); slices do not know their place (`plan.slice_position`).
    """
    return {
        "model": {
            "kind": "diffusion",
            "features": [32, 64, 112],
            "conditioner": "pyramid",
            "concat_image": False,
            "time_channels": 128,
            "schedule": "cosine",
            # Chosen on validation cases (docs/domain_adaptation.md): with less signal at most
            # times the condition is needed, and learned, sooner.
            "input_scale": 0.2,
            "output": "velocity",
            "condition_dropout": 0.1,
            "latent": {
                "of": "features",
                "condition": "image",
                "change": "strong",
                "features": [16, 32],
                "channels": 8,
                "regulariser": "kl",
            },
        },
        "objective": {"squared_error": 1.0, "dice": 1.0, "cross_entropy": 1.0},
        "prediction": {"draws": 3, "steps": 10, "sampler": "ddim"},
    }


def ccdm() -> Keys:
    """CCDM (Zbinden, Doorenbos et al. 2023, arXiv 2303.08888): categorical diffusion of masks.

    Noise draws a voxel's class anew from the uniform distribution; the network, on the one-hot
    state concatenated with the image, answers with the classes' probabilities; the loss is the KL
    divergence between the true posterior of a step and the mean of the posteriors under these
    probabilities, by which draws are made too; the last step is the largest probability. 250 steps
    on the cosine schedule. These facts are from the released code (LarsDoorenbos/
    ccdm-stochastic-segmentation); the paper's text was not read.

    Departures: the KL is a mean over voxels where the released code sums, the same to AdamW; 50
    sampling steps on the exact posterior between their times, where the paper walks all 250 (the
    released code's shorter walk keeps the posterior of one step); the state enters as -1 and 1;
    a U-Net without attention and without DINO features; the package's average of weights and
    learning rates. Overlapping regions are a variable of two categories each.
    """
    return {
        "model": {
            "kind": "discrete",
            "features": [16, 32, 64, 160],
            "concat_image": True,
            "time_channels": 128,
            "schedule": "cosine",
            "output": "clean",
            "discrete_steps": 250,
        },
        "objective": {"kl": 1.0},
        "prediction": {"draws": 5, "steps": 50, "sampler": "ancestral"},
    }


def berdiff() -> Keys:
    """BerDiff (Chen et al. 2023, arXiv 2304.04429): Bernoulli diffusion of a binary mask.

    A voxel's bit is kept with alpha-bar, else a fair coin's; KL of a step's posterior +
    cross-entropy; 1000 steps; draws in 10 steps of DDIM's rule for bits, which keeps the state or
    takes the estimate. Steps and both losses are from second hand (a summary of paper and code);
    DDIM's rule and the posterior were read in the released code (takimailto/BerDiff), whose
    marginal, by a broken line, lacks the coin's share: here it has it, as the posterior asks.

    Departures: the network predicts the mask, where the paper predicts which bits were flipped
    (one follows from the other: mask = |state - flips|) and so the estimate enters the posterior as
    a mean over masks, not as a mask in grey; equal weights of the losses and the cosine schedule
    are not checked against the paper; several exclusive classes are one categorical variable, of
    which two classes are the paper's bit; a U-Net without attention.
    """
    return {
        "model": {
            "kind": "discrete",
            "features": [16, 32, 64, 160],
            "concat_image": True,
            "time_channels": 128,
            "schedule": "cosine",
            "output": "clean",
            "discrete_steps": 1000,
        },
        "objective": {"kl": 1.0, "cross_entropy": 1.0},
        "prediction": {"draws": 5, "steps": 10, "sampler": "ddim"},
    }


def hidiff() -> Keys:
    """HiDiff (Chen et al. 2024, arXiv 2407.03548): Bernoulli diffusion towards a segmenter's mask.

    Noise draws a voxel anew from the probabilities of a discriminative segmenter, from which a
    draw starts; the network sees state, image, those probabilities and the segmenter's maps; KL
    of a step's posterior + focal loss; 10 steps. The process, its posterior and the network's
    inputs were read in the released code (takimailto/HiDiff); losses and steps are second hand.

    Departures: the segmenter is the package's anchored pyramid, trained along by its own Dice +
    cross-entropy, where the paper alternates the two and takes MERIT; its maps are added, not
    attended to; the prior has 1 % of the uniform one mixed in, so that every class is possible; the
    network predicts the mask, not the flips, is not binarised, and has few channels; several
    exclusive classes are one categorical variable; the cosine schedule is not checked.
    """
    return {
        "model": {
            "kind": "discrete",
            "features": [6, 12, 24, 48],
            "conditioner": "anchored",
            "conditioner_features": [16, 32, 64, 152],
            "concat_image": True,
            "time_channels": 64,
            "schedule": "cosine",
            "output": "clean",
            "discrete_steps": 10,
            "discrete_prior": "segmenter",
        },
        "objective": {"kl": 1.0, "focal": 1.0, "anchor": 1.0},
        "prediction": {"draws": 5, "steps": 10, "sampler": "ancestral"},
    }


def diffatlas() -> Keys:
    """DiffAtlas (2025, arXiv 2503.06748): image and mask as one state, without a condition.

    One unconditional denoiser of the image's channels and the mask's; at every step of a draw the
    image's channels are replaced by the target image, noised to that step, and the mask follows.
    Noise output, the image's squared error + the mask's, cosine schedule, ancestral sampling over
    all steps: read in the released code (M3DV/DiffAtlas); of the paper the abstract was read.

    Departures: velocity for noise (`VELOCITY_FOR_NOISE`); masks are one channel a class in
    -1 and 1, where the released code diffuses a signed distance map a structure; the image keeps
    its normalised units and is not clamped to [-1, 1]; the target is noised by one field a draw,
    where the released code draws another at every step; 50 sampling steps; the package's U-Net
    without attention. Its other walk, guided by the gradient of the image's error, is left out.
    """
    return {
        "model": {
            "kind": "diffusion",
            "joint": True,
            "features": [16, 32, 64, 160],
            "concat_image": False,
            "time_channels": 128,
            "schedule": "cosine",
            "output": "velocity",
        },
        "objective": {"squared_error": 1.0},
        "prediction": {"draws": 5, "steps": 50, "sampler": "ancestral"},
    }
