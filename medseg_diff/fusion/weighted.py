"""Uncertainty-weighted fusion: each draw counts, voxel by voxel, as much as it is certain.

Legend: N draws, K classes or regions, *S spatial axes.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from medseg_diff.fusion.moments import channel_entropy, predictive_entropy

Array = NDArray[np.float32]

# Keeps the mean defined where every draw is at its most doubtful; there it is the plain mean.
_LEAST = np.float32(1e-6)


class CertaintyWeightedMean:
    """Mean of N draws weighted by 1 - normalised entropy, gathered draw by draw.

        p = sum_n w_n p_n / sum_n w_n,      w_n = 1 - H(p_n) + 1e-6

    H is the draw's own entropy at the voxel, in [0, 1]: one for exclusive classes (over log K, so
    that the result sums to 1), one per region otherwise (over log 2). The formula is ours. A draw
    that is sure of itself counts for more than one that is not, whether it is right or wrong:
    where the network is overconfident this leans further than the mean.

    Two arrays are kept, whatever N is.

    Args:
        exclusive: Whether the K channels exclude one another.
    """

    def __init__(self, *, exclusive: bool) -> None:
        self.exclusive = exclusive
        self._sum: Array | None = None
        self._weight: Array | None = None

    def add(self, probabilities: Array) -> None:
        """Take one draw's probabilities, (K, *S), in [0, 1].

        Raises:
            ValueError: if its shape is not the first one's.
        """
        weight = certainty(probabilities, exclusive=self.exclusive)
        weighted = weight * probabilities.astype(np.float32)
        if self._sum is None or self._weight is None:
            self._sum, self._weight = weighted, weight
            return
        if weighted.shape != self._sum.shape:
            raise ValueError(
                f"all draws must have the shape {self._sum.shape}, not {weighted.shape}"
            )
        self._sum += weighted
        self._weight += weight

    def probability(self) -> Array:
        """Weighted mean, (K, *S), in [0, 1].

        Raises:
            ValueError: if no draw was added.
        """
        if self._sum is None or self._weight is None:
            raise ValueError("no draw was added")
        result: Array = np.clip(self._sum / self._weight, 0, 1)
        return result


def certainty(probabilities: Array, *, exclusive: bool) -> Array:
    """Weight w of one draw: (1, *S) for exclusive classes, (K, *S) for regions."""
    if exclusive:
        entropy = predictive_entropy(probabilities, exclusive=True)[None]
    else:
        entropy = channel_entropy(probabilities)
    result: Array = 1 - entropy + _LEAST
    return result


def certainty_weighted_mean(draws: Iterable[Array], *, exclusive: bool) -> Array:
    """Weighted mean of N draws' probabilities (K, *S): see :class:`CertaintyWeightedMean`."""
    rule = CertaintyWeightedMean(exclusive=exclusive)
    for draw in draws:
        rule.add(draw)
    return rule.probability()
