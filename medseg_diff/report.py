"""One page that shows how good the masks are: a self-contained report.html.

Everything is inside the file (style, pictures as base64 PNG); it needs no script and no network,
and it prints.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd

from medseg_diff.errors import InputError
from medseg_diff.figures import box_plots
from medseg_diff.statistics import MEAN_OF_STRUCTURES, case_means, compare, holm, verdict

# Column of the per-case table: heading, digits after the point, better when higher, unit.
_METRICS: dict[str, tuple[str, int, bool, str]] = {
    "dice": ("Dice", 3, True, ""),
    "nsd": ("NSD", 3, True, ""),
    "hd95_mm": ("HD95 (mm)", 2, False, " mm"),
    "assd_mm": ("ASSD (mm)", 2, False, " mm"),
    "volume_difference_ml": ("Volume difference (ml)", 2, True, " ml"),
}
_ATTENTION_ROWS = 15
RESEARCH_USE = (
    "For research use only. Not a medical device; not for diagnosis or treatment decisions."
)

_STYLE = """
:root { --ink:#1d2733; --soft:#5b6877; --line:#dde3ea; --tint:#f5f7fa; --mark:#0b5c8a; }
* { box-sizing:border-box; }
body { margin:0 auto; max-width:1080px; padding:32px 28px 48px; color:var(--ink);
  background:#fff; font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif; }
h1 { font-size:26px; margin:0 0 4px; } h2 { font-size:18px; margin:36px 0 10px; }
h3 { font-size:15px; margin:20px 0 6px; }
p { margin:6px 0; } .soft, figcaption { color:var(--soft); font-size:13.5px; }
.wide { overflow-x:auto; }
table { border-collapse:collapse; width:100%; font-size:13.5px;
  font-variant-numeric:tabular-nums; }
th,td { padding:6px 10px; text-align:right; border-bottom:1px solid var(--line);
  white-space:nowrap; }
th { color:var(--soft); font-weight:600; vertical-align:bottom; }
th:first-child, td:first-child { text-align:left; white-space:normal; }
tbody tr:nth-child(even) { background:var(--tint); }
table.words th, table.words td { text-align:left; }
ul { margin:8px 0; padding-left:20px; }
.notes { border-left:4px solid var(--mark); background:var(--tint); padding:8px 14px; }
figure { margin:0 0 20px; break-inside:avoid; } img { max-width:100%; height:auto; }
footer { margin-top:40px; padding-top:12px; border-top:1px solid var(--line);
  color:var(--soft); font-size:13px; overflow-wrap:anywhere; }
@page { margin:14mm; }
@media print { body { max-width:none; padding:0; font-size:11pt; } h2 { break-after:avoid; }
  tr { break-inside:avoid; } th,td { white-space:normal; padding:4px 6px; } }
"""


@dataclass(frozen=True)
class Picture:
    """One figure of the report: a heading, a caption and the PNG itself."""

    heading: str
    caption: str
    png: bytes


def render_report(
    summary: Mapping[str, Any],
    per_case: pd.DataFrame,
    pictures: Sequence[Picture] = (),
    *,
    attribution: str | None = None,
) -> str:
    """Return the page.

    Args:
        summary: What ``summary.summarise_table`` returns, with ``title``.
        per_case: The long per-case table.
        pictures: Overlays, in the order shown.
        attribution: Licence and source of the data, shown in the footer.
    """
    title = escape(str(summary["title"]))
    body = [
        f"<h1>{title}</h1>",
        f'<p class="soft">{escape(_headline(summary))}</p>',
        _notes(summary["notes"]),
        "<h2>Summary</h2>",
        _html(summary_table(summary)),
        '<p class="soft">Mean ± standard deviation over cases, [95 % interval of the mean, BCa '
        "bootstrap]. Misses: the reference holds the structure, the prediction does not, of all "
        "cases whose reference holds it.</p>",
        "<h2>Every case</h2>",
        _figure(
            "", "Box: quartiles and median; whiskers: 1.5 quartile ranges.", box_plots(per_case)
        ),
    ]
    attention = attention_table(per_case)
    if len(attention):
        body += ["<h2>Cases to look at first</h2>", _html(attention)]
    if pictures:
        body.append("<h2>Best, median and worst case</h2>")
        body += [_figure(p.heading, p.caption, p.png) for p in pictures]
    body += ["<h2>How the numbers were made</h2>", _conventions(summary["conventions"])]
    source = f"<p>{escape(attribution)}</p>" if attribution else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + f"\n<footer>{source}<p>{escape(RESEARCH_USE)}</p></footer>\n</body>\n</html>\n"
    )


def summary_table(summary: Mapping[str, Any]) -> pd.DataFrame:
    """Return the summary as text: one row per structure, then the mean of structures."""
    rows = []
    blocks = {**summary["structures"]}
    if len(blocks) > 1:
        blocks[MEAN_OF_STRUCTURES] = summary["mean"]
    for name, block in blocks.items():
        row = {"Structure": name, "Cases": str(block["n"])}
        for column, (heading, digits, _, _) in _METRICS.items():
            row[heading] = _cell(block["metrics"][column], digits)
        row["Misses"] = block["misses"]
        row["False positives"] = str(block["false_positives"])
        row["Both empty"] = str(block["both_empty"])
        row["Failed"] = str(block["failed"])
        rows.append(row)
    return pd.DataFrame(rows)


def attention_table(per_case: pd.DataFrame) -> pd.DataFrame:
    """Return failures, misses and false positives, then the lowest Dice, as text."""
    order = {"failed": 0, "missed": 1, "false_positive": 2, "scored": 3}
    table = per_case[per_case["outcome"].isin(list(order))].copy()
    table["rank"] = table["outcome"].map(order)
    table = table.sort_values(["rank", "dice", "case"], kind="stable").head(_ATTENTION_ROWS)
    text = pd.DataFrame({"Case": table["case"], "Structure": table["structure"]})
    text["Outcome"] = [str(outcome).replace("_", " ") for outcome in table["outcome"]]
    for column, (heading, digits, _, _) in _METRICS.items():
        text[heading] = [_number(value, digits) for value in table[column]]
    return text


def compare_table(
    evaluations: Mapping[str, pd.DataFrame],
    *,
    metrics: Sequence[str] = ("dice", "nsd", "hd95_mm", "assd_mm"),
    patients: Mapping[str, str] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare the first evaluation with each of the others, paired by case.

    Every structure and their mean per case make one row per metric. Holm's correction covers
    all rows of one metric. A case is left out of a row where either side is blank.

    Args:
        evaluations: Name to per-case table; at least two.
        metrics: Columns to compare.
        patients: Case to patient; cases of one patient are one unit of the statistics.
        seed: Of the bootstrap.

    Returns:
        Columns ``a, b, structure, metric, n, mean_a, mean_b, difference, ci_low, ci_high,
        effect_size, p, p_holm, verdict``; differences are a - b.

    Raises:
        InputError: if the evaluations do not hold the same cases and structures.
    """
    wide = {name: _by_structure(table) for name, table in evaluations.items()}
    _check_comparable(wide)
    (first, ours), *others = wide.items()
    cases = sorted(set(ours.index.get_level_values("case")))
    units = [patients.get(case, case) for case in cases] if patients else None
    rows = []
    for metric in metrics:
        block = []
        for other, theirs in others:
            for structure in dict.fromkeys(ours.index.get_level_values("structure")):
                a, b = (
                    table.xs(structure, level="structure").loc[cases, metric]
                    for table in (ours, theirs)
                )
                result = compare(a.to_numpy(), b.to_numpy(), patients=units, seed=seed)
                both = a.notna() & b.notna()
                block.append((other, structure, a[both].mean(), b[both].mean(), result))
        adjusted = holm([result.p for *_, result in block])
        for (other, structure, mean_a, mean_b, result), p_holm in zip(block, adjusted, strict=True):
            heading, _, higher, unit = _METRICS[metric]
            sentence = verdict(
                first, other, result, p_adjusted=p_holm, higher_is_better=higher, unit=unit
            )
            rows.append(
                {
                    "a": first,
                    "b": other,
                    "structure": structure,
                    "metric": metric,
                    "n": result.n,
                    "mean_a": mean_a,
                    "mean_b": mean_b,
                    "difference": result.difference,
                    "ci_low": result.low,
                    "ci_high": result.high,
                    "effect_size": result.effect_size,
                    "p": result.p,
                    "p_holm": p_holm,
                    "verdict": f"{heading.split(' (')[0]}, {structure}: {sentence}",
                }
            )
    return pd.DataFrame(rows)


def _by_structure(per_case: pd.DataFrame) -> pd.DataFrame:
    """Index a per-case table by (case, structure), with the mean of structures added."""
    table = per_case
    if per_case["structure"].nunique() > 1:
        means = case_means(per_case).reset_index().assign(structure=MEAN_OF_STRUCTURES)
        table = pd.concat([per_case, means])
    return table.set_index(["case", "structure"])


def _check_comparable(wide: Mapping[str, pd.DataFrame]) -> None:
    if len(wide) < 2:
        raise InputError(
            "a comparison needs two evaluations", found=len(wide), expected="2 or more"
        )
    (first, ours), *others = wide.items()
    for name, theirs in others:
        odd = sorted(set(ours.index) ^ set(theirs.index))
        if odd:
            listed = ", ".join(f"{case} / {structure}" for case, structure in odd)
            raise InputError(
                f"evaluations {first!r} and {name!r} do not hold the same cases and structures",
                found=f"only in one: {listed}",
                remedy="evaluate both on the same reference folder with the same labels",
            )


def _headline(summary: Mapping[str, Any]) -> str:
    cases, failed = summary["n_cases"], summary["n_failed"]
    text = f"{cases} case{'' if cases == 1 else 's'}"
    return text + (f", {failed} of them failed" if failed else "")


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    return '<ul class="notes">' + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>"


def _conventions(conventions: Mapping[str, Any]) -> str:
    rows = [{"Convention": key.replace("_", " "), "Value": v} for key, v in conventions.items()]
    return _html(pd.DataFrame(rows).astype(str), words=True)


def _html(table: pd.DataFrame, *, words: bool = False) -> str:
    with pd.option_context("display.max_colwidth", None):
        text = table.to_html(
            index=False, escape=True, border=0, classes="words" if words else None, justify="unset"
        )
    return f'<div class="wide">{text}</div>'


def _figure(heading: str, caption: str, png: bytes) -> str:
    data = base64.b64encode(png).decode("ascii")
    title = f"<h3>{escape(heading)}</h3>" if heading else ""
    alt = escape(heading or "Box plots of every metric", quote=True)
    image = f'<img alt="{alt}" src="data:image/png;base64,{data}">'
    return f"<figure>{title}{image}<figcaption>{escape(caption)}</figcaption></figure>"


def _cell(metric: Mapping[str, Any], digits: int) -> str:
    """Write ``mean ± sd [low, high]``, leaving out what is not known."""
    text = _number(metric["mean"], digits)
    if metric["sd"] is not None:
        text += f" ± {_number(metric['sd'], digits)}"
    if metric["ci_low"] is not None:
        text += f" [{_number(metric['ci_low'], digits)}, {_number(metric['ci_high'], digits)}]"
    return text


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"
