"""The draws of one case: their masks at one bit a voxel, and what can be said of them all.

Legend: N draws, K classes or regions, *S spatial axes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from medseg_diff.fusion import (
    PairwiseDice,
    boundary_doubt_mm,
    interval_of_volumes,
    staple_labels,
    staple_mask,
)

Array = NDArray[np.float32]
# A probability of 1 in 16 bits of fixed point: rounding moves it by at most 7.6e-6.
ONE = 65535
# Voxels worked on at a time where whole maps would not fit the memory.
BLOCK = 2**20
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class StructureDraws:
    """One structure's masks (*S), unpacked one draw at a time; may be gone through again."""

    draws: DrawMasks
    structure: int

    def __iter__(self) -> Iterator[BoolArray]:
        for part, count in zip(self.draws.parts, self.draws.counts, strict=True):
            for draw in range(count):
                yield _bit(part[self.structure], draw)


def _bit(packed: NDArray[np.uint8], draw: int) -> BoolArray:
    """One draw of packed masks (..., bytes)."""
    byte, bit = divmod(draw, 8)
    result: BoolArray = (packed[..., byte] >> (7 - bit) & 1).astype(bool)
    return result


@dataclass(frozen=True)
class DrawMasks:
    """Masks of N draws, packed.

    Attributes:
        parts: Arrays (structures, *S, bytes), draws along the bits of the last axis.
        counts: Draws in each part.
    """

    parts: tuple[NDArray[np.uint8], ...]
    counts: tuple[int, ...]

    def __len__(self) -> int:
        return sum(self.counts)

    def __iter__(self) -> Iterator[NDArray[np.bool_]]:
        """Each draw's mask, (structures, *S)."""
        for part, count in zip(self.parts, self.counts, strict=True):
            for draw in range(count):
                yield _bit(part, draw)

    def of(self, structure: int) -> StructureDraws:
        """The masks of one structure."""
        return StructureDraws(self, structure)

    def labels(self) -> Iterator[NDArray[np.uint8]]:
        """Each draw of exclusive classes as numbers of channels, (*S); 0 is the background."""
        for mask in self:
            yield (mask * np.arange(1, len(mask) + 1)[:, None, None, None]).sum(0, dtype=np.uint8)

    def slabs(self) -> Iterator[NDArray[np.bool_]]:
        """All draws of one slice along the first axis at a time, (structures, *S[1:], N)."""
        for index in range(self.parts[0].shape[1]):
            bits = [
                np.unpackbits(part[:, index], axis=-1, count=count)
                for part, count in zip(self.parts, self.counts, strict=True)
            ]
            yield np.concatenate(bits, axis=-1).astype(bool)

    def voxels(self) -> NDArray[np.int64]:
        """Size of each draw's structures, (structures, N)."""
        structures = self.parts[0].shape[0]
        sums = [slab.reshape(structures, -1, len(self)).sum(1) for slab in self.slabs()]
        total: NDArray[np.int64] = np.sum(sums, axis=0, dtype=np.int64)
        return total

    def pairwise_dice(self) -> list[float]:
        """Mean Dice between pairs of draws, per structure; nan for one draw."""
        structures = self.parts[0].shape[0]
        spread = PairwiseDice(len(self), structures)
        for slab in self.slabs():
            spread.add(slab.reshape(structures, -1, len(self)))
        return spread.mean()


def packed(values: Array, kind: Any) -> NDArray[Any]:
    """Probabilities as they are kept: float32, or uint16 in units of 1 / ``ONE``."""
    if kind == np.float32:
        return values
    return np.rint(values * np.float32(ONE)).clip(0, ONE).astype(kind)


def unpacked(values: NDArray[Any]) -> Array:
    """Kept probabilities as float32."""
    result: Array = values if values.dtype == np.float32 else values * np.float32(1 / ONE)
    return result


def blocks(shape: Sequence[int]) -> Iterator[slice]:
    """Runs of rows along the first axis of (*S), about ``BLOCK`` voxels each."""
    step = max(1, BLOCK // max(1, math.prod(shape[1:])))
    return (slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step))


@dataclass(frozen=True)
class Fused:
    """The ensemble's answer on the model grid.

    Attributes:
        probability: The fusion rule's, (K, *S); the mean over draws unless asked otherwise.
            float32, or uint16 (``ONE`` is 1) where memory is short; :meth:`plane` reads both.
        variance: Variance between draws, averaged over K, (*S).
        entropy: Mean entropy of the single draws in [0, 1], (*S): what each draw doubts by itself.
        masks: Every draw's own mask.
        network_calls: Forward passes of each network: ``{"context": n, "denoiser": n}``, counted
            per window and draw, however they were batched.
        rates: What STAPLE found of each draw, by name; empty for other rules.
    """

    probability: NDArray[Any]
    variance: Array
    entropy: Array
    masks: DrawMasks
    network_calls: dict[str, int]
    rates: dict[str, Any] = field(default_factory=dict)

    def plane(self, channel: int) -> Array:
        """One channel's probability, (*S) float32."""
        return unpacked(self.probability[channel])

    @cached_property
    def pairwise_dice(self) -> list[float]:
        """Mean Dice between pairs of draws, per foreground structure; nan for one."""
        return self.masks.pairwise_dice()

    def joined(self, later: Fused) -> Fused:
        """The answer of these draws and of later ones of the same models.

        Means weigh by draws; the variance is Chan's for two samples (1979), voxel by voxel.
        """
        ours, theirs = len(self.masks), len(later.masks)
        share = np.float32(theirs / (ours + theirs))
        apart = (later.probability - self.probability) ** 2
        between = share * (1 - share) * apart.mean(0)
        return replace(
            self,
            probability=self.probability + share * (later.probability - self.probability),
            variance=self.variance + share * (later.variance - self.variance) + between,
            entropy=self.entropy + share * (later.entropy - self.entropy),
            masks=DrawMasks(
                (*self.masks.parts, *later.masks.parts), (*self.masks.counts, *later.masks.counts)
            ),
            network_calls={k: n + later.network_calls[k] for k, n in self.network_calls.items()},
        )


