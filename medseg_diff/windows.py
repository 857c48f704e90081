"""Windows over a scan's grid, and the canvas on which their answers are blended.

Legend: K classes or regions, N draws, *S spatial axes (always three here).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from monai.data.utils import compute_importance_map, dense_patch_slices
from numpy.typing import NDArray

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
    """Weighted sums over windows, and each draw's mask by its nearest window.

    Args:
        size: Voxels along each axis.
        patch: Size of a window.
        channels: K.
        structures: Planes of a draw's mask.
        members: N.
    """

    def __init__(
        self,
        size: Sequence[int],
        patch: Sequence[int],
        channels: int,
        structures: int,
        members: int,
    ) -> None:
        self.probability = np.zeros((channels, *size), np.float32)
        self.variance = np.zeros(size, np.float32)
        self.entropy = np.zeros(size, np.float32)
        self.masks = np.zeros((structures, *size, (members + 7) // 8), np.uint8)
        self._weight = np.zeros(size, np.float32)
        self._nearest = np.zeros(size, np.float32)
        self._importance = importance(patch)

    def paste(self, place: Place, answer: WindowAnswer) -> None:
        """Add one window's answer."""
        weight = self._importance
        self.probability[:, *place] += weight * answer.probability
        self.variance[place] += weight * answer.variance.mean(0)
        self.entropy[place] += weight * answer.entropy
        self._weight[place] += weight
        # A draw's own mask takes each voxel from the window it lies most central in.
        closer = weight > self._nearest[place]
        np.maximum(self._nearest[place], weight, out=self._nearest[place])
        np.copyto(self.masks[:, *place], answer.masks, where=closer[None, ..., None])

    def blended(self, values: Array) -> Array:
        """Weighted sums (..., *S) -> weighted means."""
        result: Array = values / self._weight
        return result


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
    padding = [(0, 0)] + [(0, max(0, p - n)) for n, p in zip(shape, patch, strict=True)]
    return np.pad(image, padding, mode="edge"), tuple(shape)
