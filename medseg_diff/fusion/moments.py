"""Moments of a stream of arrays, and the entropy of probabilities.

Legend: K classes or regions, *S spatial axes.
"""

from __future__ import annotations

from collections.abc import Iterable
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
    if not exclusive:
        largest: Array = channel_entropy(probabilities).max(0)
        return largest
    p = probabilities.astype(np.float64)
    terms = -(p * np.log(np.clip(p, 1e-12, 1))).sum(0) / np.log(len(p))
    result: Array = terms.clip(0, 1).astype(np.float32)
    return result


class StreamedEntropy:
    """:func:`predictive_entropy` of probabilities that come one channel (*S) at a time.

    Args:
        channels: K.
        exclusive: Whether the channels exclude one another.
    """

    def __init__(self, channels: int, *, exclusive: bool) -> None:
        self.channels, self.exclusive = channels, exclusive
        self._sum: Array | None = None

    def add(self, plane: Array) -> None:
        """Take the next channel, row by row of its first axis: float64 for a row alone."""
        if self._sum is None:
            self._sum = np.zeros(plane.shape, np.float32)
        for total, row in zip(self._sum, plane, strict=True):
            if self.exclusive:
                p = row.astype(np.float64)
                total -= (p * np.log(np.clip(p, 1e-12, 1))).astype(np.float32)
            else:
                np.maximum(total, channel_entropy(row), out=total)

    def entropy(self) -> Array:
        """Entropy in [0, 1], (*S); the sum's own memory.

        Raises:
            ValueError: if no channel was added.
        """
        if self._sum is None:
            raise ValueError("no channel was added")
        if self.exclusive:
            self._sum /= np.float32(np.log(self.channels))
        return self._sum.clip(0, 1, out=self._sum)


def channel_entropy(probabilities: Array) -> Array:
    """Binary entropy of each of (K, *S) probabilities, divided by log 2, in [0, 1]."""
    p = probabilities.astype(np.float64)
    q = 1 - p
    both = p * np.log(np.clip(p, 1e-12, 1)) + q * np.log(np.clip(q, 1e-12, 1))
    result: Array = (-both / np.log(2)).clip(0, 1).astype(np.float32)
    return result


def mean_probability(draws: Iterable[Array]) -> Array:
    """Plain mean of N arrays of one shape, taken one after another.

    Raises:
        ValueError: if there is none.
    """
    moments = RunningMoments()
    for draw in draws:
        moments.add(draw)
    if moments.mean is None:
        raise ValueError("at least one draw is needed")
    return moments.mean
