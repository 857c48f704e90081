"""One scan -> the same scan made finer, or with a hole filled, on its own grid, in its own units.

Legend: K planes of the scan, *S the model's grid, *T the scan's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from medseg_diff import io
from medseg_diff.codecs import image_values
from medseg_diff.config import PlanConfig, RestorationConfig, TaskConfig
from medseg_diff.data.restoration import degraded, with_hole
from medseg_diff.data.transforms import network_input, to_model_grid
from medseg_diff.errors import InputError, UsageError
from medseg_diff.files import content_sha256
from medseg_diff.inference.draws import Fused
from medseg_diff.inference.scan import PlacedScan, back, read_scan


@dataclass(frozen=True)
class Given:
    """What a restoration is told beside the scan; a translation takes neither.

    Attributes:
        mask: Mask of the hole to fill, or a folder of masks with the cases' names.
        degrade: Factor by which the scan is made coarser before it is restored.
    """

    mask: Path | None = None
    degrade: int | None = None


@dataclass(frozen=True)
class RestoredScan(PlacedScan):
    """A scan whose ``values`` are its source.

    Attributes:
        known: Of inpainting: the image in [-1, 1] where it is known, (K, *S).
        hole: Of inpainting: what is filled on the model's grid, (*S).
        original: Of inpainting: the scan as read, (K, *T).
        filled: Of inpainting: what is filled on the scan's grid, (*T).
        mask_sha256: Of the file that says so.
        degraded_by: Factor by which the scan was made coarser.
    """

    known: NDArray[np.float32] | None = None
    hole: NDArray[np.bool_] | None = None
    original: NDArray[np.float32] | None = None
    filled: NDArray[np.bool_] | None = None
    mask_sha256: str | None = None
    degraded_by: int | None = None

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest value that the answer can take where it is made."""
        return min(low for low, _ in self.ends), max(high for _, high in self.ends)

    def facts(self) -> dict[str, Any]:
        """What the case's JSON says of the restoration."""
        if self.filled is None:
            return {"restoration": "super_resolution", "degraded_by": self.degraded_by}
        found = {"filled_voxels": int(self.filled.sum()), "mask_sha256": self.mask_sha256}
        return {"restoration": "inpainting", **found}


def place(
    wanted: RestorationConfig,
    channels: Mapping[str, Path],
    name: str,
    task: TaskConfig,
    plan: PlanConfig,
    options: io.ReadOptions,
    free_bytes: int,
    given: Given,
) -> RestoredScan:
    """A scan with its source in the place of what the network would see of it.

    Raises:
        UsageError: if what is given is not what the restoration takes.
        InputError: as ``inference.scan.read_scan``, or if the mask does not fit the scan.
    """

    def read(before: Callable[[MetaTensor], MetaTensor] | None = None) -> PlacedScan:
        return read_scan(channels, task, plan, options, free_bytes, before)

    if wanted.kind == "inpainting":
        if given.degrade is not None or given.mask is None:
            raise UsageError(
                "this model fills holes: it takes a mask and nothing else",
                field="--mask" if given.mask is None else "--degrade",
                expected="--mask FILE",
            )
        return _with_hole(read, plan, task.image_planes, _mask_of(given.mask, name))
    if given.mask is not None:
        raise UsageError("this model makes scans finer: it takes no mask", field="--mask")
    if given.degrade is not None and given.degrade < 2:
        raise UsageError("must be 2 or more", field="--degrade", found=given.degrade)
    scan = read()
    source = scan.values[: task.image_planes].clip(-1, 1)
    if given.degrade is not None:
        source = degraded(source, given.degrade, wanted.axes)
    return RestoredScan(
        **_fields(scan, values=network_input(source, plan)), degraded_by=given.degrade
    )


def _with_hole(
    read: Callable[[Callable[[MetaTensor], MetaTensor]], PlacedScan],
    plan: PlanConfig,
    planes: int,
    mask: Path,
) -> RestoredScan:
    """A scan whose hole is emptied before anything else is done with its values."""
    found: dict[str, Any] = {}

    def emptied(image: MetaTensor) -> MetaTensor:
        filled = _read_hole(mask, image)
        values = np.asarray(image, dtype=np.float32).copy()
        found.update(original=values.copy(), filled=filled)
        for plane in values:
            plane[filled] = np.median(plane[~filled])
        # Whatever has a share of a voxel in the hole is one itself.
        carried = MetaTensor(torch.from_numpy(filled[None].astype(np.float32)), meta=image.meta)
        carried.affine = image.affine
        found["hole"] = np.asarray(to_model_grid(plan)(carried))[0] > 1e-6
        result = image.clone()
        result.set_(torch.from_numpy(values))
        return result

    scan = read(emptied)
    known = scan.values[:planes].clip(-1, 1)
    source = network_input(with_hole(known, found["hole"]), plan)
    return RestoredScan(
        **_fields(scan, values=source), **found, known=known, mask_sha256=content_sha256(mask)
    )


def images(scan: RestoredScan, fused: Fused) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Image (K, *T) and spread (1, *T) on the scan's grid, in its units.

    Of planes with ranges of their own the spread is in the mean one's units.
    """
    planes = []
    for k, ends in enumerate(scan.ends):
        unit = fused.plane(k)
        if scan.hole is not None and scan.known is not None:
            unit = np.where(scan.hole, unit, (scan.known[k] + 1) / 2).astype(np.float32)
        planes.append(image_values(back(unit, scan), ends))
    wide = np.float32(np.mean([high - low for low, high in scan.ends]))
    variance = fused.variance if scan.hole is None else fused.variance * scan.hole
    image, spread = np.stack(planes), np.sqrt(back(variance, scan).clip(0)) * wide
    if scan.filled is not None and scan.original is not None:
        image = np.where(scan.filled, image, scan.original)
        spread = np.where(scan.filled, spread, np.float32(0))
    return image, spread[None]


def _fields(scan: PlacedScan, **changes: Any) -> dict[str, Any]:
    """A scan's fields, some of them changed."""
    changed = replace(scan, **changes)
    return {name: getattr(changed, name) for name in PlacedScan.__dataclass_fields__}


def _mask_of(mask: Path, case: str) -> Path:
    """The mask's file, or the one in a folder that has the case's name.

    Raises:
        InputError: if there is none, or there are several.
    """
    if not mask.is_dir():
        return mask
    found = [p for p in sorted(mask.iterdir()) if p.is_file() and io.case_stem(p) == case]
    if len(found) != 1:
        raise InputError(
            "no mask of this case" if not found else "several masks of this case",
            file=mask, field="--mask", found=", ".join(p.name for p in found) or None,
            expected=f"one file named {case}, on the scan's grid",
        )  # fmt: skip
    return found[0]


def _read_hole(mask: Path, image: MetaTensor) -> NDArray[np.bool_]:
    """Voxels to fill, (*T)."""
    filled: NDArray[np.bool_] = np.asarray(io.read_label(mask, like=image))[0] != 0
    if not filled.any() or filled.all():
        raise InputError(
            "the mask leaves nothing to fill" if not filled.any() else "the mask leaves nothing",
            file=mask, field="--mask", expected="a hole with the scan around it",
        )  # fmt: skip
    return filled
