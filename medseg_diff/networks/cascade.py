"""Parts of a cascade: a segmenter of the coarse image, a denoiser told how noisy its condition is.

Legend: B batch, C image channels, K classes or regions, *S spatial axes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from medseg_diff.networks.unet import TimeEmbedding, UNet, crop_to, pad_to_multiple


class CoarseSegmenter(nn.Module):
    """Image -> logits of its mask, computed on a grid ``factor`` times coarser.

    The image is averaged over blocks, and the logits come back by linear interpolation.

    Args:
        spatial_dims: 2 or 3.
        in_channels: C.
        out_channels: K.
        features: Width of each level, finest first.
        factor: Voxels of the image along each axis in one of the coarse grid.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        features: Sequence[int],
        factor: int,
    ) -> None:
        super().__init__()
        self.network = UNet(spatial_dims, in_channels, out_channels, features)
        self.factor = factor
        self.pool = (nn.AvgPool3d if spatial_dims == 3 else nn.AvgPool2d)(factor)
        self.mode = "trilinear" if spatial_dims == 3 else "bilinear"

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, *S) -> (B, K, *S)."""
        logits = self.network(self.pool(pad_to_multiple(image, self.factor)))
        fine = functional.interpolate(logits, scale_factor=self.factor, mode=self.mode)
        return crop_to(fine, image)


class LevelledUNet(UNet):
    """A denoiser ``(x, t, features) -> output`` whose ``t`` (B, 2) is the time and a noise level.

    The level of the condition's noise has an embedding of its own, added to the time's, as in CDM
    (Ho et al. 2022, arXiv 2106.15282).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        features: Sequence[int],
        *,
        time_channels: int,
        context_channels: Sequence[int] | None = None,
    ) -> None:
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            features,
            time_channels=time_channels,
            context_channels=context_channels,
        )
        self.embedding = _TimeAndLevel(time_channels)


class _TimeAndLevel(TimeEmbedding):
    """Times and levels, (B, 2), both in [0, 1] -> (B, channels)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.level = TimeEmbedding(channels)

    def forward(self, t: Tensor) -> Tensor:
        """The sum of both embeddings."""
        return super().forward(t[:, 0]) + self.level(t[:, 1])


def under_noise(condition: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """``sqrt(1 - level^2) condition + level noise``: its variance stays that of a unit condition.

    Args:
        condition: (B, N, *S).
        noise: Standard normal, same shape.
        level: (B,), each in [0, 1).
    """
    level = level.to(condition).reshape(-1, *[1] * (condition.ndim - 1))
    return torch.sqrt(1 - level.square()) * condition + level * noise
