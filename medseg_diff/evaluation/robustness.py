"""How a trained model's Dice and calibration fall as its scans are shifted more and more.

Every point is a folder of predictions on shifted scans, scored like any other; what is done is
passed over, so that a run that was stopped goes on.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from medseg_diff import __version__
from medseg_diff.batch.run import Case, predict_many
from medseg_diff.calibration import MARGIN_MM
from medseg_diff.data.caselist import Case as ListedCase
from medseg_diff.data.caselist import CaseList, Part
from medseg_diff.data.derived import shifted
from medseg_diff.data.frozen_shifts import NO_SHIFT, FrozenShifts
from medseg_diff.data.shifts import Shift
from medseg_diff.errors import InputError
from medseg_diff.evaluation.masks import evaluate_part
from medseg_diff.figures import robustness_curves
from medseg_diff.files import atomic_file, atomic_text
from medseg_diff.inference.predictor import Predictor
from medseg_diff.report.page import figure, notes, page, table
from medseg_diff.report.tables import number

COLUMNS = ("shift", "level", "parameter", "value", "unit", "structure", "n", "dice", "dice_low",
           "dice_high", "misses", "ece", "ece_whole")  # fmt: skip
MEAN = "mean"
Report = Callable[[str], None]


@dataclass(frozen=True)
class Robustness:
    """What was measured.

    Attributes:
        points: One row per shift, level and structure (and their mean), ``COLUMNS``.
        report: The page.
    """

    points: pd.DataFrame
    report: Path

    def describe(self) -> str:
        """A few lines: mean Dice and ECE of every point."""
        means = self.points[self.points["structure"] == MEAN]
        return _shown(means).to_string(index=False)


def robustness(
    predictor: Predictor,
    cases: CaseList,
    out: str | Path,
    shifts: FrozenShifts,
    *,
    names: Sequence[str] = (),
    part: Part = "test",
    limit: int | None = None,
    report: Report = lambda line: None,
    **settings: Any,
) -> Robustness:
    """Write ``robustness.csv``, ``robustness.png`` and ``report.html``.

    Args:
        predictor: The model.
        cases: With reference masks.
        out: Made if missing; holds predictions and evaluations of every point, too.
        shifts: Frozen strengths.
        names: Which of them; all by default.
        part: Of the case list.
        limit: The first so many cases only.
        report: Called with a line per point.
        settings: Of :meth:`Predictor.predict`.

    Raises:
        InputError: if there is no case with a reference, or one cannot be read or shifted.
        UsageError: on an unknown shift.
    """
    curves = {name: shifts.curve(name) for name in names or shifts.shifts}
    chosen = [case for case in cases.part(part) if case.references][:limit]
    if not chosen:
        raise InputError(f"no {part} case with a reference", field="cases")
    folder = Path(out)
    rows: list[dict[str, Any]] = []
    for name, curve in curves.items():
        for shift in curve:
            found = _point(predictor, cases, chosen, folder, shift, shifts.seed, part, settings)
            told = next(row for row in found if row["structure"] == MEAN)
            report(f"{name} {shift.level}: Dice {number(told['dice'], 3)}")
            unit = curve[-1].unit
            fixed = {"shift": name, "level": shift.level, "parameter": shift.parameter}
            rows += [{**row, **fixed, "value": shift.value, "unit": unit} for row in found]
    points = pd.DataFrame(rows)[list(COLUMNS)]
    text = points.to_csv(index=False, float_format="%.6g")
    atomic_text(folder / "robustness.csv", text)
    means = points[points["structure"] == MEAN]
    picture = robustness_curves(means)
    with atomic_file(folder / "robustness.png") as stream:
        stream.write(picture)
    html = _page(points, picture, cases, len(chosen), shifts)
    return Robustness(points, atomic_text(folder / "report.html", html))


def _point(
    predictor: Predictor,
    cases: CaseList,
    chosen: Sequence[ListedCase],
    folder: Path,
    shift: Shift,
    seed: int,
    part: Part,
    settings: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Rows of one point, measured unless an earlier run did from the same."""
    # The point without a shift is the same for every shift.
    place = Path(NO_SHIFT) if shift.value == 0 else Path(shift.name) / shift.level
    key = {
        "models": [run.card["sha256"] for run in predictor.runs],
        "shift": None if shift.value == 0 else [shift.name, shift.value, shift.fixed, seed],
        "cases": [[c.case, c.part, sorted(c.sha256.items())] for c in chosen],
        "settings": {k: v for k, v in settings.items() if v is not None},
        "version": __version__,
    }
    key = json.loads(json.dumps(key))
    done = folder / "points" / place.with_suffix(".json")
    if done.is_file():
        known = json.loads(done.read_text(encoding="utf-8"))
        if known["key"] == key:
            return [
                {k: math.nan if v is None else v for k, v in row.items()} for row in known["rows"]
            ]
    images = folder / "images" / place
    listed = (
        cases.with_cases(chosen)
        if shift.value == 0
        else shifted(cases, chosen, images, shift, seed=seed)
    )
    wanted = [Case(c.case, listed.channel_paths(c)) for c in listed.cases]
    predictions = folder / "predictions" / place
    predict_many(predictor, wanted, predictions, go_on=True, **settings)
    result = evaluate_part(predictions, listed, folder / "evaluations" / place, part=part)
    rows = _rows(result.summary)
    done.parent.mkdir(parents=True, exist_ok=True)
    plain = [{k: _plain(v) for k, v in row.items()} for row in rows]
    atomic_text(done, json.dumps({"key": key, "rows": plain}, indent=1) + "\n")
    # The scans can be made again at any time; the masks and scores stay.
    shutil.rmtree(images, ignore_errors=True)
    return rows


