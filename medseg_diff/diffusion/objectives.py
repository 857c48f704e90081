"""Losses on probabilities and states. All are means over samples, so that a batch split over
processes gives the same value as the whole batch in one.

Legend: B batch, K classes or regions, *S spatial axes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def masked_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean over samples of each sample's mean over its counted voxels.

    Args:
        values: (B, C, *S).
        weight: (B, 1, *S) with 0 at ignored voxels, or None to count all.
    """
    axes = tuple(range(1, values.ndim))
    if weight is None:
        return values.mean(axes).mean()
    counted = weight.sum(axes).clamp_min(1) * values.shape[1]
    return ((values * weight).sum(axes) / counted).mean()


def dice_loss(
    probabilities: Tensor, target: Tensor, weight: Tensor | None = None, *, smooth: float = 1.0
) -> Tensor:
    """1 - soft Dice, per sample and channel, then averaged (Milletari et al. 2016).

    ``smooth`` counts voxels; it keeps a channel that is empty in both at Dice 1.
    """
    if weight is not None:
        probabilities, target = probabilities * weight, target * weight
    axes = tuple(range(2, target.ndim))
    overlap = (probabilities * target).sum(axes)
    size = probabilities.sum(axes) + target.sum(axes)
    return (1 - (2 * overlap + smooth) / (size + smooth)).mean()


def cross_entropy(
    logits: Tensor, target: Tensor, *, exclusive: bool, weight: Tensor | None = None
) -> Tensor:
    """Cross-entropy with one-hot (``exclusive``) or overlapping targets, (B, K, *S)."""
    if exclusive:
        per_voxel = -(target * functional.log_softmax(logits, 1)).sum(1, keepdim=True)
    else:
        per_voxel = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return masked_mean(per_voxel, weight)


def squared_error(output: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared error, (B, C, *S)."""
    return masked_mean(torch.square(output - target), weight)
