"""MONAI pipelines: case -> model grid, and the random changes of training.

The *model grid* always has three spatial axes in the plan's orientation and spacing. A raster
image (rows, columns) gets a last axis of length 1, so that one code path serves both: a 2-D
network sees patches of depth 1 with that axis squeezed away.

Legend: C channels, R annotators, *S spatial axes.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from monai.transforms import (
    CenterSpatialCrop,
    Compose,
    InvertibleTransform,
    MapTransform,
    Orientation,
)
from numpy.typing import NDArray

from medseg_diff import io
from medseg_diff.config import Normalisation, PlanConfig, TaskConfig
from medseg_diff.errors import InputError

# Coordinates kept per structure and case, to centre crops on; enough to cover any organ.
FOREGROUND_VOXELS = 2000
# Of an image, in normalisation by percentile: air, and the brightest tissue but not one hot vessel.
PERCENTILES = (0.5, 99.5)

AXIS_LABELS = (("L", "R"), ("P", "A"), ("I", "S"))


def spacing_of(image: MetaTensor) -> tuple[float, float, float]:
    """Voxel spacing in mm along each array axis; 1 for raster images."""
    norms = np.linalg.norm(np.asarray(image.affine, dtype=np.float64)[:3, :3], axis=0)
    return float(norms[0]), float(norms[1]), float(norms[2])


class ResampleToSpacing(InvertibleTransform):
    """Resample the three spatial axes to a spacing, edges of the volume kept in place.

    SimpleITK does the interpolation: linear for images and probabilities, nearest for labels.
    A grid that already has the spacing (to 1 part in 1000) passes through untouched.

    Args:
        spacing_mm: Target spacing along each axis.
        label: True for label maps.
    """

    def __init__(self, spacing_mm: Sequence[float], *, label: bool = False) -> None:
        self.spacing_mm = tuple(float(s) for s in spacing_mm)
        self.label = label

    def __call__(self, data: MetaTensor) -> MetaTensor:
        """(C, *S) -> (C, *S')."""
        old = spacing_of(data)
        shape = tuple(data.shape[1:])
        new_shape = tuple(
            max(1, round(n * a / b)) for n, a, b in zip(shape, old, self.spacing_mm, strict=True)
        )
        if np.allclose(old, self.spacing_mm, rtol=1e-3):
            new_shape = shape
        affine = data.affine.clone()
        result = _resize(data, new_shape, label=self.label)
        self.push_transform(result, orig_size=shape, extra_info={"affine": affine.tolist()})
        return result

    def inverse(self, data: MetaTensor) -> MetaTensor:
        """Back to the shape and affine before the call."""
        record = self.pop_transform(data)
        result = _resize(data, tuple(record["orig_size"]), label=self.label)
        result.affine = torch.as_tensor(record["extra_info"]["affine"], dtype=torch.float64)
        return result


def _resize(data: MetaTensor, shape: Sequence[int], *, label: bool) -> MetaTensor:
    """Resample channel by channel to ``shape`` over the same physical extent."""
    old = tuple(data.shape[1:])
    if old == tuple(shape):
        return data.clone()
    ratio = np.array([o / n for o, n in zip(old, shape, strict=True)])
    planes = [_resize_channel(np.asarray(c), shape, ratio, label=label) for c in data]
    affine = np.asarray(data.affine, dtype=np.float64).copy()
    affine[:3, 3] += affine[:3, :3] @ (0.5 * ratio - 0.5)
    affine[:3, :3] *= ratio
    result = MetaTensor(torch.from_numpy(np.stack(planes)), meta=dict(data.meta))
    result.affine = torch.from_numpy(affine)
    result.applied_operations = list(data.applied_operations)
    return result


def _resize_channel(
    values: NDArray[Any], shape: Sequence[int], ratio: NDArray[np.float64], *, label: bool
) -> NDArray[Any]:
    # SimpleITK orders axes z, y, x: an array indexed [x, y, z] is handed over transposed.
    image = sitk.GetImageFromArray(np.ascontiguousarray(values.T))
    grid = sitk.ResampleImageFilter()
    grid.SetSize([int(n) for n in shape])
    grid.SetOutputSpacing(ratio.tolist())
    grid.SetOutputOrigin((0.5 * ratio - 0.5).tolist())
    grid.SetInterpolator(sitk.sitkNearestNeighbor if label else sitk.sitkLinear)
    # Half a voxel at each end lies outside the outermost centres: hold the edge value there.
    grid.UseNearestNeighborExtrapolatorOn()
    resampled: NDArray[Any] = sitk.GetArrayFromImage(grid.Execute(image)).T
    return np.ascontiguousarray(resampled)


class AddDepth(InvertibleTransform):
    """Raster image (C, H, W) -> (C, H, W, 1); volumes pass."""

    def __call__(self, data: MetaTensor) -> MetaTensor:
        """Add the axis if it is missing."""
        flat = data.ndim == 3
        result = data.unsqueeze(-1) if flat else data.clone()
        self.push_transform(result, extra_info={"flat": flat})
        return result

    def inverse(self, data: MetaTensor) -> MetaTensor:
        """Take the axis away again."""
        record = self.pop_transform(data)
        return data.squeeze(-1) if record["extra_info"]["flat"] else data


def to_model_grid(plan: PlanConfig, *, label: bool = False) -> Compose:
    """Invertible pipeline: an image as read -> the plan's orientation, spacing and field of view.

    The inverse puts zeros where the plan's ``centre_crop`` did not look.
    """
    if plan.spacing_mm is None:
        raise ValueError("the plan is not complete: it has no spacing")
    steps: list[Any] = [
        AddDepth(),
        Orientation(axcodes=plan.orientation, labels=AXIS_LABELS),
        ResampleToSpacing(plan.spacing_mm, label=label),
    ]
    if plan.centre_crop is not None:
        # -1 keeps an axis whole: the depth that a raster image was given.
        size = (*plan.centre_crop, *[-1] * (3 - len(plan.centre_crop)))
        steps.append(CenterSpatialCrop(size))
    return Compose(steps)


def to_scan_grid(values: torch.Tensor, placed: MetaTensor, pipeline: Compose) -> MetaTensor:
    """Values (C, *S) on the model grid -> the grid of the scan that ``placed`` came from.

    Args:
        values: Float32 on the grid of ``placed``.
        placed: The scan after ``pipeline``, which remembers how it came there.
        pipeline: The very pipeline of :func:`to_model_grid` that placed it.
    """
    carried = MetaTensor(values, meta=dict(placed.meta))
    carried.affine = placed.affine
    carried.applied_operations = list(placed.applied_operations)
    return pipeline.inverse(carried)


def normalise(image: NDArray[np.float32], specs: Sequence[Normalisation]) -> NDArray[np.float32]:
    """Normalise (C, *S) channel by channel; a constant channel becomes zeros."""
    if len(specs) != len(image):
        raise ValueError(f"{len(image)} channels came with {len(specs)} normalisations")
    return np.stack([_normalise_channel(c, s) for c, s in zip(image, specs, strict=True)])


def network_input(
    image: NDArray[np.float32],
    plan: PlanConfig,
    start: Sequence[int] = (0, 0, 0),
    shape: Sequence[int] | None = None,
) -> NDArray[np.float32]:
    """A normalised image or a piece of it (C, *S), with its place where the plan has it.

    Args:
        image: Piece of a scan on the model grid; three spatial axes, or two for a 2-D patch.
        plan: Says whether there are coordinates, and a slice's place.
        start: Voxel of the scan at which the piece begins; may be negative.
        shape: The scan's voxels; None if the piece is the whole scan.

    Returns:
        (C + D, *S): the last D channels run from -1 to 1 over the scan, along its third axis (a
        slice's place) first and then along the axes of the network.
    """
    axes = [2] if plan.slice_position else []
    axes += range(plan.spatial_dims or 0) if plan.coordinates else []
    if not axes:
        return image
    # A 2-D patch is one slice of the three axes that its start and the scan's shape have.
    size = (*image.shape[1:], 1)[:3]
    whole = size if shape is None else shape
    planes = []
    for axis in axes:
        along = (np.arange(size[axis]) + start[axis] + 0.5) / whole[axis] * 2 - 1
        line = along.reshape([-1 if axis == other else 1 for other in range(3)])
        planes.append(np.broadcast_to(line, size).reshape(image.shape[1:]))
    return np.concatenate([image, np.stack(planes).astype(np.float32)])


def _normalise_channel(values: NDArray[np.float32], spec: Normalisation) -> NDArray[np.float32]:
    values = values.astype(np.float64)
    if spec.clip is not None:
        values = values.clip(*spec.clip)
    if spec.kind == "unit":
        return (values / spec.scale).astype(np.float32)
    if spec.kind == "ct":
        return ((values - spec.mean) / spec.sd).astype(np.float32)
    if spec.kind in ("percentile", "range"):
        return to_range(values, ends_of(values, spec))
    counted = values[values != 0] if spec.kind == "zscore_foreground" else values.ravel()
    sd = counted.std() if counted.size else 0.0
    # A scan whose spread is rounding noise carries no contrast to normalise.
    if sd <= 1e-6 * max(1.0, abs(counted.mean()) if counted.size else 1.0):
        return np.zeros(values.shape, dtype=np.float32)
    return ((values - counted.mean()) / sd).astype(np.float32)


def ends_of(values: NDArray[Any], spec: Normalisation) -> tuple[float, float]:
    """Values of a channel that a normalisation of kind percentile or range makes -1 and 1.

    Raises:
        ValueError: if it is of another kind, or of kind range without its ends.
    """
    if spec.kind == "percentile":
        low, high = np.percentile(values.astype(np.float64), PERCENTILES)
        return float(low), float(high)
    if spec.kind != "range" or spec.clip is None:
        raise ValueError("a normalisation of kind range needs clip: the ends of the range")
    return spec.clip


def to_range(values: NDArray[Any], ends: tuple[float, float]) -> NDArray[np.float32]:
    """Values with ``ends`` brought to -1 and 1, any shape; zeros where the ends do not differ."""
    low, high = ends
    if high - low <= 1e-6 * max(1.0, abs(low)):
        return np.zeros(values.shape, np.float32)
    return ((values.astype(np.float64) - low) / (high - low) * 2 - 1).astype(np.float32)


class LoadCase(MapTransform):
    """Read one case: its channels on one grid, and its reference masks or target if it has any.

    Input keys ``channels`` (name -> path), ``references`` (list of paths) and, of a task that
    translates, ``target`` (path); output keys ``image`` (C, *S) float32, ``label`` (R, *S) int16
    and ``target`` (K, *S) float32, all as read.
    """

    def __init__(self, task: TaskConfig, options: io.ReadOptions | None = None) -> None:
        super().__init__(keys=("channels",))
        self.task = task
        self.options = options or io.ReadOptions()
        allowed = {0, *task.labels.values()}
        allowed |= {v for values in (task.regions or {}).values() for v in values}
        self.allowed = allowed | ({task.ignore_label} if task.ignore_label is not None else set())

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read the files that ``data`` names."""
        result = dict(data)
        result["image"] = load_image(data["channels"], self.task, self.options)
        if self.task.target is not None:
            if data.get("target") is not None:
                result["target"] = load_target(
                    data["target"], self.task, result["image"], self.options
                )
            return result
        references = [
            io.read_label(path, allowed=self.allowed, like=result["image"], options=self.options)
            for path in data.get("references", ())
        ]
        if references:
            label = references[0]
            label.set_(torch.cat([r.as_tensor() for r in references]).to(torch.int16))
            result["label"] = label
        return result


def load_image(
    channels: Mapping[str, Path], task: TaskConfig, options: io.ReadOptions
) -> MetaTensor:
    """Channels of one case in the task's order, (C, *S); refuses other plane counts (F69)."""
    missing = [name for name in task.channels if name not in channels]
    if missing:
        raise InputError(
            "channel is missing",
            file=next(iter(channels.values()), None),
            found=", ".join(channels) or "none",
            expected=", ".join(task.channels),
            remedy=f"add {', '.join(missing)}",
        )
    image = io.read_channels({name: channels[name] for name in task.channels}, options)
    if len(image) != task.image_planes:
        raise InputError(
            "wrong number of image planes",
            file=channels[task.channels[0]],
            found=len(image),
            expected=f"{task.image_planes} ({', '.join(task.channels)})",
            remedy="convert the image, or use a model trained on such images",
        )
    return image


def load_target(
    path: Path, task: TaskConfig, image: MetaTensor, options: io.ReadOptions
) -> MetaTensor:
    """Target image of a case, (K, *S) float32 in its own units, on the grid of its channels."""
    target = io.read_image(path, options)
    io.require_same_grid(target, image)
    if len(target) != task.target_planes:
        raise InputError(
            "wrong number of planes in the target image",
            file=path,
            found=len(target),
            expected=task.target_planes,
            remedy="convert it, so that all targets are alike",
        )
    return target


class Preprocess(MapTransform):
    """Read case -> normalised arrays on the model grid, with voxels to centre crops on.

    Output keys: ``image`` (C, *S) float32, ``label`` (R, *S) int16, ``foreground`` a list with
    one (N, 3) coordinate array per structure that is present. Of a translation ``target``
    (K, *S) float32 in [-1, 1] stands for ``label``, and ``foreground`` is what in it is brighter
    than its mean: crops centred there are not all air.
    """

    def __init__(self, task: TaskConfig, plan: PlanConfig) -> None:
        super().__init__(keys=("image",))
        self.task, self.plan = task, plan
        self.place_image, self.place_label = to_model_grid(plan), to_model_grid(plan, label=True)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Place, normalise and index one case."""
        image = np.asarray(self.place_image(data["image"]), dtype=np.float32)
        result = {k: v for k, v in data.items() if k not in ("channels", "references")}
        result["image"] = normalise(image, self.plan.normalisation or ())
        result["foreground"] = []
        if self.task.restores:
            result["target"] = result["image"].clip(-1, 1)
        elif self.task.target is not None and "target" in data:
            if self.plan.target_range is None:
                raise ValueError("the plan is not complete: it has no target_range")
            placed = np.asarray(self.place_image(data["target"]), dtype=np.float32)
            result["target"] = to_range(placed, self.plan.target_range).clip(-1, 1)
        if self.task.target is not None and result.get("target") is not None:
            result["foreground"] = bright_voxels(result["target"])
        if "label" in data:
            label = np.asarray(self.place_label(data["label"]), dtype=np.int16)
            result["label"] = label
            result["foreground"] = foreground_voxels(label, self.task)
        return result


def bright_voxels(image: NDArray[np.float32]) -> list[NDArray[np.int64]]:
    """Up to 2000 voxels of an image (C, *S) brighter than its mean, as one (N, 3) array."""
    bright = np.argwhere(image[0] > image[0].mean())
    return [_some(bright)] if len(bright) else []


def foreground_voxels(label: NDArray[np.int16], task: TaskConfig) -> list[NDArray[np.int64]]:
    """For each structure that any of R masks (R, *S) holds, up to 2000 of its voxels, (N, 3)."""
    found = []
    for values in task.structures.values():
        voxels = np.argwhere(np.isin(label, values).any(0))
        if len(voxels):
            found.append(_some(voxels))
    return found


def _some(voxels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Up to 2000 of (N, 3) coordinates, evenly chosen."""
    return voxels[:: max(1, len(voxels) // FOREGROUND_VOXELS)][:FOREGROUND_VOXELS]
