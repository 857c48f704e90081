"""The tests: pairs of methods, structure by structure, and what may be said of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import pandas as pd

from medseg_diff.comparison.methods import (
    Method,
    by_structure,
    check_comparable,
    check_same_rows,
)
from medseg_diff.errors import UsageError
from medseg_diff.metrics.statistics import (
    CONFIDENCE,
    MEAN_OF_STRUCTURES,
    Comparison,
    cases_needed,
    compare,
    holm,
    smallest_p,
    verdict,
)
from medseg_diff.metrics.summary import ALL_HEADINGS

METRICS = ("dice", "nsd", "hd95_mm", "assd_mm")
IMAGE_METRICS = ("mae", "psnr_db", "ssim")
ALPHA = 1 - CONFIDENCE
# A Dice difference that a reader may care about, and how many seeds a claim on a method takes.
_WORTH_FINDING = 0.01
_SEEDS_FOR_A_CLAIM = 3


def compare_methods(
    methods: Sequence[Method], *, reference: str | None = None, seed: int = 0
) -> pd.DataFrame:
    """Compare methods pair by pair; the columns of :func:`compare_table`, and those of the seeds.

    Args:
        methods: At least two, with different names.
        reference: Compare this one with each other one; without it every pair.
        seed: Of the bootstrap.

    Returns:
        As :func:`compare_table`, with ``seeds_a, seeds_b, sd_seeds_a, sd_seeds_b`` (NaN for one
        seed).

    Raises:
        InputError: if they do not hold the same cases, references and conventions.
        UsageError: if two share a name, or ``reference`` is none of them.
    """
    names = [method.name for method in methods]
    if len(set(names)) < len(names):
        raise UsageError(
            "two evaluations have one name", found=", ".join(names), remedy="write NAME=FOLDER"
        )
    check_comparable(methods)
    patients = next((m.patients for m in methods if m.patients is not None), None)
    table = compare_table(
        {method.name: method.per_case for method in methods},
        reference=reference,
        metrics=IMAGE_METRICS if methods[0].of_images else METRICS,
        patients=patients,
        seed=seed,
    )
    known = {method.name: method for method in methods}
    for side in ("a", "b"):
        table[f"seeds_{side}"] = [known[name].seeds for name in table[side]]
        table[f"sd_seeds_{side}"] = [
            known[name].seed_sd.get((structure, metric), math.nan)
            for name, structure, metric in zip(
                table[side], table["structure"], table["metric"], strict=True
            )
        ]
    return table


def compare_table(
    evaluations: Mapping[str, pd.DataFrame],
    *,
    reference: str | None = None,
    metrics: Sequence[str] = METRICS,
    patients: Mapping[str, str] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare every pair of evaluations, or one with each of the others, paired by case.

    Every structure and their mean per case make one row per metric. Holm's correction covers
    all rows of one metric. A case is left out of a row where either side is blank.

    Args:
        evaluations: Name to per-case table; at least two.
        reference: The one to compare with each other; None for every pair.
        metrics: Columns to compare.
        patients: Case to patient; cases of one patient are one unit of the statistics.
        seed: Of the bootstrap.

    Returns:
        Columns ``a, b, structure, metric, n, units, mean_a, mean_b, difference, ci_low, ci_high,
        sd_difference, effect_size, p, p_holm, smallest_p_holm, verdict``; differences are a - b,
        their standard deviation is over units, and ``smallest_p_holm`` is the smallest corrected
        p that so many units can give.

    Raises:
        InputError: if the evaluations do not hold the same cases and structures.
        UsageError: if ``reference`` is none of them.
    """
    wide = {name: by_structure(table) for name, table in evaluations.items()}
    check_same_rows(wide)
    structures = list(dict.fromkeys(next(iter(wide.values())).index.get_level_values("structure")))
    rows: list[dict[str, Any]] = []
    for metric in metrics:
        block = [
            _row(a, b, structure, metric, wide, patients, seed)
            for a, b in _pairs(list(wide), reference)
            for structure in structures
        ]
        _correct(block, metric)
        rows += block
    return pd.DataFrame(rows)