def expected_change(fused: Fused, *, exclusive: bool) -> float:
    """Voxels of the mask that endless further draws are expected to change, by the mask's size.

    The mean over N draws is taken to be normal about its limit, so a voxel changes sides with
    probability Phi(-m / s), where m is its margin (between the two likeliest classes, or of the
    region nearest to 1/2) and s the margin's standard error. Only the variance summed over
    channels is kept, so s is an upper bound (exact for two classes), and so is the answer.

    Returns:
        At least 0; infinite for fewer than two draws.
    """
    draws = len(fused.masks)
    if draws < 2:
        return float("inf")
    changed, size = 0.0, 0
    for rows in blocks(fused.variance.shape):
        p = unpacked(fused.probability[:, rows])
        total = fused.variance[rows] * len(p) / (draws - 1)
        if exclusive:
            second, first = np.partition(p, len(p) - 2, axis=0)[-2:]
            margin, error = first - second, np.sqrt(2 * total)
            size += int((p.argmax(0) != 0).sum())
        else:
            margin, error = np.abs(p - 0.5).min(0), np.sqrt(total)
            size += int((p > 0.5).any(0).sum())
        moving = error > 1e-6
        changed += float(ndtr(-margin[moving].astype(np.float64) / error[moving]).sum())
    return changed / max(size, 1)


def fuse_masks(fused: Fused, rule: Literal["majority", "staple"], *, exclusive: bool) -> Fused:
    """The same answer with its probability made from the draws' masks.

    Majority: the share of draws (a tie goes to the background, or to the first class). STAPLE:
    the posterior, binary for each region and where there is one structure, multi-label for more;
    its iterations, and each draw's sensitivity (and, where binary, specificity) go to ``rates``.
    """
    structures = len(fused.probability) - (1 if exclusive else 0)
    if rule == "majority":
        planes = np.zeros((structures, *fused.variance.shape), np.float32)
        for mask in fused.masks:
            planes += mask
        planes /= len(fused.masks)
        return replace(fused, probability=_with_background(planes, exclusive))
    if exclusive and structures > 1:
        labels = staple_labels(fused.masks.labels(), structures + 1)
        rates: dict[str, Any] = {
            "sensitivity": labels.confusion.diagonal(axis1=1, axis2=2)[:, 1:].T.tolist(),
            "iterations": labels.iterations,
            "converged": labels.converged,
        }
        return replace(fused, probability=labels.probability, rates=rates)
    found = [staple_mask(fused.masks.of(k)) for k in range(structures)]
    rates = {
        "sensitivity": [one.sensitivity.tolist() for one in found],
        "specificity": [one.specificity.tolist() for one in found],
        "iterations": max(one.iterations for one in found),
        "converged": all(one.converged for one in found),
    }
    planes = np.stack([one.probability for one in found])
    return replace(fused, probability=_with_background(planes, exclusive), rates=rates)


def _with_background(planes: Array, exclusive: bool) -> Array:
    if not exclusive:
        return planes
    result: Array = np.concatenate([1 - planes.sum(0, keepdims=True), planes]).astype(np.float32)
    return result


def doubt_of_structures(
    masks: DrawMasks, names: Sequence[str], spacing_mm: Sequence[float]
) -> dict[str, dict[str, float | None]]:
    """What the draws say of each structure: its volume with an interval, its boundary's doubt.

    Args:
        masks: The draws, on a grid of this spacing.
        names: Names of the structures, in the masks' order.
        spacing_mm: Voxel size along each axis.

    Returns:
        Per name ``mean_ml``, ``low_ml``, ``high_ml`` (2.5 and 97.5 percentile over draws) and
        ``boundary_doubt_mm`` (None for one draw, or where most draws are empty).
    """
    volumes = masks.voxels() * float(np.prod(spacing_mm)) / 1000
    found = {}
    for k, name in enumerate(names):
        moved = boundary_doubt_mm(masks.of(k), spacing_mm) if len(masks) > 1 else math.nan
        shown = None if math.isnan(moved) else moved
        found[name] = {**asdict(interval_of_volumes(volumes[k])), "boundary_doubt_mm": shown}
    return found
