"""A scan as a model sees it, and what it takes of the memory.

Legend: C image channels (coordinates included), *S the model's grid, *T the scan's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from numpy.typing import NDArray

from medseg_diff import io, memory
from medseg_diff.config import Config, PlanConfig, PredictionConfig, TaskConfig
from medseg_diff.data.fingerprint import DRAWING_MAPS_PER_LEVEL, step_bytes
from medseg_diff.data.transforms import (
    ends_of,
    load_image,
    network_input,
    normalise,
    to_model_grid,
    to_scan_grid,
)
from medseg_diff.errors import InputError
from medseg_diff.inference import sanity
from medseg_diff.model import SegmentationModel


@dataclass(frozen=True)
class PlacedScan:
    """One scan, placed and normalised; of its images as read only the grids are kept.

    Attributes:
        values: What the network sees, (C, *S) float32.
        image: The grid of the scan as it was read, (C', *T), without voxels.
        placed: The grid of the model, which remembers how the scan came there, without voxels.
        pipeline: The transforms that placed it.
        warnings: What its reader and its intensities have to say.
        constant: Whether it shows nothing.
        file: First channel's file.
        ends: Of each plane, the values that its normalisation brought to -1 and 1; empty where one
            is no normalisation by percentile or range.
    """

    values: NDArray[np.float32]
    image: MetaTensor
    placed: MetaTensor
    pipeline: Compose
    warnings: tuple[str, ...]
    constant: bool
    file: Path
    ends: tuple[tuple[float, float], ...] = ()


def read_scan(
    channels: Mapping[str, Path],
    task: TaskConfig,
    plan: PlanConfig,
    options: io.ReadOptions,
    free_bytes: int,
    before: Callable[[MetaTensor], MetaTensor] | None = None,
) -> PlacedScan:
    """Read, check, place and normalise one scan.

    Args:
        channels: File of each channel.
        task: What the channels are.
        plan: The model's grid and intensities.
        options: How to read odd files.
        free_bytes: Memory that reading may take.
        before: Changes the image as read, before anything looks at its values.

    Raises:
        InputError: if it cannot be read, does not fit the model, or not the memory.
    """
    file = next(iter(channels.values()))
    for path in channels.values():
        voxels = io.count_voxels(path, options)
        if voxels is not None:
            memory.check_reading(voxels, free_bytes, path)
    image = load_image(channels, task, options)
    return place(image if before is None else before(image), task, plan, file)


def place(image: MetaTensor, task: TaskConfig, plan: PlanConfig, file: Path) -> PlacedScan:
    """Check, place and normalise a scan that was read.

    Args:
        image: As read, (C, *T) in the task's order of channels.
        task: Says the modality.
        plan: Geometry and intensities of the model's grid.
        file: Named in refusals.

    Raises:
        InputError: if it does not fit the model.
    """
    check_depth(image, plan, file)
    warnings = [*image.meta.get("warnings", ()), *sanity.of_intensities(image, task.modality)]
    constant, pipeline = sanity.is_constant(image), to_model_grid(plan)
    placed: MetaTensor = pipeline(image)
    image, specs = _grid_of(image), plan.normalisation or ()
    found = np.asarray(placed, dtype=np.float32)
    values = network_input(normalise(found, specs), plan)
    linear = all(spec.kind in ("percentile", "range") for spec in specs)
    ends = tuple(map(ends_of, found, specs)) if linear else ()
    grid = _grid_of(placed)
    return PlacedScan(values, image, grid, pipeline, tuple(warnings), constant, file, ends)


def _grid_of(image: MetaTensor) -> MetaTensor:
    """An image's shape, place and history; all its voxels share one number's memory."""
    hollow = MetaTensor(torch.zeros(()).expand(image.shape), meta=dict(image.meta))
    hollow.affine = image.affine
    hollow.applied_operations = list(image.applied_operations)
    return hollow


def check_depth(image: MetaTensor, plan: PlanConfig, file: Path) -> None:
    """Refuse flat images (C, *T) for a 3-D model."""
    shape = tuple(image.shape[1:])
    if plan.spatial_dims == 3 and (len(shape) == 2 or min(shape) == 1):
        raise InputError(
            "a 3-D model needs a volume",
            file=file,
            field="shape",
            found="x".join(map(str, shape)),
            expected="three axes of at least 2 voxels",
            remedy="give the whole volume, or use a 2-D model",
        )


def need_of(
    scan: PlacedScan,
    config: Config,
    members: Sequence[SegmentationModel],
    settings: PredictionConfig,
    *,
    maps: bool,
    save_draws: bool,
) -> memory.Need:
    """What a scan takes of the memory when these members draw its masks."""
    codec = members[0].codec
    patch = tuple(config.prediction.window or config.plan.patch_size or ())
    draws = sum(settings.draws if member.stochastic else 1 for member in members)
    return memory.Need(
        model_shape=tuple(scan.values.shape[1:]),
        scan_voxels=math.prod(scan.image.shape[1:]),
        planes=len(scan.values),
        channels=codec.channels,
        structures=codec.structures,
        draws=draws,
        patch=patch,
        batch=settings.batch_size,
        sample_bytes=step_bytes(patch, config.model, DRAWING_MAPS_PER_LEVEL),
        maps=maps,
        save_draws=save_draws,
        whole=settings.settle is not None or settings.fuse in ("majority", "staple"),
    )


def back(values: NDArray[np.float32], placed: PlacedScan) -> NDArray[np.float32]:
    """One map on the model's grid -> the scan's grid, (*S)."""
    carried = torch.from_numpy(np.ascontiguousarray(values))[None]
    result: NDArray[np.float32] = to_scan_grid(carried, placed.placed, placed.pipeline)[0].numpy()
    return result


def on_grid(values: NDArray[np.float32], placed: PlacedScan) -> MetaTensor:
    """An image's planes (K, *S) with the place of the scan that they belong to."""
    meta = {key: value for key, value in placed.placed.meta.items() if key != "affine"}
    kept = torch.from_numpy(np.ascontiguousarray(values, np.float32))
    return MetaTensor(kept, affine=placed.placed.meta["original_affine"], meta=meta)
