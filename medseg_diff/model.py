"""The model: the only file that sees networks and diffusion together.

``loss(batch)`` trains it, ``context(image)`` encodes a window once, ``trajectory(context, ...)``
draws masks from it. The baseline U-Net answers the same three calls.

Legend: B batch, K classes or regions, C image channels, *S spatial axes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medseg_diff.codecs import OneHotCodec
from medseg_diff.config import Config, ModelConfig, ObjectiveConfig, TaskConfig
from medseg_diff.data.records import Batch
from medseg_diff.diffusion import objectives
from medseg_diff.diffusion.parameterisations import clean_from, target
from medseg_diff.diffusion.paths import BetaTable, Path, VariancePreserving
from medseg_diff.diffusion.samplers import ETA, FreshNoise, GridName, SamplerName, sample, time_grid
from medseg_diff.networks.conditioners import AnchoredPyramid, Context, Pyramid
from medseg_diff.networks.unet import UNet


@dataclass(frozen=True)
class Loss:
    """A batch's loss: its total, with gradient, and the weighted parts for the log."""

    total: Tensor
    parts: dict[str, float]


@dataclass(frozen=True)
class Sampling:
    """How a mask is drawn: the sampler's name, its number of steps and its grid of times."""

    sampler: SamplerName = "ddim"
    steps: int = 5
    grid: GridName = "uniform"


@dataclass(frozen=True)
class Estimate:
    """One step's answer.

    Attributes:
        index: 0 for the noisiest step.
        t: Time of the state it was made from.
        probabilities: (B, K, *S).
        state: State the step moved to, (B, K, *S), in the codec's units.
    """

    index: int
    t: float
    probabilities: Tensor
    state: Tensor


class SegmentationModel(nn.Module, ABC):
    """What training and inference ask of any model."""

    codec: OneHotCodec
    stochastic: bool

    @abstractmethod
    def loss(self, batch: Batch) -> Loss:
        """Training loss of a batch."""

    @abstractmethod
    def context(self, image: Tensor) -> Context:
        """Encode windows (B, C, *S), once for all draws and steps."""

    @abstractmethod
    def trajectory(
        self,
        context: Context,
        noise: Tensor,
        sampling: Sampling,
        fresh_noise: FreshNoise | None = None,
    ) -> Iterator[Estimate]:
        """Draw one mask per sample of ``context``, yielding every step's estimate.

        Args:
            context: Windows, repeated once per draw.
            noise: Starting noise, standard normal, (B, K, *S).
            sampling: Sampler, number of steps and grid.
            fresh_noise: ``step index -> standard normal like noise``; for ancestral sampling.
        """

    def forward(self, batch: Batch) -> Loss:
        """:meth:`loss`, through the call that distributed wrappers hook."""
        return self.loss(batch)


class UNetModel(SegmentationModel):
    """Baseline: one forward pass, one answer, however many draws are asked."""

    stochastic = False

    def __init__(self, network: UNet, codec: OneHotCodec, objective: ObjectiveConfig) -> None:
        super().__init__()
        self.network, self.codec, self.objective = network, codec, objective

    def loss(self, batch: Batch) -> Loss:
        """Dice + cross-entropy of the network's logits."""
        parts = mask_losses(self.network(batch.image), batch.labels, self.codec, self.objective)
        return _total(parts)

    def context(self, image: Tensor) -> Context:
        """The logits are computed here; a trajectory only reads them."""
        return Context(image, anchor=self.network(image))

    def trajectory(
        self,
        context: Context,
        noise: Tensor,
        sampling: Sampling,
        fresh_noise: FreshNoise | None = None,
    ) -> Iterator[Estimate]:
        """One estimate, the network's own."""
        if context.anchor is None:
            raise ValueError("the context of a U-Net carries its logits; use its own context()")
        probabilities = self.codec.probabilities(context.anchor)
        yield Estimate(0, 0.0, probabilities, 2 * probabilities - 1)


