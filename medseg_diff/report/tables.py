"""The report's tables: the summary, every case, and the cases to look at first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from medseg_diff.metrics.statistics import MEAN_OF_STRUCTURES
from medseg_diff.metrics.summary import HEADINGS

_ATTENTION_ROWS = 10
WORDS = ("Case", "Patient", "Structure", "Outcome")
_RANK = {"failed": 0, "missed": 1, "false_positive": 2, "scored": 3, "both_empty": 4}


def summary_table(summary: Mapping[str, Any]) -> pd.DataFrame:
    """Return the summary as text: one row per structure, then the mean of structures."""
    rows = []
    blocks = {**summary["structures"]}
    if len(blocks) > 1:
        blocks[MEAN_OF_STRUCTURES] = summary["mean"]
    for name, block in blocks.items():
        row = {"Structure": name, "Cases": str(block["n"])}
        for column, heading in HEADINGS.items():
            row[heading.text] = _cell(block["metrics"][column], heading.digits)
        row["Misses"] = block["misses"]
        row["False positives"] = str(block["false_positives"])
        row["Both empty"] = str(block["both_empty"])
        row["Failed"] = str(block["failed"])
        rows.append(row)
    return pd.DataFrame(rows)


def attention_table(per_case: pd.DataFrame) -> pd.DataFrame:
    """Return failures, misses and false positives, then the lowest Dice, as text."""
    ranked = _ranked(per_case)
    first = ranked[ranked["outcome"] != "both_empty"].head(_ATTENTION_ROWS)
    return case_table(first).astype(str)


def case_table(per_case: pd.DataFrame) -> pd.DataFrame:
    """Return what the page lists of each case and structure, as text, in the order given."""
    text = pd.DataFrame({"Case": per_case["case"]})
    if "patient" in per_case and (per_case["patient"] != per_case["case"]).any():
        text["Patient"] = per_case["patient"]
    text["Structure"] = per_case["structure"]
    text["Outcome"] = [str(outcome).replace("_", " ") for outcome in per_case["outcome"]]
    for column, heading in HEADINGS.items():
        text[heading.text] = [number(value, heading.digits) for value in per_case[column]]
    return text


def case_values(per_case: pd.DataFrame) -> pd.DataFrame:
    """Return what the columns of :func:`case_table` are sorted by: numbers, NaN where blank."""
    values = case_table(per_case)
    values["Outcome"] = per_case["outcome"].map(_RANK).to_numpy()
    for column, heading in HEADINGS.items():
        values[heading.text] = per_case[column].to_numpy(dtype=float)
    return values


def worst_first(per_case: pd.DataFrame, limit: int) -> pd.DataFrame:
    """Return the ``limit`` rows that most need a look, in the table's own order."""
    return per_case if len(per_case) <= limit else _ranked(per_case).head(limit).sort_index()


def number(value: float | None, digits: int) -> str:
    """Write a number, a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _ranked(per_case: pd.DataFrame) -> pd.DataFrame:
    table = per_case.assign(rank=per_case["outcome"].map(_RANK))
    return table.sort_values(["rank", "dice", "case"], kind="stable").drop(columns="rank")


def _cell(metric: Mapping[str, Any], digits: int) -> str:
    """Write ``mean ± sd [low, high]``, leaving out what is not known."""
    text = number(metric["mean"], digits)
    if metric["sd"] is not None:
        text += f" ± {number(metric['sd'], digits)}"
    if metric["ci_low"] is not None:
        text += f" [{number(metric['ci_low'], digits)}, {number(metric['ci_high'], digits)}]"
    return text
