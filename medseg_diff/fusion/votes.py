"""What masks say together: the majority of their votes, and how well they agree.

Legend: N draws, K structures or classes, V voxels, *S spatial axes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]


def majority_mask(draws: Iterable[BoolArray]) -> BoolArray:
    """Voxels that more than half of the draws mark; an even split is background.

    Args:
        draws: N masks of one shape, one structure (*S) or several overlapping ones (K, *S).

    Raises:
        ValueError: if there is no draw, or shapes differ.
    """
    count, total = 0, None
    for draw in draws:
        if draw.dtype != np.bool_:
            raise ValueError(f"a mask must be boolean, not {draw.dtype}")
        if total is None:
            total = np.zeros(draw.shape, np.int32)
        _same_shape(total.shape, draw.shape)
        total += draw
        count += 1
    if total is None:
        raise ValueError("at least one draw is needed")
    result: BoolArray = 2 * total > count
    return result


def label_votes(draws: Iterable[NDArray[np.integer[Any]]], classes: int) -> NDArray[np.int32]:
    """Votes for each class, (K, *S), from N label maps (*S) with values below ``classes``.

    Raises:
        ValueError: if there is no draw, shapes differ, or a value is not among the classes.
    """
    votes = None
    for draw in draws:
        if votes is None:
            votes = np.zeros((classes, *draw.shape), np.int32)
        _same_shape(votes.shape[1:], draw.shape)
        if draw.size and not 0 <= int(draw.min()) <= int(draw.max()) < classes:
            raise ValueError(f"labels must lie in 0 ... {classes - 1}, not {np.unique(draw)}")
        for value in range(classes):
            votes[value] += draw == value
    if votes is None:
        raise ValueError("at least one draw is needed")
    return votes


def majority_labels(
    draws: Iterable[NDArray[np.integer[Any]]], classes: int
) -> NDArray[np.integer[Any]]:
    """Label with the most votes, voxel by voxel, (*S); of equal ones the smallest value.

    So a tie with the background is background, and the order of draws never matters.

    Args:
        draws: N label maps (*S), values in 0 ... ``classes`` - 1.
        classes: K, the background included.

    Raises:
        ValueError: as :func:`label_votes`.
    """
    result: NDArray[np.integer[Any]] = label_votes(draws, classes).argmax(0)
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


def _same_shape(wanted: tuple[int, ...], found: tuple[int, ...]) -> None:
    if wanted != found:
        raise ValueError(f"all draws must have the shape {wanted}, not {found}")
