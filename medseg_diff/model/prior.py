"""Diffusion of scans themselves, with no scan as condition: from noise, or from a label map.

Legend: B batch, C image channels, K classes or regions, D coordinates, *S spatial axes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medseg_diff.codecs import ImageCodec, OneHotCodec
from medseg_diff.config import ModelConfig, ObjectiveConfig
from medseg_diff.diffusion.paths import Path
from medseg_diff.diffusion.time_laws import TimeLaw
from medseg_diff.model.diffusion import DiffusionModel
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
        if self.condition is None:
            return Context(image)
        labels, places = image[:, :1].round().to(torch.int32), image[:, 1:]
        return Context(torch.cat([self.condition.encode(labels), places], dim=1))
