"""Recipes that segment: baselines, the papers that the package began with, and its default."""

from __future__ import annotations

from typing import Any

Keys = dict[str, Any]

VELOCITY_FOR_NOISE = """Papers that predict the noise are trained here on the velocity
(Salimans & Ho 2022), from which the noise follows: noise = a velocity + sigma x_t. The squared
error of the velocity is the paper's, of the noise, with the weight 1 / a^2 = 1 / alpha-bar.

In a few hundred steps noise is a poor thing to learn: its error counts an error of the clean mask
by a^2 / sigma^2, next to nothing where the mask is still unknown, and the sampler divides by a.
EnsemDiff, one draw in 10 steps, Dice on validation:

    nuclei, 250 steps      output noise 0.29; output velocity, error of the noise 0.71;
                           the same with late times (density 3 t^2) 0.71
    slices of the hippocampus, 600 steps     error of the noise, late times 0.15; velocity 0.61

`--set model.output=noise` is the papers' own; `--set objective.squared_error_of=noise` measures
the error of the noise on any output."""


def unet() -> Keys:
    """Plain U-Net with Dice + cross-entropy: the baseline every table needs."""
    return {
        "model": {"kind": "unet", "features": [16, 32, 64, 168]},
        "objective": {"dice": 1.0, "cross_entropy": 1.0},
        "prediction": {"draws": 1, "steps": 1},
    }


def mc_dropout() -> Keys:
    """MC dropout (Gal & Ghahramani 2016, arXiv 1506.02142): `unet`, dropped out at every draw.

    The network, the loss and the parameters are `unet`'s. Half of the channels are dropped where
    they leave a block of the deeper half of the levels, in encoder and decoder: the rate and about
    the place of the released Bayesian SegNet (Kendall et al. 2015, arXiv 1511.02680). Dropout stays
    on at prediction; the mean of the draws is the answer.

    Departures: the paper drops before every weight layer and single units; here whole channels,
    so that a mask is one network and all windows of a draw share it. Weight decay is the recipe's
    own, not derived from the rate, and there is no noise precision to add to the variance.
    """
    return {
        "model": {"kind": "unet", "features": [16, 32, 64, 168], "dropout": 0.5},
        "objective": {"dice": 1.0, "cross_entropy": 1.0},
        "prediction": {"draws": 5, "steps": 1},
    }


def probabilistic_unet() -> Keys:
    """Probabilistic U-Net (Kohl et al. 2018, arXiv 1806.05034).

    A prior net (image) and a posterior net (image and mask) each give an axis-aligned Gaussian of
    6 numbers; a latent, repeated at every voxel, joins the U-Net's last map in three hidden layers
    of 1x1 convolutions. Cross-entropy + beta KL(posterior || prior); latents of the posterior in
    training, of the prior at prediction. Beta 1, 6 numbers and three layers are the released
    Cityscapes configuration's. `model.conditioner_features` are the widths of both nets.

    Departures: cross-entropy is a mean over voxels and the KL is divided by their number, which is
    the paper's sum up to a factor; widths, four levels, two convolutions a block (three in the
    released code) and norms (none in the released code) are the package's, for two CPU cores, equal
    parameters and its learning rates; log sigma is held within 5; the two nets are narrower than
    the U-Net's encoder, where the released code has them equal; overlapping regions use sigmoids.
    Windows of a draw share its random numbers; each has a prior of its own.
    """
    return {
        "model": {
            "kind": "probabilistic_unet",
            "features": [16, 32, 64, 112],
            "conditioner_features": [16, 32, 48, 64],
            "latent_size": 6,
        },
        "objective": {"cross_entropy": 1.0, "kl": 1.0},
        "prediction": {"draws": 5, "steps": 1},
    }


