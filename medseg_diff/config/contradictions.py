"""What cannot stand together across the sections of a configuration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from medseg_diff.config.cascade import beside_noised_condition
from medseg_diff.config.restoration import beside_restoration

if TYPE_CHECKING:
    from medseg_diff.config.sections import Config
    from medseg_diff.config.task import TaskConfig


def contradictions(config: Config) -> Iterator[tuple[bool, str]]:
    """Whether each rule is broken, with the sentence for the user."""
    model = config.model
    yield from _between_losses(config)
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
    if model.kind == "discrete":
        yield from _beside_classes(config)
    yield (
        model.joint and (config.plan.coordinates or config.training.reflow_from is not None),
        "model.joint diffuses the image's channels: leave out plan.coordinates and "
        "training.reflow_from",
    )
    yield (
        model.control_planes > 0 and config.training.lora is not None,
        "model.control_planes and training.lora each train their own part of a frozen base: leave "
        "one out",
    )
    others = (model.joint, model.noises_condition, model.control_planes > 0, model.prior)
    yield (
        config.plan.slice_position
        and (
            config.plan.spatial_dims == 3
            or any(others)
            or model.adversarial is not None
            or (config.task is not None and config.task.target is not None)
        ),
        "plan.slice_position is for segmenting slice by slice in 2-D, with the image as condition "
        "alone: leave it out",
    )
    yield from beside_noised_condition(config)
    yield from beside_restoration(config)
    if config.training.reflow_from is not None:
        yield from _beside_reflow(config)
    yield (
        (model.adversarial is None) != (config.data.target_cases is None),
        "model.adversarial learns from two case lists without pairs: set data.target_cases and "
        "recipe: syndiff, or neither",
    )
    if model.adversarial is not None:
        yield from _beside_two_domains(config)
    if model.prior is not None:
        yield from _beside_prior(config)
    elif config.task is not None:
        yield from _beside_masks(config) if config.task.target is None else _beside_images(config)


def _between_losses(config: Config) -> Iterator[tuple[bool, str]]:
    """Losses that need an output or a path of their own kind."""
    model, objective = config.model, config.objective
    yield (
        objective.recycling > 0 and model.output not in ("clean", "correction"),
        "objective.recycling noises an estimate, so that the noise in x_t no longer belongs to "
        "the truth: use output clean or correction",
    )
    yield (
        model.kind != "discrete" and (objective.kl > 0) != (model.kind == "probabilistic_unet"),
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
    yield (
        model.uses_source and (objective.min_snr_gamma is not None),
        "objective.min_snr_gamma weighs signal against noise, which a path that ends in the source "
        "image does not have: leave it out",
    )
    yield (
        model.uses_source and objective.squared_error_of == "noise",
        "objective.squared_error_of: noise needs a path that ends in noise: leave it out",
    )


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


def _beside_two_domains(config: Config) -> Iterator[tuple[bool, str]]:
    """What unpaired translation does not know."""
    objective, wanted, adversarial = config.objective, config.prediction, config.model.adversarial
    yield (
        objective.squared_error > 0
        or objective.min_snr_gamma is not None
        or objective.recycling > 0
        or objective.time_law != "uniform",
        "model.adversarial is trained by objective.absolute_error and by what it holds itself: "
        "leave out squared_error, min_snr_gamma, recycling and time_law",
    )
    yield (
        adversarial is not None and wanted.steps != adversarial.steps,
        "the generators know the times of model.adversarial.steps alone: set prediction.steps to "
        "the same number",
    )
    yield (
        wanted.sampler != "ancestral",
        "model.adversarial walks by the process's own posterior: set prediction.sampler: ancestral",
    )
    fixed = {n.clip if n.kind == "range" else None for n in config.plan.normalisation or ()}
    yield (
        None in fixed or len(fixed) > 1,
        "both directions are learned, so both domains need a range that can be inverted: leave out "
        "plan.normalisation, or set it to one kind: range with clip for all planes",
    )
    yield (
        config.plan.coordinates or config.training.lora is not None,
        "model.adversarial has no coordinates and no adapters: leave out plan.coordinates and "
        "training.lora",
    )


def _beside_masks(config: Config) -> Iterator[tuple[bool, str]]:
    """What a task that segments cannot have."""
    yield (
        config.task is not None and not config.task.structures,
        "this case list names no structure, so there is nothing to segment: add its labels, or set "
        "model.prior: unconditional",
    )
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
        model.kind in ("probabilistic_unet", "discrete") or model.dropout > 0 or model.joint,
        "a target image is made by model.kind: diffusion without joint, or unet without dropout",
    )
    yield (
        model.has_anchor,
        "an anchor is made of masks, and this case list has a target image: leave it out",
    )
    yield from _beside_a_latent_of_images(config, task)
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


def _beside_prior(config: Config) -> Iterator[tuple[bool, str]]:
    """What a model of the scans themselves cannot have."""
    model, objective, training, wanted = (
        config.model, config.objective, config.training, config.prediction,
    )  # fmt: skip
    of_masks = (objective.dice, objective.cross_entropy, objective.focal, objective.anchor)
    yield (
        any(weight > 0 for weight in of_masks),
        "objective: dice, cross_entropy, focal and anchor compare masks, and model.prior makes "
        "scans: use squared_error or absolute_error",
    )
    yield (
        training.augmentation != "standard"
        or training.reflow_from is not None
        or training.lora is not None,
        "model.prior learns how scans look: leave out training.augmentation, reflow_from and lora",
    )
    yield (
        wanted.sampler in ("anchor", "analytic")
        or wanted.fuse != "mean"
        or wanted.settle is not None
        or bool(wanted.flips or wanted.shapes)
        or wanted.cleanup != "none"
        or wanted.dynamic_threshold is not None
        or wanted.guidance != 1,
        "prediction: model.prior makes scans, which are drawn one by one: leave out the samplers "
        "anchor and analytic, fuse, settle, flips, cleanup, shapes, guidance and dynamic_threshold",
    )
    yield (
        any(spec.kind not in ("percentile", "range") for spec in config.plan.normalisation or ()),
        "plan.normalisation: scans that are made need their units back: use percentile or range",
    )
    yield (
        model.prior == "mask" and config.task is not None and not config.task.structures,
        "model.prior: mask needs label maps, and this case list names no structure: set prior: "
        "unconditional",
    )
    yield (
        config.task is not None and config.task.target is not None,
        "model.prior makes the scans of a list without target, and this case list has one",
    )


def _beside_a_latent_of_images(config: Config, task: TaskConfig) -> Iterator[tuple[bool, str]]:
    """What an autoencoder of all of a translation's images asks of them."""
    model, latent = config.model, config.model.latent
    if latent is None:
        return
    yield (
        model.conditioner != "none" or config.plan.coordinates or config.restoration is not None,
        "a latent of images sees the channels' latents and nothing else: set conditioner: none and "
        "leave out plan.coordinates and restoration",
    )
    yield (
        latent.of != "mask",
        "model.latent.of: features is of a segmenting network, and this case list has a target "
        "image: leave it out",
    )
    yield (
        latent.end_to_end or model.learned_variance or model.self_conditioning,
        "a latent of images has two stages and one output: leave out latent.end_to_end, "
        "learned_variance and self_conditioning",
    )
    yield (
        any(n != task.target_planes for n in task.input_channels or ()),
        f"one autoencoder serves all images, and channels of {list(task.input_channels or ())} "
        f"planes are not like a target of {task.target_planes}",
    )


def _beside_classes(config: Config) -> Iterator[tuple[bool, str]]:
    """What a process of drawn classes does not know."""
    objective, wanted = config.objective, config.prediction
    yield (
        objective.squared_error > 0
        or objective.min_snr_gamma is not None
        or objective.recycling > 0
        or objective.time_law == "importance",
        "kind 'discrete' is trained by kl, dice, cross_entropy, focal and anchor: leave out "
        "squared_error, min_snr_gamma, recycling and the time_law importance",
    )
    yield (
        wanted.sampler not in ("ancestral", "ddim"),
        "kind 'discrete' is drawn by prediction.sampler ancestral or ddim",
    )
    yield (
        wanted.t_max != 1 or wanted.guidance != 1 or wanted.dynamic_threshold is not None,
        "kind 'discrete' starts from its prior and has no guidance: leave out prediction.t_max, "
        "guidance and dynamic_threshold",
    )
    steps = max(wanted.steps, wanted.validation_steps or 1)
    yield (
        steps > config.model.discrete_steps,
        f"the process has model.discrete_steps: {config.model.discrete_steps}: take no more "
        "prediction.steps",
    )
