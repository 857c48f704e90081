"""A comparison as files: CSV for machines; Markdown, LaTeX and a self-contained page to read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

import pandas as pd

from medseg_diff.comparison.methods import Method, by_structure, read_method
from medseg_diff.comparison.table import (
    caveats,
    claims,
    compare_methods,
    headlines,
    primary_metric,
)
from medseg_diff.errors import InputError, UsageError
from medseg_diff.figures import forest_plot
from medseg_diff.files import atomic_text
from medseg_diff.metrics.summary import ALL_HEADINGS
from medseg_diff.report.page import case_rows, figure, notes, page
from medseg_diff.report.tables import number

TITLE = "Comparison of methods"
LEGEND = (
    "Differences are A - B, paired by case, with their 95 % interval (BCa bootstrap). p: two-sided "
    "Wilcoxon signed-rank test with Holm's correction over all rows of one metric. n: cases where "
    "both sides have a number; units: independent ones among them (patients, where known)."
)
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}
_WORDS = ("A", "B", "Structure", "Metric")


def compare_folders(
    evaluations: Sequence[str],
    out: str | Path,
    *,
    reference: str | None = None,
    seed: int = 0,
) -> list[str]:
    """Compare evaluations; write ``compare.csv``, ``.md``, ``.tex`` and ``.html`` to ``out``.

    Args:
        evaluations: ``FOLDER``, ``NAME=FOLDER`` or ``NAME=FOLDER1,FOLDER2`` (seeds), at least two.
        out: Made if missing; the four files are replaced.
        reference: Name to compare with each other one; None for every pair.
        seed: Of the bootstrap.

    Returns:
        One verdict per pair, then what the comparison cannot show.

    Raises:
        InputError: if a folder holds no evaluation, or they cannot be compared.
        UsageError: if names clash, are empty or unknown.
    """
    if len(evaluations) < 2:
        raise UsageError(
            "a comparison needs two evaluations", found=len(evaluations), expected="2 or more"
        )
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise InputError("is a file, not a folder", file=folder, remedy="give another --out")
    methods = [read_method(text) for text in evaluations]
    table = compare_methods(methods, reference=reference, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_text(folder / "compare.csv", table.to_csv(index=False, float_format="%.6g"))
    atomic_text(folder / "compare.md", to_markdown(table, methods))
    atomic_text(folder / "compare.tex", to_latex(table, methods))
    atomic_text(folder / "compare.html", to_html(table, methods))
    return [text for text, _ in headlines(table)] + caveats(table, methods)


def method_rows(methods: Sequence[Method]) -> pd.DataFrame:
    """Return each method's means as text: one row per method and structure."""
    rows = []
    for method in methods:
        table = by_structure(method.per_case)
        for structure in table.index.get_level_values("structure").unique():
            part = table.xs(structure, level="structure")
            row = {"Method": method.name, "Structure": structure, "Seeds": str(method.seeds)}
            for metric in method.metrics:
                heading = ALL_HEADINGS[metric]
                values = part[metric].dropna()
                text = number(values.mean(), heading.digits)
                if len(values) > 1:
                    text += f" ± {number(values.std(ddof=1), heading.digits)}"
                over_seeds = method.seed_sd.get((structure, metric), math.nan)
                if not math.isnan(over_seeds):
                    text += f" (seeds ± {number(over_seeds, heading.digits + 1)})"
                row[heading.text] = text
            rows.append(row)
    return pd.DataFrame(rows)