def diff_unet() -> Keys:
    """Diff-UNet (Xing et al. 2023, arXiv 2303.10326).

    Denoiser on concat(x_t, image) with the image pyramid added at every scale; clean output as
    logits; Dice + cross-entropy + squared error; DDPM's linear betas; DDIM, 10 steps.

    Departures: widths are under a quarter of the paper's (64 ... 512), for two CPU cores; exclusive
    classes use softmax and a background channel where the paper uses one sigmoid a structure
    (regions still do); draws are fused by their mean.
    `prediction.fuse` also has step-uncertainty fusion, by the released code
    (`step_uncertainty`) and by the paper (`step_uncertainty_paper`), and the plain sum over steps
    of the released multi-organ test (`step_sum`). Time is added before the activation, since
    after it instance norm removes it (`UNet`).
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
    are added to a narrow denoiser (a sixth of the pyramid's FLOPs), whose output is a correction to
    the anchor's logits. The
    state is scaled by 0.5, a harder schedule that keeps one-hot masks from being read off x_t.
    Half of the samples are trained on their own re-noised prediction (recycling), which is what a
    sampler's second step meets; without it single draws got worse with every step.
    """
    return {
        "model": {
            "kind": "diffusion",
            "features": [6, 12, 24, 48],
            "conditioner": "anchored",
            "conditioner_features": [16, 32, 64, 152],
            "concat_image": True,
            "time_channels": 64,
            "schedule": "linear",
            "input_scale": 0.5,
            "output": "correction",
        },
        "objective": {"dice": 1.0, "cross_entropy": 1.0, "anchor": 1.0, "recycling": 0.5},
        "prediction": {"draws": 5, "steps": 2, "sampler": "ddim"},
    }


def ensemdiff() -> Keys:
    """EnsemDiff (Wolleb et al. 2022, arXiv 2112.03145): the image concatenated with the noisy mask.

    The reference every other is compared with: one denoiser, no conditioner; noise output with a
    learned variance, squared error + 0.001 L_vlb (Improved DDPM); ancestral sampling; the mean of
    five draws.

    Departures: velocity for noise (`VELOCITY_FOR_NOISE`); 100 sampling steps, where the paper has
    1000 (every one a network call); the denoiser is the package's U-Net, narrower and without
    attention; multi-class by one channel a class.
    """
    return {
        "model": {
            "kind": "diffusion",
            "features": [16, 32, 64, 160],
            "concat_image": True,
            "time_channels": 128,
            "schedule": "linear",
            "output": "velocity",
            "learned_variance": True,
        },
        "objective": {"squared_error": 1.0, "variational_bound": 0.001},
        "prediction": {"draws": 5, "steps": 100, "sampler": "ancestral"},
    }


def medsegdiff_v1() -> Keys:
    """MedSegDiff (Wu et al. 2023, arXiv 2211.00611), the paper's model.

    Two encoders, of the image and of the noisy mask; the mask's maps pass an FF-Parser (a learnable
    complex filter between FFT and inverse FFT) into dynamic conditional encoding,
    A = (LN(m_I) * LN(m_x)) * m_I, on the middle two stages; the embeddings are added before the
    last stage. Noise output, squared error alone, ancestral sampling in 100 steps.

    Departures: velocity for noise (`VELOCITY_FOR_NOISE`); widths and residual blocks for two CPU
    cores (`medsegdiff_v1_s` ... `_plusplus` have the paper's depths); STAPLE over 5 draws, where
    the paper has 25; multi-class by one channel a class. See `networks.medsegdiff`.
    """
    return {
        "model": {
            "kind": "diffusion",
            "denoiser": "medsegdiff_v1",
            "features": [16, 32, 56, 96],
            "blocks": [0, 1, 2, 1],
            "conditioner": "medsegdiff_v1",
            "concat_image": False,
            "time_channels": 128,
            "schedule": "linear",
            "output": "velocity",
        },
        "objective": {"squared_error": 1.0},
        "prediction": {"draws": 5, "steps": 100, "sampler": "ancestral", "fuse": "staple"},
    }


def medsegdiff_v1_sized(size: str) -> Keys:
    """MedSegDiff V1 at a size of the paper: S, B, L or ++, for a machine with GPUs.

    S, B, L and ++ halve the resolution 4, 5, 6 and 6 times; the residual blocks of the first four
    stages are ResNet34's. The network's output is the noise itself, as in the paper; 25 draws of
    100 steps, fused by STAPLE, and AdamW at 1e-4 are the paper's; so are batches of 32 (S, B) and
    64 (L, ++), which the data's plan sets.

    Departures: the paper gives no widths, so these double from 64 to 512 as ResNet34's do; the
    stages beyond ResNet34's have its last number of blocks, 3. What sets ++ apart from L is not
    in the text we could read: both are built alike here.
    """
    keys = medsegdiff_v1()
    deeper = {"S": 0, "B": 1, "L": 2, "++": 2}[size]
    keys["model"] |= {
        "features": [64, 64, 128, 256, 512, *[512] * deeper],
        "blocks": [0, 3, 4, 6, 3, *[3] * deeper],
        "time_channels": 256,
        "output": "noise",
    }
    keys["objective"] = {"squared_error": 1.0}
    keys["prediction"] |= {"draws": 25}
    keys["training"] = {"learning_rate": 1e-4}
    return keys


