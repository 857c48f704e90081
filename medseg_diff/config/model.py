"""The section of a configuration that describes the network and the diffusion process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from medseg_diff.config.apart import (
    adversarial_apart,
    control_apart,
    depths_apart,
    discrete_apart,
    joint_apart,
    mixer_apart,
    prior_apart,
)
from medseg_diff.config.base import Section
from medseg_diff.config.cascade import CoarseConfig, noised_apart


class LatentConfig(Section):
    """What a latent is of, for a model that diffuses it; of a translation, of all its images."""

    of: Literal["mask", "features"] = Field(
        "mask",
        description="mask: an autoencoder of masks; features: the deep features of a segmenting "
        "network, image in and mask out, with no skip past them (latent feature translation)",
    )
    condition: Literal["image", "edges", "features"] = Field(
        "image",
        description="of features: what of a scan its conditioner sees: itself, the size of its "
        "gradient, or the frozen network's own features of it",
    )
    change: Literal["none", "strong"] = Field(
        "strong",
        description="of features: random change of appearance of the image that conditions, in "
        "training; the features to be drawn are the unchanged image's",
    )
    regulariser: Literal["kl", "vq"] = "kl"
    channels: int = Field(4, ge=1, description="channels of the latent")
    features: tuple[int, ...] = Field(
        (16, 32, 64), min_length=2, description="widths; each level after the first halves the size"
    )
    depths: int = Field(
        1,
        ge=1,
        description="of features: levels of the network, from the deepest on, whose maps the "
        "latent holds; with more than one the decoder gets its skips from what is drawn, and as "
        "many as there are levels are all of them",
    )
    kl: float = Field(1e-4, ge=0, description="weight of the KL divergence")
    codes: int = Field(256, ge=2, description="entries of the VQ code book")
    steps: int = Field(300, ge=1, description="training steps of the first stage")
    small_structures: float = Field(
        1.0, ge=0, description="power of 1 / frequency by which rare classes count in cross-entropy"
    )
    end_to_end: bool = Field(False, description="train both parts together (LDSeg-like)")

    @property
    def state_channels(self) -> int:
        """Channels of what is diffused."""
        return self.channels * self.depths


class AdversarialConfig(Section):
    """Unpaired translation by a few large reverse steps, each judged by a discriminator."""

    steps: int = Field(4, ge=1, description="steps of the process; prediction takes as many")
    latent_planes: int = Field(
        1, ge=0, description="planes of noise among a generator's inputs: its latent z"
    )
    discriminator_features: tuple[int, ...] = Field(
        (32, 64, 128), min_length=1, description="widths; each level halves the size"
    )
    cycle: float = Field(0.5, ge=0, description="weight of the cycle's absolute error")
    r1: float = Field(1.0, ge=0, description="weight of the gradient penalty R1, gamma")
    r1_every: int = Field(10, ge=1, description="training steps between two that have the penalty")


class ModelConfig(Section):
    """Axes of the model; see ``recipes/`` for the papers."""

    kind: Literal["diffusion", "discrete", "unet", "probabilistic_unet"] = "diffusion"
    denoiser: Literal["unet", "medsegdiff_v1", "medsegdiff_v2", "dit"] = "unet"
    features: tuple[int, ...] = Field(
        min_length=2, description="width of each level, finest first; dit: of each block, all equal"
    )
    heads: int = Field(4, ge=1, description="dit, and mixer cross_attention: attention heads")
    token_size: int = Field(4, ge=1, description="dit: voxels of a token along each axis")
    blocks: tuple[int, ...] | None = Field(
        None, description="medsegdiff_v1: residual blocks of each level"
    )
    transformer_blocks: int = Field(1, ge=1, description="medsegdiff_v2: SS-Former blocks")
    conditioner: Literal["none", "pyramid", "anchored", "medsegdiff_v1"] = "none"
    conditioner_features: tuple[int, ...] | None = None
    mixer: Literal["add", "zero_convolution", "cross_attention"] = Field(
        "add",
        description="how the conditioner's maps enter a U-Net's levels: added, added through "
        "convolutions that start at zero, or asked for by every position (cross-attention)",
    )
    concat_image: bool = True
    time_channels: int = Field(128, ge=4, multiple_of=4)
    path: Literal["variance_preserving", "variance_exploding", "linear", "bridge"] = (
        "variance_preserving"
    )
    schedule: Literal["linear", "cosine", "sigmoid"] = Field(
        "linear", description="of the variance preserving path"
    )
    zero_terminal_snr: bool = False
    betas: tuple[Annotated[float, Field(gt=0, lt=1)], ...] | None = Field(
        None, min_length=1, description="beta table instead of a schedule"
    )
    input_scale: float = Field(1.0, gt=0, le=1)
    sigma_min: float = Field(0.01, gt=0, description="of the variance exploding path")
    sigma_max: float = Field(50.0, gt=0)
    bridge_scale: float = Field(1.0, gt=0, description="of the bridge's variance, BBDM's s")
    line_from: Literal["noise", "source"] = Field(
        "noise", description="what the linear path starts from: noise, or the source image itself"
    )
    source: str | None = Field(
        None,
        description="translation: input channel in which a bridge, or a line from the source, "
        "ends; None takes the first",
    )
    output: Literal[
        "clean", "noise", "velocity", "flow_velocity", "score", "residual", "correction"
    ] = Field(
        "clean",
        description="of masks, clean and correction are logits; a correction is added to the "
        "anchor's",
    )
    learned_variance: bool = Field(False, description="a second output, Improved DDPM's")
    self_conditioning: bool = Field(False, description="the last clean estimate is an input too")
    condition_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of samples without image, for guidance"
    )
    condition_noise: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="largest level of the noise that training puts on the condition and tells the "
        "network: on the coarse mask, or else on the image (noise conditioning augmentation)",
    )
    coarse: CoarseConfig | None = Field(
        None, description="segment a coarser image first; its mask is the denoiser's condition"
    )
    latent: LatentConfig | None = Field(
        None, description="diffuse a latent of the mask, or of images"
    )
    adversarial: AdversarialConfig | None = Field(
        None, description="translate between data.cases and data.target_cases, without pairs"
    )
    latent_size: int = Field(6, ge=1, description="probabilistic_unet: numbers of its latent")
    control_planes: int = Field(
        0,
        ge=0,
        description="last planes of the image that are a further condition of a frozen base, the "
        "run that --init names (ControlNet)",
    )
    joint: bool = Field(
        False, description="diffuse image and mask as one state; the image is put in at prediction"
    )
    prior: Literal["unconditional", "mask"] | None = Field(
        None,
        description="diffuse the scans themselves, with no scan as condition: unconditional, or "
        "given the label map",
    )
    discrete_steps: int = Field(250, ge=1, description="discrete: steps of the process")
    discrete_prior: Literal["uniform", "segmenter"] = Field(
        "uniform",
        description="discrete: what noise is drawn from; segmenter is the anchor's own mask",
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="unet: share of channels that each draw drops (MC dropout)"
    )
    norm: Literal["instance", "batch"] = Field(
        "instance",
        description="unet: batch keeps statistics of the training set, which AdaBN and TENT adapt",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> ModelConfig:
        for broken, message in (
            *self._networks_apart(),
            *self._meanings_apart(),
            *discrete_apart(self),
            *joint_apart(self),
            *control_apart(self),
            *mixer_apart(self),
            *depths_apart(self),
            *noised_apart(self),
            *adversarial_apart(self),
            *prior_apart(self),
        ):
            if broken:
                raise ValueError(message)
        return self

    def _networks_apart(self) -> Iterator[tuple[bool, str]]:
        """Networks that do not fit each other, each with the sentence for the user."""
        yield (
            self.dropout > 0 and self.kind != "unet",
            "dropout draws masks of a plain U-Net: set kind: unet",
        )
        yield (
            self.norm == "batch" and self.kind != "unet",
            "norm 'batch' is an option of the plain U-Net: set kind: unet",
        )
        yield (
            self.latent is not None and self.kind != "diffusion",
            f"latent is diffused, and kind '{self.kind}' diffuses nothing: leave it out",
        )
        widths = self.conditioner_features or self.features
        yield (
            len(widths) != len(self.features),
            f"conditioner_features has {len(widths)} levels and features {len(self.features)}: "
            "give both the same number",
        )
        yield (
            self.denoiser == "dit" and len(set(self.features)) > 1,
            "denoiser 'dit' has blocks of one width: give features the same number for each block",
        )
        yield (
            self.denoiser == "dit" and any(self.features[0] % n > 0 for n in (12, self.heads)),
            f"a dit's tokens, {self.features[0]} wide, need a multiple of heads and of 12, so that "
            "two or three axes share it",
        )
        wanted = {"medsegdiff_v1": "medsegdiff_v1", "medsegdiff_v2": "anchored"}.get(self.denoiser)
        yield (
            wanted is not None and self.conditioner != wanted,
            f"denoiser '{self.denoiser}' needs conditioner: {wanted}",
        )
        yield (
            self.conditioner == "medsegdiff_v1" and self.denoiser != "medsegdiff_v1",
            "conditioner 'medsegdiff_v1' serves denoiser: medsegdiff_v1 alone",
        )

    def _meanings_apart(self) -> Iterator[tuple[bool, str]]:
        """Outputs, paths and codecs that do not fit each other."""
        anchored = self.conditioner == "anchored"
        yield from self._source_apart()
        yield (
            self.output == "correction" and not anchored,
            "output 'correction' corrects an anchor: set conditioner: anchored",
        )
        yield (
            self.condition_dropout > 0 and anchored,
            "condition_dropout hides the image, and an anchor is made from it",
        )
        yield (
            self.output in ("noise", "score") and (self.path == "linear" or self.zero_terminal_snr),
            f"output '{self.output}' cannot give clean at t = 1, where this path has no signal "
            "left: use clean or velocity",
        )
        yield (
            self.output == "flow_velocity" and self.path != "linear",
            "output 'flow_velocity' is defined on path: linear",
        )
        yield (
            self.latent is not None and self.output in ("clean", "correction"),
            "a latent has no logits: use output noise or velocity",
        )
        yield (
            self.latent is not None and self.concat_image,
            "a latent lies on a coarser grid than the image: set concat_image: false",
        )
        yield (
            self.latent is not None and anchored,
            "an anchor is a mask and the latent is not: use conditioner pyramid or none",
        )

    @property
    def has_anchor(self) -> bool:
        """Whether a context holds a mask of its own."""
        return self.conditioner == "anchored" or self.coarse is not None

    @property
    def noises_condition(self) -> bool:
        """Whether the network is shown its condition under noise of a level that it is told."""
        return self.condition_noise > 0 or self.coarse is not None

    @property
    def uses_source(self) -> bool:
        """Whether the path ends in the source image."""
        return self.path == "bridge" or (self.path == "linear" and self.line_from == "source")

    def _source_apart(self) -> Iterator[tuple[bool, str]]:
        """What does not fit a path that ends in the source image."""
        yield (
            self.line_from == "source" and self.path != "linear",
            "line_from: source belongs to path: linear",
        )
        allowed = ("clean", "residual") if self.path == "bridge" else ("clean", "flow_velocity")
        yield (
            self.uses_source and self.output not in allowed,
            f"output '{self.output}' cannot give clean where the path ends in the source image: "
            f"use {' or '.join(allowed)}",
        )
        yield (
            self.output == "residual" and self.path != "bridge",
            "output 'residual' is defined on path: bridge",
        )
        yield (
            self.uses_source and self.condition_dropout > 0,
            "condition_dropout hides the image, and this path ends in it",
        )
        yield (
            self.uses_source and self.learned_variance,
            "learned_variance is defined on paths that end in noise: leave it out",
        )
