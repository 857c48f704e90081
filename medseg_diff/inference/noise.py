"""Noise fields: one per (seed, case, draw, step), the same however it is cut.

A field lives on the case's model grid. It is made of tiles, each from a counter-based generator
(numpy's Philox 4x64-10; Salmon et al. 2011) whose key names the field and whose counter names the
tile, so a window's noise depends on where it lies and on nothing else: overlapping windows of one
draw see the same noise, and batch size, window order and worker count change nothing.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Tiles of 3-D windows, and of the slices that a 2-D network walks through.
CUBE = (32, 32, 32)
SLICE = (64, 64, 1)


@dataclass(frozen=True)
class NoiseField:
    """Standard normal field of ``channels`` planes over a grid of three axes.

    Args:
        seed: The user's seed.
        case: Case id.
        draw: Index of the ensemble member's draw.
        step: 0 for the starting noise, k + 1 for the fresh noise of sampler step k.
        channels: Channels of the diffused state.
        tile: Voxels of one tile; part of what defines the field.
    """

    seed: int
    case: str
    draw: int
    step: int
    channels: int
    tile: tuple[int, int, int] = CUBE

    def window(self, start: Sequence[int], size: Sequence[int]) -> NDArray[np.float32]:
        """Cut (channels, *size) at voxel ``start`` >= 0, float32."""
        result = np.empty((self.channels, *size), dtype=np.float32)
        spans = [
            range(a // n, (a + length - 1) // n + 1)
            for a, length, n in zip(start, size, self.tile, strict=True)
        ]
        for index in itertools.product(*spans):
            origin = [k * n for k, n in zip(index, self.tile, strict=True)]
            low = [max(a, o) for a, o in zip(start, origin, strict=True)]
            high = [
                min(a + length, o + n)
                for a, length, o, n in zip(start, size, origin, self.tile, strict=True)
            ]
            into = tuple(slice(i - a, j - a) for i, j, a in zip(low, high, start, strict=True))
            cut = tuple(slice(i - o, j - o) for i, j, o in zip(low, high, origin, strict=True))
            result[:, *into] = self._values(index)[:, *cut]
        return result

    def _values(self, index: Sequence[int]) -> NDArray[np.float32]:
        generator = _generator(f"{self.seed}|{self.case}|{self.draw}|{self.step}", index)
        return generator.standard_normal((self.channels, *self.tile), dtype=np.float32)


def draw_normals(seed: int, case: str, draw: int, step: int, count: int) -> NDArray[np.float32]:
    """Standard normals (count,), float32, of a draw as a whole: the same in every window.

    They are independent of the draw's :class:`NoiseField`, and a larger ``count`` only adds some.
    """
    generator = _generator(f"{seed}|{case}|{draw}|{step}|draw", (0, 0, 0))
    return generator.standard_normal(count, dtype=np.float32)


def _generator(name: str, index: Sequence[int]) -> np.random.Generator:
    key = np.frombuffer(hashlib.sha256(name.encode()).digest()[:16], dtype=np.uint64)
    # The lowest counter word runs inside a tile; the upper three name the tile.
    counter = np.array([0, *index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
