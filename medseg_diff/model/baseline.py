"""The plain U-Net behind the same three calls as a diffusion model."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from medseg_diff.codecs import OneHotCodec
from medseg_diff.config import ObjectiveConfig
from medseg_diff.data.records import Batch
from medseg_diff.diffusion.samplers import FreshNoise
from medseg_diff.model.base import Estimate, Loss, Sampling, SegmentationModel, mask_losses, total
from medseg_diff.networks.conditioners import Context
from medseg_diff.networks.unet import UNet


class UNetModel(SegmentationModel):
    """Baseline: one forward pass, one answer, however many draws are asked."""

    codec: OneHotCodec
    stochastic = False

    def __init__(self, network: UNet, codec: OneHotCodec, objective: ObjectiveConfig) -> None:
        super().__init__()
        self.network, self.codec, self.objective = network, codec, objective

    def loss(self, batch: Batch) -> Loss:
        """Dice + cross-entropy of the network's logits."""
        return total(
            mask_losses(self.network(batch.image), batch.labels, self.codec, self.objective)
        )

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
        state = self.codec.state_from_logits(context.anchor)
        yield Estimate(0, 0.0, state, state, 0, self.codec.probabilities_from_state)
