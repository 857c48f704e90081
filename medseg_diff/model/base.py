"""What training and inference ask of any model, and the records that pass between them.

Legend: B batch, K classes or regions, C image channels, *S spatial axes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medseg_diff.codecs import OneHotCodec
from medseg_diff.config import ObjectiveConfig, PredictionConfig
from medseg_diff.data.records import Batch
from medseg_diff.diffusion import objectives
from medseg_diff.diffusion.grids import GridName
from medseg_diff.diffusion.samplers import FreshNoise
from medseg_diff.networks.conditioners import Context


@dataclass(frozen=True)
class Loss:
    """A batch's loss: its total, with gradient, and the weighted parts for the log."""

    total: Tensor
    parts: dict[str, float]


@dataclass(frozen=True)
class Sampling:
    """How a mask is drawn; see :class:`medseg_diff.config.PredictionConfig`."""

    sampler: str = "ddim"
    steps: int = 5
    grid: GridName = "uniform"
    t_max: float = 1.0
    guidance: float = 1.0
    dynamic_threshold: float | None = None

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
            fresh_noise: ``index -> standard normal like noise``; for samplers that add noise.
        """

    def check(self, sampling: Sampling) -> None:
        """Refuse a way of sampling that this model does not allow, before any work.

        Raises:
            ValueError: with what does not fit.
        """

    def begin(self, step: int) -> None:
        """Prepare for a training step; models trained in stages change over here."""

    def forward(self, batch: Batch) -> Loss:
        """:meth:`loss`, through the call that distributed wrappers hook."""
        return self.loss(batch)


def mask_losses(
    logits: Tensor,
    labels: Tensor,
    codec: OneHotCodec,
    objective: ObjectiveConfig,
    *,
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
    if objective.focal > 0:
        focal = objectives.focal(logits, truth, exclusive=codec.exclusive, weight=weight)
        parts["focal"] = objective.focal * focal
    if objective.squared_error > 0 and squared:
        error = objectives.squared_error(probabilities, truth, weight)
        parts["squared_error"] = objective.squared_error * error
    return parts


def total(parts: dict[str, Tensor]) -> Loss:
    """Sum of the weighted parts.

    Raises:
        ValueError: if there is none.
    """
    if not parts:
        raise ValueError("every loss has weight 0: set objective.dice or another")
    whole = torch.stack(list(parts.values())).sum()
    return Loss(whole, {name: float(value.detach()) for name, value in parts.items()})