class DiffusionModel(SegmentationModel):
    """A denoiser of masks, conditioned on an image's context."""

    stochastic = True

    def __init__(
        self,
        denoiser: UNet,
        conditioner: nn.Module | None,
        path: Path,
        codec: OneHotCodec,
        config: ModelConfig,
        objective: ObjectiveConfig,
    ) -> None:
        super().__init__()
        self.denoiser, self.conditioner = denoiser, conditioner
        self.path, self.codec = path, codec
        self.output, self.concat_image = config.output, config.concat_image
        self.objective = objective

    def context(self, image: Tensor) -> Context:
        """See :meth:`SegmentationModel.context`."""
        return Context(image) if self.conditioner is None else self.conditioner(image)

    def raw(self, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        """The denoiser's output, (B, K, *S), a correction already added to the anchor."""
        x = torch.cat([x_t, context.image], dim=1) if self.concat_image else x_t
        output = self.denoiser(x, t.to(x_t.device), context.features or None)
        if self.output != "correction":
            return output
        if context.anchor is None:
            raise ValueError("a correction needs a context with an anchor")
        return context.anchor + output

    def clean(self, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        """Estimate of the clean state, (B, K, *S)."""
        output = self.raw(x_t, t, context)
        if self.output == "clean" or self.output == "correction":
            return self.codec.state_from_logits(output)
        return clean_from(self.output, self.path, output, x_t, t).clamp(-1, 1)

    def loss(self, batch: Batch) -> Loss:
        """Denoising loss at the batch's own times and noise, plus the anchor's."""
        t = self.path.snap(batch.t)
        weight = self.codec.weight(batch.labels)
        clean = self.codec.encode(batch.labels)
        x_t = self.path.noised(clean, batch.noise, t)
        context = self.context(batch.image)
        output = self.raw(x_t, t, context)
        parts: dict[str, Tensor] = {}
        logits = output
        if self.output in ("noise", "velocity"):
            wanted = target(self.output, self.path, clean, batch.noise, t)
            error = objectives.squared_error(output, wanted, weight)
            parts["squared_error"] = self.objective.squared_error * error
            estimate = clean_from(self.output, self.path, output, x_t, t)
            logits = self.codec.logits_from_state(estimate)
        parts |= mask_losses(
            logits, batch.labels, self.codec, self.objective, "squared_error" not in parts
        )
        if self.objective.anchor > 0 and context.anchor is not None:
            both = ObjectiveConfig(dice=1, cross_entropy=1)
            anchor = mask_losses(context.anchor, batch.labels, self.codec, both)
            parts["anchor"] = self.objective.anchor * sum(anchor.values(), output.new_zeros(()))
        return _total(parts)

    def trajectory(
        self,
        context: Context,
        noise: Tensor,
        sampling: Sampling,
        fresh_noise: FreshNoise | None = None,
    ) -> Iterator[Estimate]:
        """See :meth:`SegmentationModel.trajectory`."""
        steps = sample(
            self.path,
            lambda x, t: self.clean(x, t, context),
            noise,
            time_grid(sampling.steps, sampling.grid),
            eta=ETA[sampling.sampler],
            fresh_noise=fresh_noise,
        )
        for step in steps:
            yield Estimate(step.index, step.t, (step.clean + 1) / 2, step.state)


def mask_losses(
    logits: Tensor,
    labels: Tensor,
    codec: OneHotCodec,
    objective: ObjectiveConfig,
    squared: bool = True,
) -> dict[str, Tensor]:
    """Weighted losses on a decoded mask; Dice leaves the background out."""
    truth, weight = codec.targets(labels), codec.weight(labels)
    probabilities = codec.probabilities(logits)
    first = 1 if codec.exclusive else 0
    parts: dict[str, Tensor] = {}
    if objective.dice > 0:
        dice = objectives.dice_loss(probabilities[:, first:], truth[:, first:], weight)
        parts["dice"] = objective.dice * dice
    if objective.cross_entropy > 0:
        entropy = objectives.cross_entropy(logits, truth, exclusive=codec.exclusive, weight=weight)
        parts["cross_entropy"] = objective.cross_entropy * entropy
    if objective.squared_error > 0 and squared:
        error = objectives.squared_error(probabilities, truth, weight)
        parts["squared_error"] = objective.squared_error * error
    return parts


def _total(parts: dict[str, Tensor]) -> Loss:
    if not parts:
        raise ValueError("every loss has weight 0: set objective.dice or another")
    total = torch.stack(list(parts.values())).sum()
    return Loss(total, {name: float(value.detach()) for name, value in parts.items()})


def build_codec(task: TaskConfig) -> OneHotCodec:
    """Codec of a task: classes with a background channel, or overlapping regions."""
    if task.regions is not None:
        return OneHotCodec(tuple(task.regions.values()), False, task.ignore_label)
    values = tuple((value,) for value in sorted(task.labels.values()))
    return OneHotCodec(values, True, task.ignore_label)


def build_model(config: Config) -> SegmentationModel:
    """Untrained model of a complete configuration (``task`` and ``plan`` filled in)."""
    if config.task is None or config.plan.spatial_dims is None:
        raise ValueError("the configuration is not complete: task and plan come from the data")
    dims, planes, model = config.plan.spatial_dims, config.task.image_planes, config.model
    codec = build_codec(config.task)
    if model.kind == "unet":
        network = UNet(dims, planes, codec.channels, model.features)
        return UNetModel(network, codec, config.objective)
    widths = model.conditioner_features or model.features
    conditioner: nn.Module | None = None
    if model.conditioner == "pyramid":
        conditioner = Pyramid(dims, planes, widths)
    elif model.conditioner == "anchored":
        conditioner = AnchoredPyramid(dims, planes, codec.channels, widths)
    denoiser = UNet(
        dims,
        codec.channels + (planes if model.concat_image else 0),
        codec.channels,
        model.features,
        time_channels=model.time_channels,
        context_channels=None if conditioner is None else widths,
    )
    path: Path = (
        VariancePreserving(model.schedule, model.input_scale)
        if model.betas is None
        else BetaTable(model.betas, model.input_scale)
    )
    return DiffusionModel(denoiser, conditioner, path, codec, model, config.objective)
