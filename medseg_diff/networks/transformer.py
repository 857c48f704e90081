"""A diffusion transformer as denoiser, in 2-D and 3-D (Peebles & Xie 2023, arXiv 2212.09748).

Patches of the state become tokens, blocks of attention and MLP are steered by time through
adaLN-Zero, and a linear layer makes patches of the output. Positions are fixed sinusoids of the
token's place, so that inputs of any size pass.

Legend: B batch, C channels, *S spatial axes, N tokens, W width of a token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks import MLPBlock
from torch import Tensor, nn

from medseg_diff.networks.positions import positions
from medseg_diff.networks.unet import TimeEmbedding, crop_to, pad_to_multiple


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Tokens (B, N, W) scaled and shifted by (B, W) each."""
    return x * (1 + scale[:, None]) + shift[:, None]


def zeroed(layer: nn.Linear) -> nn.Linear:
    """A layer whose answer is zero until it has learned."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class TransformerBlock(nn.Module):
    """Attention and MLP, both steered by time through adaLN-Zero (the paper's Fig. 3).

    Time gives each of the two a shift, a scale and a gate; the layer that makes them starts at
    zero, so that an untrained block is the identity. Where there is context, attention to its
    tokens follows the first; its own gate is a weight a channel, also zero at first.

    Args:
        width: W.
        heads: Attention heads; must divide ``width``.
        context_channels: Channels of the context's tokens, or None.
    """

    def __init__(self, width: int, heads: int, context_channels: int | None) -> None:
        super().__init__()
        self.steer = nn.Sequential(nn.SiLU(), zeroed(nn.Linear(width, 6 * width)))
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = MLPBlock(width, 4 * width)
        self.look: nn.MultiheadAttention | None = None
        if context_channels is not None:
            self.norm_look = nn.LayerNorm(width)
            self.look = nn.MultiheadAttention(
                width, heads, kdim=context_channels, vdim=context_channels, batch_first=True
            )
            self.gate_look = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
        """Tokens (B, N, W), time (B, W), context (B, M, context_channels) -> tokens (B, N, W)."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.steer(time).chunk(6, dim=1)
        tokens = modulated(self.norms[0](x), shift, scale)
        x = x + gate[:, None] * self.attention(tokens, tokens, tokens, need_weights=False)[0]
        if self.look is not None and context is not None:
            seen = self.look(self.norm_look(x), context, context, need_weights=False)[0]
            x = x + self.gate_look * seen
        return x + gate_mlp[:, None] * self.mlp(modulated(self.norms[1](x), shift_mlp, scale_mlp))


class DiffusionTransformer(nn.Module):
    """Denoiser ``(x, t, features) -> output`` on tokens.

    Departures from the paper: a token covers the same number of voxels along every axis, in 3-D
    too; the image comes in with the state (concat) or as tokens of the context's deepest map
    (cross-attention, which the paper compares for class labels); no class label, no learned sigma.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        width: W, a multiple of ``heads`` and of twice the axes.
        depth: Blocks.
        heads: Attention heads.
        token_size: Voxels of a token along each axis.
        time_channels: Width of the time embedding's first layers.
        context_channels: Channels of the context's deepest map, or None to leave it out.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        width: int,
        depth: int,
        heads: int,
        token_size: int,
        time_channels: int,
        context_channels: int | None = None,
    ) -> None:
        super().__init__()
        if width % heads or width % (2 * spatial_dims):
            raise ValueError(
                f"a token's width must be a multiple of {heads} heads and of {2 * spatial_dims}, "
                f"not {width}"
            )
        conv = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
        self.factor, self.width = token_size, width
        self.enter = conv(in_channels, width, token_size, stride=token_size)
        self.embedding = nn.Sequential(
            TimeEmbedding(time_channels), nn.Linear(time_channels, width)
        )
        self.blocks = nn.ModuleList(
            TransformerBlock(width, heads, context_channels) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.steer = nn.Sequential(nn.SiLU(), zeroed(nn.Linear(width, 2 * width)))
        self.leave = zeroed(nn.Linear(width, out_channels * token_size**spatial_dims))

    def forward(self, x_t: Tensor, t: Tensor, features: Sequence[Tensor] | None = None) -> Tensor:
        """State (B, in_channels, *S), times (B,) and context maps -> (B, out_channels, *S)."""
        grid = self.enter(pad_to_multiple(x_t, self.factor))
        shape = grid.shape[2:]
        x = grid.flatten(2).transpose(1, 2) + positions(shape, self.width).to(grid)
        time = self.embedding(t).to(x.dtype)
        context = None
        if features is not None:
            deepest = features[-1]
            context = deepest.flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x, time, context)
        shift, scale = self.steer(time).chunk(2, dim=1)
        return crop_to(self._patches(self.leave(modulated(self.norm(x), shift, scale)), shape), x_t)

    def _patches(self, tokens: Tensor, shape: Sequence[int]) -> Tensor:
        """Tokens (B, N, out_channels * p^d) -> (B, out_channels, *S), p voxels a token and axis."""
        dims, p = len(shape), self.factor
        cells = tokens.reshape(len(tokens), *shape, -1, *[p] * dims)
        # (B, n1, n2, C, p, p) -> (B, C, n1, p, n2, p)
        pairs = [axis for k in range(dims) for axis in (1 + k, dims + 2 + k)]
        voxels = cells.permute(0, dims + 1, *pairs)
        return voxels.reshape(len(tokens), -1, *(n * p for n in shape))
