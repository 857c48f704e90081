"""How a context's map enters a level of a U-Net: added, by a zero convolution, by cross-attention.

An entry answers with what is added to the level's own map. Convolutions, and the plain sum, which
has no file of its own (a 1x1 convolution, or nothing at all), need the context's map alone;
cross-attention is handed both, and ``unet.py`` tells them apart.

Legend: B batch, C channels of the level, D channels of the context, *S spatial axes, N and M tokens
of the level and of the context.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional

from medseg_diff.networks.positions import positions

# Tokens of a context that a level looks at, at most: the cost is then linear in the level's voxels.
SEEN = 1024


def zero_convolution(spatial_dims: int, into: int, out: int) -> nn.Module:
    """A 1x1 convolution that starts at zero (ControlNet, arXiv 2302.05543)."""
    layer = (nn.Conv3d if spatial_dims == 3 else nn.Conv2d)(into, out, 1)
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class CrossAttention(nn.Module):
    """Every position of a level asks the whole context, as in latent diffusion.

    Rombach et al. (2022, arXiv 2112.10752) condition a U-Net so at its coarser levels. Here every
    level does, with its own map of the context; keys and values are means over blocks, so large
    that at most :data:`SEEN` are left, for a 3-D map in full would not fit memory. Queries and keys
    are told their places by the same sinusoids, in units of the level's voxels, so that a position
    can find its own place in the context.

    Args:
        width: C, a multiple of ``heads`` and, as D, at least twice the number of axes.
        context_channels: D.
        heads: Attention heads.
    """

    def __init__(self, width: int, context_channels: int, heads: int) -> None:
        super().__init__()
        self.norm, self.norm_context = nn.LayerNorm(width), nn.LayerNorm(context_channels)
        self.attention = nn.MultiheadAttention(
            width, heads, kdim=context_channels, vdim=context_channels, batch_first=True
        )

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Maps (B, C, *S) and (B, D, *S) -> what is added to the first."""
        pooled, block = coarsened(context)
        asked, seen = _tokens(self.norm, x), _tokens(self.norm_context, pooled)
        shared = min(asked.shape[2], seen.shape[2])
        asked = asked + _places(x, 1, shared).to(asked)
        known = seen + _places(pooled, block, shared).to(seen)
        found, _ = self.attention(asked, known, seen, need_weights=False)
        return found.transpose(1, 2).reshape(x.shape)


def coarsened(context: Tensor) -> tuple[Tensor, int]:
    """A map averaged over blocks until it has at most :data:`SEEN` voxels, and the blocks' side.

    Blocks at the end are means of the voxels that there are.
    """
    axes = context.ndim - 2
    side = int(SEEN ** (1 / axes) + 1e-9)
    block = math.ceil(max(context.shape[2:]) / side)
    pool = functional.avg_pool3d if axes == 3 else functional.avg_pool2d
    return (pool(context, block, ceil_mode=True) if block > 1 else context), block


def _tokens(norm: nn.Module, x: Tensor) -> Tensor:
    tokens: Tensor = norm(x.flatten(2).transpose(1, 2))
    return tokens


def _places(x: Tensor, step: int, width: int) -> Tensor:
    """Sinusoids of a map's places in the first ``width`` channels, or nearly; 0 in others: (N, C).

    Args:
        x: (B, C, *S).
        step: Voxels of the level along each axis that one of the map's stands for.
        width: Channels that both maps have.
    """
    shape = x.shape[2:]
    found = positions(shape, width // (2 * len(shape)) * 2 * len(shape), step)
    return functional.pad(found, (0, x.shape[1] - found.shape[1]))
