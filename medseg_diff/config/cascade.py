"""Conditions that a network sees under noise: a cascade's coarse mask, or a coarse image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from medseg_diff.config.base import Section

if TYPE_CHECKING:
    from medseg_diff.config.model import ModelConfig
    from medseg_diff.config.sections import Config


class CoarseConfig(Section):
    """A cascade's first stage: a segmenting U-Net of the image at a lower resolution."""

    factor: int = Field(4, ge=2, description="voxels of the image along each axis in one of its")
    features: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (16, 32, 64), min_length=2, description="width of each level, finest first"
    )


def noised_apart(model: ModelConfig) -> Iterator[tuple[bool, str]]:
    """What cannot stand beside a noised condition, each with the sentence for the user."""
    noised, key = model.noises_condition, "coarse" if model.coarse else "condition_noise"
    yield (
        noised and (model.kind != "diffusion" or model.denoiser != "unet"),
        f"{key} tells a denoiser of its condition's noise: set kind: diffusion and denoiser: unet",
    )
    yield (
        noised and (model.latent is not None or model.joint or not model.concat_image),
        f"{key} comes in beside the state and the image: set concat_image: true and leave out "
        "latent and joint",
    )
    yield (
        noised and (model.self_conditioning or model.condition_dropout > 0),
        f"{key} is part of every input: leave out self_conditioning and condition_dropout",
    )
    yield (
        noised and (model.learned_variance or model.control_planes > 0),
        f"{key} has no learned_variance and no control_planes: leave them out",
    )
    yield (
        model.condition_noise > 0 and model.coarse is None and model.conditioner != "none",
        "condition_noise noises the image itself, of which a conditioner would see the clean one: "
        "set conditioner: none, or coarse",
    )
    yield (
        model.coarse is not None
        and (model.conditioner == "anchored" or model.output == "correction"),
        "coarse is an anchor that the network sees under noise alone: use another conditioner than "
        "anchored and another output than correction",
    )


def beside_noised_condition(config: Config) -> Iterator[tuple[bool, str]]:
    """What a noised condition, or a coarse mask, asks of losses and sampling."""
    model = config.model
    yield (
        config.prediction.condition_noise > model.condition_noise,
        f"prediction.condition_noise is beyond the levels that training knows: take at most "
        f"model.condition_noise, {model.condition_noise:g}",
    )
    yield (
        model.coarse is not None and config.objective.anchor == 0,
        "objective.anchor trains the coarse segmenter: set it above 0",
    )
    yield (
        model.condition_noise > 0 and model.coarse is None and config.plan.coordinates,
        "model.condition_noise noises all that the network is shown of the image: leave out "
        "plan.coordinates",
    )
    yield (
        model.noises_condition and config.training.reflow_from is not None,
        "training.reflow_from pairs one noise with one mask, and a noised condition has its own: "
        "leave one out",
    )
