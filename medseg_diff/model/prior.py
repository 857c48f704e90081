"""Diffusion of scans themselves, with no scan as condition: from noise, or from a label map.

Legend: B batch, C image channels, K classes or regions, D coordinates, Z latent channels, *S
voxels, *L the latent's coarser grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from medseg_diff.codecs import ImageCodec, OneHotCodec
from medseg_diff.config import ModelConfig, ObjectiveConfig
from medseg_diff.data.records import Batch
from medseg_diff.diffusion import objectives
from medseg_diff.diffusion.paths import Path
from medseg_diff.diffusion.time_laws import TimeLaw
from medseg_diff.model.diffusion import DiffusionModel
from medseg_diff.model.latent import LatentModel
from medseg_diff.networks.autoencoder import MaskAutoencoder
from medseg_diff.networks.conditioners import Context


class PriorModel(DiffusionModel):
    """A denoiser of normalised scans (B, C, *S) in [-1, 1].

    Batches hold the scan where others hold the labels, and the label map where others hold the
    scan: (B, 1 + D, *S), the map first; (B, D, *S) without a condition.

    Args:
        condition: Label map -> the planes that the network sees; None for no condition.
        denoiser: ``(x, t, None) -> (B, C, *S)``, with x the state, the condition's planes and D.
        path: The noising process.
        codec: Scan <-> state.
        law: How training times are drawn.
        config: What the output means.
        objective: Weights of the losses.
    """

    def __init__(
        self,
        condition: OneHotCodec | None,
        denoiser: nn.Module,
        path: Path,
        codec: ImageCodec,
        law: TimeLaw,
        config: ModelConfig,
        objective: ObjectiveConfig,
    ) -> None:
        super().__init__(denoiser, None, path, codec, law, config, objective)
        self.condition = condition

    def context(self, image: Tensor) -> Context:
        """Planes (B, K + D, *S) of a label map and coordinates (B, 1 + D, *S)."""
        return super().context(planes_of(self.condition, image))


class LatentPriorModel(LatentModel):
    """The same in the latent of an autoencoder of scans, whose training is the first stage.

    The label map comes in through ``conditioner``, at the latent's scales.

    Args:
        condition: As for :class:`PriorModel`.
        autoencoder: Scan <-> latent.
        denoiser: ``(z, t, maps) -> (B, Z, *L)``.
        conditioner: The condition's planes -> maps; None without a condition.
        path: The noising process.
        codec: Scan <-> the autoencoder's input.
        law: How training times are drawn.
        config: What the output means.
        objective: Weights of the losses.
    """

    def __init__(
        self,
        condition: OneHotCodec | None,
        autoencoder: MaskAutoencoder,
        denoiser: nn.Module,
        conditioner: nn.Module | None,
        path: Path,
        codec: ImageCodec,
        law: TimeLaw,
        config: ModelConfig,
        objective: ObjectiveConfig,
    ) -> None:
        super().__init__(autoencoder, denoiser, conditioner, path, codec, law, config, objective)
        self.condition = condition

    def context(self, image: Tensor) -> Context:
        """Maps of a label map and coordinates (B, 1 + D, *S)."""
        return super().context(planes_of(self.condition, image))

    def reconstruction_losses(
        self, batch: Batch, state: Tensor, noise: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Absolute error of the decoded scan, the latent's regulariser, and the latent itself."""
        latent = self.autoencoder.encode(state, noise)
        decoded = self.autoencoder.decode(latent.z, state.shape[2:])
        share = self.latent.kl if self.latent.regulariser == "kl" else 1.0
        parts = {
            "absolute_error": objectives.absolute_error(decoded, state),
            self.latent.regulariser: share * latent.penalty,
        }
        return parts, latent.z

    def decoder(self, context: Context) -> Callable[[Tensor], Tensor]:
        """``latent -> scan between 0 and 1`` on the window's own grid."""
        size = context.image.shape[2:]

        def decode(z: Tensor) -> Tensor:
            return self.codec.probabilities_from_state(self.scan(z, size))

        return decode

    def scan(self, z: Tensor, size: Sequence[int]) -> Tensor:
        """Scan (B, C, *size) in [-1, 1] of a latent (B, Z, *L)."""
        return self.autoencoder.decode(self.autoencoder.snap(z), size).clamp(-1, 1)


def planes_of(condition: OneHotCodec | None, image: Tensor) -> Tensor:
    """A batch's label map and coordinates (B, 1 + D, *S) as planes (B, K + D, *S).

    Without a condition there is no label map, and the image is what it is.
    """
    if condition is None:
        return image
    labels, places = image[:, :1].round().to(torch.int32), image[:, 1:]
    return torch.cat([condition.encode(labels), places], dim=1)
