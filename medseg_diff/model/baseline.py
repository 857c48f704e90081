"""Networks of one pass behind the same three calls as a diffusion model.

Legend: B batch, K classes or planes of a target image, C image channels, *S spatial axes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

from torch import Tensor

from medseg_diff.codecs import Codec, ImageCodec, OneHotCodec
from medseg_diff.config import ObjectiveConfig
from medseg_diff.data.records import Batch
from medseg_diff.diffusion.samplers import FreshNoise
from medseg_diff.model.base import (
    Estimate,
    Loss,
    Sampling,
    SegmentationModel,
    image_losses,
    mask_losses,
    total,
)
from medseg_diff.networks.conditioners import Context
from medseg_diff.networks.unet import UNet


class OnePassModel(SegmentationModel):
    """One forward pass, one answer, however many draws are asked.

    Args:
        network: Image (B, C, *S) -> answer (B, K, *S).
        codec: What the answer stands for.
        objective: Weights of the losses.
    """

    stochastic = False

    def __init__(self, network: UNet, codec: Codec, objective: ObjectiveConfig) -> None:
        super().__init__()
        self.network, self.codec, self.objective = network, codec, objective

    @abstractmethod
    def state(self, answer: Tensor) -> Tensor:
        """State in [-1, 1] that the network's answer means, same shape."""

    def context(self, image: Tensor) -> Context:
        """The answer is computed here; a trajectory only reads it."""
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
            raise ValueError("the context of a U-Net carries its answer; use its own context()")
        state = self.state(context.anchor)
        yield Estimate(0, 0.0, state, state, 0, self.codec.probabilities_from_state)


class UNetModel(OnePassModel):
    """Baseline: a plain U-Net whose output is the mask's logits."""

    codec: OneHotCodec

    def loss(self, batch: Batch) -> Loss:
        """Dice + cross-entropy of the network's logits."""
        return total(
            mask_losses(self.network(batch.image), batch.labels, self.codec, self.objective)
        )

    def state(self, answer: Tensor) -> Tensor:
        """Of logits."""
        return self.codec.state_from_logits(answer)


class RegressionModel(OnePassModel):
    """The row that every translator is compared with: a U-Net whose output is the target image."""

    codec: ImageCodec

    def loss(self, batch: Batch) -> Loss:
        """Errors of the image; the output is bounded only when it is asked for."""
        wanted = self.codec.encode(batch.labels)
        return total(image_losses(self.network(batch.image), wanted, self.objective))

    def state(self, answer: Tensor) -> Tensor:
        """Of an image in the state's units."""
        return answer.clamp(-1, 1)
