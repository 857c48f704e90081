"""One page that shows how good the masks are: a self-contained report.html.

Everything is inside the file (style, pictures, outlines); it needs no network, it is complete
without its script, and it prints.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd
from numpy.typing import ArrayLike

from medseg_diff.figures import (
    SliceStack,
    box_plots,
    reliability_diagram,
    risk_coverage_curve,
)
from medseg_diff.report import page
from medseg_diff.report.tables import (
    WORDS,
    attention_table,
    case_table,
    case_values,
    number,
    summary_table,
    worst_first,
)
from medseg_diff.report.viewer import viewer

# Rows of the case list: about a megabyte.
MOST_ROWS = 3000


@dataclass(frozen=True)
class Picture:
    """One case of the report.

    Attributes:
        heading: Why it is shown, and its name.
        caption: Its scores, in a sentence.
        png: Overview in several planes, or None where the slices say all (a 2-D image).
        stack: Its slices, or None.
        structures: Names, in the order of the slices' outlines.
    """

    heading: str
    caption: str
    png: bytes | None
    stack: SliceStack | None = None
    structures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Extras:
    """Sections shown only when somebody computed what they hold.

    Attributes:
        reliability: Bins of (mean confidence, observed frequency, count).
        risk_coverage: Name to (coverage, risk), both (N,).
        plausibility: Table of how well the draws cover several plausible masks (GED, ...).
        notes: Sentences on how these were made.
    """

    reliability: Sequence[tuple[float, float, int]] | None = None
    risk_coverage: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None
    plausibility: pd.DataFrame | None = None
    notes: tuple[str, ...] = ()


def render_report(
    summary: Mapping[str, Any],
    per_case: pd.DataFrame,
    pictures: Sequence[Picture] = (),
    *,
    attribution: str | None = None,
    extras: Extras | None = None,
) -> str:
    """Return the page.

    Args:
        summary: What ``summary.summarise_table`` returns, with ``title``.
        per_case: The long per-case table.
        pictures: Cases, in the order shown.
        attribution: Licence and source of the data, shown in the footer.
        extras: Further sections.
    """
    body = [
        f'<p class="soft">{escape(_headline(summary))}</p>',
        page.tiles(list(_tiles(summary))),
        page.notes(summary["notes"]),
        "<h2>Summary</h2>",
        page.table(summary_table(summary)),
        '<p class="soft">Mean ± standard deviation over cases, [95 % interval of the mean, BCa '
        "bootstrap]. Misses: the reference holds the structure, the prediction does not, of all "
        "cases whose reference holds it.</p>",
        "<h2>Distributions</h2>",
        page.figure(
            "",
            "Each dot is a case. Box: quartiles and median, whiskers: 1.5 quartile ranges (from 5 "
            "cases on). Violin: density between the smallest and the largest value (from 10 on). "
            "n: cases that have a number.",
            box_plots(per_case),
            alt="Distribution of every metric",
        ),
        *_extras(extras or Extras()),
    ]
    attention = attention_table(per_case)
    if len(attention):
        body += ["<h2>Cases to look at first</h2>", page.case_rows(attention, left=WORDS)]
    if pictures:
        body += ["<h2>Best, median and worst case</h2>", *_cases(pictures)]
    body += ["<h2>Every case</h2>", _case_list(per_case)]
    body += ["<h2>How the numbers were made</h2>", _conventions(summary["conventions"])]
    return page.page(str(summary["title"]), body, attribution=attribution)


def _headline(summary: Mapping[str, Any]) -> str:
    cases, failed = summary["n_cases"], summary["n_failed"]
    text = f"{cases} case{'' if cases == 1 else 's'}"
    if summary.get("n_patients"):
        text += f" of {summary['n_patients']} patient{'' if summary['n_patients'] == 1 else 's'}"
    return text + (f", {failed} of them failed" if failed else "")


def _tiles(summary: Mapping[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """Dice and HD95 of the mean of structures, misses and false positives."""
    block = summary["mean"]
    dice, distance = block["metrics"]["dice"], block["metrics"]["hd95_mm"]
    interval = (
        ""
        if dice["ci_low"] is None
        else f", 95 % interval {dice['ci_low']:.3f} to {dice['ci_high']:.3f}"
    )
    yield number(dice["mean"], 3), f"mean Dice{interval}", False
    shown = number(distance["mean"], 2)
    yield (f"{shown} mm" if distance["mean"] is not None else shown), "mean HD95", False
    missed = not str(block["misses"]).startswith("0/")
    yield str(block["misses"]), "structures missed", missed
    false = block["false_positives"]
    yield str(false), "false positive structures", bool(false)


def _extras(extras: Extras) -> Iterator[str]:
    pictures = []
    if extras.reliability is not None:
        pictures.append(
            page.figure(
                "",
                "Reliability: on the dashed line a probability of 0.8 comes true 8 times in 10. "
                "Below: voxels per bin, log scale.",
                reliability_diagram(extras.reliability),
                alt="Reliability diagram",
            )
        )
    if extras.risk_coverage is not None:
        pictures.append(
            page.figure(
                "",
                "Risk and coverage: what is left of the error when the most doubtful cases are "
                "set aside. A doubt that says nothing gives a flat line.",
                risk_coverage_curve(extras.risk_coverage),
                alt="Risk-coverage curve",
            )
        )
    if pictures:
        yield f'<h2>Can the doubt be trusted?</h2><div class="pair">{"".join(pictures)}</div>'
    if extras.plausibility is not None:
        yield "<h2>Plausible masks</h2>" + page.table(extras.plausibility)
    yield page.notes(extras.notes)


def _cases(pictures: Sequence[Picture]) -> Iterator[str]:
    for index, shown in enumerate(pictures):
        if shown.png is not None:
            yield page.figure(shown.heading, shown.caption, shown.png, alt=shown.heading)
        else:
            yield f"<h3>{escape(shown.heading)}</h3>"
            yield f'<p class="soft">{escape(shown.caption)}</p>'
        if shown.stack is not None:
            yield viewer(shown.stack, shown.structures, f"c{index}")


def _case_list(per_case: pd.DataFrame) -> str:
    listed = worst_first(per_case, MOST_ROWS)
    left = len(per_case) - len(listed)
    words = "– : no number (see the conventions below)."
    if left:
        words += f" The {left} rows with the highest Dice are left out; per_case.csv has them all."
    rows = page.case_rows(
        case_table(listed),
        left=WORDS,
        values=case_values(listed),
        rows=listed["outcome"].tolist(),
    )
    hint = '<span class="hint" hidden>Click a heading to sort; blanks stay at the end. </span>'
    return f'<p class="soft">{hint}{escape(words)}</p>{rows}'


def _conventions(conventions: Mapping[str, Any]) -> str:
    rows = [{"Convention": key.replace("_", " "), "Value": v} for key, v in conventions.items()]
    return page.table(pd.DataFrame(rows).astype(str), words=True)


def render_images(
    summary: Mapping[str, Any],
    metrics: pd.DataFrame,
    cases: pd.DataFrame,
    pictures: Sequence[Picture] = (),
    *,
    attribution: str | None = None,
) -> str:
    """Return the page of a translation's scores.

    Args:
        summary: With ``title``, counts, ``notes``, ``interval`` and ``conventions``.
        metrics: One row of text a metric.
        cases: One row of text a case, in the order shown.
        pictures: Cases, in the order shown.
        attribution: Licence and source of the data, shown in the footer.
    """
    body = [
        f'<p class="soft">{escape(_headline(summary))}</p>',
        page.notes(summary["notes"]),
        "<h2>Summary</h2>",
        page.table(metrics.astype(str)),
        f'<p class="soft">{escape(summary["interval"])}.</p>',
        *(["<h2>Best, median and worst case</h2>", *_cases(pictures)] if pictures else []),
        "<h2>Every case</h2>",
        page.case_rows(cases.head(MOST_ROWS), left=WORDS),
        "<h2>How the numbers were made</h2>",
        _conventions(summary["conventions"]),
    ]
    return page.page(str(summary["title"]), body, attribution=attribution)
