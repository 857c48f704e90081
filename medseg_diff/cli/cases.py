"""What `predict` and `translate` share: their options, and many cases with a line for each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from medseg_diff.batch.run import Case, Outcome
    from medseg_diff.inference.predictor import Predictor

INPUTS = (
    "Scans, folders, a cases.json (its test), a CSV (case, a column per channel), or "
    "a pattern in quotes ('scans/**/*.nii.gz')."
)
Flip = Annotated[
    list[int] | None, typer.Option(help="Axis to mirror for further members; repeatable.")
]
GoOn = Annotated[
    bool, typer.Option("--continue", help="Pass over what the folder's manifest vouches for.")
]
Seed = Annotated[int, typer.Option(help="Same seed, same answer.")]
BatchSize = Annotated[int | None, typer.Option(help="Windows x draws in a network call.")]
MemoryGb = Annotated[
    float | None,
    typer.Option(help="GiB a case may take of host and GPU memory; what is free by default."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
Engine = Annotated[
    str, typer.Option(help="local, or ray: workers of a cluster, or of this computer.")
]
RayAddress = Annotated[
    str | None, typer.Option(help="HOST:PORT of a Ray cluster; starts its own by default.")
]
Workers = Annotated[
    int | None, typer.Option(help="Workers of --engine ray; one per CPU or GPU by default.")
]
Retries = Annotated[
    int, typer.Option(help="How often --engine ray repeats a case whose worker dies.")
]
Affine = Annotated[str, typer.Option(help="auto, sform or qform, where they differ.")]
Axcodes = Annotated[
    str | None, typer.Option(help="e.g. RAS, for scans that do not say (research only).")
]
Nan = Annotated[float | None, typer.Option(help="Value to put in place of NaN and Inf.")]
Series = Annotated[
    str | None,
    typer.Option(
        help="Which DICOM series: its UID or the end of it. With --pacs and a model of "
        "several channels: T1=END,FLAIR=END."
    ),
]
DicomSeg = Annotated[
    bool | None,
    typer.Option(
        "--dicom-seg/--no-dicom-seg",
        help="Also write the mask as DICOM-SEG and the doubt as a Parametric Map; by default "
        "for scans that are DICOM.",
    ),
]
Volume = Annotated[int | None, typer.Option(help="Which volume of a 4-D file, from 0.")]


def run_cases(predictor: Predictor, cases: Sequence[Case], out: Path, **settings: Any) -> int:
    """Predict or translate every case, a line for each.

    Args:
        predictor: What answers.
        cases: Which ones.
        out: Folder of the answers.
        settings: Of :func:`medseg_diff.batch.run.predict_many`.

    Returns:
        Exit code.
    """
    from medseg_diff.batch.run import predict_many
    from medseg_diff.cli.progress import case_lines

    told: list[str] = []
    line = case_lines(len(cases))

    def report(index: int, outcome: Outcome) -> None:
        told.append(outcome.case)
        line(index, outcome)

    code = predict_many(predictor, cases, out, report=report, **settings)
    if len(told) < len(cases):
        print(f"{len(cases) - len(told)} cases were done before, or are another process's")
    print(f"written to {out}")
    return code
