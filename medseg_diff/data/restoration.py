"""Sources made from their own target: a coarser image, or one with a hole. Arrays in, arrays out.

*Coarser*: along each chosen axis voxels are averaged in blocks (the last one takes what is left),
and the means come back to the grid by linear interpolation between the blocks' centres; beyond the
outermost centres they stay constant. Grid, constants and (between centres) ramps are kept. It
stands for thick slices with a box profile; noise is not changed beside the averaging.

*Hole*: a box or an ellipsoid, either with the same chance, somewhere in the patch. Its voxels
become 0, the middle of the range, and a further plane says where it is: 1 inside, 0 outside.

Legend: C channels, *S spatial axes (2 or 3), N voxels along one axis.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medseg_diff.config import RestorationConfig

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]


def degraded(image: Array, factor: int, axes: Sequence[int]) -> Array:
    """An image (C, *S) made coarser by ``factor`` along spatial axes, on the same grid.

    Axes of one voxel, or beyond the image's, stay as they are.

    Raises:
        ValueError: if the factor is below 2.
    """
    if factor < 2:
        raise ValueError(f"an image is made coarser by a factor of 2 or more, not {factor}")
    result = image.astype(np.float64)
    for axis in axes:
        if axis < image.ndim - 1 and image.shape[1 + axis] > 1:
            matrix = coarsening(image.shape[1 + axis], factor)
            moved = np.moveaxis(result, 1 + axis, -1) @ matrix.T
            result = np.moveaxis(moved, -1, 1 + axis)
    return np.ascontiguousarray(result, np.float32)


def coarsening(voxels: int, factor: int) -> NDArray[np.float64]:
    """Block means and their linear interpolation as one matrix (N, N); its rows sum to 1."""
    block = np.arange(voxels) // factor
    count = int(block[-1]) + 1
    mean = (block[None, :] == np.arange(count)[:, None]).astype(np.float64)
    mean /= mean.sum(1, keepdims=True)
    centres = mean @ np.arange(voxels)
    weights = np.stack(
        [np.interp(np.arange(voxels), centres, np.eye(count)[k]) for k in range(count)], axis=1
    )
    return np.asarray(weights @ mean)


def random_hole(shape: Sequence[int], sides: tuple[float, float], rng: np.random.Generator) -> Mask:
    """A box or an ellipsoid, (*S); at least one voxel of it.

    Args:
        shape: *S.
        sides: Lowest and highest share of each axis that it spans.
        rng: Draws kind, size and place.
    """
    rounded = rng.random() < 0.5
    lengths = [max(1, round(n * rng.uniform(*sides))) for n in shape]
    starts = [int(rng.integers(0, n - m + 1)) for n, m in zip(shape, lengths, strict=True)]
    hole = np.zeros(tuple(shape), bool)
    box = tuple(slice(s, s + m) for s, m in zip(starts, lengths, strict=True))
    inside = np.ones(tuple(lengths), bool)
    if rounded:
        # From -1 to 1 between the box's faces; a box of one voxel is all inside.
        places = [(np.arange(m) + 0.5) / m * 2 - 1 for m in lengths]
        squares = [np.square(p) for p in places]
        inside = np.stack(np.meshgrid(*squares, indexing="ij")).sum(0) <= 1
    hole[box] = inside
    return hole


def with_hole(image: Array, hole: Mask) -> Array:
    """An image (C, *S) as the network sees it, (C + 1, *S): 0 in the hole, whose plane is last."""
    seen = np.where(hole, np.float32(0), image)
    return np.concatenate([seen, hole[None].astype(np.float32)])


def training_source(target: Array, wanted: RestorationConfig, rng: np.random.Generator) -> Array:
    """The source of a patch (C, *S), by the sample's own randomness; of inpainting (C + 1, *S)."""
    if wanted.kind == "inpainting":
        return with_hole(target, random_hole(target.shape[1:], wanted.hole_sides, rng))
    factor = wanted.factors[int(rng.integers(len(wanted.factors)))]
    return degraded(target, factor, wanted.axes)


def validation_source(
    target: Array, wanted: RestorationConfig, case: str, patch: Sequence[int]
) -> Array:
    """The source of a whole scan (C, *S): the largest factor, or the hole that its name draws."""
    if wanted.kind == "inpainting":
        return with_hole(target, validation_hole(target.shape[1:], wanted, case, patch))
    return degraded(target, max(wanted.factors), wanted.axes)


def validation_hole(
    shape: Sequence[int], wanted: RestorationConfig, case: str, patch: Sequence[int]
) -> Mask:
    """The hole that a case's name draws in the patch in the middle of its scan, (*S)."""
    rng = np.random.default_rng(zlib.crc32(case.encode()))
    sizes = [min(n, p) for n, p in zip(shape, (*patch, 1), strict=False)]
    starts = [(n - size) // 2 for n, size in zip(shape, sizes, strict=True)]
    hole = np.zeros(tuple(shape), bool)
    middle = tuple(slice(s, s + size) for s, size in zip(starts, sizes, strict=True))
    hole[middle] = random_hole(sizes, wanted.hole_sides, rng)
    return hole
