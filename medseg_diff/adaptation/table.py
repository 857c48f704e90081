"""The rows of an experiment as one table: what was lost, what each method wins back, at what cost.

    gap closed = (method - source only) / (oracle - source only)

of mean Dice over cases, with a BCa interval over patients; blank where the interval of
oracle - source only holds 0: there is no gap to close.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medseg_diff.adaptation.work import SOURCE_ONLY
from medseg_diff.errors import InputError
from medseg_diff.metrics.statistics import bca_interval, compare, holm, summarise

ORACLE = "oracle"
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """An experiment on one target.

    Attributes:
        rows: One per method, numbers; NaN where there is none.
        structures: Names, each with a column ``dice <name>``.
        notes: What a reader must know first.
    """

    rows: pd.DataFrame
    structures: tuple[str, ...]
    notes: tuple[str, ...]


def read_rows(files: Sequence[Path]) -> pd.DataFrame:
    """All rows' cases, long.

    Raises:
        InputError: if a file is missing.
    """
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise InputError("row is missing", file=missing[0], remedy="run the experiment again")
    return pd.concat([pd.read_csv(file, dtype={"case": str, "patient": str}) for file in files])


def gap_closed(method: Numbers, source: Numbers, oracle: Numbers) -> float:
    """Share of the gap that is closed; NaN where there is no gap."""
    gap = float(np.mean(oracle) - np.mean(source))
    return math.nan if abs(gap) < 1e-12 else float(np.mean(method) - np.mean(source)) / gap


def build_table(long: pd.DataFrame) -> Table:
    """The table of one target.

    Args:
        long: From :func:`read_rows`; must hold ``source_only`` for the gap to be known.
    """
    names = list(dict.fromkeys(long["row"]))
    structures = tuple(dict.fromkeys(long["structure"]))
    means = {
        (name, where): _case_means(long, name, where)
        for name in names
        for where in ("target", "source")
    }
    patients = _patients(long)
    rows = [_row(long, name, means, patients, structures) for name in names]
    tested = [row for row in rows if not math.isnan(row["p"])]
    for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = p
    return Table(pd.DataFrame(rows), structures, tuple(_notes(long, means)))


def _case_means(long: pd.DataFrame, name: str, where: str) -> pd.Series:
    """Dice of each case, the mean over structures and then over seeds; (n,) by case."""
    part = long[(long["row"] == name) & (long["domain"] == where)]
    by_seed = part.groupby(["case", "seed"], sort=True)["dice"].mean()
    return by_seed.groupby("case", sort=True).mean()


def _patients(long: pd.DataFrame) -> dict[str, str]:
    if "patient" not in long:
        return {}
    known = long.dropna(subset=["patient"])
    return dict(zip(known["case"], known["patient"], strict=True))


def _row(
    long: pd.DataFrame,
    name: str,
    means: dict[tuple[str, str], pd.Series],
    patients: dict[str, str],
    structures: Sequence[str],
) -> dict[str, Any]:
    here = long[long["row"] == name]
    target = here[here["domain"] == "target"]
    own = means[name, "target"]
    who = [patients.get(case, case) for case in own.index]
    mean = summarise(own.to_numpy(), patients=who)
    base_name = str(here["baseline"].iloc[0])
    base = means.get((base_name, "target"))
    base_source = means.get((base_name, "source"))
    row: dict[str, Any] = {
        "row": name,
        "target_used": str(here["target_used"].iloc[0]),
        "seeds": here["seed"].nunique(),
        "cases": len(own),
        "dice": mean.mean,
        "dice_low": mean.low,
        "dice_high": mean.high,
        "dice_sd_cases": mean.sd,
        "dice_sd_seeds": _seed_sd(target),
        **{f"dice {s}": target.loc[target["structure"] == s, "dice"].mean() for s in structures},
        "nsd": target["nsd"].mean(),
        "hd95_mm": target["hd95_mm"].mean(),
        "assd_mm": target["assd_mm"].mean(),
        "misses": int(target["outcome"].isin(["missed", "failed"]).sum()),
        "scored": int((target["volume_ref_ml"] > 0).sum()),
        "baseline": base_name,
        "source_dice": means[name, "source"].mean(),
        "passes": target["passes"].mean(),
        "seconds": target["seconds"].mean(),
        "training_steps": int(here["training_steps"].iloc[0]),
        "training_seconds": here["training_seconds"].mean(),
    }
    blank = ("difference", "difference_low", "difference_high", "p", "p_holm")
    row |= dict.fromkeys((*blank, "gap", "gap_low", "gap_high", "forgetting"), math.nan)
    row["negative"] = ""
    if base is None or base_source is None or base_name == name:
        return row
    row["forgetting"] = base_source.mean() - row["source_dice"]
    against = compare(own.to_numpy(), base.loc[own.index].to_numpy(), patients=who)
    row |= {
        "difference": against.difference,
        "difference_low": against.low,
        "difference_high": against.high,
        "p": against.p,
        "negative": _negative(long, name, base_name, structures),
    }
    oracle = means.get((ORACLE, "target"))
    if oracle is not None and name != ORACLE and _has_gap(oracle, base, who):
        columns = [x.loc[own.index].to_numpy() for x in (own, base, oracle)]
        low, high = bca_interval(gap_closed, *columns, patients=who)
        row |= {"gap": gap_closed(*columns), "gap_low": low, "gap_high": high}
    return row


def _has_gap(oracle: pd.Series, base: pd.Series, who: Sequence[str]) -> bool:
    """Whether the interval of oracle - source only lies off 0."""
    gap = compare(oracle.loc[base.index].to_numpy(), base.to_numpy(), patients=who)
    return gap.low > 0 or gap.high < 0


def _seed_sd(target: pd.DataFrame) -> float:
    """Standard deviation of the mean Dice over seeds; NaN for one."""
    per_seed = target.groupby("seed")["dice"].mean()
    return float(per_seed.std(ddof=1)) if len(per_seed) > 1 else math.nan


def _negative(long: pd.DataFrame, name: str, base: str, structures: Sequence[str]) -> str:
    """Structures whose mean Dice fell below the baseline's; * where the interval leaves out 0."""
    found = []
    target = long[long["domain"] == "target"]
    for structure in structures:
        part = target[target["structure"] == structure]
        pair = [
            part[part["row"] == row].groupby("case", sort=True)["dice"].mean()
            for row in (name, base)
        ]
        change = compare(pair[0].to_numpy(), pair[1].loc[pair[0].index].to_numpy())
        if change.difference < 0:
            found.append(f"{structure}{'*' if change.high < 0 else ''}")
    return ", ".join(found)


def _notes(long: pd.DataFrame, means: dict[tuple[str, str], pd.Series]) -> list[str]:
    found = []
    seeds = long["seed"].nunique()
    if seeds < 3:
        found.append(
            f"Trainings per row: {seeds}. Tests and intervals speak about these trained weights on "
            "these cases; a claim about a method takes 3 or more."
        )
    base = means.get((SOURCE_ONLY, "target"))
    if base is None:
        found.append("There is no source_only row: neither gap nor differences are known.")
        return found
    lost = means[SOURCE_ONLY, "source"].mean() - base.mean()
    found.append(
        f"The shift costs the source-only model {100 * lost:.1f} Dice points"
        + ("." if lost >= 0.1 else ", less than the 10 that make an experiment worth while.")
    )
    if (ORACLE, "target") not in means:
        found.append("There is no oracle row: the gap is not known.")
    return found