def medsegdiff_v2() -> Keys:
    """MedSegDiff-V2 (Wu et al. 2024, arXiv 2301.11798), the paper's model.

    A segmenting U-Net conditions the denoiser twice: its finest map through Uncertain Spatial
    Attention on the first encoder map (anchor condition), its deepest through an SS-Former with the
    time-adaptive Neural Band-Pass filter (semantic condition). Noise output; squared error, and
    Dice + 10 cross-entropy on the condition model at every fifth time step; DPM-Solver++.

    Departures: velocity for noise (`VELOCITY_FOR_NOISE`); alpha 5 and beta 10 are
    from memory of the paper, not from its text; widths for two CPU cores; STAPLE over 5 draws; see
    `networks.medsegdiff` and `networks.mixers`.
    """
    return {
        "model": {
            "kind": "diffusion",
            "denoiser": "medsegdiff_v2",
            "features": [8, 16, 32, 64],
            "conditioner": "anchored",
            "conditioner_features": [16, 32, 64, 96],
            "concat_image": False,
            "time_channels": 128,
            "schedule": "linear",
            "output": "velocity",
        },
        "objective": {
            "squared_error": 1.0,
            "anchor": 1.0,
            "anchor_cross_entropy": 10.0,
            "anchor_every": 5,
        },
        "prediction": {
            "draws": 5,
            "steps": 20,
            "sampler": "dpm_solver_2m",
            "grid": "log_snr",
            "fuse": "staple",
        },
    }


def lsegdiff() -> Keys:
    """LSegDiff-style latent diffusion (SOICT 2023, doi 10.1145/3628797.3629010).

    An autoencoder turns masks into a latent; a denoiser works there, conditioned on the image's own
    maps at the latent's scales; the decoder gives the mask, and morphology cleans it.

    The paper's numbers could not be checked, hence "style". Departures: the autoencoder is trained
    by Dice + weighted cross-entropy, not by squared error, which loses small structures; velocity
    output; its latent is standardised per sample (LDSeg, arXiv 2407.12952). With
    `prediction.steps: 1` the mask comes from one estimate, as in SDSeg (MICCAI 2024); with
    `model.latent.end_to_end: true` both parts train together, as in LDSeg.
    """
    return {
        "model": {
            "kind": "diffusion",
            "features": [32, 64, 112],
            "conditioner": "pyramid",
            "concat_image": False,
            "time_channels": 128,
            "schedule": "cosine",
            "output": "velocity",
            "latent": {"features": [8, 16, 32], "channels": 4, "regulariser": "kl"},
        },
        "objective": {"squared_error": 1.0},
        "prediction": {"draws": 5, "steps": 10, "sampler": "ddim", "cleanup": "morphology"},
    }


def dit() -> Keys:
    """DiT (Peebles & Xie 2023, arXiv 2212.09748): a transformer as denoiser of masks.

    Patches of 4 voxels a side of the noisy mask and the image are tokens; four blocks of attention
    and MLP, steered by time through adaLN-Zero. Velocity output on the squared error.

    Departures: masks, not latents of images (set `model.latent` and `conditioner: pyramid` for
    those: then the image comes in by cross-attention); width and depth for two CPU cores (the
    paper's smallest has 12 blocks of 384); a cosine schedule and velocity, where the paper predicts
    noise and learns its variance; see `networks.transformer`.
    """
    return {
        "model": {
            "kind": "diffusion",
            "denoiser": "dit",
            "features": [84, 84, 84, 84],
            "concat_image": True,
            "time_channels": 128,
            "schedule": "cosine",
            "output": "velocity",
        },
        "objective": {"squared_error": 1.0},
        "prediction": {"draws": 5, "steps": 10, "sampler": "ddim"},
    }


def rectified_flow() -> Keys:
    """Rectified flow (Liu et al. 2023, arXiv 2209.03003) from noise to a mask, given the image.

    The straight path, flow velocity output, times drawn from a logit-normal law (Esser et al.
    2024), Euler steps. The networks are `diff_unet`'s.
    """
    return {
        "model": {
            "kind": "diffusion",
            "features": [16, 32, 64, 96],
            "conditioner": "pyramid",
            "conditioner_features": [16, 32, 64, 96],
            "concat_image": True,
            "time_channels": 128,
            "path": "linear",
            "output": "flow_velocity",
        },
        "objective": {"squared_error": 1.0, "time_law": "logit_normal"},
        "prediction": {"draws": 5, "steps": 5, "sampler": "euler"},
    }
