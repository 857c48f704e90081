"""Diffusion of a mask's latent: an autoencoder of masks first, a denoiser of its latents next.

Legend: B batch, K mask channels, Z latent channels, *S voxels, *L the latent's coarser grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from medseg_diff.codecs import Codec
from medseg_diff.config import ModelConfig, ObjectiveConfig
from medseg_diff.data.records import Batch
from medseg_diff.diffusion import objectives
from medseg_diff.diffusion.paths import Path
from medseg_diff.diffusion.samplers import FreshNoise
from medseg_diff.diffusion.time_laws import TimeLaw
from medseg_diff.model.base import Estimate, Loss, Sampling, mask_losses, total
from medseg_diff.model.diffusion import DiffusionModel
from medseg_diff.networks.autoencoder import MaskAutoencoder
from medseg_diff.networks.conditioners import Context

# A standardised latent hardly reaches beyond: estimates from noise are kept inside.
RANGE = 5.0
# A class absent from a batch would weigh without bound.
LARGEST_WEIGHT = 50.0


class LatentModel(DiffusionModel):
    """Denoiser of latents. Training step ``latent.steps`` ends the autoencoder's stage.

    In the second stage the autoencoder is frozen; ``end_to_end`` trains both from the start.
    """

    def __init__(
        self,
        autoencoder: MaskAutoencoder,
        denoiser: nn.Module,
        conditioner: nn.Module | None,
        path: Path,
        codec: Codec,
        law: TimeLaw,
        config: ModelConfig,
        objective: ObjectiveConfig,
    ) -> None:
        super().__init__(denoiser, conditioner, path, codec, law, config, objective)
        if config.latent is None:
            raise ValueError("a latent model needs model.latent")
        self.autoencoder, self.latent = autoencoder, config.latent
        self.first_stage = False

    def begin(self, step: int) -> None:
        """Autoencoder first, then the denoiser on frozen latents."""
        self.first_stage = step < self.latent.steps and not self.latent.end_to_end
        learning = self.first_stage or self.latent.end_to_end
        self.autoencoder.train(learning)
        for part, on in (
            (self.autoencoder, learning),
            (self.denoiser, not self.first_stage),
            (self.conditioner, not self.first_stage),
        ):
            for parameter in () if part is None else part.parameters():
                parameter.requires_grad_(on)
        if self.autoencoder.book is not None:
            # A code book moves by its own averages, never by a gradient.
            self.autoencoder.book.embedding.weight.requires_grad_(False)

    def loss(self, batch: Batch) -> Loss:
        """The stage's own loss."""
        state = self.codec.encode(batch.labels)
        noise = self.noise_on_grid(batch.noise)
        if self.first_stage:
            return total(self.reconstruction_losses(batch, state, noise)[0])
        if not self.latent.end_to_end:
            with torch.no_grad():
                z = self.autoencoder.encode(state).z
            return self.denoising_loss(batch, z, noise)
        mirrored = noise.flip(tuple(range(2, noise.ndim)))
        parts, z = self.reconstruction_losses(batch, state, mirrored)
        both = {f"autoencoder_{name}": value for name, value in parts.items()}
        return self.denoising_loss(batch, z, noise, both)

    def reconstruction_losses(
        self, batch: Batch, state: Tensor, noise: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Dice + cross-entropy of the decoded latent, its regulariser, and the latent itself."""
        codec, latent = self.mask_codec, self.autoencoder.encode(state, noise)
        logits = self.autoencoder.decode(latent.z, batch.labels.shape[2:])
        parts = mask_losses(logits, batch.labels, codec, ObjectiveConfig(dice=1))
        truth = codec.targets(batch.labels)
        weight = class_weight(truth, self.latent.small_structures)
        counted = codec.weight(batch.labels)
        parts["cross_entropy"] = objectives.cross_entropy(
            logits,
            truth,
            exclusive=codec.exclusive,
            weight=weight if counted is None else weight * counted,
        )
        share = self.latent.kl if self.latent.regulariser == "kl" else 1.0
        parts[self.latent.regulariser] = share * latent.penalty
        return parts, latent.z

    def noise_on_grid(self, noise: Tensor) -> Tensor:
        """Noise (B, Z, *L) from a voxel field (B, K, *S)."""
        return self.autoencoder.noise(noise)

    def clean(self, output: Tensor, x_t: Tensor, t: Tensor, source: Tensor | None = None) -> Tensor:
        """Clean latent from a raw output; no source, for a latent's path ends in noise."""
        return self.estimate(output, x_t, t).clamp(-RANGE, RANGE)

    def mask_logits(self, output: Tensor, x_t: Tensor, t: Tensor, size: torch.Size) -> Tensor:
        """Logits (B, K, *S) of the mask that a raw output means, through the decoder."""
        return self.autoencoder.decode(self.estimate(output, x_t, t), size)

    def trajectory(
        self,
        context: Context,
        noise: Tensor,
        sampling: Sampling,
        fresh_noise: FreshNoise | None = None,
    ) -> Iterator[Estimate]:
        """See :meth:`SegmentationModel.trajectory`; noise is given on the voxel grid."""

        def fresh(index: int) -> Tensor:
            if fresh_noise is None:
                raise ValueError("this sampler adds fresh noise at every step: give fresh_noise")
            return self.noise_on_grid(fresh_noise(index))

        start = self.starting_noise(context, self.noise_on_grid(noise), sampling)
        return super().trajectory(context, start, sampling, fresh)

    def starting_noise(self, context: Context, noise: Tensor, sampling: Sampling) -> Tensor:
        """What stands for the noise of the first state, (B, Z, *L), from noise on the grid."""
        return noise

    def check(self, sampling: Sampling) -> None:
        """See :meth:`SegmentationModel.check`."""
        super().check(sampling)
        if sampling.start == "image":
            raise ValueError("a mask's latent cannot start from the image: leave start at noise")

    def decoder(self, context: Context) -> Callable[[Tensor], Tensor]:
        """``latent -> probabilities`` on the window's own grid."""
        size = context.image.shape[2:]

        def decode(z: Tensor) -> Tensor:
            return self.mask_codec.probabilities(
                self.autoencoder.decode(self.autoencoder.snap(z), size)
            )

        return decode


def class_weight(truth: Tensor, power: float) -> Tensor:
    """Weights (B, 1, *S) of voxels by the rarity of their class in the batch, largest class 1.

    Args:
        truth: Presence (B, K, *S) in {0, 1}.
        power: 0 counts all alike, 1 gives every class the same say.
    """
    axes = (0, *range(2, truth.ndim))
    share = truth.mean(axes).clamp_min(1e-8)
    rare = (share.max() / share).pow(power).clamp_max(LARGEST_WEIGHT)
    weights = truth * rare.reshape(1, -1, *([1] * (truth.ndim - 2)))
    # Where regions overlap the rarest decides; where there is none the voxel counts once.
    return weights.amax(1, keepdim=True).clamp_min(1.0)
