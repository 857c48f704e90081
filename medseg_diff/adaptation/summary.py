"""Every comparison of an experiment in one table: which method helps where."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from medseg_diff.adaptation.table import Table
from medseg_diff.comparison.write import pipes
from medseg_diff.files import atomic_text
from medseg_diff.report.tables import number

COLUMNS = ("row", "target_used", "dice", "dice_low", "dice_high", "gap", "gap_low", "gap_high",
           "source_dice", "negative")  # fmt: skip
HERE = "source"


def write_summary(tables: Mapping[tuple[str, str], Table], out: Path) -> Path:
    """Write ``summary.csv``, one line a row and comparison, and ``summary.md``, a line a row.

    Args:
        tables: By the comparison's folder ("" for the experiment's own) and the target's name.
        out: The experiment's folder.

    Returns:
        The Markdown file: target Dice of each row in each comparison.
    """
    parts = [
        table.rows[list(COLUMNS)].assign(comparison=place or HERE, target=target)
        for (place, target), table in tables.items()
    ]
    whole = pd.concat(parts, ignore_index=True)
    order = ["comparison", "target", *COLUMNS]
    atomic_text(out / "summary.csv", whole[order].to_csv(index=False, float_format="%.6g"))
    lines = ["# Target Dice of every row in every comparison", "", *pipes(wide(whole)), "", NOTE]
    return atomic_text(out / "summary.md", "\n".join(lines) + "\n")


NOTE = (
    "Each column: from, then target; in brackets the share of the gap that is closed, where there "
    "is one. Worse than none: in how many comparisons the row is below its own baseline in some "
    "structure."
)


def wide(whole: pd.DataFrame) -> pd.DataFrame:
    """Rows against comparisons, as text."""
    lines = []
    for name in dict.fromkeys(whole["row"]):
        part = whole[whole["row"] == name]
        line = {"Row": name}
        for _, one in part.iterrows():
            gap = "" if pd.isna(one["gap"]) else f" ({round(100 * one['gap'])} %)"
            line[f"{one['comparison']}, {one['target']}"] = number(one["dice"], 3) + gap
        line["Worse than none"] = f"{int((part['negative'] != '').sum())}/{len(part)}"
        lines.append(line)
    return pd.DataFrame(lines).fillna("–")
