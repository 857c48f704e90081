"""One scan -> mask, probability and doubt, on the scan's own grid.

Legend: C image channels, K structures, *S spatial axes of the scan.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from medseg_diff import __version__, io, memory
from medseg_diff.checkpoint import ADAPTER, WEIGHTS, LoadedRun
from medseg_diff.codecs import OneHotCodec
from medseg_diff.config import PredictionConfig
from medseg_diff.data.transforms import spacing_of
from medseg_diff.errors import InputError, UsageError
from medseg_diff.files import content_sha256
from medseg_diff.inference import sanity
from medseg_diff.inference.answer import Answer, WayBack
from medseg_diff.inference.draws import ONE, Fused, doubt_of_structures, expected_change
from medseg_diff.inference.ensemble import Request, infer
from medseg_diff.inference.loading import load_runs
from medseg_diff.inference.morphology import ShapeRule, clean_by_rules, clean_labels
from medseg_diff.inference.scan import PlacedScan, need_of, read_scan
from medseg_diff.model import Sampling, SegmentationModel, with_flips

Scan = str | Path | Mapping[str, str | Path]
# Changes a model for one scan, (C, *S) on the model grid with a window's size, and undoes it.
Around = Callable[
    [SegmentationModel, NDArray[np.float32], Sequence[int]], AbstractContextManager[object]
]


def load(
    model: str | Path | Sequence[str | Path],
    device: str = "auto",
    adapter: str | Path | None = None,
) -> Predictor:
    """Load a trained model, or several as one ensemble (the folds of a cross-validation).

    Args:
        model: A run folder, a shipped model's name (``"hippocampus"``), or a list of them.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` ... or ``"auto"``.
        adapter: File or run folder of an adapter that was trained on the model, a single one.
    """
    return Predictor(load_runs(model, device, adapter))


class Predictor:
    """Trained models behind one call. Members must agree on task, plan and structures."""

    # What they make, and whether that is no masks; see the room `translation`.
    makes: Literal["masks", "translations", "scans"] = "masks"
    translates = False

    def __init__(self, runs: Sequence[LoadedRun]) -> None:
        first = runs[0].config
        if first.task is None or first.plan.patch_size is None:
            raise InputError("the run's configuration is not complete", file=runs[0].folder)
        if first.makes != self.makes:
            does, command = {
                "masks": ("segments", "predict"),
                "translations": (f"makes images ({first.task.target})", "translate"),
                "scans": ("makes scans from noise", "synthesize"),
            }[first.makes]
            raise UsageError(
                f"this model {does}", file=runs[0].folder, field="--model",
                remedy=f"use `medseg-diff {command}`",
            )  # fmt: skip
        for run in runs[1:]:
            for part in ("task", "plan"):
                if getattr(run.config, part) != getattr(first, part):
                    raise InputError(
                        f"its {part} differs from that of {runs[0].folder.name}: the models cannot "
                        "form one ensemble",
                        file=run.folder,
                        remedy="train the folds with the same plan (set its keys in the YAML)",
                    )
        self.runs, self.task, self.plan = list(runs), first.task, first.plan
        self.defaults = first.prediction
        self.patch = list(first.window)
        # Test-time adaptation of a single model to each scan; None leaves it as it was trained.
        self.around: Around | None = None

    @property
    def codec(self) -> OneHotCodec:
        """What the channels of the probabilities stand for."""
        return self.runs[0].model.mask_codec

    @property
    def labels(self) -> dict[str, int]:
        """Label values by name, the background included."""
        return dict(self.task.labels)

    def predict(
        self,
        scan: Scan,
        *,
        draws: int | None = None,
        steps: int | None = None,
        sampler: str | None = None,
        fuse: str | None = None,
        settle: float | None = None,
        flips: Sequence[int] | None = None,
        shapes: Mapping[str, Any] | None = None,
        save_draws: bool = False,
        maps: bool = True,
        calibrated: bool = True,
        seed: int = 0,
        batch_size: int | None = None,
        memory_gb: float | None = None,
        case: str | None = None,
        options: io.ReadOptions | None = None,
    ) -> Answer:
        """Segment one scan.

        Args:
            scan: File, or channel name -> file for a model of several channels.
            draws: Masks drawn from each model; None takes the configuration's.
            steps: Sampler steps per mask.
            sampler: Name of a sampler, see :data:`medseg_diff.diffusion.samplers.SAMPLERS`.
            fuse: Fusion rule, see :class:`medseg_diff.config.PredictionConfig`.
            settle: Stop drawing when the mask is expected to change less than this share.
            flips: Axes of the model's grid to mirror for further members.
            shapes: Structure name to what it should look like, see
                :class:`medseg_diff.config.prediction.ShapeConfig`.
            save_draws: Also return every draw's own label map.
            maps: Also return the probability of every structure: large for many structures.
            calibrated: Use the temperature that the model card holds, if it holds one.
            seed: With the case's name it fixes the noise, hence the answer.
            batch_size: Windows x draws in one network call; changes speed, not the answer.
            memory_gb: What the case may take of host and GPU memory, in GiB; None measures what
                is free. What does not fit is made to, see :mod:`medseg_diff.memory`.
            case: Name of the case; the file's stem by default.
            options: How to read odd files.

        Raises:
            InputError: if the scan cannot be read, or does not fit the model or the memory.
        """
        began = time.perf_counter()
        asked = {
            "draws": draws,
            "steps": steps,
            "sampler": sampler,
            "fuse": fuse,
            "settle": settle,
            "flips": flips,
            "shapes": shapes,
            "batch_size": batch_size,
        }
        given = {key: value for key, value in asked.items() if value is not None}
        settings = checked(self.defaults, given)
        self._check_sampling(settings)
        channels = self._channels(scan)
        first = next(iter(channels.values()))
        name = case or io.case_stem(first)
        options = options or io.ReadOptions()
        placed = read_scan(channels, self.task, self.plan, options, self._free(memory_gb)[0])
        free = self._free(memory_gb)
        plan = self._within(placed, settings, free, maps=maps, save_draws=save_draws)
        fused, again = self._infer(placed, name, settings, seed, plan)
        warnings = [*placed.warnings, *plan.notes, *again]
        if placed.constant:
            warnings.append("constant image: the mask is empty")
            self._empty(fused)
        temperature = self._temperature() if calibrated else None
        way_back = WayBack(self.codec, placed.placed, placed.pipeline)
        answer = way_back.answer(fused, temperature, maps=maps)
        answer = replace(answer, mask=self._cleaned(answer.mask, settings))
        drawn = way_back.draws(fused) if save_draws else None
        record = self._record(answer, placed.image, fused, settings)
        found = answer.mask[0].numpy()
        warnings += sanity.of_mask(found, self.task.structures, record["voxels"])
        record |= {
            "case": name,
            "status": "warning" if warnings else "ok",
            "warnings": warnings,
            "seed": seed,
            "temperature": temperature,
            "seconds": round(time.perf_counter() - began, 3),
            "hashes": self._hashes(channels),
        }
        return replace(answer, record=record, draws=drawn)

    def _free(self, memory_gb: float | None) -> tuple[int, int | None]:
        """Free bytes of the host, and of the GPU if the models lie on one."""
        device = memory.free_device_bytes(next(self.runs[0].model.parameters()).device)
        if memory_gb is None:
            return memory.free_host_bytes(), device
        given = int(memory_gb * memory.GIB)
        return given, None if device is None else given

    def _check_sampling(self, settings: PredictionConfig) -> None:
        """Refuse steps, grids or guidance that a member does not allow."""
        for run in self.runs:
            try:
                run.model.check(Sampling.of(settings))
            except ValueError as error:
                raise UsageError(str(error), file=run.folder, field="prediction") from None

    def _channels(self, scan: Scan) -> dict[str, Path]:
        if isinstance(scan, Mapping):
            return {name: Path(path) for name, path in scan.items()}
        return {self.task.channels[0]: Path(scan)}

    def _within(
        self,
        scan: PlacedScan,
        settings: PredictionConfig,
        free: tuple[int, int | None],
        *,
        maps: bool,
        save_draws: bool,
    ) -> memory.Plan:
        """How the case fits the free host and device memory."""
        config, members = self.runs[0].config, self._members(settings)
        need = need_of(scan, config, members, settings, maps=maps, save_draws=save_draws)
        return memory.fit(need, *free, file=scan.file)

    def _members(self, settings: PredictionConfig) -> list[SegmentationModel]:
        places = (self.plan.spatial_dims or 0) if self.plan.coordinates else 0
        return [m for run in self.runs for m in with_flips(run.model, settings.flips, places)]

    def _infer(
        self, scan: PlacedScan, name: str, settings: PredictionConfig, seed: int, plan: memory.Plan
    ) -> tuple[Fused, list[str]]:
        """Draw and fuse; once more, window by window, if the GPU's memory runs out (K15)."""
        request = Request(
            name,
            seed,
            settings.draws,
            Sampling.of(settings),
            settings.overlap,
            plan.batch,
            settings.fuse,
            settings.settle,
            plan.compact,
        )
        members = self._members(settings)
        notes: list[str] = []
        # The second try is made outside: in here the error's traceback keeps the tensors alive.
        for batch in dict.fromkeys((plan.batch, 1)):
            try:
                asked = replace(request, batch_size=batch)
                with self._adapted(scan):
                    return infer(members, scan.values, self.patch, asked), notes
            except torch.OutOfMemoryError:
                fewer = f"{plan.batch} windows x draws a call; 1 was taken"
                notes = [f"memory: the GPU's ran out with {fewer}"]
            torch.cuda.empty_cache()
        raise InputError(
            "the GPU's memory does not suffice, not even for one window at a time",
            file=scan.file,
            field="memory",
            remedy="free the GPU, use --device cpu, or a model with a smaller patch",
        )

    def _adapted(self, scan: PlacedScan) -> AbstractContextManager[object]:
        if self.around is None:
            return nullcontext()
        return self.around(self.runs[0].model, scan.values, self.patch)

    def _empty(self, fused: Fused) -> None:
        """Turn an answer into that of a scan which shows nothing, in its own memory."""
        fused.probability[...] = 0
        if self.codec.exclusive:
            fused.probability[0] = 1 if fused.probability.dtype == np.float32 else ONE
        fused.variance[...] = fused.entropy[...] = 0
        for part in fused.masks.parts:
            part[...] = 0

    def _cleaned(self, mask: MetaTensor, settings: PredictionConfig) -> MetaTensor:
        """The mask with every structure's shape put right, as the settings ask."""
        unknown = [name for name in settings.shapes if self.task.labels.get(name, 0) == 0]
        if unknown:
            raise UsageError(
                "no such structure",
                field="prediction.shapes",
                found=", ".join(unknown),
                expected=", ".join(k for k, v in self.task.labels.items() if v != 0),
            )
        values = sorted(v for v in self.task.labels.values() if v != 0)
        labels = clean_labels(mask.numpy(), values, settings.cleanup)
        if settings.shapes:
            rules = {
                self.task.labels[name]: ShapeRule(**shape.model_dump())
                for name, shape in settings.shapes.items()
            }
            spacing = spacing_of(mask)[: labels.ndim - 1]
            labels = clean_by_rules(labels[0], rules, spacing)[None]
        cleaned = mask.clone()
        cleaned.set_(torch.from_numpy(np.ascontiguousarray(labels)))
        return cleaned

    def _temperature(self) -> float | None:
        """The card's, for a single run; the members of an ensemble each have their own."""
        if len(self.runs) != 1:
            return None
        found = self.runs[0].card.get("calibration", {}).get("temperature")
        return None if found is None else float(found)

    def all_channels(self, answer: Answer) -> torch.Tensor:
        """An answer's probability (K, *S) with the background put back for exclusive classes."""
        planes = answer.probability.as_tensor()
        if len(planes) == 0:
            raise ValueError("the answer was made without probability maps")
        if not self.codec.exclusive:
            return planes
        return torch.cat([(1 - planes.sum(0, keepdim=True)).clamp(min=0), planes])

    def _record(
        self, answer: Answer, image: MetaTensor, fused: Fused, settings: PredictionConfig
    ) -> dict[str, Any]:
        spacing = spacing_of(image)
        volume = image.meta["kind"] != "raster"
        counts = sanity.count_voxels(answer.mask[0].numpy(), self.task.structures)
        millilitres = {k: n * float(np.prod(spacing)) / 1000 for k, n in counts.items()}
        spread = dict(zip(self.task.structures, fused.pairwise_dice, strict=True))
        return {
            "error": None,
            "labels": self.labels,
            "regions": self.task.regions,
            "draws": settings.draws,
            "draws_made": len(fused.masks),
            "expected_change": _finite(expected_change(fused, exclusive=self.codec.exclusive)),
            "steps": settings.steps,
            "sampler": settings.sampler,
            "fuse": settings.fuse,
            "cleanup": settings.cleanup,
            "shapes": {name: one.model_dump() for name, one in settings.shapes.items()},
            "settle": settings.settle,
            "flips": list(settings.flips),
            "models": len(self.runs),
            "spacing_mm": list(spacing) if volume else None,
            "voxels": counts,
            "volumes_ml": millilitres if volume else None,
            "between_draws": self._between_draws(fused) if volume else None,
            "staple": fused.rates or None,
            "pairwise_dice": {k: None if math.isnan(v) else v for k, v in spread.items()},
            "network_calls": fused.network_calls,
            "versions": {"medseg_diff": __version__, "torch": torch.__version__},
        }

    def _between_draws(self, fused: Fused) -> dict[str, Any]:
        """Volume intervals and boundary doubt, measured on the model's own grid."""
        spacing = self.plan.spacing_mm or (1.0, 1.0, 1.0)
        return doubt_of_structures(fused.masks, list(self.task.structures), spacing)

    def _hashes(self, channels: Mapping[str, Path]) -> dict[str, Any]:
        cards = [run.card["sha256"] for run in self.runs]
        adapters = [card[ADAPTER] for card in cards if ADAPTER in card]
        return {
            "model": [card[WEIGHTS] for card in cards],
            "input": {name: content_sha256(path) for name, path in channels.items()},
            **({"adapter": adapters} if adapters else {}),
        }


def _finite(value: float) -> float | None:
    """A number as JSON knows it."""
    return value if math.isfinite(value) else None


def checked(defaults: PredictionConfig, given: Mapping[str, Any]) -> PredictionConfig:
    """The configuration's settings with the caller's on top, within their ranges."""
    from pydantic import ValidationError

    try:
        return PredictionConfig.model_validate({**defaults.model_dump(), **given})
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # what does not fit together has no single flag
            raise UsageError(first["msg"].removeprefix("Value error, ")) from None
        flag = f"--{str(first['loc'][0]).replace('_', '-')}"
        raise UsageError(first["msg"], field=flag, found=repr(first["input"])) from None