def primary_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per pair: Dice of the mean of structures or of the only one, MAE of images."""
    first = table[table["metric"] == primary_metric(table)]
    mean = first[first["structure"] == MEAN_OF_STRUCTURES]
    return mean if len(mean) else first


def primary_metric(table: pd.DataFrame) -> str:
    """Return the metric that a comparison speaks of first: the Dice of masks, the MAE of images."""
    return "dice" if (table["metric"] == "dice").any() else str(table["metric"].iloc[0])


def headlines(table: pd.DataFrame) -> list[tuple[str, bool]]:
    """Return one verdict per pair, and whether it claims a difference.

    The verdict is on Dice, averaged over structures (of images, on MAE); other rows that show a
    difference are named after it, and so is that none does.
    """
    found = []
    for _, row in primary_rows(table).iterrows():
        pair = table[(table["a"] == row["a"]) & (table["b"] == row["b"])]
        others = pair.drop(index=row.name)
        sure = others[[claims(r) for _, r in others.iterrows()]] if len(others) else others
        text = str(row["verdict"])
        if len(sure):
            listed = "; ".join(_short(r) for _, r in sure.iterrows())
            text += f" Also, of {len(others)} other rows: {listed}."
        found.append((text, claims(row)))
    return found


def claims(row: Any) -> bool:
    """Whether a row's numbers allow the claim of a difference; ``statistics.verdict``'s rule."""
    return bool(row["p_holm"] < ALPHA and (row["ci_low"] > 0 or row["ci_high"] < 0))


def caveats(table: pd.DataFrame, methods: Sequence[Method]) -> list[str]:
    """Say what the comparison cannot show: too few cases, too few seeds, unknown patients."""
    notes = []
    primary = primary_rows(table)
    blind = primary[primary["smallest_p_holm"] >= ALPHA]
    if len(blind):
        units, least = blind["units"].min(), blind["smallest_p_holm"].max()
        notes.append(
            f"n = {units} with {_tests(table)} test(s) per metric cannot show any difference: the "
            f"smallest corrected p it can give is {least:.2g}."
        )
    spread = primary["sd_difference"].max()
    if spread > 0 and primary_metric(table) == "dice":
        needed = cases_needed(_WORTH_FINDING, float(spread))
        if (primary["units"] < needed).any():
            notes.append(
                f"To find a Dice difference of {_WORTH_FINDING} at the paired standard deviation "
                f"seen here (up to {spread:.3f}) takes about {needed} cases before correction "
                f"(power 80 %); there are {primary['units'].min()}."
            )
    if all(method.patients is None for method in methods):
        notes.append(
            "The evaluations do not say which cases share a patient: every case counts as one."
        )
    few = [f"{m.name} {m.seeds}" for m in methods if m.seeds < _SEEDS_FOR_A_CLAIM]
    if few:
        notes.append(
            f"Seeds: {', '.join(few)}. With fewer than {_SEEDS_FOR_A_CLAIM} the tests speak about "
            "these trained weights on these cases, not about the methods."
        )
    return notes


def _pairs(names: Sequence[str], reference: str | None) -> list[tuple[str, str]]:
    if reference is None:
        return list(combinations(names, 2))
    if reference not in names:
        raise UsageError(
            "no such evaluation", field="--reference", found=reference, expected=", ".join(names)
        )
    return [(reference, name) for name in names if name != reference]


def _row(
    a: str,
    b: str,
    structure: str,
    metric: str,
    wide: Mapping[str, pd.DataFrame],
    patients: Mapping[str, str] | None,
    seed: int,
) -> dict[str, Any]:
    """One pair, structure and metric, before any correction."""
    ours = wide[a].xs(structure, level="structure")[metric].sort_index()
    theirs = wide[b].xs(structure, level="structure")[metric].loc[ours.index]
    units = [patients.get(case, case) for case in ours.index] if patients else None
    result = compare(ours.to_numpy(), theirs.to_numpy(), patients=units, seed=seed)
    both = ours.notna() & theirs.notna()
    gaps = (ours - theirs)[both]
    per_unit = gaps.groupby([patients.get(c, c) for c in gaps.index]).mean() if patients else gaps
    return {
        "a": a,
        "b": b,
        "structure": structure,
        "metric": metric,
        "n": result.n,
        "units": result.units,
        "mean_a": ours[both].mean(),
        "mean_b": theirs[both].mean(),
        "difference": result.difference,
        "ci_low": result.low,
        "ci_high": result.high,
        "sd_difference": per_unit.std(ddof=1),
        "effect_size": result.effect_size,
        "p": result.p,
        "result": result,
    }


def _correct(block: Sequence[dict[str, Any]], metric: str) -> None:
    """Add Holm's p over a metric's rows, the smallest it could be, and the verdict."""
    heading = ALL_HEADINGS[metric]
    tests = sum(not math.isnan(row["p"]) for row in block)
    for row, p_holm in zip(block, holm([row["p"] for row in block]), strict=True):
        result: Comparison = row.pop("result")
        least = min(1.0, tests * smallest_p(result.units)) if result.n else math.nan
        sentence = verdict(
            row["a"],
            row["b"],
            result,
            p_adjusted=p_holm,
            higher_is_better=heading.higher_is_better,
            unit=heading.unit,
        )
        if smallest_p(result.units) < ALPHA <= least:
            sentence += (
                f" n = {result.units} is too small for {tests} tests: "
                f"the smallest corrected p it can give is {least:.2g}."
            )
        row["p_holm"], row["smallest_p_holm"] = p_holm, least
        row["verdict"] = f"{heading.text.split(' (')[0]}, {row['structure']}: {sentence}"


def _tests(table: pd.DataFrame) -> int:
    return int((table["metric"] == primary_metric(table)).sum())


def _short(row: Any) -> str:
    """Name a row and who is better in it."""
    heading = ALL_HEADINGS[row["metric"]]
    better = row["a"] if (row["difference"] > 0) == heading.higher_is_better else row["b"]
    return f"{heading.text.split(' (')[0]}, {row['structure']}: {better} is better"
