"""What training and inference ask of any model, and the records that pass between them.

Legend: B batch, K classes or regions, C image channels, *S spatial axes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from medseg_diff.codecs import Codec, OneHotCodec
from medseg_diff.config import ObjectiveConfig, PredictionConfig
from medseg_diff.data.records import Batch
from medseg_diff.diffusion import objectives
from medseg_diff.diffusion.grids import GridName
from medseg_diff.diffusion.samplers import ErrorTable, FreshNoise
from medseg_diff.networks.conditioners import Context

# Steps of the process that the variational bound and the anchor's times refer to (DDPM's 1000).
BOUND_STEPS = 1000


@dataclass(frozen=True)
class Loss:
    """A batch's loss.

    Attributes:
        total: With gradient.
        parts: Weighted parts, for the log.
        times: Times of the samples, (B,), where the model learns how to draw them; else None.
        samples: The samples' losses at these times, (B,), without the time law's weights.
    """

    total: Tensor
    parts: dict[str, float]
    times: Tensor | None = None
    samples: Tensor | None = None


@dataclass(frozen=True)
class Sampling:
    """How a mask is drawn; see :class:`medseg_diff.config.PredictionConfig`."""

    sampler: str = "ddim"
    steps: int = 5
    grid: GridName = "uniform"
    t_max: float = 1.0
    guidance: float = 1.0
    dynamic_threshold: float | None = None
    condition_noise: float = 0.0
    start: Literal["noise", "image"] = "noise"

    @classmethod
    def of(cls, wanted: PredictionConfig) -> Sampling:
        """The part of the prediction settings that concerns one trajectory."""
        return cls(
            wanted.sampler,
            wanted.steps,
            wanted.grid,
            wanted.t_max,
            wanted.guidance,
            wanted.dynamic_threshold,
            wanted.condition_noise,
            wanted.start,
        )


@dataclass(frozen=True)
class Estimate:
    """One step's answer.

    Attributes:
        index: 0 for the noisiest step.
        t: Time of the state it was made from.
        clean: Estimate of the clean state, in the codec's units.
        state: State the step moved to, same shape.
        calls: Calls of the denoiser so far.
        decode: ``clean -> probabilities (B, K, *S)``; for a latent this costs a network call.
    """

    index: int
    t: float
    clean: Tensor
    state: Tensor
    calls: int
    decode: Callable[[Tensor], Tensor]

    @property
    def probabilities(self) -> Tensor:
        """Probabilities (B, K, *S) of this step's clean estimate."""
        return self.decode(self.clean)


class SegmentationModel(nn.Module, ABC):
    """What training and inference ask of any model, of masks or (a translation's) of images."""

    codec: Codec
    stochastic: bool
    # Measured after training (`medseg-diff estimate-variance`); no part of the weights.
    error_table: ErrorTable | None = None
    # Clean states (B, K, *S) to train towards from a batch's own noise, in the place of its labels;
    # whoever makes them is no part of the model.
    coupling: Callable[[Batch], Tensor] | None = None
    # How many standard normals make a draw that all windows of a case share; None asks for noise
    # at every voxel.
    draw_normals: int | None = None

    @property
    def mask_codec(self) -> OneHotCodec:
        """The codec of a model of masks.

        Raises:
            TypeError: if it makes images.
        """
        if not isinstance(self.codec, OneHotCodec):
            raise TypeError("this model makes images, not masks")
        return self.codec

    @property
    def noise_channels(self) -> int:
        """Channels of the fields of noise that a training sample and a draw are handed."""
        return self.codec.channels

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
            noise: Starting noise, standard normal, (B, noise_channels, *S); a model with
                ``draw_normals`` is handed (B, draw_normals) instead, and takes the first numbers
                of a field.
            sampling: Sampler, number of steps and grid.
            fresh_noise: ``index -> standard normal like noise``; for samplers that add noise.
        """

    def check(self, sampling: Sampling) -> None:
        """Refuse a way of sampling that this model does not allow, before any work.

        Raises:
            ValueError: with what does not fit.
        """

    def begin(self, step: int) -> None:
        """Prepare for a training step; models trained in stages change over here."""

    def remember(self, times: Tensor, samples: Tensor) -> None:
        """Take up what the samples of all processes lost at their times; see :class:`Loss`."""

    def memory(self) -> dict[str, Tensor]:
        """What a training has learned besides weights: part of resume points, not of the model."""
        return {}

    def recall(self, memory: Mapping[str, Tensor]) -> None:
        """Take up the :meth:`memory` of a resume point."""

    def forward(self, batch: Batch) -> Loss:
        """:meth:`loss`, through the call that distributed wrappers hook."""
        return self.loss(batch)


def anchor_of(context: Context) -> Tensor:
    """Logits (B, K, *S) of the conditioner's own mask."""
    if context.anchor is None:
        raise ValueError("this needs a context with an anchor")
    return context.anchor


