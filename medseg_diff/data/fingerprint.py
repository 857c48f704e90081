"""Fingerprint of the training scans, and the plan it leads to.

The rules are nnU-Net's in spirit (Isensee et al. 2021): median spacing, a patch that covers the
median scan as far as memory allows, intensities normalised by modality. Whatever the user's
configuration already says is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import torch
from monai.transforms import Orientation
from numpy.typing import NDArray

from medseg_diff import io
from medseg_diff.config import ModelConfig, Normalisation, PlanConfig, TaskConfig
from medseg_diff.data.caselist import Case, CaseList
from medseg_diff.data.transforms import AXIS_LABELS, PERCENTILES, AddDepth, LoadCase, spacing_of
from medseg_diff.data.unreadable import Skipped
from medseg_diff.errors import InputError

# Scans looked at: medians settle long before this many.
MOST_CASES = 60
# A volume with fewer slices than this is planned in 2-D, slice by slice.
LEAST_DEPTH = 8
# Resident float32 feature maps per convolution level during a training step, gradients included.
# Measured with benchmarks/memory.py.
MAPS_PER_LEVEL = 22
# The same without gradients, while a mask is drawn.
DRAWING_MAPS_PER_LEVEL = 8
# Passes through U-Nets that a step of unpaired translation holds: two translators there and back,
# two generators.
ADVERSARIAL_PASSES = 6
LARGEST_BATCH = 16
# Wider than the usual 0.5 and 99.5: what is bright and rare in a target may be the lesion.
TARGET_PERCENTILES = (0.05, 99.95)


@dataclass(frozen=True)
class Fingerprint:
    """What was measured on the training scans, in the plan's orientation.

    Attributes:
        shapes: (N, 3) voxels.
        spacings_mm: (N, 3).
        planes: Planes of each channel's file.
        foreground: For each image plane, percentile 0.5, percentile 99.5, mean and sd of the
            intensities inside the labelled structures (of a translation, everywhere), (C, 4).
        raster: True where the images are 2-D files.
        target_planes: Planes of a translation's target.
        target_range: Its percentiles 0.05 and 99.95, the lowest and the highest of all scans; of
            images alone theirs; None for a task of masks, and where each scan is restored to its
            own values.
        image_ranges: For each image plane, the medians over the scans of the percentiles that
            normalisation by percentile takes, (C, 2).
    """

    shapes: NDArray[np.int64]
    spacings_mm: NDArray[np.float64]
    planes: tuple[int, ...]
    foreground: NDArray[np.float64]
    raster: bool
    target_planes: int = 1
    target_range: tuple[float, float] | None = None
    image_ranges: tuple[tuple[float, float], ...] = ()


def task_of(cases: CaseList) -> TaskConfig:
    """What a case list asks to segment, or into what to translate."""
    return TaskConfig(
        modality=cases.modality,
        channels=tuple(cases.channels),
        labels=dict(cases.labels),
        regions=None
        if cases.regions is None
        else {name: tuple(values) for name, values in cases.regions.items()},
        ignore_label=cases.ignore_label,
        target=cases.target,
        target_modality=cases.target_modality,
    )


def planes_of(channels: Mapping[str, Path]) -> tuple[int, ...]:
    """Planes in each channel's file: 1, or 3 for RGB."""
    return tuple(len(io.read_image(path)) for path in channels.values())


def _with_target_planes(task: TaskConfig, cases: CaseList, part: Sequence[Case]) -> TaskConfig:
    """The task with the planes of the first target image that can be read."""
    if task.target is None or task.restores:
        return task
    for path in filter(None, map(cases.target_path, part)):
        try:
            return task.model_copy(update={"target_planes": len(io.read_image(path))})
        except InputError:
            continue
    raise InputError("no target image can be read", field="cases")


def _first_planes(cases: CaseList, part: Sequence[Case], skipped: Skipped) -> tuple[int, ...]:
    """Planes of the first case that can be read."""
    for case in part:
        try:
            return planes_of(cases.channel_paths(case))
        except InputError as error:
            skipped.note(case.case, str(error))
    raise InputError("no case can be read", field="cases")


