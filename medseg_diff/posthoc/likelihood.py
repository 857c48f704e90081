"""Likelihood of reference masks under a trained diffusion model, in bits per dimension.

Two numbers for each case, means over its windows (a window's K x prod(S) state values are its
dimensions, so every window counts alike):

    bound   the variational bound over the process's steps (Ho et al. 2020, Eq. 5). Its last term is
            the mass that the decoder gives to the true sign of every value (bins of width 2), so it
            bounds the bits of a discrete mask from above, and the prior from noise is counted in.
    flow    minus the log density of the probability flow (Song et al. 2021, Sec. 4.3), its
            divergence by Hutchinson's probes; unbiased over probes.

The second needs care. A one-hot mask is a point of a lattice, and nothing is dequantised here: the
networks were trained on the points themselves. A density there has no bound from above. It is that
of masks blurred by the noise at ``t_min``, and falls, in bits, without end as ``t_min`` does: the
better the model, the faster. So compare ``flow`` only between models on one path at one ``t_min``;
it is no number of bits that a mask could be stored in, and may be negative. ``bound`` is such a
number, a loose one: its decoder does not know that one channel of a one-hot mask excludes others.

Legend: W windows, K state channels, *S spatial axes.
"""

from __future__ import annotations

import csv
import io as text_io
import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from medseg_diff.checkpoint import WEIGHTS, LoadedRun
from medseg_diff.data.caselist import Part
from medseg_diff.diffusion.grids import time_grid
from medseg_diff.diffusion.likelihood import Bound, bits_per_dimension, log_likelihood
from medseg_diff.diffusion.samplers import Denoise, Denoised
from medseg_diff.errors import InputError, UsageError
from medseg_diff.files import atomic_text
from medseg_diff.model import DiffusionModel, JointModel, LatentModel
from medseg_diff.posthoc.truth import TrueWindows, cases_of, true_windows

Method = Literal["both", "bound", "flow"]
VALUES = ("bound_bits", "prior_bits", "steps_bits", "decoder_bits", "flow_bits", "flow_probe_sd")
COLUMNS = ("case", "windows", "dimensions", *VALUES)
# Masks in {-1, 1}: half of the line belongs to either value.
BIN_WIDTH = 2.0

Row = dict[str, str | int | float]


@dataclass(frozen=True)
class Measure:
    """How likelihoods are measured.

    Attributes:
        method: Which of the two numbers; ``"both"`` leaves the flow out where there is none.
        bound_steps: Steps of the bound, one network call each; DDPM's 1000, or a beta table's.
        flow_steps: Runge-Kutta steps in sqrt(t), four network calls and gradients each.
        probes: Rademacher probes of the divergence, each a flow of its own.
        t_min: Time at which the flow starts.
        seed: Of the noise and the probes.
    """

    method: Method = "both"
    bound_steps: int = 1000
    flow_steps: int = 50
    probes: int = 1
    t_min: float = 1e-3
    seed: int = 0


