"""Scans that nobody took: from noise, or from label maps, with the grid of the map.

Legend: C planes of a scan, *S the model's grid (three axes), *T the grid that is written.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from numpy.typing import NDArray

from medseg_diff import __version__, io
from medseg_diff.checkpoint import WEIGHTS, LoadedRun
from medseg_diff.codecs import image_values
from medseg_diff.config import PredictionConfig
from medseg_diff.data.transforms import LoadCase, spacing_of, to_model_grid, to_scan_grid
from medseg_diff.diffusion.grids import time_grid
from medseg_diff.diffusion.samplers import Problem, last, sample
from medseg_diff.errors import UsageError
from medseg_diff.files import atomic_file, atomic_text, content_sha256, file_sha256
from medseg_diff.inference.loading import load_runs
from medseg_diff.inference.predictor import checked
from medseg_diff.inference.scan import check_depth
from medseg_diff.translation.prior import Array, Prior

# The name under which a case's label map stands among its inputs.
MASK = "mask"


@dataclass(frozen=True)
class Synthesis:
    """One scan that was made.

    Attributes:
        image: (C, *T) float32 in the training scans' units.
        mask: Label map that it was made from, or None.
        record: What the case's JSON says.
    """

    image: MetaTensor
    mask: Path | None
    record: dict[str, Any] = field(repr=False)


def load_synthesizer(model: str | Path, device: str = "auto") -> Synthesizer:
    """Load a trained model of scans.

    Raises:
        UsageError: if it makes masks or translations.
    """
    return Synthesizer(load_runs(model, device))


class Synthesizer(Prior):
    """A model of scans behind one call.

    Raises:
        UsageError: if a channel's file has several planes, which no single file would give back.
    """

    def __init__(self, runs: Sequence[LoadedRun]) -> None:
        super().__init__(runs)
        if self.task.image_planes != len(self.task.channels):
            raise UsageError(
                "files of several planes are not made", file=runs[0].folder, field="--model",
                found=f"{self.task.image_planes} planes of {len(self.task.channels)} channels",
                remedy="train a prior of grey images, or of one channel a plane",
            )  # fmt: skip

    @property
    def takes_masks(self) -> bool:
        """Whether a scan is made from a label map."""
        return self.model.condition is not None

    def synthesize(
        self,
        inputs: Mapping[str, Path],
        *,
        case: str,
        seed: int = 0,
        steps: int | None = None,
        sampler: str | None = None,
        size: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> Synthesis:
        """Make one scan.

        Args:
            inputs: ``{"mask": file}``, or nothing for a model without a condition.
            case: With the seed it fixes the noise, hence the scan.
            seed: The user's seed.
            steps: Sampler steps; None takes the configuration's.
            sampler: Name of a sampler.
            size: Voxels of a scan that is made from noise alone, along the plan's axes; the
                window's by default.
            batch_size: Windows in one network call; changes speed, not the scan.

        Raises:
            InputError: if the label map cannot be read or does not fit the model.
            UsageError: if a map is missing or not wanted.
        """
        began = time.perf_counter()
        asked = {"steps": steps, "sampler": sampler, "batch_size": batch_size}
        settings = checked(self.defaults, {k: v for k, v in asked.items() if v is not None})
        self._check_sampling(settings)
        mask = inputs.get(MASK)
        if (mask is not None) != self.takes_masks or (mask is not None and size is not None):
            raise UsageError(
                "makes scans from label maps, which bring their size" if self.takes_masks
                else "makes scans from noise alone: it takes no label maps",
                file=self.runs[0].folder, field="--model",
            )  # fmt: skip
        place = self._blank(size) if mask is None else self._of_mask(mask)
        state, calls = self._drawn(place, case, seed, settings)
        image = self._in_units(state, place)
        return Synthesis(
            image,
            mask,
            {
                "case": case,
                "status": "ok",
                "warnings": [],
                **self._told(settings, image),
                "seed": seed,
                "network_calls": {"denoiser": calls},
                "seconds": round(time.perf_counter() - began, 3),
                "hashes": {
                    "model": [self.runs[0].card["sha256"][WEIGHTS]],
                    "input": {} if mask is None else {MASK: content_sha256(mask)},
                },
            },
        )

    def _of_mask(self, file: Path) -> _Place:
        """A label map's grid, and the map on the model's."""
        label = io.read_label(file, allowed=LoadCase(self.task).allowed)
        check_depth(label, self.plan, file)
        pipeline = to_model_grid(self.plan)
        placed: MetaTensor = pipeline(label.float())
        labels = np.asarray(to_model_grid(self.plan, label=True)(label), np.int16)
        return _Place(label, placed, pipeline, labels)

    def _blank(self, size: Sequence[int] | None) -> _Place:
        """A grid for a scan that is made from noise alone."""
        dims = self.plan.spatial_dims or 3
        given = tuple(self.patch[:dims] if size is None else size)
        if len(given) != dims or min(given) < 1:
            raise UsageError(
                "a size for each axis of the network", field="--size", found=list(given),
                expected=f"{dims} numbers of voxels",
            )  # fmt: skip
        raster = bool(self.plan.raster)
        whole = given if raster else (*given, 1)[:3]
        spacing = self.plan.spacing_mm or (1.0, 1.0, 1.0)
        grid = io.empty_image(whole, spacing, self.plan.orientation, raster=raster)
        pipeline = to_model_grid(self.plan.model_copy(update={"centre_crop": None}))
        return _Place(grid, pipeline(grid), pipeline, None)

    def _drawn(
        self, place: _Place, case: str, seed: int, settings: PredictionConfig
    ) -> tuple[Array, int]:
        """State (C, *S) in [-1, 1], and how many windows were denoised."""
        shape = place.placed.shape[1:]
        told = self.condition(shape, place.labels)
        path, noise = self.model.path, self.noise(case, seed, 0, told.shape[1:])
        denoise = self.denoiser(told, settings)
        times = time_grid(path, settings.steps, settings.grid, settings.t_max)
        problem = Problem(path, denoise, noise(0), times, lambda index: noise(index + 1))
        with torch.inference_mode():
            scan = denoise.scan(last(sample(settings.sampler, problem)).clean)
        inside = tuple(slice(0, n) for n in shape)
        return scan.float().cpu().numpy()[:, *inside], denoise.calls

    def _in_units(self, state: Array, place: _Place) -> MetaTensor:
        """A state as a scan on the grid that is written; the range's lowest where none is made."""
        planes = []
        for plane, ends in zip(state, self.ranges, strict=True):
            unit = torch.from_numpy(np.ascontiguousarray((plane + 1) / 2))[None]
            back = to_scan_grid(unit, place.placed, place.pipeline)
            planes.append(image_values(back[0].numpy(), ends))
        meta = {key: value for key, value in place.grid.meta.items() if key != "affine"}
        kept = torch.from_numpy(np.stack(planes))
        return MetaTensor(kept, affine=place.grid.meta["original_affine"], meta=meta)

    def _told(self, settings: PredictionConfig, image: MetaTensor) -> dict[str, Any]:
        raster = image.meta["kind"] == "raster"
        return {
            "error": None,
            "synthetic": True,
            "made_by": self.runs[0].config.name,
            "condition": self.runs[0].config.model.prior,
            "channels": list(self.task.channels),
            "ranges": [list(ends) for ends in self.ranges],
            "steps": settings.steps,
            "sampler": settings.sampler,
            "spacing_mm": None if raster else list(spacing_of(image)),
            "versions": {"medseg_diff": __version__, "torch": torch.__version__},
        }


