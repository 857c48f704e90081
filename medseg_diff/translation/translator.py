"""One scan -> the same scan in another contrast, with the draws' spread, on the scan's own grid.

Legend: K planes of the target image, *S spatial axes of the scan.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn, get_args

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from medseg_diff import __version__, io
from medseg_diff.checkpoint import LoadedRun
from medseg_diff.codecs import image_values
from medseg_diff.config import PredictionConfig
from medseg_diff.config.directions import Direction, backward
from medseg_diff.data.transforms import spacing_of
from medseg_diff.errors import InputError, UsageError
from medseg_diff.inference.draws import Fused
from medseg_diff.inference.loading import load_runs
from medseg_diff.inference.predictor import Predictor, Scan, checked
from medseg_diff.inference.scan import PlacedScan, back, on_grid, place, read_scan
from medseg_diff.inference.windows import Place
from medseg_diff.model import AdversarialModel
from medseg_diff.translation import restoring
from medseg_diff.translation.restoring import Given, RestoredScan

# A rim is this part of a patch's side.
RIM = 4


@dataclass(frozen=True)
class Translation:
    """What a model makes of one scan.

    Attributes:
        image: Mean of the draws, (K, *S) float32 in the target's units.
        spread: Standard deviation between draws in the same units, root mean square over the K
            planes, (1, *S) float32; 0 where there is one draw.
        record: What the case's JSON says.
    """

    image: MetaTensor
    spread: MetaTensor
    record: dict[str, Any] = field(repr=False)


def load_translator(
    model: str | Path | Sequence[str | Path],
    device: str = "auto",
    direction: Direction = "forward",
) -> Translator:
    """Load a trained translator, or several as one ensemble; see :func:`medseg_diff.load`.

    Args:
        model: Run folders.
        device: Where they compute.
        direction: ``"backward"`` makes images of the source's domain from the target's, where the
            models were trained without pairs.

    Raises:
        UsageError: if a model segments, or knows one direction and the other is asked for.
    """
    return translator_of(load_runs(model, device), direction)


def translator_of(runs: Sequence[LoadedRun], direction: Direction) -> Translator:
    """One ensemble of loaded translators; see :func:`load_translator`.

    Raises:
        UsageError: if a model segments, or knows one direction and the other is asked for.
    """
    if direction not in get_args(Direction):
        raise UsageError(
            "unknown direction", field="--direction", found=direction,
            expected=" or ".join(get_args(Direction)),
        )  # fmt: skip
    return Translator([_turned(run) for run in runs] if direction == "backward" else runs)


def _turned(run: LoadedRun) -> LoadedRun:
    """A run whose source and target have changed places, under a hash of its own."""
    config = backward(run.config)
    if not isinstance(run.model, AdversarialModel):
        raise TypeError("only a model of two domains has a way back")
    run.model.make("a")
    card = {**run.card, "sha256": {**run.card["sha256"], "direction": "backward"}}
    return replace(run, config=config, card=card)


class Translator(Predictor):
    """Trained translators behind one call: loaded, checked and drawn from as predictors are.

    Of models that restore scans the answer is in the scan's own range, and outside a hole that is
    filled it is the scan, voxel by voxel; see :mod:`medseg_diff.translation.restoring`.
    """

    makes = "translations"
    translates = True

    def __init__(self, runs: Sequence[LoadedRun]) -> None:
        super().__init__(runs)
        self.restoration = runs[0].config.restoration
        if any(run.config.restoration != self.restoration for run in runs):
            raise InputError(
                "models restore in different ways and cannot form one ensemble",
                file=runs[0].folder,
                field="restoration",
            )

    @property
    def ends(self) -> tuple[float, float]:
        """Lowest and highest value that the image can take, in the target's units."""
        if self.plan.target_range is None:
            raise InputError("the run's plan has no target_range", file=self.runs[0].folder)
        return self.plan.target_range

    def predict(self, *_: Any, **__: Any) -> NoReturn:
        """Images are no masks.

        Raises:
            UsageError: always.
        """
        raise UsageError("this model makes images", remedy="call translate()")

    def translate(
        self,
        scan: Scan,
        *,
        draws: int | None = None,
        steps: int | None = None,
        sampler: str | None = None,
        flips: Sequence[int] | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        memory_gb: float | None = None,
        case: str | None = None,
        options: io.ReadOptions | None = None,
        mask: str | Path | None = None,
        degrade: int | None = None,
    ) -> Translation:
        """Translate one scan.

        Args:
            scan: File, or channel name -> file for a model of several channels.
            draws: Images drawn from each model; None takes the configuration's.
            steps: Sampler steps per image.
            sampler: Name of a sampler, see :data:`medseg_diff.diffusion.samplers.SAMPLERS`.
            flips: Axes of the model's grid to mirror for further members.
            seed: With the case's name it fixes the noise, hence the answer.
            batch_size: Windows x draws in one network call; changes speed, not the answer.
            memory_gb: What the case may take of host and GPU memory, in GiB.
            case: Name of the case; the file's stem by default.
            options: How to read odd files.
            mask: Inpainting: where the scan is not looked at but filled, any label but 0; a file
                on its grid, or a folder of such files with the cases' names.
            degrade: Super-resolution: make the scan this many times coarser first, as in training;
                None takes it as one that is coarse already.

        Raises:
            InputError: if the scan cannot be read, shows nothing, or does not fit the model or
                the memory.
        """
        began = time.perf_counter()
        asked = {
            "draws": draws, "steps": steps, "sampler": sampler, "flips": flips,
            "batch_size": batch_size,
        }  # fmt: skip
        settings = checked(self.defaults, {k: v for k, v in asked.items() if v is not None})
        self._check_sampling(settings)
        channels = self._channels(scan)
        name = case or io.case_stem(next(iter(channels.values())))
        options = options or io.ReadOptions()
        given = Given(None if mask is None else Path(mask), degrade)
        placed = self._placed(channels, name, options, self._free(memory_gb)[0], given)
        fused, notes = self._drawn(placed, name, settings, seed, memory_gb)
        warnings = [*placed.warnings, *notes]
        image, spread = self._images(placed, fused)
        record = {
            "case": name,
            "status": "warning" if warnings else "ok",
            "warnings": warnings,
            **self._facts(placed, fused, settings, spread),
            "seed": seed,
            "seconds": round(time.perf_counter() - began, 3),
            "hashes": self._hashes(channels),
        }
        if isinstance(placed, RestoredScan):
            record |= placed.facts()
        return Translation(image, spread, record)

    def _placed(
        self,
        channels: Mapping[str, Path],
        name: str,
        options: io.ReadOptions,
        free: int,
        given: Given,
    ) -> PlacedScan:
        """The scan as the network sees it.

        Raises:
            UsageError: if something is given that this model does not take.
        """
        if self.restoration is not None:
            wanted, plan = self.restoration, self.plan
            return restoring.place(wanted, channels, name, self.task, plan, options, free, given)
        refuse_restoration(given.mask, given.degrade, self.runs[0])
        return read_scan(channels, self.task, self.plan, options, free)

    def restyle(
        self, image: MetaTensor, case: str, *, draws: int = 1, seed: int = 0
    ) -> NDArray[np.float32]:
        """Translate a scan that was read already, as domain adaptation does.

        Args:
            image: As ``medseg_diff.io`` reads it, (C, *S).
            case: Its name, part of the noise's.
            draws: Images that the answer is the mean of.
            seed: With the name it fixes the noise.

        Returns:
            (K, *S) float32 on the scan's own grid, in the target's units.

        Raises:
            InputError: if the scan does not fit the model or shows nothing.
        """
        settings = checked(self.defaults, {"draws": draws})
        self._check_sampling(settings)
        if len(image) != self.task.image_planes:
            raise InputError(
                "wrong number of image planes", file=case, found=len(image),
                expected=self.task.image_planes,
            )  # fmt: skip
        placed = place(image, self.task, self.plan, Path(case))
        fused, _ = self._drawn(placed, case, settings, seed, None)
        return np.asarray(self._images(placed, fused)[0], dtype=np.float32)

    def _drawn(
        self,
        placed: PlacedScan,
        name: str,
        settings: PredictionConfig,
        seed: int,
        memory_gb: float | None,
    ) -> tuple[Fused, list[str]]:
        """All draws of a scan, and notes about the memory they took."""
        if placed.constant:
            raise InputError("constant image: there is nothing to translate", file=placed.file)
        free = self._free(memory_gb)
        seen, own = self._rimmed(placed)
        plan = self._within(seen, settings, free, maps=True, save_draws=False)
        fused, again = self._infer(seen, name, settings, seed, plan)
        made, spread = fused.probability[:, *own], fused.variance[own]
        cut = replace(fused, probability=made, variance=spread, entropy=fused.entropy[own])
        return cut, [*plan.notes, *again]

    def _rimmed(self, scan: PlacedScan) -> tuple[PlacedScan, Place]:
        """A scan in a mirrored rim, for what learned without pairs, and where it lies therein.

        Nothing in an adversarial training says what stands at a border, where convolutions see
        zeros, and bars of made-up light stood there. Inside the scan windows overlap instead.
        """
        sizes = scan.values.shape[1:]
        if not isinstance(self.runs[0].model, AdversarialModel):
            # Padding by nothing would copy the scan.
            return scan, tuple(slice(n) for n in sizes)
        rim = [min(p // RIM, n - 1) for p, n in zip(self.patch, sizes, strict=True)]
        wide = np.pad(scan.values, [(0, 0), *((r, r) for r in rim)], mode="reflect")
        own = tuple(slice(r, r + n) for r, n in zip(rim, sizes, strict=True))
        return replace(scan, values=wide), own

    def _images(self, placed: PlacedScan, fused: Fused) -> tuple[MetaTensor, MetaTensor]:
        """Image and spread on the scan's grid; where the plan's crop did not look the image is
        the range's lowest value and the spread 0.
        """
        if isinstance(placed, RestoredScan):
            image, spread = restoring.images(placed, fused)
            return on_grid(image, placed), on_grid(spread, placed)
        low, high = self.ends
        planes = [
            image_values(back(fused.plane(k), placed), self.ends)
            for k in range(len(fused.probability))
        ]
        # Interpolated as a variance, which stays above 0.
        deviation = np.sqrt(back(fused.variance, placed).clip(0)) * np.float32(high - low)
        return on_grid(np.stack(planes), placed), on_grid(deviation[None], placed)

    def _facts(
        self, placed: PlacedScan, fused: Fused, settings: PredictionConfig, spread: MetaTensor
    ) -> dict[str, Any]:
        raster = placed.image.meta["kind"] == "raster"
        return {
            "error": None,
            "synthetic": True,
            "target": self.task.target,
            "target_modality": self.task.target_modality or self.task.modality,
            "channels": list(self.task.channels),
            "range": list(placed.range if isinstance(placed, RestoredScan) else self.ends),
            "draws": settings.draws,
            "draws_made": len(fused.masks),
            "mean_spread": float(spread.mean()),
            "steps": settings.steps,
            "sampler": settings.sampler,
            "flips": list(settings.flips),
            "models": len(self.runs),
            "spacing_mm": None if raster else list(spacing_of(placed.image)),
            "network_calls": fused.network_calls,
            "versions": {"medseg_diff": __version__, "torch": torch.__version__},
        }


def refuse_restoration(mask: str | Path | None, degrade: int | None, run: LoadedRun) -> None:
    """Raise :class:`UsageError` if a run that does not restore scans is given what one takes."""
    for flag, value in (("--mask", mask), ("--degrade", degrade)):
        if value is not None:
            raise UsageError("is for a model that restores scans", field=flag, file=run.folder)


def source_and_target(record: Mapping[str, Any]) -> str:
    """``T1 -> FLAIR`` of a case's JSON."""
    return f"{' + '.join(record['channels'])} -> {record['target']}"
