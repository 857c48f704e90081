"""MC dropout (Gal & Ghahramani 2016, arXiv 1506.02142): a plain U-Net, dropped out at every draw.

Legend: B batch, K classes or regions, C image channels, *S spatial axes.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from medseg_diff.codecs import OneHotCodec
from medseg_diff.config import ObjectiveConfig
from medseg_diff.data.records import Batch
from medseg_diff.diffusion.samplers import FreshNoise
from medseg_diff.model.base import (
    Estimate,
    Loss,
    Sampling,
    SegmentationModel,
    first_normals,
    mask_losses,
    total,
)
from medseg_diff.networks.conditioners import Context
from medseg_diff.networks.dropout import ChannelDropout
from medseg_diff.networks.unet import UNet


class DropoutUNetModel(SegmentationModel):
    """A draw is the answer of one network, the U-Net without the channels its mask drops.

    Masks come from the noise that is handed over, in training and at prediction alike, so that
    neither depends on a global generator or on ``train()`` and ``eval()``.

    Args:
        network: Plain U-Net.
        dropout: Where channels are dropped and how many; of the network's own levels.
        codec: What the channels stand for.
        objective: Weights of the losses.
    """

    codec: OneHotCodec
    stochastic = True

    def __init__(
        self,
        network: UNet,
        dropout: ChannelDropout,
        codec: OneHotCodec,
        objective: ObjectiveConfig,
    ) -> None:
        super().__init__()
        self.network, self.dropout, self.codec, self.objective = network, dropout, codec, objective
        self.draw_normals = dropout.normals

    def loss(self, batch: Batch) -> Loss:
        """Dice + cross-entropy of the logits under a mask of each sample's own."""
        logits = self._logits(batch.image, batch.noise)
        return total(mask_losses(logits, batch.labels, self.codec, self.objective))

    def context(self, image: Tensor) -> Context:
        """The image alone: every draw is another network's."""
        return Context(image)

    def trajectory(
        self,
        context: Context,
        noise: Tensor,
        sampling: Sampling,
        fresh_noise: FreshNoise | None = None,
    ) -> Iterator[Estimate]:
        """One estimate, in one call; see :meth:`SegmentationModel.trajectory`."""
        state = self.codec.state_from_logits(self._logits(context.image, noise))
        yield Estimate(0, 0.0, state, state, 1, self.codec.probabilities_from_state)

    def _logits(self, image: Tensor, noise: Tensor) -> Tensor:
        gains = self.dropout.gains(first_normals(noise, self.dropout.normals))
        return self.network.dropped(image, gains)
