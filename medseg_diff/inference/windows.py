"""Windows over a scan's grid, and the canvas on which their answers are blended.

Legend: K classes or regions, N draws, *S spatial axes (always three here).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from monai.data.utils import compute_importance_map, dense_patch_slices
from numpy.typing import NDArray

from medseg_diff.inference.draws import packed

Array = NDArray[np.float32]
Bits = NDArray[np.uint8]
Place = tuple[slice, ...]


@dataclass(frozen=True)
class WindowAnswer:
    """One window's draws, fused.

    Attributes:
        probability: (K, *S).
        variance: Variance between draws, (K, *S).
        entropy: Mean entropy of the single draws, (*S).
        masks: The draws' own masks, one bit each, (structures, *S, bytes).
    """

    probability: Array
    variance: Array
    entropy: Array
    masks: Bits


class Canvas:
    """Weighted means over windows, and each draw's mask by its nearest window.

    Windows come in the order of their first axis, so weighted sums are held only for the rows that
    a later window may still reach; rows behind them are divided by their weights and kept. After
    the last window comes :meth:`finish`.

    Args:
        size: Voxels along each axis, (S0, S1, S2).
        patch: Size of a window.
        channels: K.
        structures: Planes of a draw's mask.
        members: N.
        shape: Part of the grid that is kept; all of it by default.
        compact: Keep probabilities as 16-bit fixed point, see :class:`.draws.Fused`.

    Attributes:
        probability: (K, *shape), float32 or uint16.
        variance: Averaged over K, (*shape).
        entropy: (*shape).
        masks: (structures, *size, bytes).
    """

    def __init__(
        self,
        size: Sequence[int],
        patch: Sequence[int],
        channels: int,
        structures: int,
        members: int,
        *,
        shape: Sequence[int] | None = None,
        compact: bool = False,
    ) -> None:
        self.shape = tuple(size if shape is None else shape)
        kind = np.uint16 if compact else np.float32
        self.probability: NDArray[Any] = np.zeros((channels, *self.shape), kind)
        self.variance = np.zeros(self.shape, np.float32)
        self.entropy = np.zeros(self.shape, np.float32)
        self.masks = np.zeros((structures, *size, (members + 7) // 8), np.uint8)
        # Of the rows from `_row` on: K probabilities, variance, entropy, weight, nearest weight.
        self._row, self._rows = 0, size[0]
        self._open = np.zeros((channels + 4, patch[0], *size[1:]), np.float32)
        self._importance = importance(patch)

    def paste(self, place: Place, answer: WindowAnswer) -> None:
        """Add one window's answer; its first row is at least that of the window before."""
        if place[0].start > self._row:
            self._finish(place[0].start)
        weight, here = self._importance, (slice(None), *place[1:])
        *_, variance, entropy, weights, nearest = self._open
        self._open[:-4, *here] += weight * answer.probability
        variance[here] += weight * answer.variance.mean(0)
        entropy[here] += weight * answer.entropy
        weights[here] += weight
        # A draw's own mask takes each voxel from the window it lies most central in.
        closer = weight > nearest[here]
        np.maximum(nearest[here], weight, out=nearest[here])
        np.copyto(self.masks[:, *place], answer.masks, where=closer[None, ..., None])

    def finish(self) -> None:
        """Close the rows that are still open."""
        self._finish(self._rows)

    def _finish(self, end: int) -> None:
        """Keep the rows before ``end``, and move those behind them up."""
        done = end - self._row
        kept = min(end, self.shape[0]) - self._row
        inside = (slice(0, max(kept, 0)), *(slice(0, n) for n in self.shape[1:]))
        rows = slice(self._row, self._row + max(kept, 0))
        weights = self._open[-2][inside]
        for k, plane in enumerate(self._open[:-2]):
            mean = plane[inside] / weights
            if k < len(self.probability):
                self.probability[k, rows] = packed(mean, self.probability.dtype)
            else:
                (self.variance if k == len(self.probability) else self.entropy)[rows] = mean
        for plane in self._open:
            plane[: len(plane) - done] = plane[done:]
            plane[len(plane) - done :] = 0
        self._row = end


def windows(shape: Sequence[int], patch: Sequence[int], overlap: float) -> list[Place]:
    """Windows that cover a grid, each of ``patch`` voxels, by MONAI's geometry."""
    step = [max(1, int(n * (1 - overlap))) if n > 1 else 1 for n in patch]
    found: list[Place] = dense_patch_slices(shape, patch, step)
    return found


def grouped(places: Sequence[Place], size: int) -> Iterator[Sequence[Place]]:
    """Runs of up to ``size`` windows."""
    for start in range(0, len(places), size):
        yield places[start : start + size]


def is_flat(place: Place) -> bool:
    """Whether a window is one slice, for a 2-D network."""
    return place[-1].stop - place[-1].start == 1


def importance(patch: Sequence[int]) -> Array:
    """Gaussian weights of a window, never zero."""
    weights = compute_importance_map(tuple(patch), mode="gaussian", sigma_scale=0.125)
    result: Array = np.asarray(weights, dtype=np.float32)
    return result.clip(min=1e-3 * float(result.max()))


def pad_to(image: Array, patch: Sequence[int]) -> tuple[Array, tuple[int, ...]]:
    """Repeat the far edge until a window fits; also the shape to crop back to."""
    shape = image.shape[1:]
    if all(n >= p for n, p in zip(shape, patch, strict=True)):
        return image, tuple(shape)
    padding = [(0, 0)] + [(0, max(0, p - n)) for n, p in zip(shape, patch, strict=True)]
    return np.pad(image, padding, mode="edge"), tuple(shape)
