"""A segmenting network whose latent holds several depths: its skips are part of what is drawn.

The maps of the encoder's last levels, each squeezed to a few channels and standardised by itself,
are brought to the grid of the finest and stacked. The decoder gets its own level's share of them
and nothing else, so that there is still no way from image to mask past the latent.

Legend: B batch, K mask channels, Z channels of a depth, D depths, *S voxels, *L the latent's grid:
that of the finest depth, *S padded to whole blocks of the deepest and divided by ``factor``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks import Upsample
from monai.networks.nets.autoencoderkl import AEKLDownsample
from torch import Tensor, nn
from torch.nn import functional

from medseg_diff.networks.autoencoder import Latent, MaskAutoencoder, cut_to, latent_noise
from medseg_diff.networks.layout import to_layout
from medseg_diff.networks.unet import pad_to_multiple


class DepthsAutoencoder(MaskAutoencoder):
    """Image -> latent of several depths -> logits, in 2-D or 3-D for images of any size.

    Channels of a latent are the deepest map's first, as they are where it is alone. Coarse maps are
    repeated over the voxels of the finest grid and averaged on the way back: noise of a coarse map
    is thus less than that of a fine one at equal times, and a denoiser knows it sooner.

    Args:
        spatial_dims: 2 or 3.
        channels: K.
        latent_channels: Z.
        features: Width of each level; every level after the first halves the resolution.
        depths: D, levels from the deepest on whose maps the latent holds; all of them are a U-Net's
            skips, the finest at full resolution.
        in_channels: Channels of the image.
    """

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        latent_channels: int,
        features: Sequence[int],
        depths: int,
        in_channels: int,
    ) -> None:
        super().__init__(spatial_dims, channels, latent_channels, features, in_channels=in_channels)
        conv = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
        self.pool = functional.avg_pool3d if spatial_dims == 3 else functional.avg_pool2d
        self.deepest = deepest = len(features) - 1
        self.multiple, self.factor = 2**deepest, 2 ** (deepest + 1 - depths)
        self.depths, self.width = depths, depths * latent_channels
        # Levels that have a skip, deepest first, as in the stack; the deepest itself has none.
        self.levels = tuple(range(deepest - 1, deepest - depths, -1))
        self.squeeze = nn.ModuleDict(
            {
                str(level): nn.Sequential(
                    nn.GroupNorm(1, features[level]), conv(features[level], 2 * latent_channels, 1)
                )
                for level in self.levels
            }
        )
        # Up-sampled maps still have the width of the level below.
        self.expand = nn.ModuleDict(
            {str(level): conv(latent_channels, features[level + 1], 1) for level in self.levels}
        )
        to_layout(self, self.layout)

    def encode(self, state: Tensor, noise: Tensor | None = None) -> Latent:
        """Latent (B, D Z, *L) of an image (B, in_channels, *S); see :class:`MaskAutoencoder`."""
        padded = pad_to_multiple(state, self.multiple).contiguous(memory_format=self.layout)
        spreads = self._spreads(padded)
        penalty = torch.stack([_divergence(mean, log_var) for mean, log_var in spreads]).mean()
        means = [mean for mean, _ in spreads]
        if noise is not None:
            fields = self._picked(noise)
            for depth, (mean, log_var) in enumerate(spreads):
                means[depth] = mean + (log_var / 2).exp() * fields[depth]
        return Latent(self.stacked([self._scaled(mean) for mean in means]), penalty)

    def decode(self, z: Tensor, size: Sequence[int]) -> Tensor:
        """Logits (B, K, *size) of a latent."""
        deepest, *skips = self.split(z.contiguous(memory_format=self.layout))
        shares = dict(zip(self.levels, skips, strict=True))
        x, level = self.network.post_quant_conv(deepest), self.deepest
        for block in self.network.decoder.blocks:
            x = block(x)
            if isinstance(block, Upsample):
                level -= 1
                if level in shares:
                    x = x + self.expand[str(level)](shares[level])
        return cut_to(x, size)

    def noise(self, field: Tensor) -> Tensor:
        """See :meth:`MaskAutoencoder.noise`."""
        return latent_noise(field, self.width, self.factor, self.multiple)

    def stacked(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, Z, ...) of each depth, deepest first -> (B, D Z, *L)."""
        whole = []
        for depth, each in enumerate(maps):
            for axis in range(2, each.ndim):
                each = each.repeat_interleave(self._block(depth), axis)
            whole.append(each)
        return torch.cat(whole, 1)

    def split(self, z: Tensor) -> list[Tensor]:
        """A stack (B, D Z, *L) as maps of each depth, deepest first: means over their voxels."""
        return [self.pool(each, self._block(d)) for d, each in enumerate(z.chunk(self.depths, 1))]

    def _block(self, depth: int) -> int:
        """Voxels of the latent along each axis in one of a depth's, the deepest being 0."""
        return 2 ** (self.depths - 1 - depth)

    def _picked(self, noise: Tensor) -> list[Tensor]:
        """Noise of each depth's own grid: one voxel of each block, so that it stays normal."""
        picked = []
        for depth, each in enumerate(noise.chunk(self.depths, 1)):
            step = slice(None, None, self._block(depth))
            picked.append(each[(slice(None), slice(None), *[step] * (noise.ndim - 2))])
        return picked

    def _spreads(self, padded: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Means and logarithms of variances of each depth, deepest first."""
        x, passed = padded, []
        for block in self.network.encoder.blocks:
            if isinstance(block, AEKLDownsample):
                passed.append(x)
            x = block(x)
        found = [(self.network.quant_conv_mu(x), self.network.quant_conv_log_sigma(x))]
        found += [self.squeeze[str(level)](passed[level]).chunk(2, 1) for level in self.levels]
        return [(mean, log_var.clamp(-30.0, 20.0)) for mean, log_var in found]


def _divergence(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL divergence from the standard normal, a mean over all numbers."""
    return 0.5 * (mean.square() + log_var.exp() - log_var - 1).mean()
