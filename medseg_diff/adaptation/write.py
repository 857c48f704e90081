"""The table as files: CSV for machines; Markdown, LaTeX and a self-contained page to read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medseg_diff.adaptation.table import Table, build_table, read_rows
from medseg_diff.comparison.write import ampersands, latex_escape, p_text, pipes, signed
from medseg_diff.figures import forest_plot
from medseg_diff.files import atomic_text
from medseg_diff.report.page import case_rows, figure, notes, page
from medseg_diff.report.tables import number

LEGEND = (
    "Dice: mean over cases of the mean over structures [95 % interval, BCa bootstrap over "
    "patients]. Difference, p (Wilcoxon, Holm over rows) and gap closed are against the same "
    "network without adaptation (source_only, or its batch-norm twin). Gap closed is blank where "
    "the oracle does not differ from it. Negative transfer: structures below it, * where the "
    "interval leaves out 0. A missed structure counts 0. Forgetting: source-domain Dice lost."
)


@dataclass(frozen=True)
class Picture:
    """One picture of the report: heading, caption, PNG and what it shows, in words."""

    heading: str
    caption: str
    png: bytes
    alt: str


def write_table(
    name: str,
    files: Sequence[Path],
    out: Path,
    pictures: Callable[[Table], Sequence[Picture]] | None = None,
) -> Table:
    """Write ``table.csv``, ``.md``, ``.tex`` and ``report.html`` of one target.

    Args:
        name: Heading.
        files: The rows' CSVs.
        out: Folder.
        pictures: Of a table; see :mod:`medseg_diff.adaptation.pictures`.

    Raises:
        InputError: if a row is missing.
    """
    table = build_table(read_rows(files))
    atomic_text(out / "table.csv", table.rows.to_csv(index=False, float_format="%.6g"))
    shown = shown_rows(table)
    lines = [f"# {name}", "", *(f"- {note}" for note in table.notes), ""]
    atomic_text(out / "table.md", "\n".join([*lines, *pipes(shown), "", LEGEND]) + "\n")
    atomic_text(out / "table.tex", _latex(shown))
    drawn = () if pictures is None else pictures(table)
    atomic_text(out / "report.html", _page(name, table, shown, drawn))
    return table


def shown_rows(table: Table) -> pd.DataFrame:
    """The table as text."""
    rows = []
    for _, row in table.rows.iterrows():
        line = {
            "Row": row["row"],
            "Target used": row["target_used"],
            "Dice [95 % CI]": _with_interval(row, "dice"),
            **{name: number(row[f"dice {name}"], 3) for name in table.structures},
            "Difference": _with_interval(row, "difference", sign=True),
            "p (Holm)": p_text(row["p_holm"]),
            "Gap closed": _percent(row),
            "Negative transfer": row["negative"] or "–",
            "NSD": number(row["nsd"], 3),
            "HD95, mm": number(row["hd95_mm"], 2),
            "ASSD, mm": number(row["assd_mm"], 2),
            "Misses": f"{row['misses']}/{row['scored']}",
            "sd cases": number(row["dice_sd_cases"], 3),
            "sd seeds": number(row["dice_sd_seeds"], 3),
            "Source Dice": number(row["source_dice"], 3),
            "Forgetting": signed(row["forgetting"], 3),
            "Training, s": number(row["training_seconds"], 0),
            "Passes a case": number(row["passes"], 0),
            "s a case": number(row["seconds"], 2),
            "Cases": str(row["cases"]),
            "Seeds": str(row["seeds"]),
        }
        rows.append(line)
    return pd.DataFrame(rows)


def _with_interval(row: pd.Series, name: str, *, sign: bool = False) -> str:
    write = signed if sign else number
    text = write(row[name], 3)
    if math.isnan(row[f"{name}_low"]):
        return text
    return f"{text} [{write(row[f'{name}_low'], 3)}, {write(row[f'{name}_high'], 3)}]"


def _percent(row: pd.Series) -> str:
    if math.isnan(row["gap"]):
        return "–"
    text = f"{round(100 * row['gap'])} %"
    if math.isnan(row["gap_low"]):
        return text
    return f"{text} [{round(100 * row['gap_low'])}, {round(100 * row['gap_high'])}]"


def _latex(shown: pd.DataFrame) -> str:
    columns = "ll" + "r" * (shown.shape[1] - 2)
    lines = ["% needs \\usepackage{booktabs}", r"\begin{table}", r"\centering", r"\small"]
    lines += [rf"\caption{{{latex_escape(LEGEND)}}}", rf"\begin{{tabular}}{{{columns}}}"]
    lines += [r"\toprule", ampersands(shown.columns.tolist()), r"\midrule"]
    lines += [ampersands(list(row)) for row in shown.itertuples(index=False, name=None)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def _page(name: str, table: Table, shown: pd.DataFrame, drawn: Sequence[Picture]) -> str:
    tested = table.rows[table.rows["difference"].notna()]
    differences = [
        (
            row["row"],
            row["difference"],
            row["difference_low"],
            row["difference_high"],
            bool(row["p_holm"] < 0.05),
        )
        for _, row in tested.iterrows()
    ]
    body = [
        notes(table.notes),
        "<h2>Every row</h2>",
        case_rows(shown, left=("Row", "Target used", "Negative transfer")),
        f'<p class="soft">{LEGEND}</p>',
    ]
    if differences:
        body += [
            "<h2>Difference to the model without adaptation</h2>",
            figure(
                "",
                "Squares: mean paired difference in target Dice; lines: its 95 % interval, not "
                "corrected. Blue: p below 0.05 after correction.",
                forest_plot(differences, "target Dice", higher_is_better=True),
                alt="Differences in target Dice to the model without adaptation",
            ),
        ]
    for one in drawn:
        body += [f"<h2>{one.heading}</h2>", figure("", one.caption, one.png, alt=one.alt)]
    return page(f"Domain adaptation: {name}", body)
