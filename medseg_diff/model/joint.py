"""Diffusion of an image and its mask as one state, without a condition; the image is put in later.

Legend: B batch, C image channels, K classes or regions, *S spatial axes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from medseg_diff.codecs import OneHotCodec
from medseg_diff.config import ModelConfig, ObjectiveConfig
from medseg_diff.data.records import Batch
from medseg_diff.diffusion.paths import Path
from medseg_diff.diffusion.samplers import Denoised, FreshNoise
from medseg_diff.diffusion.time_laws import TimeLaw
from medseg_diff.model.base import Estimate, Loss, Sampling
from medseg_diff.model.diffusion import DiffusionModel, Weights
from medseg_diff.networks.conditioners import Context


@dataclass(frozen=True)
class Target(Context):
    """The image that a draw belongs to, with the noise that it is shown under.

    Attributes:
        noise: Standard normal (B, C, *S), one field a draw for all its steps.
    """

    noise: Tensor | None = None


class JointModel(DiffusionModel):
    """A denoiser of states (B, C + K, *S): the image's channels, then the mask's.

    In training both are noised and both are learned; the network is told of no image. To segment,
    the image channels are replaced at every call by the target, noised to that call's time by the
    draw's own noise, and the mask channels follow. The image keeps its normalised units.

    Args:
        planes: Channels C of the image.
        denoiser: ``(x, t, None) -> output``, both (B, C + K, *S).
        path: The noising process.
        codec: Label map <-> the mask's part of the state.
        law: How training times are drawn.
        config: What the output means.
        objective: Weights of the losses.
    """

    codec: OneHotCodec

    def __init__(
        self,
        planes: int,
        denoiser: nn.Module,
        path: Path,
        codec: OneHotCodec,
        law: TimeLaw,
        config: ModelConfig,
        objective: ObjectiveConfig,
    ) -> None:
        super().__init__(denoiser, None, path, codec, law, config, objective)
        self.planes = planes

    @property
    def noise_channels(self) -> int:
        """C + K."""
        return self.planes + self.codec.channels

    def loss(self, batch: Batch) -> Loss:
        """Denoising loss of image and mask together."""
        clean = torch.cat([batch.image, self.codec.encode(batch.labels)], dim=1)
        return self.denoising_loss(batch, clean, batch.noise)

    def clean(self, output: Tensor, x_t: Tensor, t: Tensor, source: Tensor | None = None) -> Tensor:
        """Clean state from a raw output; the mask's channels in [-1, 1], the image's not."""
        image, mask = self._parts(self.estimate(output, x_t, t, source))
        return torch.cat([image, mask.clamp(-1, 1)], dim=1)

    def mask_logits(self, output: Tensor, x_t: Tensor, t: Tensor, size: torch.Size) -> Tensor:
        """Logits (B, K, *S) of the mask that a raw output means."""
        return self.codec.logits_from_state(self._parts(self.estimate(output, x_t, t))[1])

    def denoised(
        self, x_t: Tensor, t: Tensor, context: Context, previous: Tensor | None = None
    ) -> Denoised:
        """Estimate of the clean state, (B, C + K, *S), with a target's image put in first."""
        if isinstance(context, Target) and context.noise is not None:
            shown = self.path.noised(context.image, context.noise, t)
            x_t = torch.cat([shown.to(x_t), self._parts(x_t)[1]], dim=1)
        return super().denoised(x_t, t, context, previous)

    def trajectory(
        self,
        context: Context,
        noise: Tensor,
        sampling: Sampling,
        fresh_noise: FreshNoise | None = None,
    ) -> Iterator[Estimate]:
        """See :meth:`SegmentationModel.trajectory`; noise is (B, C + K, *S).

        Estimates hold the mask's channels alone.
        """
        target = Target(context.image, noise=self._parts(noise)[0])
        for step in super().trajectory(target, noise, sampling, fresh_noise):
            mask, state = self._parts(step.clean)[1], self._parts(step.state)[1]
            yield replace(step, clean=mask, state=state)

    def _errors(
        self, output: Tensor, wanted: Tensor, t: Tensor, weights: Weights
    ) -> dict[str, Tensor]:
        """The image's errors and the mask's, each a mean over its own channels."""
        of_image, of_mask = (
            super(JointModel, self)._errors(found, true, t, weights)
            for found, true in zip(self._parts(output), self._parts(wanted), strict=True)
        )
        return {name: of_image[name] + of_mask[name] for name in of_image}

    def _parts(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """The image's channels and the mask's."""
        return state[:, : self.planes], state[:, self.planes :]
