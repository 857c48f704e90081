"""What the scripts of this folder share: options, saving, one line of error, a summary."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from medseg_diff.data.caselist import FILE_NAME, PARTS, CaseList, save_caselist
from medseg_diff.data.gather import Split
from medseg_diff.errors import InputError


def arguments(doc: str | None, *, in_place: bool = False, test: float | None = None) -> (
    argparse.ArgumentParser
):  # fmt: skip
    """A parser with the options that every script has.

    Args:
        doc: The script's docstring.
        in_place: Whether ``--out`` may be left out.
        test: Default share of test patients, for layouts without a test part.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the dataset")
    parser.add_argument(
        "--out",
        type=Path,
        required=not in_place,
        help="folder to copy to"
        + (" (left out: cases.json is written into --data)" if in_place else ""),
    )
    parser.add_argument(
        "--validation", type=float, default=0.1, help="share of training patients (0.1)"
    )
    if test is not None:
        parser.add_argument("--test", type=float, default=test, help=f"share of patients ({test})")
    parser.add_argument("--seed", type=int, default=0, help="chooses the split (0)")
    return parser


def split_of(given: argparse.Namespace) -> Split:
    """The split that the options describe."""
    return Split(given.validation, getattr(given, "test", 0.0), given.seed)


def finish(build: Callable[[], CaseList]) -> None:
    """Build a case list, save it in its root and print how many cases each part has.

    Where cases lack masks, how many have some, and so can be scored, is printed too.
    """
    try:
        caselist = build()
        path = caselist.root / FILE_NAME
        save_caselist(caselist, path)
    except (InputError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    table = pd.DataFrame([case.model_dump(include={"part", "patient"}) for case in caselist.cases])
    counts = table.groupby("part")["patient"].agg(["size", "nunique"])
    counts.columns = pd.Index(["cases", "patients"])
    masked = pd.Series([bool(case.references) for case in caselist.cases], index=table.index)
    if masked.any() and not masked.all():
        counts["with masks"] = masked.groupby(table["part"]).sum()
    print(path)
    print(counts.reindex([part for part in PARTS if part in counts.index]).to_string())
