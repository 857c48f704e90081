"""Fusion: many answers -> one and its doubt. Arrays only; nothing here knows diffusion.

Legend: N draws, K classes or regions, *S spatial axes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


@dataclass
class RunningMoments:
    """Mean and variance of a stream of arrays, kept in two arrays whatever their number.

    Welford's update (1962): numerically stable, one pass.
    """

    count: int = 0
    mean: Array | None = None
    _squares: Array | None = field(default=None, repr=False)

    def add(self, values: Array) -> None:
        """Take one more array of the same shape."""
        self.count += 1
        if self.mean is None or self._squares is None:
            self.mean = np.array(values, dtype=np.float32)
            self._squares = np.zeros(values.shape, dtype=np.float32)
            return
        delta = values - self.mean
        self.mean += delta / np.float32(self.count)
        self._squares += delta * (values - self.mean)

    @property
    def variance(self) -> Array:
        """Variance over the stream (divided by N); zeros after one array."""
        if self._squares is None:
            raise ValueError("no array was added")
        return self._squares / np.float32(self.count)


def predictive_entropy(probabilities: Array, *, exclusive: bool) -> Array:
    """Entropy of (K, *S) probabilities per voxel, scaled to [0, 1], shape (*S).

    Exclusive classes share one entropy, divided by log K. Overlapping regions have one binary
    entropy each, divided by log 2; the largest is returned.
    """
    p = probabilities.astype(np.float64)
    if exclusive:
        terms = -(p * np.log(np.clip(p, 1e-12, 1))).sum(0) / np.log(len(p))
    else:
        q = 1 - p
        both = p * np.log(np.clip(p, 1e-12, 1)) + q * np.log(np.clip(q, 1e-12, 1))
        terms = (-both / np.log(2)).max(0)
    result: Array = terms.clip(0, 1).astype(np.float32)
    return result


class PairwiseDice:
    """Mean Dice over all pairs of N draws, gathered slab by slab.

    Args:
        draws: N.
        structures: K foreground structures.
    """

    def __init__(self, draws: int, structures: int) -> None:
        self.overlap = np.zeros((structures, draws, draws))

    def add(self, masks: NDArray[np.bool_]) -> None:
        """Take presence (K, V, N) of some voxels, each voxel once in all."""
        planes = masks.astype(np.float32)
        self.overlap += np.einsum("kvn,kvm->knm", planes, planes)

    def mean(self) -> list[float]:
        """K values; 1 where all draws are equal (two empty draws are equal), nan for N = 1."""
        count = self.overlap.shape[1]
        if count < 2:
            return [float("nan")] * len(self.overlap)
        values = []
        for overlap in self.overlap:
            size = np.diag(overlap)
            total = size[:, None] + size[None]
            dice = np.where(total > 0, 2 * overlap / np.maximum(total, 1), 1.0)
            values.append(float(dice[np.triu_indices(count, 1)].mean()))
        return values