def pair_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return the tests as text: one row per pair, structure and metric."""
    rows = []
    for _, row in table.iterrows():
        heading = ALL_HEADINGS[row["metric"]]
        digits = heading.digits
        gap = signed(row["difference"], digits)
        if not math.isnan(row["ci_low"]):
            gap += f" [{signed(row['ci_low'], digits)}, {signed(row['ci_high'], digits)}]"
        rows.append(
            {
                "A": row["a"],
                "B": row["b"],
                "Structure": row["structure"],
                "Metric": heading.text,
                "n": str(row["n"]),
                "Units": str(row["units"]),
                "Mean A": number(row["mean_a"], digits),
                "Mean B": number(row["mean_b"], digits),
                "Difference": gap,
                "Effect size": number(row["effect_size"], 2),
                "p (Holm)": p_text(row["p_holm"]),
            }
        )
    return pd.DataFrame(rows)


def to_markdown(table: pd.DataFrame, methods: Sequence[Method]) -> str:
    """Return verdicts, caveats and both tables as Markdown."""
    lines = [f"# {TITLE}", ""]
    lines += [f"- {_one_line(text)}" for text, _ in headlines(table)]
    cannot = caveats(table, methods)
    if cannot:
        lines += ["", "What these cases cannot show:", ""]
        lines += [f"- {_one_line(text)}" for text in cannot]
    lines += ["", "## Methods", "", "Mean ± standard deviation over cases.", ""]
    lines += pipes(method_rows(methods))
    lines += ["", "## Tests", "", LEGEND, "", *pipes(pair_rows(table))]
    return "\n".join(lines) + "\n"


def to_latex(table: pd.DataFrame, methods: Sequence[Method]) -> str:
    """Return the tests as a booktabs table, verdicts and caveats as comments above it."""
    rows = pair_rows(table)
    said = [text for text, _ in headlines(table)] + caveats(table, methods)
    columns = "".join("l" if name in _WORDS else "r" for name in rows.columns)
    lines = [f"% {_one_line(text)}" for text in said]
    lines += ["% needs \\usepackage{booktabs}", r"\begin{table}", r"\centering", r"\small"]
    lines += [rf"\caption{{{latex_escape(LEGEND)}}}", rf"\begin{{tabular}}{{{columns}}}"]
    lines += [r"\toprule", ampersands(rows.columns.tolist()), r"\midrule"]
    lines += [ampersands(list(row)) for row in rows.itertuples(index=False, name=None)]
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def to_html(table: pd.DataFrame, methods: Sequence[Method]) -> str:
    """Return one self-contained page in the report's style."""
    verdicts = "".join(
        f'<li class="{"sure" if sure else ""}">{escape(text)}</li>'
        for text, sure in headlines(table)
    )
    rows = pair_rows(table)
    values = rows.assign(
        **{
            "Mean A": table["mean_a"].to_numpy(),
            "Mean B": table["mean_b"].to_numpy(),
            "Difference": table["difference"].to_numpy(),
            "Effect size": table["effect_size"].to_numpy(),
            "p (Holm)": table["p_holm"].to_numpy(),
        }
    )
    kinds = ["sure" if claims(row) else "" for _, row in table.iterrows()]
    body = [
        f'<ul class="verdicts">{verdicts}</ul>',
        notes(caveats(table, methods)),
        "<h2>Methods</h2>",
        case_rows(method_rows(methods), left=("Method", "Structure", "Seeds")),
        '<p class="soft">Mean ± standard deviation over cases; in brackets the standard deviation '
        "of the mean over seeds, where there are several.</p>",
        f"<h2>Difference in {ALL_HEADINGS[primary_metric(table)].text}</h2>",
        figure(
            "",
            "Squares: mean paired difference; lines: its 95 % interval, not corrected. Blue: "
            "the difference may be claimed after correction.",
            _forest(table),
            alt="Paired differences with their intervals",
        ),
        "<h2>Tests</h2>",
        f'<p class="soft">{escape(LEGEND)}</p>',
        case_rows(rows, left=_WORDS, values=values, rows=kinds),
    ]
    return page(TITLE, body)


def latex_escape(text: str) -> str:
    """Return text that LaTeX sets as it stands."""
    return "".join(_LATEX.get(sign, sign) for sign in text)


def _forest(table: pd.DataFrame) -> bytes:
    metric = primary_metric(table)
    heading = ALL_HEADINGS[metric]
    rows = [
        (
            f"{row['a']} - {row['b']}, {row['structure']}",
            row["difference"],
            row["ci_low"],
            row["ci_high"],
            claims(row),
        )
        for _, row in table[table["metric"] == metric].iterrows()
    ]
    return forest_plot(rows, heading.text, higher_is_better=heading.higher_is_better)


def signed(value: float, digits: int) -> str:
    """Write a difference with its sign, a dash where there is none."""
    # Adding 0 turns a rounded -0 into +0.
    return "–" if math.isnan(value) else f"{round(value, digits) + 0.0:+.{digits}f}"


def p_text(value: float) -> str:
    """Write a p value."""
    if math.isnan(value):
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def pipes(rows: pd.DataFrame) -> list[str]:
    """Return a Markdown table; a bar inside a cell would end it."""
    every = [list(rows.columns), ["---"] * rows.shape[1], *rows.to_numpy().tolist()]
    cells = [[_one_line(str(text)).replace("|", "\\|") for text in line] for line in every]
    return ["| " + " | ".join(line) + " |" for line in cells]


def ampersands(cells: Sequence[object]) -> str:
    """Return one row of a LaTeX table."""
    return " & ".join(latex_escape(_one_line(str(cell))) for cell in cells) + r" \\"


def _one_line(text: str) -> str:
    return " ".join(text.split())