def _rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per structure, then their mean."""
    calibration = summary.get("calibration", {})
    rows = []
    for name, block in {**summary["structures"], MEAN: summary["mean"]}.items():
        dice = block["metrics"]["dice"]
        known = [calibration[name]] if name in calibration else []
        known = list(calibration.values()) if name == MEAN else known
        near, whole = ([_ece(scores, where) for scores in known] for where in ("near", "whole"))
        rows.append(
            {
                "structure": name,
                "n": block["n"],
                "dice": _number(dice["mean"]),
                "dice_low": _number(dice["ci_low"]),
                "dice_high": _number(dice["ci_high"]),
                "misses": block["misses"],
                "ece": sum(near) / len(near) if near else math.nan,
                "ece_whole": sum(whole) / len(whole) if whole else math.nan,
            }
        )
    return rows


def _ece(scores: Mapping[str, Mapping[str, Any]], where: str) -> float:
    chosen = [s for region, s in scores.items() if (region == "whole image") == (where == "whole")]
    return _number(chosen[0]["ece"]) if chosen else math.nan


def _page(
    points: pd.DataFrame, picture: bytes, cases: CaseList, n: int, shifts: FrozenShifts
) -> str:
    strengths = f"Strengths are frozen (version {shifts.version}, seed {shifts.seed})."
    said = [
        f"{n} cases of {cases.name}; scanner models, not scanners: see medseg_diff/data/shifts.py. "
        + strengths,
        f"ECE: voxels within {MARGIN_MM:g} mm of a structure, the mean over structures.",
    ]
    body = [
        notes(said),
        "<h2>Dice and calibration against strength</h2>",
        figure(
            "",
            "Circles: mean Dice with its 95 % interval (BCa bootstrap over patients). Squares: "
            "expected calibration error. At 0 the scans are as they are.",
            picture,
            alt="Dice and ECE against the strength of every shift",
        ),
        "<h2>Every point</h2>",
        table(_shown(points[points["structure"] == MEAN])),
        "<h2>By structure</h2>",
        table(_shown(points[points["structure"] != MEAN])),
        '<p class="soft">Misses: of all cases whose reference holds the structure.</p>',
    ]
    attribution = f"Data: {cases.name}. Licence: {cases.licence}"
    return page("Robustness", body, attribution=attribution)


def _shown(points: pd.DataFrame) -> pd.DataFrame:
    """Points as text."""
    rows = []
    for _, row in points.iterrows():
        base = points[
            (points["shift"] == row["shift"])
            & (points["structure"] == row["structure"])
            & (points["value"] == 0)
        ]["dice"].iloc[0]
        interval = f" [{number(row['dice_low'], 3)}, {number(row['dice_high'], 3)}]"
        rows.append(
            {
                "Shift": str(row["shift"]).replace("_", " "),
                "Level": row["level"],
                "Strength": f"{row['value']:g} {row['unit']}",
                "Structure": row["structure"],
                "Dice": number(row["dice"], 3) + ("" if math.isnan(row["dice_low"]) else interval),
                "Lost": number(base - row["dice"], 3),
                "ECE": number(row["ece"], 3),
                "Misses": row["misses"],
                "n": str(row["n"]),
            }
        )
    return pd.DataFrame(rows)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
