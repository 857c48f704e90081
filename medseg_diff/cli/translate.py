"""The command that translates scans; see ``main.py``, which gives it its name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from medseg_diff.cli.cases import (
    INPUTS,
    Affine,
    Axcodes,
    BatchSize,
    Device,
    Engine,
    Flip,
    GoOn,
    MemoryGb,
    Nan,
    RayAddress,
    Retries,
    Seed,
    Volume,
    Workers,
    run_cases,
)
from medseg_diff.cli.options import read_options
from medseg_diff.errors import UsageError


def translate(
    model: Annotated[list[str], typer.Option(help="Run folder; several form one ensemble.")],
    input: Annotated[
        list[Path],
        typer.Option(help=INPUTS),
    ],
    out: Annotated[Path, typer.Option(help="Folder for images, spreads and JSONs.")],
    draws: Annotated[int | None, typer.Option(help="Images drawn per case and model.")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampler steps per image.")] = None,
    sampler: Annotated[str | None, typer.Option(help="As for `predict`.")] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            help="Inpainting: mask of the hole to fill, or a folder of masks with the cases' names."
        ),
    ] = None,
    degrade: Annotated[
        int | None,
        typer.Option(
            min=2, help="Super-resolution: make scans this many times coarser first, to score it."
        ),
    ] = None,
    direction: Annotated[
        Literal["forward", "backward"],
        typer.Option(help="backward makes the source's images; for models trained without pairs."),
    ] = "forward",
    source_model: Annotated[
        Path | None,
        typer.Option(help="Prior of the scans' own domain; --model is the target's prior."),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(help="Priors: share of the noising that a scan goes through, 0 to 1; 0.5."),
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="With --source-model: noise (CycleDiffusion) or inversion.")
    ] = None,
    units: Annotated[
        str | None, typer.Option(help="Priors: units of the answer, target's or source's.")
    ] = None,
    flip: Flip = None,
    go_on: GoOn = False,
    seed: Seed = 0,
    batch_size: BatchSize = None,
    memory_gb: MemoryGb = None,
    device: Device = "auto",
    engine: Engine = "local",
    ray_address: RayAddress = None,
    workers: Workers = None,
    retries: Retries = 2,
    affine: Affine = "auto",
    assume_axcodes: Axcodes = None,
    nan: Nan = None,
    volume: Volume = None,
    series: Annotated[
        str | None, typer.Option(help="Which DICOM series: its UID or the end of it.")
    ] = None,
) -> None:
    """Translate scans: per case a SYNTHETIC image, the spread between its draws and a JSON."""
    options = read_options(affine, assume_axcodes, nan, volume, series)
    from medseg_diff.batch.engines import ModelSource, engine_by_name
    from medseg_diff.batch.run import check_output, find_cases
    from medseg_diff.translation.unpaired import UnpairedTranslator

    source = ModelSource(
        tuple(model),
        device,
        translates=True,
        direction=direction,
        source_model=str(source_model) if source_model else None,
    )
    # The driver of a cluster computes nothing: it needs no GPU.
    translator = source.load(None if engine == "local" else "cpu")
    place = engine_by_name(engine, translator, source, ray_address, workers, retries)
    of_priors = {"strength": strength, "encoder": encoder, "units": units}
    given: dict[str, object] = {k: v for k, v in of_priors.items() if v is not None}
    if given and not isinstance(translator, UnpairedTranslator):
        raise UsageError(
            "is for priors, and --model is a translator", field=f"--{next(iter(given))}"
        )
    cases = find_cases(input, translator.task.channels)
    check_output(out, cases)
    if degrade is not None:
        given["degrade"] = degrade
    if mask is not None:
        # Absolute: an engine's workers may stand elsewhere.
        given["mask"] = str(mask.absolute())
    code = run_cases(
        translator,
        cases,
        out,
        go_on=go_on,
        engine=place,
        draws=draws,
        steps=steps,
        sampler=sampler,
        flips=flip,
        seed=seed,
        batch_size=batch_size,
        memory_gb=memory_gb,
        options=options,
        **given,
    )
    raise typer.Exit(code)