@dataclass(frozen=True)
class _Place:
    """Where a scan is made.

    Attributes:
        grid: The grid that is written, (1, *T).
        placed: The same on the model's, (1, *S); remembers how it came there.
        pipeline: The transforms that placed it.
        labels: Label map on the model's grid, (1, *S), or None.
    """

    grid: MetaTensor
    placed: MetaTensor
    pipeline: Compose
    labels: NDArray[np.int16] | None


def write_synthesis(made: Synthesis, out: Path, name: str) -> None:
    """Write the scan, a copy of its label map and, last, the JSON that vouches for them.

    The files' names and headers say SYNTHETIC, so that no copy can pass for a scan.

    Args:
        made: From a synthesizer.
        out: Folder.
        name: Case; the stem of all files, which says SYNTHETIC too.
    """
    record, suffix = made.record, io.map_suffix(made.image)
    channels = record["channels"]
    files: dict[str, str] = {}
    for channel, plane in zip(channels, made.image, strict=True):
        files[channel] = f"{name}{'' if len(channels) == 1 else f'_{channel}'}{suffix}"
        words = f"SYNTHETIC {channel}".encode("ascii", "replace").decode("ascii")[:50]
        io.write_map(
            out / files[channel], plane[None], made.image, description=f"{words} (medseg_diff)"
        )
    written = list(files.values())
    if made.mask is not None:
        written.append(f"{name}_mask{made.mask.name[len(io.case_stem(made.mask)) :]}")
        with atomic_file(out / written[-1]) as stream, made.mask.open("rb") as source:
            shutil.copyfileobj(source, stream)
        record["mask"] = written[-1]
    record["files"] = files
    hashes = {file: file_sha256(out / file) for file in written}
    record["hashes"] = {**record["hashes"], "written": hashes}
    atomic_text(out / f"{name}.json", json.dumps(record, indent=2) + "\n")
