"""Which cases the report shows, and what it shows of them, read from their files.

Letters: ``*S`` spatial axes, ``N`` draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medseg_diff.errors import InputError
from medseg_diff.figures import CaseView, case_figure, slice_stack
from medseg_diff.io import ReadOptions, read_image
from medseg_diff.metrics import statistics
from medseg_diff.metrics.pairing import CaseFiles
from medseg_diff.report import Picture

# Reference (*S), prediction (*S) and affine (4, 4) of a case.
Masks = tuple[NDArray[Any], NDArray[Any], NDArray[np.float64]]
_SHOWN_LABELS = 6


def gallery(
    cases: Sequence[CaseFiles],
    per_case: pd.DataFrame,
    structures: Mapping[str, Sequence[int]],
    read_masks: Callable[[CaseFiles], Masks],
    options: ReadOptions,
) -> list[Picture]:
    """Draw the best, median and worst case by mean Dice, among those with a prediction.

    Args:
        cases: Files of every case.
        per_case: The long per-case table.
        structures: Name to label values.
        read_masks: Reads a case's masks as they were scored.
        options: How the masks were read.

    Raises:
        InputError: if an image, a doubt or draws are not on the grid of the masks.
    """
    by_name = {case.name: case for case in cases if case.prediction is not None}
    scores = statistics.case_means(per_case)["dice"].dropna()
    ranked = scores[scores.index.isin(list(by_name))].sort_values(ascending=False, kind="stable")
    pictures = []
    for place, word in _places(len(ranked)):
        case = by_name[str(ranked.index[place])]
        view = read_view(case, read_masks(case), options)
        rows = per_case[per_case["case"] == case.name]
        volume = view.reference.ndim == 3
        pictures.append(
            Picture(
                heading=f"{word}: {case.name}",
                caption=_caption(float(ranked.iloc[place]), rows, case),
                png=case_figure(view, structures) if volume else None,
                stack=slice_stack(view, structures),
                structures=tuple(structures),
            )
        )
    return pictures


def read_view(case: CaseFiles, masks: Masks, options: ReadOptions) -> CaseView:
    """Read what a case's pictures show besides its masks: image, doubt and draws.

    Raises:
        InputError: if one of them is not on the grid of the masks.
    """
    reference, prediction, affine = masks
    # A picture takes what a score would not: the first of several volumes, NaN shown as 0.
    first = replace(options, volume=0, nan_fill=0.0)
    every = replace(options, volume="all", nan_fill=0.0)
    wanted = {
        "image": (case.image, first),
        "doubt": (case.doubt, first),
        "draws": (case.draws, every),
    }
    shown: dict[str, NDArray[Any]] = {}
    for key, (path, how) in wanted.items():
        if path is not None:
            shown[key] = _on_grid(path, how, key, reference.shape)
    return CaseView(
        reference,
        prediction,
        affine if reference.ndim == 3 else None,
        shown.get("image"),
        shown["doubt"][0] if "doubt" in shown else None,
        shown.get("draws"),
    )


def _on_grid(
    path: Path, options: ReadOptions, what: str, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    values = np.asarray(read_image(path, options))
    if values.shape[1:] != shape:
        raise InputError(
            f"{what} is not on the grid of the masks",
            file=path,
            found=values.shape[1:],
            expected=shape,
        )
    return values


def _places(count: int) -> Iterator[tuple[int, str]]:
    """Which of the cases, best first, are shown, and what they are called."""
    if count == 1:
        yield 0, "Only"
    if count > 1:
        yield 0, "Best"
    if count > 2:
        yield (count - 1) // 2, "Median"
    if count > 1:
        yield count - 1, "Worst"


def _caption(mean: float, rows: pd.DataFrame, case: CaseFiles) -> str:
    """Scores of a case, and how far its draws agree."""
    text = f"Mean Dice {mean:.3f}"
    if 1 < len(rows) <= _SHOWN_LABELS:
        text += f" ({', '.join(_scored(row) for _, row in rows.iterrows())})"
    text += ". The dashed line is the reference's outline."
    agreement = {k: v for k, v in (case.record.get("pairwise_dice") or {}).items() if v is not None}
    if agreement and len(agreement) <= _SHOWN_LABELS:
        listed = ", ".join(f"{name} {float(value):.3f}" for name, value in agreement.items())
        text += f" Agreement between draws (mean pairwise Dice): {listed}."
    return text


def _scored(row: Any) -> str:
    """A structure's Dice, or what became of it."""
    name, outcome = row["structure"], str(row["outcome"])
    if outcome == "scored":
        return f"{name} {row['dice']:.3f}"
    return f"{name} {outcome.replace('_', ' ')}"