def likelihood(
    run: LoadedRun,
    out: Path,
    data: Path | None = None,
    *,
    part: Part = "test",
    cases: int | None = None,
    measure: Measure | None = None,
    report: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Measure the reference masks of a part and write ``per_case.csv`` and ``summary.json``.

    Noise and probes are fields of (seed, case, step), so the numbers are a function of the seed,
    the weights and the cases.

    Args:
        run: Trained diffusion model; its parameters are frozen.
        out: Folder to write to.
        data: Case list; None takes the one it was trained on.
        part: Part of the list.
        cases: How many of its cases, at most; None takes all.
        measure: How.
        report: Called with every case's row.

    Raises:
        InputError: without a case, on ignored voxels, or if the list is not of the model's task.
        UsageError: if the model has no likelihood of masks.
    """
    measure = measure or Measure()
    model, notes = _measurable(run, measure)
    rows = []
    for windows in true_windows(run, cases_of(run, data), part, cases):
        rows.append(case_bits(model, windows, measure))
        if report is not None:
            report(rows[-1])
    out.mkdir(parents=True, exist_ok=True)
    text = text_io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_text(out / "per_case.csv", text.getvalue())
    summary = {
        "model": run.card["sha256"][WEIGHTS],
        "part": part,
        "cases": len(rows),
        "settings": asdict(measure),
        "mean": {name: statistics.fmean(found) for name, found in _columns(rows)},
        "sd": {name: statistics.stdev(found) for name, found in _columns(rows) if len(found) > 1},
        "notes": notes,
    }
    atomic_text(out / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return rows


def _columns(rows: Sequence[Row]) -> Iterator[tuple[str, list[float]]]:
    for name in VALUES:
        found = [float(row[name]) for row in rows if name in row]
        if found:
            yield name, found


def _measurable(run: LoadedRun, measure: Measure) -> tuple[DiffusionModel, list[str]]:
    """The model, frozen, and what the reader of its numbers must know."""
    model = run.model
    if not isinstance(model, DiffusionModel) or isinstance(model, LatentModel | JointModel):
        raise UsageError(
            "it has no likelihood of masks",
            file=run.folder,
            field="--model",
            expected="a model that diffuses masks themselves",
        )
    notes = [
        f"flow_bits is the density of masks blurred by the noise at t = {measure.t_min:g}, not "
        "dequantised: compare it on one path at one t_min alone"
    ]
    if measure.method == "bound":
        notes = []
    elif not model.path.continuous:
        problem = "a table of betas has no probability flow"
        if measure.method == "flow":
            raise UsageError(problem, file=run.folder, field="--method", remedy="use bound")
        notes = [f"flow_bits is left out: {problem}"]
    model.requires_grad_(False)
    return model, notes


def case_bits(model: DiffusionModel, windows: TrueWindows, measure: Measure) -> Row:
    """One case's row: means over its windows of the bound, its terms, and the flow."""
    ignored = model.mask_codec.ignore_label
    if ignored is not None and bool((windows.labels == ignored).any()):
        raise InputError(
            "an ignored voxel has no likelihood",
            field="ignore_label",
            found=f"case {windows.case}",
            remedy="use cases whose masks are complete",
        )
    flows = measure.method != "bound" and model.path.continuous
    found: dict[str, list[float]] = {}
    count = 0
    for window in _one_by_one(windows):
        clean = model.codec.encode(window.labels).double()
        count = clean[0].numel()
        denoise = _denoiser(model, window)
        values = _bound(model, denoise, clean, window, measure) if measure.method != "flow" else {}
        if flows:
            values |= _flow(model, denoise, clean, window, measure)
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    means = {name: statistics.fmean(values) for name, values in found.items()}
    return {
        "case": windows.case,
        "windows": len(windows.places),
        "dimensions": count,
        **{name: _known(windows.case, name, value) for name, value in means.items()},
    }


def _one_by_one(windows: TrueWindows) -> Iterator[TrueWindows]:
    """Each window alone: gradients through several at once would not fit."""
    for k, place in enumerate(windows.places):
        yield TrueWindows(
            windows.case, windows.image[k : k + 1], windows.labels[k : k + 1], (place,)
        )


def _denoiser(model: DiffusionModel, window: TrueWindows) -> Denoise:
    """The network in its own precision, the process in double."""
    with torch.no_grad():
        context = model.context(window.image)

    def denoise(x_t: Tensor, t: Tensor) -> Denoised:
        answer = model.denoised(x_t.float(), t, context)
        variance = None if answer.variance is None else answer.variance.double()
        return Denoised(answer.clean.double(), variance)

    return denoise


def _bound(
    model: DiffusionModel, denoise: Denoise, clean: Tensor, window: TrueWindows, measure: Measure
) -> dict[str, float]:
    steps = min(measure.bound_steps, getattr(model.path, "steps", measure.bound_steps))

    def noise(step: int) -> Tensor:
        return window.noise(measure.seed, 0, step, model.codec.channels).double()

    with torch.no_grad():
        found: Bound = bits_per_dimension(
            model.path, denoise, clean, noise, time_grid(model.path, steps), bin_width=BIN_WIDTH
        )
    return {
        "bound_bits": float(found.total),
        "prior_bits": float(found.prior),
        "steps_bits": float(found.steps.sum()),
        "decoder_bits": float(found.decoder),
    }


def _flow(
    model: DiffusionModel, denoise: Denoise, clean: Tensor, window: TrueWindows, measure: Measure
) -> dict[str, float]:
    bits = []
    for probe in range(measure.probes):
        # Draw 0 noises the bound's states.
        field = window.noise(measure.seed, 1 + probe, 0, model.codec.channels)
        nats = log_likelihood(
            model.path,
            denoise,
            clean,
            probe=torch.where(field < 0, -1.0, 1.0).double(),
            steps=measure.flow_steps,
            t_min=measure.t_min,
        )
        bits.append(-float(nats) / (clean[0].numel() * math.log(2)))
    spread = {} if len(bits) < 2 else {"flow_probe_sd": statistics.stdev(bits)}
    return {"flow_bits": statistics.fmean(bits), **spread}


def _known(case: str, name: str, value: float) -> float:
    if not math.isfinite(value):
        raise InputError(
            "the likelihood is not finite",
            field=name,
            found=f"{value} in case {case}",
            remedy="use a later start of the flow with --t-min, or --method bound",
        )
    return value
