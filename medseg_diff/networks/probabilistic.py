"""Networks of the Probabilistic U-Net (Kohl et al. 2018, arXiv 1806.05034): a mask from a latent.

One latent of a few numbers stands for one way to read the whole image. A net looks at the image
(the prior) or at the image and its mask (the posterior) and says where such latents lie; the last
layers of the segmenting U-Net turn its feature map and one latent into one mask.

Legend: B batch, C channels, K classes or regions, L numbers of the latent, *S spatial axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from medseg_diff.networks.layout import memory_layout, to_layout
from medseg_diff.networks.unet import pad_to_multiple

# Log standard deviations stay within this softly: their exponentials are squared and divided.
LARGEST_LOG_SD = 5.0


class Gaussian(NamedTuple):
    """Axis-aligned normal distributions of latents, one a sample.

    Attributes:
        mean: (B, L).
        log_sd: Natural logarithm of the standard deviation, (B, L).
    """

    mean: Tensor
    log_sd: Tensor

    @property
    def variance(self) -> Tensor:
        """Variance, (B, L)."""
        return (2 * self.log_sd).exp()

    def draw(self, normals: Tensor) -> Tensor:
        """Latents (B, L) from standard normals (B, L), differentiable in mean and log_sd."""
        return self.mean + self.log_sd.exp() * normals

    def repeat(self, draws: int) -> Gaussian:
        """Each sample ``draws`` times in a row, (B * draws, L)."""
        return Gaussian(*(values.repeat_interleave(draws, 0) for values in self))


class GaussianEncoder(nn.Module):
    """Prior or posterior net: maps (B, C, *S) of any size -> a distribution of latents.

    Two convolutions with norm and LeakyReLU a level, average pooling between levels, the mean over
    space, one linear layer. The norm is over channels and space together (one group): instance
    norm would fix the very means that are read at the end, and turn a deepest map of one voxel into
    a constant; without any, training at the package's learning rates diverged.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the image, plus K for a posterior.
        features: Channels of each level, finest first.
        latent: Numbers L of the latent.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, features: Sequence[int], latent: int
    ) -> None:
        super().__init__()
        conv = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
        pool = nn.AvgPool3d if spatial_dims == 3 else nn.AvgPool2d
        layers: list[nn.Module] = []
        for level, (into, width) in enumerate(
            zip([in_channels, *features[:-1]], features, strict=True)
        ):
            layers += [pool(2)] if level else []
            for channels in (into, width):
                layers += [conv(channels, width, 3, padding=1), nn.GroupNorm(1, width)]
                layers += [nn.LeakyReLU(0.1, inplace=True)]
        self.layers = nn.Sequential(*layers)
        self.factor = 2 ** (len(features) - 1)
        self.head = nn.Linear(features[-1], 2 * latent)
        self.layout = memory_layout(spatial_dims)
        to_layout(self, self.layout)

    def forward(self, x: Tensor) -> Gaussian:
        """(B, in_channels, *S) -> distributions of latents, float32."""
        x = pad_to_multiple(x, self.factor).contiguous(memory_format=self.layout)
        maps = self.layers(x)
        mean, log_sd = self.head(maps.flatten(2).mean(2)).float().chunk(2, 1)
        return Gaussian(mean, LARGEST_LOG_SD * (log_sd / LARGEST_LOG_SD).tanh())


class LatentHead(nn.Module):
    """Last layers: a feature map and one latent -> logits, by 1x1 convolutions.

    The latent is repeated at every voxel and concatenated to the map. No norm follows, which
    would take a shift that is constant over space out again.

    Args:
        spatial_dims: 2 or 3.
        channels: Channels C of the map and of the hidden layers.
        latent: Numbers L of the latent.
        out_channels: K.
        layers: Hidden layers, each with LeakyReLU.
    """

    def __init__(
        self, spatial_dims: int, channels: int, latent: int, out_channels: int, layers: int = 3
    ) -> None:
        super().__init__()
        conv = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
        hidden: list[nn.Module] = []
        for into in (channels + latent, *[channels] * (layers - 1)):
            layer = conv(into, channels, 1)
            nn.init.kaiming_normal_(layer.weight, 0.1)
            hidden += [layer, nn.LeakyReLU(0.1, inplace=True)]
        self.layers = nn.Sequential(*hidden, conv(channels, out_channels, 1))
        to_layout(self, memory_layout(spatial_dims))

    def forward(self, maps: Tensor, z: Tensor) -> Tensor:
        """Map (B, C, *S), latents (B, L) -> logits (B, K, *S)."""
        everywhere = z.reshape(*z.shape, *[1] * (maps.ndim - 2)).expand(-1, -1, *maps.shape[2:])
        return self.layers(torch.cat([maps, everywhere.to(maps.dtype)], 1))
