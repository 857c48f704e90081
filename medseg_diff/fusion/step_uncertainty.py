"""Fusion of every step of every draw: step-uncertainty fusion, and the plain sum of steps.

Legend: N draws, I steps of a draw, K classes or regions, *S spatial axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
SufVariant = Literal["code", "paper"]


class StepUncertainty:
    """Step-uncertainty fusion (SUF) of Diff-UNet (arXiv 2303.10326): every step of every draw.

    Clean estimates x0 lie in [-1, 1]; i = 1 ... I counts a draw's steps from the noisiest. Both
    variants weigh a step by the doubt u_i of its mean over draws, voxel by voxel and channel by
    channel, later steps more:

        w_i = exp(sigmoid(i / I) (1 - u_i))

    ``"code"`` is the released BraTS test, opened at commit d277278 (I = 10, N = 4):

        p_i = sigmoid(mean over draws of logits), floored at 0.001;  u_i = -p_i log p_i
        Y = sum_i w_i sum over draws of clip(x0, -1, 1);  mask where Y > 0

    ``"paper"`` has the same u_i, of the mean probability p_i without a floor, and Y = sum_i w_i
    p_i, as the formula is quoted in the repository's issue 13; its text was not at hand.

    Readings of ours: i / 10 as i / I, where I is not 10; the paper's Y divided by sum_i w_i, so
    that it is a probability; and what exclusive classes do, see :meth:`probability`.

    Draws come one after another. Only sums per step are kept, so memory grows with I, not with N.

    Args:
        variant: ``"code"`` or ``"paper"``.
    """

    def __init__(self, variant: SufVariant = "code") -> None:
        if variant not in get_args(SufVariant):
            raise ValueError(f"variant must be one of {get_args(SufVariant)}, not {variant!r}")
        self.variant = variant
        self._counts: list[int] = []
        self._clean: list[Array] = []
        self._logits: list[Array] = []

    def add(self, step: int, clean: Array, logits: Array | None = None) -> None:
        """Take one step of one draw.

        Args:
            step: 0 for the noisiest; a draw's steps come in order.
            clean: Clean estimate (K, *S), clipped to [-1, 1] here.
            logits: What it was made from, same shape, each channel's own log odds. None takes
                the log odds of (clean + 1) / 2; ``"paper"`` does without.
        """
        if not 0 <= step <= len(self._counts):
            raise ValueError(f"step {len(self._counts)} of the draw comes next, not {step}")
        clean = np.clip(clean, -1, 1).astype(np.float32)
        if logits is None:
            logits = _log_odds(clean)
        if step == len(self._counts):
            self._counts.append(0)
            self._clean.append(np.zeros_like(clean))
            if self.variant == "code":
                self._logits.append(np.zeros_like(clean))
        self._counts[step] += 1
        self._clean[step] += clean
        if self.variant == "code":
            self._logits[step] += logits

    def weights(self) -> list[Array]:
        """w_i of each step, noisiest first, (K, *S) each."""
        draws, steps = self._draws(), len(self._counts)
        found = []
        for index in range(steps):
            if self.variant == "code":
                p = np.maximum(_sigmoid(self._logits[index] / np.float32(draws)), 1e-3)
            else:
                p = self._mean_probability(index)
            doubt = -p * np.log(np.maximum(p, 1e-12))
            late = 1 / (1 + math.exp(-(index + 1) / steps))
            found.append(np.exp(late * (1 - doubt)).astype(np.float32))
        return found

    def evidence(self) -> Array:
        """Y, (K, *S): a signed sum (``"code"``), or a probability (``"paper"``)."""
        weights = self.weights()
        if self.variant == "code":
            return _sum([w * clean for w, clean in zip(weights, self._clean, strict=True)])
        parts = [w * self._mean_probability(index) for index, w in enumerate(weights)]
        share: Array = _sum(parts) / _sum(weights)
        return share

    def probability(self, *, exclusive: bool) -> Array:
        """Map in [0, 1], (K, *S).

        Regions: sigmoid(Y) for ``"code"``, as released, and Y itself for ``"paper"``. Exclusive
        classes, which neither source treats: the softmax of Y, whose argmax is Y's, and Y divided
        by its sum over classes. The code's Y sums N I values, so its map is close to a mask: read
        doubt off the draws, not off it.
        """
        evidence = self.evidence()
        if self.variant == "code":
            return _squashed(evidence, exclusive)
        if not exclusive:
            return evidence
        result: Array = evidence / np.maximum(evidence.sum(0, keepdims=True), 1e-12)
        return result.astype(np.float32)

    def _draws(self) -> int:
        """N, the same for every step."""
        if not self._counts:
            raise ValueError("no step was added")
        if len(set(self._counts)) > 1:
            raise ValueError(f"a draw is not finished: its steps were added {self._counts} times")
        return self._counts[0]

    def _mean_probability(self, index: int) -> Array:
        mean = self._clean[index] / np.float32(self._counts[index])
        return ((mean + 1) / 2).astype(np.float32)


class StepSum:
    """Plain sum of the clipped clean estimates of all steps, as Diff-UNet's released BTCV test.

    That test takes one draw; more draws add up here. One array is kept.
    """

    def __init__(self) -> None:
        self._sum: Array | None = None

    def add(self, step: int, clean: Array, logits: Array | None = None) -> None:
        """Take one step: see :meth:`StepUncertainty.add`, of which only ``clean`` counts."""
        clipped = np.clip(clean, -1, 1).astype(np.float32)
        self._sum = clipped if self._sum is None else self._sum + clipped

    def evidence(self) -> Array:
        """Y, (K, *S); the mask of regions is where it is above 0."""
        if self._sum is None:
            raise ValueError("no step was added")
        return self._sum

    def probability(self, *, exclusive: bool) -> Array:
        """sigmoid(Y) for regions, as released; softmax(Y) for exclusive classes, a reading."""
        return _squashed(self.evidence(), exclusive)


def _sum(arrays: Sequence[Array]) -> Array:
    total = np.zeros_like(arrays[0])
    for array in arrays:
        total += array
    return total


def _sigmoid(values: Array) -> Array:
    """Logistic function by tanh, which cannot overflow."""
    return ((np.tanh(values / 2) + 1) / 2).astype(np.float32)


def _log_odds(clean: Array) -> Array:
    """log(p / (1 - p)) of p = (clean + 1) / 2, kept finite: within about +- 14."""
    inside = np.clip(clean, -1 + 1e-6, 1 - 1e-6)
    result: Array = (2 * np.arctanh(inside)).astype(np.float32)
    return result


def _squashed(evidence: Array, exclusive: bool) -> Array:
    """Softmax over the first axis, or a sigmoid each."""
    if not exclusive:
        return _sigmoid(evidence)
    powers = np.exp(evidence - evidence.max(0, keepdims=True))
    result: Array = (powers / powers.sum(0, keepdims=True)).astype(np.float32)
    return result