def first_normals(noise: Tensor, count: int) -> Tensor:
    """The first ``count`` numbers of each sample's noise, (B, count).

    Args:
        noise: The normals of a draw, (B, count), or a field (B, K, *S) as training batches have.
        count: Numbers wanted.

    Raises:
        ValueError: if the noise has fewer.
    """
    numbers = noise.flatten(1)
    if numbers.shape[1] < count:
        raise ValueError(
            f"a draw of this model takes {count} random numbers and its noise has "
            f"{numbers.shape[1]}: train on larger patches or with narrower features"
        )
    return numbers[:, :count]


def mask_losses(
    logits: Tensor,
    labels: Tensor,
    codec: OneHotCodec,
    objective: ObjectiveConfig,
    *,
    squared: bool = True,
    samples: Tensor | None = None,
) -> dict[str, Tensor]:
    """Weighted losses on a decoded mask; Dice leaves the background out.

    Args:
        logits: (B, K, *S).
        labels: (B, 1, *S), integer.
        codec: What the channels stand for.
        objective: Weights of the losses.
        squared: Whether the squared error of probabilities is one of them.
        samples: Weights of the samples, (B,).
    """
    truth, weight = codec.targets(labels), codec.weight(labels)
    probabilities = codec.probabilities(logits)
    first = 1 if codec.exclusive else 0
    parts: dict[str, Tensor] = {}
    if objective.dice > 0:
        dice = objectives.dice_loss(
            probabilities[:, first:], truth[:, first:], weight, samples=samples
        )
        parts["dice"] = objective.dice * dice
    if objective.cross_entropy > 0:
        entropy = objectives.cross_entropy(
            logits, truth, exclusive=codec.exclusive, weight=weight, samples=samples
        )
        parts["cross_entropy"] = objective.cross_entropy * entropy
    if objective.focal > 0:
        focal = objectives.focal(
            logits, truth, exclusive=codec.exclusive, weight=weight, samples=samples
        )
        parts["focal"] = objective.focal * focal
    if objective.squared_error > 0 and squared:
        error = objectives.squared_error(probabilities, truth, weight, samples)
        parts["squared_error"] = objective.squared_error * error
    return parts


def image_losses(output: Tensor, target: Tensor, objective: ObjectiveConfig) -> dict[str, Tensor]:
    """Weighted errors of an image or of a network's own target, all (B, K, *S)."""
    parts: dict[str, Tensor] = {}
    if objective.squared_error > 0:
        error = objectives.squared_error(output, target)
        parts["squared_error"] = objective.squared_error * error
    if objective.absolute_error > 0:
        error = objectives.absolute_error(output, target)
        parts["absolute_error"] = objective.absolute_error * error
    return parts


def anchor_losses(
    context: Context, t: Tensor, batch: Batch, codec: OneHotCodec, objective: ObjectiveConfig
) -> dict[str, Tensor]:
    """Weighted Dice + cross-entropy of the conditioner's own mask, where it has one.

    MedSegDiff-V2 counts it at every alpha-th of 1000 time steps alone, ``objective.anchor_every``.
    """
    if objective.anchor == 0 or context.anchor is None:
        return {}
    chosen = (t * BOUND_STEPS).round().long() % objective.anchor_every == 0
    if not bool(chosen.any()):
        return {"anchor": context.anchor.sum() * 0}
    both = ObjectiveConfig(dice=1, cross_entropy=objective.anchor_cross_entropy)
    losses = mask_losses(context.anchor[chosen], batch.labels[chosen], codec, both)
    share = float(chosen.float().mean())
    return {"anchor": objective.anchor * share * torch.stack(list(losses.values())).sum()}


def total(parts: dict[str, Tensor]) -> Loss:
    """Sum of the weighted parts.

    Raises:
        ValueError: if there is none.
    """
    if not parts:
        raise ValueError("every loss has weight 0: set objective.dice or another")
    whole = torch.stack(list(parts.values())).sum()
    return Loss(whole, {name: float(value.detach()) for name, value in parts.items()})
