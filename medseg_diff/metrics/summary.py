"""From a per-case table to what ``summary.json`` says: counts, means, intervals, notes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from medseg_diff.metrics import masks as metrics
from medseg_diff.metrics import statistics


class Heading(NamedTuple):
    """How a metric is shown: its name with unit, digits, which way is better, and the unit."""

    text: str
    digits: int
    higher_is_better: bool
    unit: str


HEADINGS = {
    "dice": Heading("Dice", 3, True, ""),
    "nsd": Heading("NSD", 3, True, ""),
    "hd95_mm": Heading("HD95 (mm)", 2, False, " mm"),
    "assd_mm": Heading("ASSD (mm)", 2, False, " mm"),
    "volume_difference_ml": Heading("Volume difference (ml)", 2, True, " ml"),
}


# Of translated images; the first is what a comparison speaks of first.
IMAGE_HEADINGS = {
    "mae": Heading("MAE", 2, False, ""),
    "psnr_db": Heading("PSNR (dB)", 2, True, " dB"),
    "ssim": Heading("SSIM", 3, True, ""),
    "ms_ssim": Heading("MS-SSIM", 3, True, ""),
    "nmi": Heading("NMI", 3, True, ""),
}
ALL_HEADINGS = HEADINGS | IMAGE_HEADINGS


def summarise_table(
    per_case: pd.DataFrame, *, patients: Mapping[str, str] | None = None, seed: int = 0
) -> dict[str, Any]:
    """Summarise a per-case table: counts, and every metric's mean with its interval.

    ``structures`` holds one block per structure, ``mean`` the block of each case's mean over its
    structures. A number that does not exist (an interval from one case) is None.
    """
    names = list(dict.fromkeys(per_case["structure"]))
    blocks = {}
    for name in names:
        part = per_case[per_case["structure"] == name]
        blocks[name] = _block(part, part.set_index("case"), patients, seed)
    means = statistics.case_means(per_case)
    failed = sorted(set(per_case.loc[per_case["outcome"] == "failed", "case"]))
    units = {patients.get(case, case) for case in means.index} if patients else set(means.index)
    return {
        "n_cases": len(means),
        "n_patients": len(units) if patients else None,
        "n_failed": len(failed),
        "failed": failed,
        "structures": blocks,
        "mean": _block(per_case, means, patients, seed),
        "notes": _notes(len(units), failed, blocks),
    }


def _block(
    part: pd.DataFrame, values: pd.DataFrame, patients: Mapping[str, str] | None, seed: int
) -> dict[str, Any]:
    """Count the outcomes in ``part`` and summarise ``values``, one row per case."""
    count = part["outcome"].value_counts()
    # The reference holds the structure; a failure is a row of its own kind, not a miss.
    holds = int((part["volume_ref_ml"] > 0).sum())
    who = [patients.get(case, case) for case in values.index] if patients else None
    found = {}
    for metric in metrics.METRICS:
        s = statistics.summarise(values[metric].to_numpy(dtype=float), patients=who, seed=seed)
        numbers = {"mean": s.mean, "sd": s.sd, "ci_low": s.low, "ci_high": s.high}
        numbers |= {"median": s.median}
        known = {key: None if math.isnan(v) else v for key, v in numbers.items()}
        found[metric] = {"n": s.n, **known}
    return {
        "n": len(values),
        "n_scored": int(count.get("scored", 0)),
        "misses": f"{int(count.get('missed', 0))}/{holds}",
        "false_positives": int(count.get("false_positive", 0)),
        "both_empty": int(count.get("both_empty", 0)),
        "failed": int(count.get("failed", 0)),
        "metrics": found,
    }


def _notes(units: int, failed: Sequence[str], blocks: Mapping[str, Any]) -> list[str]:
    """Say what a reader must know before quoting a number."""
    notes = []
    if failed:
        notes.append(
            f"Prediction failed for {len(failed)}: {', '.join(failed)}. "
            "Each counts as an empty prediction."
        )
    empty = {name: block["both_empty"] for name, block in blocks.items() if block["both_empty"]}
    if empty:
        listed = ", ".join(f"{name} {count}" for name, count in empty.items())
        notes.append(f"Empty in reference and prediction, so not scored: {listed}.")
    needed = statistics.cases_needed(0.01, 0.05)
    if statistics.smallest_p(units) >= 0.05:
        notes.append(
            f"n = {units} is too small to compare methods: the smallest two-sided Wilcoxon p "
            f"it can give is {statistics.smallest_p(units):.3g}."
        )
    elif units < needed:
        notes.append(
            f"n = {units}: to find a Dice difference of 0.01 between two methods at a paired "
            f"standard deviation of 0.05 takes about {needed} cases (power 80 %)."
        )
    return notes
