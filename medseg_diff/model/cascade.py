"""A denoiser whose condition is shown under noise: a cascade's coarse mask, or the image itself.

Noise conditioning augmentation (Ho et al. 2022, arXiv 2106.15282, Sec. 4.2): in training the
condition is noised at a random level and the network is told the level, so that at prediction it
neither trusts what a coarser stage got wrong nor is thrown off by how a real low-resolution image
differs from those of the training; there the level is a fixed small one.

Legend: B batch, K channels of the state, N of the condition, C of the image, *S spatial axes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from medseg_diff.codecs import Codec
from medseg_diff.config import ModelConfig, ObjectiveConfig
from medseg_diff.data.records import Batch
from medseg_diff.diffusion.paths import Path, spread
from medseg_diff.diffusion.samplers import FreshNoise
from medseg_diff.diffusion.time_laws import TimeLaw
from medseg_diff.model.base import Estimate, Loss, Sampling
from medseg_diff.model.diffusion import DiffusionModel
from medseg_diff.networks.cascade import under_noise
from medseg_diff.networks.conditioners import Context


@dataclass(frozen=True)
class Shown(Context):
    """A context with its condition as a draw sees it.

    Attributes:
        condition: (B, N, *S), under noise.
        level: Of that noise, (B,).
    """

    condition: Tensor | None = None
    level: Tensor | None = None


class NoisedConditionModel(DiffusionModel):
    """A denoiser that sees its condition under noise, and is told how much.

    With ``coarse`` the condition is that segmenter's mask, in the state's units and cut off from
    its gradient: the segmenter learns from its own Dice + cross-entropy. Without, it is the image.

    Args:
        coarse: Image (B, C, *S) -> logits (B, K, *S) of a coarser grid, or None.
        planes: C, coordinates included.
        denoiser: ``(x, t, features)`` with t (B, 2), the time and the level.
        conditioner: Image -> context, or None.
        path: The noising process.
        codec: Truth <-> state.
        law: How training times are drawn.
        config: What the output means; ``condition_noise`` is the largest level.
        objective: Weights of the losses.
        source: See :class:`DiffusionModel`.
    """

    def __init__(
        self,
        coarse: nn.Module | None,
        planes: int,
        denoiser: nn.Module,
        conditioner: nn.Module | None,
        path: Path,
        codec: Codec,
        law: TimeLaw,
        config: ModelConfig,
        objective: ObjectiveConfig,
        source: slice = slice(0, 1),
    ) -> None:
        super().__init__(denoiser, conditioner, path, codec, law, config, objective, source)
        self.coarse = coarse
        self.condition_channels = planes if coarse is None else codec.channels

    @property
    def noise_channels(self) -> int:
        """N of the condition, then K of the state."""
        return self.condition_channels + self.codec.channels

    def context(self, image: Tensor) -> Context:
        """See :meth:`SegmentationModel.context`; the anchor is the coarse mask."""
        context = super().context(image)
        return context if self.coarse is None else replace(context, anchor=self.coarse(image))

    def raw(
        self, x_t: Tensor, t: Tensor, context: Context, previous: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """See :meth:`DiffusionModel.raw`; a context that nobody noised is shown as it is."""
        shown, level = self._condition(context), torch.zeros_like(t)
        if isinstance(context, Shown) and context.condition is not None:
            shown = context.condition
            level = level if context.level is None else context.level
        parts = [x_t * spread(self.path.input_gain(t), x_t), shown]
        if self.coarse is not None:
            parts.append(context.image)
        both = torch.stack([t, level.to(t)], dim=1).to(x_t.device)
        return self.denoiser(torch.cat(parts, dim=1), both, context.features or None), None

    def loss(self, batch: Batch) -> Loss:
        """Denoising loss; the batch's noise is the condition's, then the state's."""
        clean = self.codec.encode(batch.labels)
        return self.denoising_loss(batch, clean, self._of_state(batch.noise))

    def trajectory(
        self,
        context: Context,
        noise: Tensor,
        sampling: Sampling,
        fresh_noise: FreshNoise | None = None,
    ) -> Iterator[Estimate]:
        """See :meth:`SegmentationModel.trajectory`; each draw's condition has noise of its own."""
        level = torch.full((len(noise),), sampling.condition_noise, device=noise.device)
        shown = self._noised(context, noise, level)
        fresh = None if fresh_noise is None else lambda k: self._of_state(fresh_noise(k))
        yield from super().trajectory(shown, self._of_state(noise), sampling, fresh)

    def _seen(self, batch: Batch) -> Context:
        """Context in training, at levels uniform up to the largest."""
        level = self.config.condition_noise * batch.coins[:, 1]
        return self._noised(self.context(batch.image), batch.noise, level)

    def _noised(self, context: Context, noise: Tensor, level: Tensor) -> Shown:
        mine = noise[:, : self.condition_channels]
        condition = under_noise(self._condition(context), mine, level)
        return Shown(context.image, context.features, context.anchor, condition, level)

    def _condition(self, context: Context) -> Tensor:
        """The condition as it is, (B, N, *S), without gradient."""
        if self.coarse is None:
            return context.image
        if context.anchor is None:
            raise ValueError("a cascade's context carries its coarse mask; use its own context()")
        return self.mask_codec.state_from_logits(context.anchor.detach())

    def _of_state(self, noise: Tensor) -> Tensor:
        return noise[:, self.condition_channels :]
