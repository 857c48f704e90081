"""One-step regression: the row that every translator is compared with.

Legend: B batch, K planes of the target image, C image channels, *S spatial axes.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from medseg_diff.codecs import ImageCodec
from medseg_diff.config import ObjectiveConfig
from medseg_diff.data.records import Batch
from medseg_diff.diffusion.samplers import FreshNoise
from medseg_diff.model.base import Estimate, Loss, Sampling, SegmentationModel, image_losses, total
from medseg_diff.networks.conditioners import Context
from medseg_diff.networks.unet import UNet


class RegressionModel(SegmentationModel):
    """A plain U-Net whose output is the target image: one forward pass, one answer.

    Args:
        network: Image (B, C, *S) -> target (B, K, *S) in the state's units.
        codec: What the output stands for.
        objective: Weights of the losses.
    """

    stochastic = False

    def __init__(self, network: UNet, codec: ImageCodec, objective: ObjectiveConfig) -> None:
        super().__init__()
        self.network, self.codec, self.objective = network, codec, objective

    def loss(self, batch: Batch) -> Loss:
        """Errors of the image; the output is bounded only when it is asked for."""
        wanted = self.codec.encode(batch.labels)
        return total(image_losses(self.network(batch.image), wanted, self.objective))

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
        """One estimate, the network's own, in [-1, 1]."""
        if context.anchor is None:
            raise ValueError("the context of a regression carries its answer; use its context()")
        state = context.anchor.clamp(-1, 1)
        yield Estimate(0, 0.0, state, state, 0, self.codec.probabilities_from_state)
