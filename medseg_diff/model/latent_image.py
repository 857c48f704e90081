"""Translation in a latent: one autoencoder of both contrasts, and a denoiser between their latents.

Legend: B batch, K planes of an image, M input channels of K planes each, Z latent channels,
*S voxels, *L the latent's coarser grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medseg_diff.codecs import ImageCodec
from medseg_diff.config import ModelConfig, ObjectiveConfig
from medseg_diff.data.records import Batch
from medseg_diff.diffusion import objectives
from medseg_diff.diffusion.paths import Path, spread
from medseg_diff.diffusion.time_laws import TimeLaw
from medseg_diff.model.base import Loss, total
from medseg_diff.model.latent import RANGE, LatentModel
from medseg_diff.networks.autoencoder import ImageAutoencoder
from medseg_diff.networks.conditioners import Context


@dataclass(frozen=True)
class Encoded(Context):
    """Latents of the input channels, ``image`` (B, M Z, *L).

    Attributes:
        size: *S, of the window that they stand for.
    """

    size: tuple[int, ...] = ()


class LatentImageModel(LatentModel):
    """Denoiser of a target image's latent that sees the latents of the input channels.

    Training step ``latent.steps`` ends the autoencoder's stage, which learns to give every channel
    and the target back; then it is frozen, and the path runs from the target's latent to noise or,
    on a bridge, to the source's.

    Args:
        autoencoder: Of images of K planes.
        denoiser: ``(x, t, None) -> output`` with x the state and the channels' latents.
        path: The noising process.
        codec: Of the target.
        law: How training times are drawn.
        config: What the output means.
        objective: Weights of the losses.
        channel: Which input channel a path ends in that ends in a source.
    """

    codec: ImageCodec  # a latent, but no masks
    autoencoder: ImageAutoencoder

    def __init__(
        self,
        autoencoder: ImageAutoencoder,
        denoiser: nn.Module,
        path: Path,
        codec: ImageCodec,
        law: TimeLaw,
        config: ModelConfig,
        objective: ObjectiveConfig,
        channel: int = 0,
    ) -> None:
        super().__init__(
            autoencoder,
            denoiser,
            None,
            path,
            codec,
            law,
            config,
            objective,
        )
        first = channel * self.latent.channels
        self.source_planes = slice(first, first + self.latent.channels)

    def context(self, image: Tensor) -> Encoded:
        """Windows (B, M K, *S) -> their channels' latents."""
        found = self.autoencoder.encode(self._channels(image)).z
        latents = found.unflatten(0, (len(image), -1)).flatten(1, 2)
        return Encoded(latents, size=tuple(image.shape[2:]))

    def raw(
        self, x_t: Tensor, t: Tensor, context: Context, previous: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """See :meth:`DiffusionModel.raw`; state and output are latents, (B, Z, *L)."""
        x = x_t * spread(self.path.input_gain(t), x_t)
        both = torch.cat([x, context.image], dim=1)
        return self.denoiser(both, t.to(x.device), None), None

    def clean(self, output: Tensor, x_t: Tensor, t: Tensor, source: Tensor | None = None) -> Tensor:
        """Clean latent from a raw output."""
        return self.estimate(output, x_t, t, source).clamp(-RANGE, RANGE)

    def loss(self, batch: Batch) -> Loss:
        """The stage's own loss."""
        noise = self.noise_on_grid(batch.noise)
        if self.first_stage:
            return total(self._reconstruction(batch, noise))
        with torch.no_grad():
            z = self.autoencoder.encode(self.codec.encode(batch.labels)).z
        return self.denoising_loss(batch, z, noise)

    def _reconstruction(self, batch: Batch, noise: Tensor) -> dict[str, Tensor]:
        """Mean absolute error of every image given back, and the latent's regulariser."""
        images = torch.cat([self.codec.encode(batch.labels), self._channels(batch.image)])
        # Every image has the sample's field, turned round once more: none shares another's noise.
        turns = [noise.roll(k, dims=-1) for k in range(len(images) // len(noise))]
        latent = self.autoencoder.encode(images, torch.cat(turns))
        made = self.autoencoder.decode(latent.z, images.shape[2:])
        share = self.latent.kl if self.latent.regulariser == "kl" else 1.0
        return {
            "reconstruction": objectives.absolute_error(made, images),
            self.latent.regulariser: share * latent.penalty,
        }

    def decoder(self, context: Context) -> Callable[[Tensor], Tensor]:
        """``latent -> image between 0 and 1`` on the window's own grid."""
        if not isinstance(context, Encoded):
            raise TypeError("the context of a latent translation is its own context()")
        size = context.size

        def decode(z: Tensor) -> Tensor:
            made = self.autoencoder.decode(self.autoencoder.snap(z), size)
            return self.codec.probabilities_from_state(made.clamp(-1, 1))

        return decode

    def _channels(self, image: Tensor) -> Tensor:
        """(B, M K, *S) -> (B M, K, *S)."""
        return image.unflatten(1, (-1, self.codec.planes)).flatten(0, 1)
