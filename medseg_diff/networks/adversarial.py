"""Networks that make images of a domain, and networks that judge them.

Legend: B batch, C channels, K planes of the image that is made, Z planes of the latent, *S spatial
axes, *P patches that a discriminator judges.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medseg_diff.networks.layout import memory_layout, to_layout
from medseg_diff.networks.unet import TimeEmbedding, UNet


class Generator(nn.Module):
    """Clean image in [-1, 1] from a noisy one, a source and a latent: a U-Net, then tanh.

    Args:
        spatial_dims: 2 or 3.
        planes: Planes K of the image.
        source_planes: Planes of the source.
        latent_planes: Planes Z of noise among the inputs.
        features: Width of each level, finest first.
        time_channels: Width of the time embedding.
    """

    def __init__(
        self,
        spatial_dims: int,
        planes: int,
        source_planes: int,
        latent_planes: int,
        features: Sequence[int],
        time_channels: int,
    ) -> None:
        super().__init__()
        inputs = planes + source_planes + latent_planes
        self.network = UNet(spatial_dims, inputs, planes, features, time_channels=time_channels)

    def forward(self, x_t: Tensor, source: Tensor, latent: Tensor, t: Tensor) -> Tensor:
        """(B, K, *S), (B, C, *S), (B, Z, *S) and times (B,) -> (B, K, *S)."""
        answer: Tensor = self.network(torch.cat([x_t, source, latent], dim=1), t).tanh()
        return answer


def translator(
    spatial_dims: int, in_channels: int, planes: int, features: Sequence[int]
) -> nn.Module:
    """Image (B, C, *S) -> image of another domain (B, K, *S) in [-1, 1], in one pass."""
    return nn.Sequential(UNet(spatial_dims, in_channels, planes, features), nn.Tanh())


class Discriminator(nn.Module):
    """Logits of patches: high where an image looks real (PatchGAN, Isola et al. 2017).

    Convolutions of stride 2 without norms: a norm over the image would take away the very
    brightness and contrast by which domains differ.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of what is judged.
        features: Width of each level; each halves the size.
        time_channels: Width of the time embedding, or None for images without noise.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        features: Sequence[int],
        time_channels: int | None = None,
    ) -> None:
        super().__init__()
        conv = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
        widths = [in_channels, *features]
        levels = range(len(features))
        self.down = nn.ModuleList(
            conv(widths[n], widths[n + 1], 3, stride=2, padding=1) for n in levels
        )
        self.embedding = None if time_channels is None else TimeEmbedding(time_channels)
        self.time = nn.ModuleList(
            nn.Linear(time_channels, width) for width in features if time_channels is not None
        )
        self.act = nn.LeakyReLU(0.2)
        self.head = conv(widths[-1], 1, 3, padding=1)
        self.layout = memory_layout(spatial_dims)
        to_layout(self, self.layout)

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """(B, in_channels, *S), and times (B,) where it knows them -> logits (B, 1, *P)."""
        time = None if self.embedding is None or t is None else self.act(self.embedding(t))
        x = x.contiguous(memory_format=self.layout)
        for level, conv in enumerate(self.down):
            x = conv(x)
            if time is not None:
                shift = self.time[level](time)
                x = x + shift.reshape(*shift.shape, *[1] * (x.ndim - 2))
            x = self.act(x)
        logits: Tensor = self.head(x)
        return logits
