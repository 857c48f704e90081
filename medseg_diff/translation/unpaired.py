"""A scan of one domain -> the same scan as another domain would show it, by models of scans alone.

No pairs and no registration: the target domain has a prior (``recipes.priors.image_prior``), and
the source may have one, trained apart. ``diffusion.transport`` has the walks.

Legend: C planes of a scan, *S the model's grid, *T the scan's own.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from torch import Tensor

from medseg_diff import __version__, io
from medseg_diff.checkpoint import LoadedRun
from medseg_diff.codecs import image_values
from medseg_diff.config import PredictionConfig
from medseg_diff.config.directions import Direction
from medseg_diff.data.transforms import spacing_of
from medseg_diff.diffusion import transport
from medseg_diff.diffusion.grids import time_grid
from medseg_diff.diffusion.samplers import Denoise, FreshNoise
from medseg_diff.errors import InputError, UsageError
from medseg_diff.fusion.moments import RunningMoments
from medseg_diff.inference.loading import load_runs
from medseg_diff.inference.predictor import Scan, checked
from medseg_diff.inference.scan import PlacedScan, back, on_grid, place, read_scan
from medseg_diff.inference.windows import pad_to
from medseg_diff.model import LatentPriorModel
from medseg_diff.translation.prior import Prior
from medseg_diff.translation.translator import (
    Translation,
    Translator,
    refuse_restoration,
    translator_of,
)
from medseg_diff.translation.way import STRENGTH, Encoder, Units, Way, check_pair

Array = NDArray[np.float32]


def load_any_translator(
    models: str | Path | Sequence[str | Path],
    device: str = "auto",
    direction: Direction = "forward",
    source_model: str | Path | None = None,
) -> Translator:
    """What translates with these models: translators, or priors.

    Args:
        models: Run folders.
        device: Where they compute.
        direction: As for :func:`medseg_diff.translation.translator.load_translator`.
        source_model: Run folder of the source's prior, where the models are priors.

    Raises:
        UsageError: if they segment, a source model is given beside a translator, or a direction
            beside priors.
    """
    runs = load_runs(models, device)
    if runs[0].config.makes == "scans":
        if direction != "forward":
            raise UsageError(
                "is for models trained on two lists without pairs, and --model is a prior",
                field="--direction", found=direction,
                remedy="change the runs of --model and --source-model",
            )  # fmt: skip
        source = None if source_model is None else Prior(load_runs(source_model, device))
        return UnpairedTranslator(Prior(runs), source)
    if source_model is not None:
        raise UsageError(
            "is for priors, and --model is a translator", field="--source-model",
            remedy="leave it out, or give a run of recipe image_prior with --model",
        )  # fmt: skip
    return translator_of(runs, direction)


def translate_scan(
    target: Prior,
    scan: MetaTensor,
    *,
    source: Prior | None = None,
    way: Way | None = None,
    steps: int | None = None,
    seed: int = 0,
    case: str = "scan",
) -> Array:
    """Translate a scan that is in memory.

    Args:
        target: Unconditional prior of the domain that it is to look like.
        scan: As :mod:`medseg_diff.io` reads it, (C, *T), in its own units.
        source: Prior of its own domain; None noises and denoises it under the target's alone
            (SDEdit).
        way: Strength, encoder and units of the answer.
        steps: Denoiser steps between the strength and 0; None takes the target's configuration.
        seed: With the case's name it fixes the noise, hence the answer.
        case: Name of the case.

    Returns:
        (C, *T) float32 on the scan's own grid. Strength 0 returns the scan's values.

    Raises:
        InputError: if the scan does not fit the models or shows nothing, or the models do not fit
            each other.
    """
    translator = UnpairedTranslator(target, source)
    settings = checked(target.defaults, {} if steps is None else {"steps": steps})
    way = way or Way()
    if len(scan) != translator.task.image_planes:
        raise InputError(
            "wrong number of image planes", field="scan", found=len(scan),
            expected=translator.task.image_planes,
        )  # fmt: skip
    if way.strength == 0:
        return np.asarray(scan, np.float32)
    file = Path(str(scan.meta.get("filename_or_obj", case)))
    placed = place(scan, translator.task, translator.plan, file)
    if placed.constant:
        raise InputError("constant image: there is nothing to translate", file=file)
    walk = translator.walk(placed, way, settings, case, seed)
    return translator.in_units(next(walk).state, placed, way.units).numpy()


@dataclass(frozen=True)
class Drawn:
    """One draw's answer on the model's grid, (C, *S) in about [-1, 1]; all calls so far."""

    state: Array
    calls: int


class UnpairedTranslator(Translator):
    """Priors that translate together.

    Args:
        target: Unconditional prior of the domain that scans are to look like.
        source: Prior of the domain they come from, or None.

    Raises:
        UsageError: if a prior takes label maps, or the two cannot share noise.
    """

    def __init__(self, target: Prior, source: Prior | None = None) -> None:
        self.target, self.source, self.restoration = target, source, None
        priors = [target] if source is None else [target, source]
        for prior, flag in zip(priors, ("--model", "--source-model"), strict=False):
            if prior.model.condition is not None:
                raise UsageError(
                    "this prior makes scans from label maps", file=prior.runs[0].folder,
                    field=flag, remedy="give a run of recipe image_prior",
                )  # fmt: skip
            if isinstance(prior.model, LatentPriorModel):
                raise UsageError(
                    "this prior lives in a latent, which has no noise at a voxel",
                    file=prior.runs[0].folder, field=flag,
                    remedy="give a run of recipe image_prior",
                )  # fmt: skip
        if source is not None:
            check_pair(target.runs[0], source.runs[0])
        self.runs: list[LoadedRun] = [prior.runs[0] for prior in priors]
        # The scan is normalised as its own domain is, and lies on the target's grid.
        self.task, self.plan = priors[-1].task, target.plan.model_copy(
            update={"normalisation": priors[-1].plan.normalisation}
        )  # fmt: skip
        self.defaults, self.patch, self.around = target.defaults, target.patch, None

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
        strength: float | None = None,
        encoder: Encoder | None = None,
        units: Units | None = None,
    ) -> Translation:
        """Translate one scan; see :meth:`Translator.translate` and :class:`Way`.

        Raises:
            InputError: if the scan cannot be read, shows nothing or does not fit the models.
            UsageError: on ``flips``, ``mask`` or ``degrade``, or a choice without a source prior
                to make it for.
        """
        began = time.perf_counter()
        asked = {"draws": draws, "steps": steps, "sampler": sampler, "batch_size": batch_size}
        settings = checked(self.defaults, {k: v for k, v in asked.items() if v is not None})
        self.target._check_sampling(settings)
        refuse_restoration(mask, degrade, self.runs[0])
        self._check_choices(flips, sampler, encoder)
        way = Way(STRENGTH if strength is None else strength, encoder or "noise", units or "target")
        channels = self._channels(scan)
        name = case or io.case_stem(next(iter(channels.values())))
        options = options or io.ReadOptions()
        placed = read_scan(channels, self.task, self.plan, options, self._free(memory_gb)[0])
        if placed.constant:
            raise InputError("constant image: there is nothing to translate", file=placed.file)
        image, spread, calls = self._answer(placed, way, settings, name, seed)
        if way.strength == 0:
            image = io.read_channels({k: channels[k] for k in self.task.channels}, options)
        record = {
            "case": name,
            "status": "warning" if placed.warnings else "ok",
            "warnings": list(placed.warnings),
            **self._told(placed, settings, way, spread),
            "network_calls": {"denoiser": calls},
            "seed": seed,
            "seconds": round(time.perf_counter() - began, 3),
            "hashes": self._hashes(channels),
        }
        return Translation(image, spread, record)

    def restyle(self, image: MetaTensor, case: str, *, draws: int = 1, seed: int = 0) -> Array:
        """Translate a scan that was read already; see :meth:`Translator.restyle`.

        The priors' units are the target's, half of the noising is gone through, and ``draws`` of
        1 is the only number that does not blur.
        """
        if draws != 1:
            raise UsageError("a prior restyles by one draw", field="draws", found=draws)
        return translate_scan(self.target, image, source=self.source, seed=seed, case=case)

    def walk(
        self, placed: PlacedScan, way: Way, settings: PredictionConfig, case: str, seed: int
    ) -> Iterator[Drawn]:
        """Draws of one scan, without end.

        Args:
            placed: The scan, normalised on the model's grid.
            way: Its strength is above 0.
            settings: Steps, grid, sampler and windows.
            case: With the seed it names the noise.
            seed: The user's seed.
        """
        shape = placed.values.shape[1:]
        told = self.target.condition(shape, None)
        values = placed.values[: self.task.image_planes].clip(-1, 1)
        clean = torch.from_numpy(pad_to(values, self.patch)[0])[None].to(self.target.device)
        inside = tuple(slice(0, n) for n in shape)
        target = self.target.denoiser(told, settings)
        source = None if self.source is None else self.source.denoiser(told, settings)
        for draw in itertools.count():
            noise = self.target.noise(case, seed, draw, clean.shape[2:])
            with torch.inference_mode():
                state = self._moved(clean, target, source, noise, way, settings)
            calls = target.calls + (0 if source is None else source.calls)
            yield Drawn(state[0].float().cpu().numpy()[:, *inside], calls)

    def _moved(
        self,
        clean: Tensor,
        target: Denoise,
        source: Denoise | None,
        noise: FreshNoise,
        way: Way,
        settings: PredictionConfig,
    ) -> Tensor:
        """One draw: the clean state (1, C, *S) of the target's domain."""
        path = self.target.model.path
        times = time_grid(path, settings.steps, settings.grid, way.strength)

        def fresh(index: int) -> Tensor:
            return noise(index + 1)

        if source is None:
            return transport.partial_noising(
                path, target, clean, noise(0), times, settings.sampler, fresh
            )
        if way.encoder == "inversion":
            return transport.inverted(path, source, target, clean, times)
        return transport.with_recovered_noise(path, source, target, clean, noise(0), times, fresh)

    def in_units(self, state: Array, placed: PlacedScan, units: Units) -> MetaTensor:
        """A state on the model's grid (C, *S) as a scan (C, *T) on its own, in its units.

        Where the plan's crop did not look it is the range's lowest value.
        """
        ranges = placed.ends if units == "source" else self.target.ranges
        planes = [
            image_values(back((plane + 1) / 2, placed), ends)
            for plane, ends in zip(state, ranges, strict=True)
        ]
        return on_grid(np.stack(planes), placed)

    def _answer(
        self, placed: PlacedScan, way: Way, settings: PredictionConfig, case: str, seed: int
    ) -> tuple[MetaTensor, MetaTensor, int]:
        """Mean of the draws (C, *T), their spread (1, *T) in the same units, network calls."""
        moments, calls = RunningMoments(), 0
        if way.strength == 0:
            moments.add(placed.values[: self.task.image_planes])
        else:
            walk = self.walk(placed, way, settings, case, seed)
            for drawn in itertools.islice(walk, self._draws(way, settings)):
                moments.add(drawn.state)
                calls = drawn.calls
        if moments.mean is None:
            raise RuntimeError("a scan without draws")
        ranges = placed.ends if way.units == "source" else self.target.ranges
        scale = np.array([(high - low) / 2 for low, high in ranges], np.float32)
        squares = moments.variance * scale.reshape(-1, 1, 1, 1) ** 2
        spread = np.sqrt(back(squares.mean(0).astype(np.float32), placed).clip(0))
        image = self.in_units(moments.mean, placed, way.units)
        return image, on_grid(spread[None], placed), calls

    def _draws(self, way: Way, settings: PredictionConfig) -> int:
        """One where nothing is random."""
        fixed = self.source is not None and way.encoder == "inversion"
        return 1 if fixed or way.strength == 0 else settings.draws

    def _check_choices(
        self, flips: Sequence[int] | None, sampler: str | None, encoder: str | None
    ) -> None:
        """Refuse what has no say in this way of translating."""
        if flips:
            raise UsageError("is for models trained on pairs", field="--flip")
        if self.source is None and encoder is not None:
            raise UsageError(
                "finds noise by the source's prior", field="--encoder",
                remedy="give --source-model",
            )  # fmt: skip
        if self.source is not None and sampler is not None:
            raise UsageError(
                "with --source-model both walks have the encoder's steps", field="--sampler",
                remedy="leave it out, or choose --encoder",
            )  # fmt: skip

    def _told(
        self, placed: PlacedScan, settings: PredictionConfig, way: Way, spread: MetaTensor
    ) -> dict[str, Any]:
        """What the case's JSON says of the way."""
        raster = placed.image.meta["kind"] == "raster"
        ranges = placed.ends if way.units == "source" else self.target.ranges
        source = None if self.source is None else self.source.runs[0].config.name
        encoder = None if self.source is None else way.encoder
        return {
            "error": None,
            "synthetic": True,
            "target": self.target.runs[0].config.name,
            "target_modality": self.target.task.modality,
            "channels": list(self.task.channels),
            "range": [min(low for low, _ in ranges), max(high for _, high in ranges)],
            "source_model": source,
            "strength": way.strength,
            "encoder": encoder,
            "units": way.units,
            "draws": settings.draws,
            "draws_made": self._draws(way, settings),
            "mean_spread": float(spread.mean()),
            "steps": settings.steps,
            "sampler": settings.sampler if source is None else None,
            "models": len(self.runs),
            "spacing_mm": None if raster else list(spacing_of(placed.image)),
            "versions": {"medseg_diff": __version__, "torch": torch.__version__},
        }
