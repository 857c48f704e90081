"""The command that translates scans; see ``cli.py``, which gives it its name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg_diff.cli_options import read_options

if TYPE_CHECKING:
    from medseg_diff.batch import Outcome


def translate(
    model: Annotated[list[str], typer.Option(help="Run folder; several form one ensemble.")],
    input: Annotated[
        list[Path],
        typer.Option(
            help="Scans, folders, a cases.json (its test), a CSV (case, a column per channel), or "
            "a pattern in quotes ('scans/**/*.nii.gz')."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for images, spreads and JSONs.")],
    draws: Annotated[int | None, typer.Option(help="Images drawn per case and model.")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampler steps per image.")] = None,
    sampler: Annotated[str | None, typer.Option(help="As for `predict`.")] = None,
    flip: Annotated[
        list[int] | None, typer.Option(help="Axis to mirror for further members; repeatable.")
    ] = None,
    go_on: Annotated[
        bool,
        typer.Option("--continue", help="Pass over what the folder's manifest vouches for."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Same seed, same answer.")] = 0,
    batch_size: Annotated[
        int | None, typer.Option(help="Windows x draws in a network call.")
    ] = None,
    memory_gb: Annotated[
        float | None,
        typer.Option(help="GiB a case may take of host and GPU memory; what is free by default."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    engine: Annotated[
        str, typer.Option(help="local, or ray: workers of a cluster, or of this computer.")
    ] = "local",
    ray_address: Annotated[
        str | None, typer.Option(help="HOST:PORT of a Ray cluster; starts its own by default.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Workers of --engine ray; one per CPU or GPU by default.")
    ] = None,
    affine: Annotated[str, typer.Option(help="auto, sform or qform, where they differ.")] = "auto",
    assume_axcodes: Annotated[
        str | None, typer.Option(help="e.g. RAS, for scans that do not say (research only).")
    ] = None,
    nan: Annotated[float | None, typer.Option(help="Value to put in place of NaN and Inf.")] = None,
    volume: Annotated[int | None, typer.Option(help="Which volume of a 4-D file, from 0.")] = None,
    series: Annotated[
        str | None, typer.Option(help="Which DICOM series: its UID or the end of it.")
    ] = None,
) -> None:
    """Translate scans: per case a SYNTHETIC image, the spread between its draws and a JSON."""
    options = read_options(affine, assume_axcodes, nan, volume, series)
    from medseg_diff.batch import check_output, find_cases, predict_many
    from medseg_diff.engines import ModelSource, engine_by_name
    from medseg_diff.progress import case_lines

    source = ModelSource(tuple(model), device, translates=True)
    # The driver of a cluster computes nothing: it needs no GPU.
    translator = source.load(None if engine == "local" else "cpu")
    place = engine_by_name(engine, translator, source, ray_address, workers)
    cases = find_cases(input, translator.task.channels)
    check_output(out, cases)
    told: list[str] = []
    line = case_lines(len(cases))

    def report(index: int, outcome: Outcome) -> None:
        told.append(outcome.case)
        line(index, outcome)

    code = predict_many(
        translator,
        cases,
        out,
        go_on=go_on,
        report=report,
        engine=place,
        draws=draws,
        steps=steps,
        sampler=sampler,
        flips=flip,
        seed=seed,
        batch_size=batch_size,
        memory_gb=memory_gb,
        options=options,
    )
    if len(told) < len(cases):
        print(f"{len(cases) - len(told)} cases were done before, or are another process's")
    print(f"written to {out}")
    raise typer.Exit(code)