def fingerprint(
    cases: CaseList,
    part: Sequence[Case],
    task: TaskConfig,
    orientation: str,
    skipped: Skipped | None = None,
) -> Fingerprint:
    """Measure up to 60 evenly chosen training cases.

    Raises:
        InputError: if one of them cannot be read and ``skipped`` does not allow it.
    """
    if not part:
        raise InputError("no training case", field="cases", remedy="give cases part 'train'")
    skipped = skipped or Skipped()
    planes = _first_planes(cases, part, skipped)
    task = task.model_copy(update={"input_channels": planes})
    task = _with_target_planes(task, cases, part)
    load = LoadCase(task)
    turn = Orientation(axcodes=orientation, labels=AXIS_LABELS)
    shapes, spacings, inside, ends, own = [], [], [], [], []
    chosen = part[:: max(1, len(part) // MOST_CASES)][:MOST_CASES]
    raster = False
    for case in chosen:
        channels, references = cases.channel_paths(case), cases.reference_paths(case)
        try:
            target = None if task.restores else cases.target_path(case)
            item = load({"channels": channels, "references": references, "target": target})
        except InputError as error:
            skipped.note(case.case, str(error))
            continue
        raster = item["image"].meta["kind"] == "raster"
        image = turn(AddDepth()(item["image"]))
        shapes.append(image.shape[1:])
        spacings.append(spacing_of(image))
        values = np.asarray(item["image"])
        own.append(np.percentile(values.reshape(len(values), -1), PERCENTILES, axis=1).T)
        if "target" in item and item["target"] is not None:
            ends.append(np.percentile(np.asarray(item["target"]), TARGET_PERCENTILES))
        elif not task.labels and not task.restores:
            ends.append(np.percentile(values, TARGET_PERCENTILES))
        labelled = np.asarray(item["label"][0]) > 0 if "label" in item else np.zeros(1, bool)
        sample = values[:, labelled] if labelled.any() else values.reshape(len(values), -1)
        inside.append(sample[:, :: max(1, sample.shape[1] // 10_000)])
    pooled = np.concatenate(inside, axis=1)
    low, high = np.percentile(pooled, [0.5, 99.5], axis=1)
    return Fingerprint(
        np.array(shapes),
        np.array(spacings),
        planes,
        np.stack([low, high, pooled.mean(1), pooled.std(1)], axis=1),
        raster,
        sum(planes) if task.restores else task.target_planes,
        _range_of(ends) if ends else None,
        tuple((float(a), float(b)) for a, b in np.median(own, axis=0)),
    )


def _range_of(ends: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """The lowest and the highest of the targets' percentiles.

    Raises:
        InputError: if the targets hold one value throughout.
    """
    low, high = float(min(e[0] for e in ends)), float(max(e[1] for e in ends))
    if high <= low:
        raise InputError(
            "the images hold one value throughout", field="target", found=low,
            expected="images with contrast",
        )  # fmt: skip
    return low, high


def complete_plan(
    plan: PlanConfig, task: TaskConfig, model: ModelConfig, found: Fingerprint
) -> PlanConfig:
    """Fill in every key of the plan that the configuration leaves open."""
    spacing = plan.spacing_mm
    if spacing is None:
        median = np.median(found.spacings_mm, axis=0)
        spacing = (float(median[0]), float(median[1]), float(median[2]))
    shape = np.median(found.shapes * found.spacings_mm / np.array(spacing), axis=0)
    dims = plan.spatial_dims or (2 if found.raster or shape.min() < LEAST_DEPTH else 3)
    if dims == 3 and found.raster:
        raise InputError(
            "a 3-D model cannot train on 2-D images",
            field="plan.spatial_dims",
            found=3,
            expected=2,
            remedy="set plan.spatial_dims: 2",
        )
    seen = shape[:dims]
    if plan.centre_crop is not None:
        if len(plan.centre_crop) != dims:
            raise InputError(
                "centre_crop has one size for each axis of the network",
                field="plan.centre_crop",
                found=list(plan.centre_crop),
                expected=f"{dims} sizes",
            )
        seen = np.minimum(seen, plan.centre_crop)
    batch = plan.batch_size
    memory_gb = plan.memory_gb or free_memory_gb() / 2
    patch = plan.patch_size or _patch_for(seen, model, memory_gb, batch or 2)
    _check_patch(patch, dims, model)
    if batch is None:
        room = memory_gb * 2**30 / step_bytes(patch, model)
        batch = int(np.clip(room, 1, LARGEST_BATCH))
    return plan.model_copy(
        update={
            "spatial_dims": dims,
            "spacing_mm": spacing,
            "patch_size": tuple(int(n) for n in patch),
            "normalisation": plan.normalisation
            or normalisation_for(task, found, invertible=model.prior is not None),
            "target_range": plan.target_range or found.target_range,
            "batch_size": batch,
        }
    )


def plan_of_scans(plan: PlanConfig, found: Fingerprint) -> PlanConfig:
    """What a model of scans has to know besides of a complete plan: their units and their files."""
    specs = plan.normalisation or ()
    own = [
        spec.clip if spec.kind == "range" and spec.clip is not None else ends
        for spec, ends in zip(specs, found.image_ranges, strict=True)
    ]
    raster = found.raster if plan.raster is None else plan.raster
    return plan.model_copy(
        update={"image_ranges": plan.image_ranges or tuple(own), "raster": raster}
    )


def free_memory_gb() -> float:
    """Free memory of the GPU if there is one, else of the machine, in GiB."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0] / 2**30
    return float(psutil.virtual_memory().available) / 2**30


def normalisation_for(
    task: TaskConfig, found: Fingerprint, *, invertible: bool = False
) -> tuple[Normalisation, ...]:
    """MR: z-score inside the foreground. CT: clip to labelled percentiles, then z-score. RGB:
    z-score per plane. Other: z-score over the image.

    Where images are translated or made, they share units in about [-1, 1], which can be undone
    (``invertible``): CT by fixed percentiles of the training scans, all else by the image's own.
    """
    if task.target is not None or invertible:
        if task.modality == "CT":
            labelled = [(low, high) for low, high, *_ in found.foreground.tolist()]
            return tuple(
                Normalisation(kind="range", clip=(low, max(high, low + 1e-6)))
                for low, high in (found.image_ranges if invertible else labelled)
            )
        return tuple(Normalisation(kind="percentile") for _ in range(sum(found.planes)))
    if task.modality == "CT":
        return tuple(
            Normalisation(kind="ct", clip=(low, high), mean=mean, sd=max(sd, 1e-6))
            for low, high, mean, sd in found.foreground.tolist()
        )
    kind: Literal["zscore_foreground", "zscore"] = (
        "zscore_foreground" if task.modality == "MR" else "zscore"
    )
    return tuple(Normalisation(kind=kind) for _ in range(sum(found.planes)))


def step_bytes(
    patch: Sequence[int], model: ModelConfig, maps_per_level: float = MAPS_PER_LEVEL
) -> float:
    """Estimated memory of one sample's training step, or with other maps of drawing a mask."""
    widths = [model.features]
    if model.adversarial is not None and maps_per_level == MAPS_PER_LEVEL:
        widths *= ADVERSARIAL_PASSES
    if model.kind == "diffusion" and model.conditioner != "none":
        widths.append(model.conditioner_features or model.features)
    voxels, blocks = float(np.prod(patch)), 0.0
    if model.denoiser == "dit":
        # Every block's maps lie on the grid of tokens; beside the MLP's four there are about as
        # many again.
        widths.remove(model.features)
        blocks = 8 * sum(model.features) / model.token_size ** len(patch)
    maps = blocks + sum(
        width / 2 ** (len(patch) * level) for row in widths for level, width in enumerate(row)
    )
    return 4 * maps_per_level * maps * voxels


def _multiple(model: ModelConfig) -> int:
    """What a patch's sizes are multiples of: the coarsest cell of the network's grid."""
    pyramid = 1 if model.conditioner == "none" else 2 ** (len(model.features) - 1)
    if model.denoiser == "dit":
        return math.lcm(model.token_size, pyramid)
    return 2 ** (len(model.features) - 1)


def _patch_for(
    shape: NDArray[np.float64], model: ModelConfig, memory_gb: float, batch: int
) -> tuple[int, ...]:
    """The median scan rounded to the network's multiple, shrunk until a batch fits."""
    factor = _multiple(model)
    patch = [max(2 * factor, round(float(n) / factor) * factor) for n in shape]
    while step_bytes(patch, model) * batch > memory_gb * 2**30 and max(patch) > 2 * factor:
        patch[int(np.argmax(patch))] -= factor
    return tuple(patch)


def _check_patch(patch: Sequence[int], dims: int, model: ModelConfig) -> None:
    factor = _multiple(model)
    if len(patch) != dims or any(n % factor or n < 2 * factor for n in patch):
        raise InputError(
            "the patch does not suit the network",
            field="plan.patch_size",
            found=list(patch),
            expected=f"{dims} multiples of {factor}, each at least {2 * factor}",
            remedy="change plan.patch_size, or give model.features fewer levels",
        )
