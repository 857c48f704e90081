"""Fixed sinusoids of a token's place, so that attention takes maps of any size.

Legend: N tokens, W width of a token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def positions(shape: Sequence[int], width: int, step: int = 1) -> Tensor:
    """Sinusoids of each token's place, (N, W): each axis has an equal share of the channels.

    Args:
        shape: Tokens along each axis.
        width: W, a multiple of twice the number of axes.
        step: Distance between tokens, each of which lies in the middle of as many places.
    """
    share = width // len(shape)
    rates = torch.exp(-math.log(10_000) * torch.arange(share // 2) / (share // 2))
    grids = torch.meshgrid(*(step * (torch.arange(n) + 0.5) - 0.5 for n in shape), indexing="ij")
    angles = [grid.flatten()[:, None] * rates for grid in grids]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
