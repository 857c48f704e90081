"""The error table of a trained model, which the sampler with analytic variance needs.

Bao et al. (2022, Analytic-DPM) estimate the score's mean square norm once after training; in terms
of the clean estimate it is the mean squared error, measured here on cases with a reference.

Legend: W windows, K state channels, *S spatial axes, T times.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from medseg_diff.checkpoint import LoadedRun, save_error_table
from medseg_diff.data.caselist import Part
from medseg_diff.diffusion.grids import time_grid
from medseg_diff.diffusion.samplers import Denoised, ErrorTable, estimate_error_variance
from medseg_diff.errors import UsageError
from medseg_diff.model import DiffusionModel, FeatureModel, JointModel, LatentModel
from medseg_diff.posthoc.truth import TrueWindows, cases_of, true_windows

# Times that the error is measured at; between them the table is linear.
KNOTS = 50


@dataclass(frozen=True)
class Measured:
    """A stored table and what it was measured on.

    Attributes:
        file: Where it lies.
        table: Mean squared errors over time.
        cases: How many cases were looked at.
    """

    file: Path
    table: ErrorTable
    cases: int


def estimate_variance(
    run: LoadedRun,
    data: Path | None = None,
    *,
    part: Part = "validation",
    cases: int | None = 8,
    knots: int = KNOTS,
    seed: int = 0,
) -> Measured:
    """Measure how far the clean estimate is off, and store it in the run folder.

    The state is noised by one field per case and time, so the answer is a function of the seed,
    the weights and the cases. Errors of unseen cases are what the sampler meets; the paper takes
    the training set's, which are smaller where a network has learned its cases by heart.

    Args:
        run: Trained diffusion model.
        data: Case list; None takes the one it was trained on.
        part: Part of the list.
        cases: How many of its cases, at most; None takes all.
        knots: Times to measure at, evenly spaced, t = 1 among them.
        seed: Of the noise.

    Raises:
        InputError: without a case, or if the list is not of the model's task.
        UsageError: if the model does not sample.
    """
    model = run.model
    # Of features the truth is no mask's.
    if not isinstance(model, DiffusionModel) or isinstance(model, JointModel | FeatureModel):
        raise UsageError(
            "no diffusion of a mask: it has no sampler whose variance could be estimated",
            file=run.folder,
            field="--model",
        )
    times = _times(model, knots)
    total, counted = torch.zeros(len(times), dtype=torch.float64), 0
    for windows in true_windows(run, cases_of(run, data), part, cases):
        errors = case_errors(model, windows, times, seed)
        if errors is not None:
            total, counted = total + errors, counted + 1
    if counted == 0:
        raise UsageError("every voxel of the chosen cases is ignored", field="--part", found=part)
    table = ErrorTable(times, total / counted)
    return Measured(save_error_table(run, table, cases=counted), table, counted)


def case_errors(
    model: DiffusionModel, windows: TrueWindows, times: Tensor, seed: int
) -> Tensor | None:
    """Mean squared errors (T,) of one case's clean estimates; None if all of it is ignored."""
    clean, weight = _clean(model, windows)
    share = 1.0 if weight is None else float(weight.mean())
    if share == 0:
        return None
    with torch.no_grad():
        context = model.context(windows.image)
    errors = []
    for index, time in enumerate(times):
        noise = windows.noise(seed, 0, index, model.codec.channels)
        if isinstance(model, LatentModel):
            noise = model.noise_on_grid(noise)

        def denoise(x_t: Tensor, t: Tensor) -> Denoised:
            answer = model.denoised(x_t, t, context)
            if model.config.self_conditioning:
                # As a sampler does from its second step on.
                answer = model.denoised(x_t, t, context, answer.clean)
            # Where nothing is known nothing counts.
            found = answer.clean if weight is None else torch.where(weight > 0, answer.clean, clean)
            return Denoised(found)

        errors.append(
            estimate_error_variance(model.path, denoise, [(clean, noise)], time.reshape(1))
        )
    return torch.cat(errors) / share


def _clean(model: DiffusionModel, windows: TrueWindows) -> tuple[Tensor, Tensor | None]:
    """True clean states (W, K, *S), and 1 where they are known."""
    state = model.codec.encode(windows.labels)
    if not isinstance(model, LatentModel):
        return state, model.codec.weight(windows.labels)
    with torch.no_grad():
        return model.autoencoder.encode(state).z, None


def _times(model: DiffusionModel, knots: int) -> Tensor:
    """Rising times above 0, at most as many as a path's table has."""
    steps = getattr(model.path, "steps", knots)
    return time_grid(model.path, min(knots, steps))[:-1].flip(0)
