"""Probabilistic U-Net (Kohl et al. 2018, arXiv 1806.05034): one latent a draw, one U-Net a window.

Legend: B batch, K classes or regions, C image channels, L numbers of the latent, *S spatial axes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from medseg_diff.codecs import OneHotCodec
from medseg_diff.config import ObjectiveConfig
from medseg_diff.data.records import Batch
from medseg_diff.diffusion.objectives import gaussian_kl
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
from medseg_diff.networks.probabilistic import Gaussian, GaussianEncoder, LatentHead
from medseg_diff.networks.unet import UNet, crop_to


@dataclass(frozen=True)
class LatentContext(Context):
    """The U-Net's last map, as ``features``, and where the image's latents lie.

    Attributes:
        prior: One distribution a window.
    """

    prior: Gaussian | None = None

    def repeat(self, draws: int) -> LatentContext:
        """See :meth:`Context.repeat`."""
        prior = None if self.prior is None else self.prior.repeat(draws)
        repeated = super().repeat(draws)
        return LatentContext(repeated.image, repeated.features, repeated.anchor, prior)


class ProbabilisticUNetModel(SegmentationModel):
    """A draw is one latent of the prior, decoded by the last layers; U-Net and prior run once.

    The loss is the paper's, cross-entropy + beta KL(posterior || prior), divided by the number of
    voxels: cross-entropy is a mean over voxels (and regions) here and a sum there, so beta keeps
    the paper's meaning at every patch size. Its latents come from the posterior, which sees the
    mask; prediction never asks it.

    Args:
        network: U-Net without an output of its own.
        prior: Image -> latents.
        posterior: Image and mask, C + K channels -> latents.
        head: The U-Net's last map and a latent -> logits.
        codec: What the channels stand for.
        objective: Weights of the losses; ``kl`` is beta.
        latent: Numbers L of the latent.
    """

    codec: OneHotCodec
    stochastic = True

    def __init__(
        self,
        network: UNet,
        prior: GaussianEncoder,
        posterior: GaussianEncoder,
        head: LatentHead,
        codec: OneHotCodec,
        objective: ObjectiveConfig,
        latent: int,
    ) -> None:
        super().__init__()
        self.network, self.prior, self.posterior, self.head = network, prior, posterior, head
        self.codec, self.objective, self.draw_normals = codec, objective, latent
        self.latent = latent

    def loss(self, batch: Batch) -> Loss:
        """Losses of the mask that a latent of the posterior means, and the divergence."""
        prior = self.prior(batch.image)
        truth = self.codec.targets(batch.labels)
        posterior = self.posterior(torch.cat([batch.image, truth], 1))
        z = posterior.draw(first_normals(batch.noise, self.latent))
        logits = self.head(self._map(batch.image), z)
        parts = mask_losses(logits, batch.labels, self.codec, self.objective)
        if self.objective.kl > 0:
            share = divergence(posterior, prior) / self._terms(batch.labels)
            parts["kl"] = self.objective.kl * share.mean()
        return total(parts)

    def context(self, image: Tensor) -> LatentContext:
        """All that does not depend on the draw: the U-Net's map and the prior."""
        return LatentContext(image, (self._map(image),), prior=self.prior(image))

    def trajectory(
        self,
        context: Context,
        noise: Tensor,
        sampling: Sampling,
        fresh_noise: FreshNoise | None = None,
    ) -> Iterator[Estimate]:
        """One estimate, in one call of the last layers: all that a draw costs.

        See :meth:`SegmentationModel.trajectory`.
        """
        if not isinstance(context, LatentContext) or context.prior is None:
            raise ValueError("a draw needs the prior of the image; use the model's own context()")
        z = context.prior.draw(first_normals(noise, self.latent))
        state = self.codec.state_from_logits(self.head(context.features[0], z))
        yield Estimate(0, 0.0, state, state, 1, self.codec.probabilities_from_state)

    def _map(self, image: Tensor) -> Tensor:
        return crop_to(self.network.maps(image).decoder[0], image)

    def _terms(self, labels: Tensor) -> Tensor:
        """Terms of each sample's cross-entropy, (B,): counted voxels, times regions."""
        weight = self.codec.weight(labels)
        counted = torch.ones_like(labels, dtype=torch.float32) if weight is None else weight
        planes = 1 if self.codec.exclusive else self.codec.channels
        return counted.flatten(1).sum(1).clamp_min(1) * planes


def divergence(posterior: Gaussian, prior: Gaussian) -> Tensor:
    """KL(posterior || prior) of each sample in nats, (B,), in closed form."""
    return gaussian_kl(posterior.mean, posterior.variance, prior.mean, prior.variance).sum(1)
