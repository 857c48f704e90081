"""The command line. Heavy modules load inside the commands, so that --help is instant.

Exit codes: 0 done, 1 nothing could be done, 2 wrong use, 8 some cases failed, 130 and 143 stopped
by a signal after saving.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg_diff.cli.adapt import adapt
from medseg_diff.cli.cases import (
    INPUTS,
    Affine,
    Axcodes,
    BatchSize,
    Device,
    DicomSeg,
    Engine,
    Flip,
    GoOn,
    MemoryGb,
    Nan,
    RayAddress,
    Retries,
    Seed,
    Series,
    Volume,
    Workers,
    run_cases,
)
from medseg_diff.cli.measure import calibrate, estimate_variance, likelihood, robustness
from medseg_diff.cli.options import parse_shapes, read_options
from medseg_diff.cli.pacs import (
    Authority,
    Gib,
    MovePort,
    OwnCertificate,
    OwnTitle,
    Pacs,
    Seconds,
    Store,
    Study,
    remote,
)
from medseg_diff.cli.synthesize import synthesize
from medseg_diff.cli.translate import translate
from medseg_diff.errors import InputError, UsageError

if TYPE_CHECKING:
    from medseg_diff.evaluation.masks import Evaluation

app = typer.Typer(
    help="Diffusion models that segment and translate medical images: train, predict, translate, "
    "evaluate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
) -> None:
    """Train a small model on the embedded sample, predict, score and write a report."""
    from medseg_diff.cli.demo import run_demo

    run_demo(out)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML file; see configs/.")],
    data: Annotated[
        Path | None,
        typer.Option(help="Case list (cases.json) or its folder, instead of the YAML's."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/<name> by default.")] = None,
    override: Annotated[
        list[str] | None, typer.Option("--set", help="key.sub=value, e.g. training.steps=500.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the last whole checkpoint.")] = False,
    allow_mismatch: Annotated[
        bool, typer.Option(help="Resume although configuration or data changed.")
    ] = False,
    init: Annotated[Path | None, typer.Option(help="Run to fine-tune from, or to adapt.")] = None,
    skip_bad: Annotated[
        int, typer.Option(help="Go on without up to this many cases that cannot be read.")
    ] = 0,
    fold: Annotated[int | None, typer.Option(help="Fold of the cross-validation.")] = None,
) -> None:
    """Train a model."""
    from medseg_diff.config import load_config

    settings = list(override or [])
    if data is not None:
        # JSON is YAML: quoting keeps a path with ': ' or '#' a string.
        settings.append(f"data.cases={_quoted(data)}")
    if fold is not None:
        settings.append(f"data.fold={fold}")
    parsed = load_config(config, settings)
    folder = out or Path("runs") / (parsed.name if fold is None else f"{parsed.name}_fold{fold}")
    from medseg_diff.cli.progress import TrainingBar
    from medseg_diff.training.fit import Options, Stopped, fit

    with TrainingBar(parsed.training.steps) as report:
        options = Options(resume, allow_mismatch, init, report, skip_bad)
        try:
            fit(parsed, folder, options)
        except Stopped as stop:
            print(f"{folder.name}: {stop}", file=sys.stderr)
            raise typer.Exit(stop.exit_code) from None
    print(f"trained: {folder}")


@app.command()
def predict(
    context: typer.Context,
    model: Annotated[
        list[str], typer.Option(help="Run folder or 'hippocampus'; several form one ensemble.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for masks, probabilities, doubts and JSONs.")],
    input: Annotated[
        list[Path] | None,
        typer.Option(help=INPUTS),
    ] = None,
    draws: Annotated[int | None, typer.Option(help="Masks drawn per case and model.")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampler steps per mask.")] = None,
    sampler: Annotated[
        str | None, typer.Option(help="ddim, dpm_solver_2m, heun ... (see docs).")
    ] = None,
    fuse: Annotated[
        str | None,
        typer.Option(
            help="mean, majority, staple, certainty, step_uncertainty, step_uncertainty_paper, "
            "step_sum."
        ),
    ] = None,
    settle: Annotated[
        float | None,
        typer.Option(help="Stop drawing when less than this share of the mask is still in doubt."),
    ] = None,
    flip: Flip = None,
    shapes: Annotated[
        str | None,
        typer.Option(help="Clean-up by structure, as YAML: '{liver: {keep_largest: true}}'."),
    ] = None,
    save_draws: Annotated[
        bool, typer.Option("--save-draws", help="Also write every draw's mask, in one file.")
    ] = False,
    probability: Annotated[
        bool,
        typer.Option(
            "--probability/--no-probability",
            help="Write every structure's probability; the largest file of a case.",
        ),
    ] = True,
    dicom_seg: DicomSeg = None,
    go_on: GoOn = False,
    guide: Annotated[
        Path | None, typer.Option(help="Run folder of a U-Net that the draws lean towards.")
    ] = None,
    guide_scale: Annotated[float, typer.Option(help="How strongly they do.")] = 1.0,
    adapter: Annotated[
        Path | None, typer.Option(help="Adapter trained on --model: its file or run folder.")
    ] = None,
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
    series: Series = None,
    pacs: Pacs = None,
    study: Study = None,
    store: Store = False,
    own_aet: OwnTitle = "MEDSEGDIFF",
    move_port: MovePort = None,
    pacs_ca: Authority = None,
    pacs_cert: OwnCertificate = None,
    pacs_gib: Gib = 16.0,
    pacs_seconds: Seconds = 1800.0,
) -> None:
    """Segment scans: per case a mask, its probability, its doubt and a JSON."""
    if bool(input) == (pacs is not None):
        raise UsageError("give either --input or --pacs", field="--input")
    archive = remote(
        pacs, study, series, store, own=(own_aet, move_port), certificates=(pacs_ca, pacs_cert),
        limits=(pacs_gib, pacs_seconds), dicom_seg=dicom_seg,
    )  # fmt: skip
    options = read_options(affine, assume_axcodes, nan, volume, series)
    from medseg_diff.batch.engines import ModelSource, engine_by_name
    from medseg_diff.batch.run import check_output, find_cases

    source = ModelSource(
        tuple(model),
        device,
        guide=str(guide) if guide else None,
        guide_scale=guide_scale,
        adapter=str(adapter) if adapter else None,
    )
    # The driver of a cluster computes nothing: it needs no GPU.
    predictor = source.load(None if engine == "local" else "cpu")
    place = engine_by_name(engine, predictor, source, ray_address, workers, retries)
    if archive is not None:
        check_output(out, [])
        # The fetched series lives until the command ends, however it does.
        given = archive.fetched(predictor.task.channels)
        folders, uid = context.with_resource(given)
        input, options = folders, replace(options, series=series and uid)
    cases = find_cases(input or [], predictor.task.channels)
    check_output(out, cases)
    code = run_cases(
        predictor,
        cases,
        out,
        go_on=go_on,
        engine=place,
        dicom_seg=True if store else dicom_seg,
        draws=draws,
        steps=steps,
        sampler=sampler,
        fuse=fuse,
        settle=settle,
        flips=flip,
        shapes=parse_shapes(shapes),
        save_draws=save_draws,
        maps=probability,
        seed=seed,
        batch_size=batch_size,
        memory_gb=memory_gb,
        options=options,
    )
    if archive is not None and code == 0:
        archive.store_answers(out, cases)
    raise typer.Exit(code)


app.command()(translate)
app.command()(synthesize)


@app.command()
def evaluate(
    out: Annotated[Path, typer.Option(help="Folder for per_case.csv, summary.json, report.html.")],
    pred: Annotated[Path | None, typer.Option(help="Folder that `predict` wrote.")] = None,
    ref: Annotated[
        Path | None,
        typer.Option(
            help="Folder of masks (or images) with the cases' names, or a cases.json (its test)."
        ),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the scans, for pictures.")] = None,
    tolerance_mm: Annotated[float, typer.Option(help="Tolerance of the NSD.")] = 1.0,
    data_range: Annotated[
        tuple[float, float] | None,
        typer.Option("--range", help="Of translated images, for PSNR and SSIM; the model's own."),
    ] = None,
    shifts: Annotated[
        bool, typer.Option("--shifts", help="In their place, what `robustness` does, of --model.")
    ] = False,
    model: Annotated[list[str] | None, typer.Option(help="With --shifts: as there.")] = None,
) -> None:
    """Score predictions against reference masks, or translated images against real ones."""
    if shifts != bool(model) or shifts == (pred is not None):
        raise UsageError("give --pred and --ref, or --shifts and --model", field="--shifts")
    if model:
        robustness(model, out, data=ref)
        return
    if pred is None or ref is None:
        raise UsageError("predictions are scored against something", field="--ref")
    from medseg_diff.evaluation.images import ImageEvaluation, evaluate_translations
    from medseg_diff.evaluation.masks import evaluate as run
    from medseg_diff.evaluation.masks import evaluate_part

    result: Evaluation | ImageEvaluation | None = evaluate_translations(
        pred, ref, out, data_range, images
    )
    if result is not None:
        pass
    elif data_range is not None:
        raise UsageError("is for translated images, and these are masks", field="--range")
    elif ref.suffix == ".json":
        result = evaluate_part(pred, ref, out, tolerance_mm=tolerance_mm)
    else:
        result = run(pred, ref, out, images=images, tolerance_mm=tolerance_mm)
    print(result.describe())
    print(f"report: {result.report}")


@app.command()
def compare(
    evaluation: Annotated[
        list[str],
        typer.Argument(
            help="Folders that `evaluate` wrote: FOLDER, NAME=FOLDER, or NAME=FOLDER1,FOLDER2 "
            "for the seeds of one method."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for compare.csv, .md, .tex and .html.")],
    reference: Annotated[
        str | None, typer.Option(help="Compare this one with each other; every pair by default.")
    ] = None,
) -> None:
    """Say which method is better, where the cases allow it: a table and a verdict per pair."""
    from medseg_diff.comparison import compare_folders

    for sentence in compare_folders(evaluation, out, reference=reference):
        print(sentence)
    print(f"written to {out}")


@app.command()
def film(
    model: Annotated[list[str], typer.Option(help="Run folder or 'hippocampus'.")],
    input: Annotated[list[Path], typer.Option(help="Scan; one file per channel, in order.")],
    out: Annotated[Path, typer.Option(help="FILE.gif; FILE.png beside it gets a strip.")],
    steps: Annotated[int, typer.Option(help="Sampler steps: frames of the film.")] = 20,
    sampler: Annotated[str | None, typer.Option(help="As for `predict`.")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same film.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
) -> None:
    """Film one mask being drawn, on the central window of a scan."""
    from medseg_diff.figures.film import shoot, write_film
    from medseg_diff.inference.predictor import load

    predictor = load(model, device)
    names = predictor.task.channels
    if len(input) != len(names):
        raise UsageError(
            "not one file per channel", field="--input", found=len(input), expected=len(names)
        )
    scan = dict(zip(names, input, strict=True))
    shot = shoot(predictor, scan, steps=steps, sampler=sampler, seed=seed)
    for path in write_film(out, shot):
        print(f"written: {path}")
    if shot.empty:
        print("nothing was found in the central window: the film ends empty")


app.command()(estimate_variance)
app.command()(likelihood)
app.command()(calibrate)
app.command()(robustness)
app.command()(adapt)


@app.command()
def info(
    target: Annotated[str, typer.Argument(help="Run folder, shipped model, or scan.")],
) -> None:
    """Show what a model expects, or what a scan holds."""
    from medseg_diff.cli.describe import describe

    print(describe(target))


def _quoted(path: Path) -> str:
    import json

    return json.dumps(str(path))


def main() -> None:
    """Run a command; turn a refusal into its one line and its exit code."""
    # Fork-safe and quiet by default; users who want the warnings set their own filter.
    if "PYTHONWARNINGS" not in os.environ:
        import warnings

        warnings.filterwarnings("ignore")
    try:
        app()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
