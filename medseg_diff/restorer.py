"""One scan -> the same scan made finer, or with a hole filled, on its own grid, in its own units.

Legend: K planes of the scan, *S the model's grid, *T the scan's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from medseg_diff import io
from medseg_diff.checkpoint import LoadedRun
from medseg_diff.codecs import image_values
from medseg_diff.data.restoration import degraded, with_hole
from medseg_diff.data.transforms import network_input, to_model_grid
from medseg_diff.draws import Fused
from medseg_diff.errors import InputError, UsageError
from medseg_diff.files import content_sha256
from medseg_diff.scan import PlacedScan, read_scan
from medseg_diff.translation import Given, Translator, back, on_grid


@dataclass(frozen=True)
class RestoredScan(PlacedScan):
    """A scan whose ``values`` are its source.

    Attributes:
        known: Of inpainting: the image in [-1, 1] where it is known, (K, *S).
        hole: Of inpainting: what is filled on the model's grid, (*S).
        original: Of inpainting: the scan as read, (K, *T).
        filled: Of inpainting: what is filled on the scan's grid, (*T).
    """

    known: NDArray[np.float32] | None = None
    hole: NDArray[np.bool_] | None = None
    original: NDArray[np.float32] | None = None
    filled: NDArray[np.bool_] | None = None


class Restorer(Translator):
    """Trained restorers of one kind; outside a hole the answer is the scan, voxel by voxel."""

    def __init__(self, runs: Sequence[LoadedRun]) -> None:
        super().__init__(runs)
        wanted = runs[0].config.restoration
        if wanted is None:
            raise UsageError("this model restores nothing", file=runs[0].folder, field="--model")
        if any(run.config.restoration != wanted for run in runs):
            raise InputError(
                "models restore in different ways and cannot form one ensemble",
                file=runs[0].folder,
                field="restoration",
            )
        self.wanted = wanted

    def _placed(
        self,
        channels: Mapping[str, Path],
        name: str,
        options: io.ReadOptions,
        free: int,
        given: Given,
    ) -> PlacedScan:
        if self.wanted.kind == "inpainting":
            if given.degrade is not None or given.mask is None:
                flag = "--mask" if given.mask is None else "--degrade"
                raise UsageError(
                    "this model fills holes: it takes a mask and nothing else",
                    field=flag, expected="--mask FILE",
                )  # fmt: skip
            return self._with_hole(channels, _mask_of(given.mask, name), options, free)
        if given.mask is not None:
            raise UsageError("this model makes scans finer: it takes no mask", field="--mask")
        scan = read_scan(channels, self.task, self.plan, options, free)
        source = scan.values[: self.task.image_planes].clip(-1, 1)
        if given.degrade is not None:
            source = degraded(source, given.degrade, self.wanted.axes)
        return RestoredScan(**_fields(scan, values=network_input(source, self.plan)))

    def _with_hole(
        self, channels: Mapping[str, Path], mask: Path, options: io.ReadOptions, free: int
    ) -> RestoredScan:
        """A scan whose hole is emptied before anything else is done with its values."""
        kept: list[NDArray[Any]] = []
        placed_hole: list[NDArray[np.bool_]] = []

        def emptied(image: MetaTensor) -> MetaTensor:
            filled = _read_hole(mask, image)
            values = np.asarray(image, dtype=np.float32).copy()
            kept.extend([values.copy(), filled])
            for plane in values:
                plane[filled] = np.median(plane[~filled])
            # Whatever has a share of a voxel in the hole is one itself.
            carried = MetaTensor(torch.from_numpy(filled[None].astype(np.float32)), meta=image.meta)
            carried.affine = image.affine
            placed_hole.append(np.asarray(to_model_grid(self.plan)(carried))[0] > 1e-6)
            result = image.clone()
            result.set_(torch.from_numpy(values))
            return result

        scan = read_scan(channels, self.task, self.plan, options, free, emptied)
        known = scan.values[: self.task.image_planes].clip(-1, 1)
        hole = placed_hole[0]
        source = network_input(with_hole(known, hole), self.plan)
        return RestoredScan(
            **_fields(scan, values=source), known=known, hole=hole, original=kept[0], filled=kept[1]
        )

    def _range(self, placed: PlacedScan) -> tuple[float, float]:
        """Lowest and highest of its planes' ends."""
        return min(low for low, _ in placed.ends), max(high for _, high in placed.ends)

    def _images(self, placed: PlacedScan, fused: Fused) -> tuple[MetaTensor, MetaTensor]:
        scan = placed if isinstance(placed, RestoredScan) else RestoredScan(**_fields(placed))
        planes = []
        for k, ends in enumerate(scan.ends):
            unit = fused.plane(k)
            if scan.hole is not None and scan.known is not None:
                unit = np.where(scan.hole, unit, (scan.known[k] + 1) / 2).astype(np.float32)
            planes.append(image_values(back(unit, scan), ends))
        wide = float(np.mean([high - low for low, high in scan.ends]))
        variance = fused.variance if scan.hole is None else fused.variance * scan.hole
        image, spread = np.stack(planes), np.sqrt(back(variance, scan).clip(0)) * np.float32(wide)
        if scan.filled is not None and scan.original is not None:
            image = np.where(scan.filled, image, scan.original)
            spread = np.where(scan.filled, spread, np.float32(0))
        return on_grid(image, scan), on_grid(spread[None], scan)

    def _of_given(self, placed: PlacedScan, given: Given, name: str) -> dict[str, Any]:
        found: dict[str, Any] = {"restoration": self.wanted.kind, "degraded_by": given.degrade}
        if (
            isinstance(placed, RestoredScan)
            and placed.filled is not None
            and given.mask is not None
        ):
            found["filled_voxels"] = int(placed.filled.sum())
            found["mask_sha256"] = content_sha256(_mask_of(given.mask, name))
        return found


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
