"""Dropout of whole channels whose masks are handed over, not drawn from a global generator.

A mask that takes a channel away everywhere takes weights out of the next layer: one mask is one
network, drawn from the approximate posterior of Gal & Ghahramani (2016, arXiv 1506.02142).
Windows of one draw share it, so they are answered by one network and agree where they overlap.

Legend: B batch, C channels, N normals of a draw, L levels (level 0 is full resolution).
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

from torch import Tensor


class Gains(NamedTuple):
    """Factors of a U-Net's maps, level by level; None leaves a level as it is.

    Attributes:
        encoder: L factors, (B, C of the level) each.
        decoder: L - 1 factors; the deepest decoder map is the encoder's.
    """

    encoder: tuple[Tensor | None, ...]
    decoder: tuple[Tensor | None, ...]


class ChannelDropout:
    """Masks of the deeper half of a U-Net, levels L // 2 and below, in encoder and decoder.

    A level's map loses channels where it leaves its block, on the way down, over the skip and up
    alike.

    Args:
        features: Channels of each level, finest first.
        rate: Share of channels that are dropped, in (0, 1); the others grow by 1 / (1 - rate).
    """

    def __init__(self, features: Sequence[int], rate: float) -> None:
        if not 0 < rate < 1:
            raise ValueError(f"a dropout rate lies between 0 and 1, both excluded, not {rate}")
        self.features, self.rate = tuple(features), rate
        self.first = len(self.features) // 2
        self.threshold = NormalDist().inv_cdf(rate)

    @property
    def normals(self) -> int:
        """Standard normals N that make one mask: one a channel."""
        return sum(self.features[self.first :]) + sum(self.features[self.first : -1])

    def gains(self, normals: Tensor) -> Gains:
        """Standard normals (B, N) -> factors 0 or 1 / (1 - rate)."""
        kept = (normals > self.threshold).to(normals.dtype) / (1 - self.rate)
        deep, above = self.features[self.first :], self.features[self.first : -1]
        parts = kept.split([*deep, *above], dim=1)
        none = (None,) * self.first
        return Gains((*none, *parts[: len(deep)]), (*none, *parts[len(deep) :]))
