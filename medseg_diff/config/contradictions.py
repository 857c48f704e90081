"""What cannot stand together across the sections of a configuration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medseg_diff.config.sections import Config


def contradictions(config: Config) -> Iterator[tuple[bool, str]]:
    """Whether each rule is broken, with the sentence for the user."""
    model, objective = config.model, config.objective
    yield (
        objective.recycling > 0 and model.output not in ("clean", "correction"),
        "objective.recycling noises an estimate, so that the noise in x_t no longer belongs to "
        "the truth: use output clean or correction",
    )
    yield (
        (objective.kl > 0) != (model.kind == "probabilistic_unet"),
        "objective.kl trains the prior of model.kind: probabilistic_unet: set both or none",
    )
    yield (
        objective.variational_bound > 0 and not model.learned_variance,
        "objective.variational_bound trains a learned variance: set model.learned_variance: true",
    )
    yield (
        objective.squared_error_of == "noise" and objective.min_snr_gamma is not None,
        "objective.squared_error_of: noise is a weight over time and min_snr_gamma another: leave "
        "one out",
    )
    yield (
        objective.squared_error_of == "noise" and model.output in ("clean", "correction"),
        f"output '{model.output}' is logits, whose squared error is that of probabilities: leave "
        "out objective.squared_error_of",
    )
    yield (
        objective.time_law == "importance" and objective.anchor_every > 1,
        "objective.anchor_every counts evenly spread times: set it to 1, or another time_law than "
        "importance",
    )
    sizes = [config.plan.patch_size, config.prediction.window]
    lengths = {len(size) for size in sizes if size is not None}
    yield (
        len(lengths) > 1,
        "prediction.window and plan.patch_size have one size for each axis of the network: give "
        "both the same number",
    )
    yield (
        config.training.augmentation != "standard" and not config.training.augment,
        "training.augmentation says how training.augment changes the samples: leave augment on",
    )
    if config.training.reflow_from is not None:
        yield from _beside_reflow(config)


def _beside_reflow(config: Config) -> Iterator[tuple[bool, str]]:
    model, objective, key = config.model, config.objective, "training.reflow_from"
    straight = model.path == "linear" and model.output in ("flow_velocity", "velocity")
    yield (
        model.kind != "diffusion" or not straight,
        f"{key} straightens a flow: set model.path: linear and model.output: flow_velocity",
    )
    yield (model.latent is not None, f"{key} pairs noise with masks: leave out model.latent")
    yield (
        model.condition_dropout > 0,
        f"{key} pairs noise with the mask of an image that is shown: set condition_dropout: 0",
    )
    annotated = (objective.dice, objective.cross_entropy, objective.focal)
    yield (
        any(weight > 0 for weight in (*annotated, objective.variational_bound)),
        f"{key} learns the teacher's masks, and these losses read the annotator's: set "
        "objective.squared_error alone",
    )
