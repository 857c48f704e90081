"""What cannot stand together inside a configuration's section ``model``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medseg_diff.config.model import ModelConfig


def discrete_apart(model: ModelConfig) -> Iterator[tuple[bool, str]]:
    """What cannot stand beside a process of drawn classes, each with the sentence for the user."""
    classes = model.kind == "discrete"
    segmenter = model.discrete_prior == "segmenter"
    yield (
        segmenter and (not classes or model.conditioner != "anchored"),
        "discrete_prior 'segmenter' is an anchor's mask: set kind: discrete and conditioner: "
        "anchored",
    )
    gaussian = (
        model.path != "variance_preserving"
        or model.betas is not None
        or model.input_scale != 1
        or model.zero_terminal_snr
    )
    yield (
        classes and gaussian,
        "kind 'discrete' has no path but model.schedule: leave out path, betas, input_scale and "
        "zero_terminal_snr",
    )
    yield (
        classes and model.output != "clean",
        "kind 'discrete' predicts the mask's logits: set output: clean",
    )
    yield (
        classes and (model.learned_variance or model.self_conditioning),
        "kind 'discrete' has no learned_variance and no self_conditioning: leave them out",
    )
    yield (
        classes and model.condition_dropout > 0,
        "kind 'discrete' has no guidance: leave out condition_dropout",
    )


def joint_apart(model: ModelConfig) -> Iterator[tuple[bool, str]]:
    """What cannot stand beside a state of image and mask, each with the sentence for the user."""
    joint = model.joint
    yield (
        joint and (model.kind != "diffusion" or model.latent is not None),
        "joint stacks an image and a mask of pixels: set kind: diffusion and leave out latent",
    )
    yield (
        joint and (model.conditioner != "none" or model.concat_image),
        "joint shows the network no image beside its state: set conditioner: none and "
        "concat_image: false",
    )
    yield (
        joint and (model.output in ("clean", "correction") or model.learned_variance),
        "an image has no logits, and joint no learned_variance: use output velocity, noise, score "
        "or flow_velocity",
    )
    yield (
        joint and (model.self_conditioning or model.condition_dropout > 0),
        "joint has no condition: leave out self_conditioning and condition_dropout",
    )


def prior_apart(model: ModelConfig) -> Iterator[tuple[bool, str]]:
    """What cannot stand beside a model of scans, each with the sentence for the user."""
    prior = model.prior is not None
    # A label map reaches a latent's coarser grid through an encoder of its own.
    encoder = "pyramid" if model.latent is not None and model.prior == "mask" else "none"
    yield (
        prior and (model.kind != "diffusion" or model.joint or model.control_planes > 0),
        "prior diffuses scans alone: set kind: diffusion and leave out joint and control_planes",
    )
    yield (
        prior and (model.uses_source or model.conditioner != encoder),
        f"prior has no scan to start from or to encode: set conditioner: {encoder} and a path that "
        "ends in noise",
    )
    yield (
        prior
        and (
            model.adversarial is not None
            or model.noises_condition
            or (model.latent is not None and model.latent.of != "mask")
        ),
        "prior diffuses scans, or the latent of their own autoencoder: leave out adversarial, "
        "coarse, condition_noise and latent.of",
    )
    yield (
        prior and (model.learned_variance or model.self_conditioning),
        "prior is drawn over whole scans, window by window at each step: leave out "
        "learned_variance and self_conditioning",
    )
    yield (
        model.prior == "mask" and not model.concat_image and model.latent is None,
        "prior: mask shows the network its label map beside the state: set concat_image: true",
    )
    yield (
        prior and model.condition_dropout > 0,
        "a prior without its mask is one of prior: unconditional: leave out condition_dropout",
    )


def mixer_apart(model: ModelConfig) -> Iterator[tuple[bool, str]]:
    """What cannot stand beside a mixer other than the sum, each with the sentence for the user."""
    mixed = model.mixer != "add"
    yield (
        mixed and (model.denoiser != "unet" or model.conditioner in ("none", "medsegdiff_v1")),
        f"mixer '{model.mixer}' brings a conditioner's maps into a U-Net: set denoiser: unet and "
        "conditioner: pyramid or anchored",
    )
    yield (
        mixed and (model.control_planes > 0 or model.noises_condition),
        f"mixer '{model.mixer}' is not of networks with control_planes, condition_noise or coarse: "
        "leave them out",
    )
    yield (
        mixed and model.kind not in ("diffusion", "discrete"),
        f"mixer '{model.mixer}' is of a denoiser: set kind: diffusion or discrete",
    )
    asked, seen = model.features, model.conditioner_features or model.features
    yield (
        model.mixer == "cross_attention"
        and (any(width % model.heads > 0 for width in asked) or min(*asked, *seen) < 6),
        f"mixer 'cross_attention' needs features that heads, {model.heads}, divides, and at least "
        "6 channels of them and of conditioner_features, which say where a voxel lies",
    )


def depths_apart(model: ModelConfig) -> Iterator[tuple[bool, str]]:
    """What cannot stand beside a latent of several depths, each with the sentence for the user."""
    latent = model.latent
    if latent is None or latent.depths == 1:
        return
    yield (
        latent.of != "features" or latent.regulariser != "kl",
        "latent.depths are of a segmenting network: set latent.of: features and regulariser: kl",
    )
    yield (
        latent.depths > len(latent.features),
        f"latent.depths {latent.depths} is more than the network's {len(latent.features)} levels: "
        "give latent.features more widths",
    )
    yield (
        latent.depths > len(model.features),
        f"a denoiser of {len(model.features)} levels does not see a latent of {latent.depths} "
        "depths whole: give features as many widths",
    )


def control_apart(model: ModelConfig) -> Iterator[tuple[bool, str]]:
    """What cannot stand beside a further condition, each with the sentence for the user."""
    controlled = model.control_planes > 0
    yield (
        controlled and (model.kind != "diffusion" or model.denoiser != "unet"),
        "control_planes copies the encoder of a denoiser: set kind: diffusion and denoiser: unet",
    )
    yield (
        controlled and (not model.concat_image or model.latent is not None),
        "control_planes come in with the image beside the state: set concat_image: true and leave "
        "out latent",
    )
    yield (
        controlled and (model.self_conditioning or model.discrete_prior == "segmenter"),
        "control_planes are the last of the denoiser's input: leave out self_conditioning and "
        "discrete_prior",
    )


def adversarial_apart(model: ModelConfig) -> Iterator[tuple[bool, str]]:
    """What cannot stand beside unpaired translation, each with the sentence for the user."""
    adversarial = model.adversarial is not None
    yield (
        adversarial
        and (model.kind != "diffusion" or model.denoiser != "unet" or model.conditioner != "none"),
        "adversarial has generators of its own: set kind: diffusion, denoiser: unet and "
        "conditioner: none",
    )
    yield (
        adversarial and (model.path != "variance_preserving" or model.output != "clean"),
        "adversarial judges steps of the variance preserving path made from a clean image: set "
        "path: variance_preserving and output: clean",
    )
    yield (
        adversarial and (model.betas is not None or model.input_scale != 1),
        "adversarial walks large steps of model.schedule: leave out betas and input_scale",
    )
    others = (
        model.learned_variance,
        model.self_conditioning,
        model.condition_dropout > 0,
        model.latent is not None,
        model.joint,
        model.control_planes > 0,
        not model.concat_image,
    )
    yield (
        adversarial and any(others),
        "adversarial shows its generators a noisy image and a source alone: leave out "
        "learned_variance, self_conditioning, condition_dropout, latent, joint and control_planes, "
        "and set concat_image: true",
    )
