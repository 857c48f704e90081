"""Commands that measure a trained diffusion model; ``main.py`` gives them their names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from medseg_diff.errors import UsageError

if TYPE_CHECKING:
    from medseg_diff.data.caselist import Part
    from medseg_diff.posthoc.likelihood import Method

Model = Annotated[Path, typer.Option(help="Run folder of a diffusion model.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]


def estimate_variance(
    model: Model,
    data: Annotated[
        Path | None, typer.Option(help="Case list; by default the one it was trained on.")
    ] = None,
    part: Annotated[str, typer.Option(help="train, validation or test.")] = "validation",
    cases: Annotated[int, typer.Option(min=1, help="How many cases, at most.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    device: Device = "auto",
) -> None:
    """Measure once what `--sampler analytic` needs, and store it in the run folder."""
    from medseg_diff.checkpoint import load_run
    from medseg_diff.inference.loading import choose_device
    from medseg_diff.posthoc.variance import estimate_variance as run

    loaded = load_run(model, choose_device(device))
    found = run(loaded, data, part=cast("Part", part), cases=cases, seed=seed)
    table = found.table
    ends = [f"{float(table.values[k]):.3g} at t = {float(table.times[k]):.3g}" for k in (0, -1)]
    print(f"mean squared error of the clean estimate: {', '.join(ends)} (cases: {found.cases})")
    print(f"written to {found.file}")


def calibrate(
    model: Annotated[Path, typer.Option(help="Run folder; its card gets the temperature.")],
    data: Annotated[
        Path | None, typer.Option(help="Case list; by default the one it was trained on.")
    ] = None,
    part: Annotated[str, typer.Option(help="validation or train; never test.")] = "validation",
    draws: Annotated[int | None, typer.Option(help="As for `predict`.")] = None,
    steps: Annotated[int | None, typer.Option(help="As for `predict`.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    device: Device = "auto",
) -> None:
    """Fit the temperature that makes probabilities mean what they say; the card keeps it."""
    from medseg_diff.inference.predictor import load
    from medseg_diff.posthoc.temperature import calibrate as run
    from medseg_diff.posthoc.truth import cases_of

    predictor = load(model, device)
    cases = cases_of(predictor.runs[0], data)
    found = run(predictor, cases, part=cast("Part", part), seed=seed, draws=draws, steps=steps)
    fit = found.temperature
    print(f"temperature {fit.value:.3f} on {found.cases} cases, {fit.voxels} voxels")
    print(f"NLL {fit.nll_before:.4f} -> {fit.nll_after:.4f}")
    print(f"ECE near the foreground {found.ece_before:.4f} -> {found.ece_after:.4f}")


def likelihood(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for per_case.csv and summary.json.")],
    data: Annotated[
        Path | None, typer.Option(help="Case list; by default the one it was trained on.")
    ] = None,
    part: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    cases: Annotated[int | None, typer.Option(min=1, help="How many cases, at most.")] = None,
    method: Annotated[str, typer.Option(help="bound, flow or both.")] = "both",
    bound_steps: Annotated[
        int, typer.Option(min=1, help="Steps of the variational bound, one network call each.")
    ] = 1000,
    flow_steps: Annotated[
        int, typer.Option(min=1, help="Steps of the probability flow, four calls each.")
    ] = 50,
    probes: Annotated[int, typer.Option(min=1, help="Probes of the flow's divergence.")] = 1,
    t_min: Annotated[float, typer.Option(help="Time in (0, 1) where the flow starts.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Of noise and probes.")] = 0,
    device: Device = "auto",
) -> None:
    """Bits per dimension of reference masks: a variational bound, and the flow's own density."""
    if method not in ("both", "bound", "flow"):
        raise UsageError(
            "unknown choice", field="--method", found=method, expected="bound, flow or both"
        )
    if not 0 < t_min < 1:
        raise UsageError("out of range", field="--t-min", found=t_min, expected="0 < t_min < 1")
    from medseg_diff.checkpoint import load_run
    from medseg_diff.inference.loading import choose_device
    from medseg_diff.posthoc.likelihood import VALUES, Measure, Row
    from medseg_diff.posthoc.likelihood import likelihood as run

    def report(row: Row) -> None:
        bits = ", ".join(f"{k} {row[k]:.4g}" for k in VALUES if k in row)
        print(f"{row['case']}: {bits}", flush=True)

    loaded = load_run(model, choose_device(device))
    measure = Measure(cast("Method", method), bound_steps, flow_steps, probes, t_min, seed)
    run(loaded, out, data, part=cast("Part", part), cases=cases, measure=measure, report=report)
    print(f"written to {out}")


def robustness(
    model: Annotated[
        list[str], typer.Option(help="Run folder or 'hippocampus'; several: one ensemble.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for robustness.csv, .png and report.html.")],
    data: Annotated[
        Path | None, typer.Option(help="Case list; by default the one it was trained on.")
    ] = None,
    part: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    cases: Annotated[int | None, typer.Option(min=1, help="How many cases, at most.")] = None,
    shift: Annotated[
        list[str] | None, typer.Option(help="Which shift; repeatable; all by default.")
    ] = None,
    shifts: Annotated[
        Path | None,
        typer.Option(help="YAML of strengths in the place of the package's frozen ones."),
    ] = None,
    draws: Annotated[int | None, typer.Option(help="As for `predict`.")] = None,
    steps: Annotated[int | None, typer.Option(help="As for `predict`.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draws; the shifts have their own.")] = 0,
    device: Device = "auto",
) -> None:
    """Dice and calibration against the strength of scanner shifts; goes on where it stopped."""
    from medseg_diff.data.frozen_shifts import load_shifts
    from medseg_diff.evaluation.robustness import robustness as run
    from medseg_diff.inference.predictor import load
    from medseg_diff.posthoc.truth import cases_of

    frozen = load_shifts(shifts)
    predictor = load(model, device)
    found = run(
        predictor,
        cases_of(predictor.runs[0], data),
        out,
        frozen,
        names=shift or (),
        part=cast("Part", part),
        limit=cases,
        report=lambda line: print(line, flush=True),
        draws=draws,
        steps=steps,
        seed=seed,
    )
    print(found.describe())
    print(f"report: {found.report}")
