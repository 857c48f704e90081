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
    yield (
        model.uses_source and (objective.min_snr_gamma is not None),
        "objective.min_snr_gamma weighs signal against noise, which a path that ends in the source "
        "image does not have: leave it out",
    )
    yield (
        model.uses_source and objective.squared_error_of == "noise",
        "objective.squared_error_of: noise needs a path that ends in noise: leave it out",
    )
    if config.task is not None:
        yield from _beside_masks(config) if config.task.target is None else _beside_images(config)


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


def _beside_masks(config: Config) -> Iterator[tuple[bool, str]]:
    """What a task that segments cannot have."""
    yield (
        config.model.uses_source,
        "this path ends in the source image, and masks have none: give the case list a target, or "
        "set another model.path",
    )
    yield (
        config.objective.absolute_error > 0,
        "objective.absolute_error compares images: give the case list a target, or leave it out",
    )


def _beside_images(config: Config) -> Iterator[tuple[bool, str]]:
    """What a task that translates cannot have."""
    yield (
        config.training.augmentation != "standard",
        "training.augmentation changes how images look, and a translation learns just that: leave "
        "it standard",
    )
    model, objective, wanted, task = (
        config.model, config.objective, config.prediction, config.task,
    )  # fmt: skip
    if task is None:
        return
    of_masks = (objective.dice, objective.cross_entropy, objective.focal, objective.anchor)
    yield (
        any(weight > 0 for weight in of_masks),
        "objective: dice, cross_entropy, focal and anchor compare masks, and this case list has a "
        "target image: use squared_error or absolute_error (recipe palette, bbdm or one_step)",
    )
    yield (
        model.kind == "probabilistic_unet" or model.dropout > 0,
        "a target image is made by model.kind: diffusion, or unet without dropout",
    )
    yield (
        model.conditioner == "anchored" or model.latent is not None,
        "an anchor and a latent are made of masks, and this case list has a target image: leave "
        "them out",
    )
    yield (
        config.training.reflow_from is not None,
        "training.reflow_from pairs noise with masks, and this case list has a target image",
    )
    yield (
        wanted.fuse != "mean" or wanted.settle is not None,
        "prediction: images are fused by their mean, without settle",
    )
    yield (
        wanted.cleanup != "none" or bool(wanted.shapes),
        "prediction: cleanup and shapes are for masks",
    )
    yield (
        wanted.sampler in ("anchor", "analytic"),
        f"prediction.sampler '{wanted.sampler}' is for masks",
    )
    yield (
        model.source is not None and model.source not in task.channels,
        f"model.source '{model.source}' is no input channel: choose from "
        f"{', '.join(task.channels)}",
    )
    yield (
        model.uses_source and task.source_planes(model.source) != task.target_planes,
        f"the source has {task.source_planes(model.source)} planes and the target "
        f"{task.target_planes}: a path between them needs as many",
    )
