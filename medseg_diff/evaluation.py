"""Score a folder of predicted masks against a folder of reference masks.

Masks are paired by the stem of their file names. Nothing is left out silently: a case without its
partner is refused before anything is computed, a structure that was missed costs the full price,
and a case whose prediction failed counts as an empty prediction.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medseg_diff import metrics, statistics
from medseg_diff.errors import InputError
from medseg_diff.figures import CaseView, case_figure
from medseg_diff.files import atomic_text
from medseg_diff.io import ReadOptions, read_image, read_label
from medseg_diff.pairing import CaseFiles, pair_cases
from medseg_diff.report import Picture, render_report

_DEFAULT = ReadOptions()
COLUMNS = (
    "case",
    "structure",
    "dice",
    "nsd",
    "hd95_mm",
    "assd_mm",
    "volume_ref_ml",
    "volume_pred_ml",
    "volume_difference_ml",
    "outcome",
)


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` found: the long per-case table, the summary and the report's path."""

    per_case: pd.DataFrame
    summary: dict[str, Any]
    report: Path


@dataclass(frozen=True)
class _Plan:
    """What is scored, and how."""

    structures: dict[str, tuple[int, ...]]
    allowed: tuple[int, ...]
    ignore_label: int | None
    tolerance_mm: float
    options: ReadOptions


def evaluate(
    pred_dir: str | Path,
    ref_dir: str | Path,
    out_dir: str | Path,
    *,
    images: str | Path | Mapping[str, Path] | None = None,
    labels: Mapping[str, int] | None = None,
    regions: Mapping[str, Sequence[int]] | None = None,
    ignore_label: int | None = None,
    tolerance_mm: float = 1.0,
    title: str | None = None,
    attribution: str | None = None,
    patients: Mapping[str, str] | None = None,
    only: Collection[str] | None = None,
    options: ReadOptions = _DEFAULT,
    seed: int = 0,
) -> Evaluation:
    """Score every case and write ``per_case.csv``, ``summary.json`` and ``report.html``.

    Args:
        pred_dir: Masks named ``<case>.nii.gz`` or ``<case>.png``, their JSON files beside them.
        ref_dir: Reference masks with the same stems.
        out_dir: Made if missing; the three files are replaced.
        images: Folder of images with the same stems (or ``<case>_0000``), or case to file, for
            the overlays; without it they show masks on grey.
        labels: Name to label value. Without it and ``regions``, the predictions' JSON files say;
            without those, every value found is a structure.
        regions: Name to the label values it joins; scored instead of ``labels``.
        ignore_label: Reference value whose voxels are not judged.
        tolerance_mm: Surface distance that NSD forgives.
        title: Heading of the report.
        attribution: Source and licence of the data, for the report's footer.
        patients: Case to patient, so that intervals resample patients.
        only: Cases to score, where ``ref_dir`` holds more; each must be predicted.
        options: How to read masks whose headers do not speak for themselves.
        seed: Of the bootstrap.

    Raises:
        InputError: if a folder is missing, masks do not pair up, two masks are not on one
            grid, or a mask holds a value that no label explains.
    """
    if tolerance_mm < 0 or not math.isfinite(tolerance_mm):
        raise InputError(
            "not a distance", field="tolerance_mm", found=tolerance_mm, expected=">= 0"
        )
    folder = Path(out_dir)
    if folder.exists() and not folder.is_dir():
        raise InputError("is a file, not a folder", file=folder, remedy="give another --out")
    cases = pair_cases(pred_dir, ref_dir, images, only)
    structures, allowed = _structures(cases, labels, regions, ignore_label, options)
    plan = _Plan(structures, allowed, ignore_label, tolerance_mm, options)
    per_case = pd.DataFrame(
        [row for case in cases for row in _score(case, plan)], columns=list(COLUMNS)
    )
    raster = not any(case.reference.name.lower().endswith((".nii", ".nii.gz")) for case in cases)
    summary = {
        "title": title or "Segmentation results",
        **summarise_table(per_case, patients=patients, seed=seed),
        "conventions": _conventions(plan, patients is not None, raster),
    }
    folder.mkdir(parents=True, exist_ok=True)
    atomic_text(folder / "per_case.csv", per_case.to_csv(index=False, float_format="%.6g"))
    atomic_text(folder / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    pictures = _pictures(cases, per_case, plan)
    page = render_report(summary, per_case, pictures, attribution=attribution)
    return Evaluation(per_case, summary, atomic_text(folder / "report.html", page))


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


def _conventions(plan: _Plan, by_patient: bool, raster: bool) -> dict[str, Any]:
    return {
        "surface": metrics.SURFACE_DEFINITION,
        "nsd_tolerance_mm": plan.tolerance_mm,
        "nsd": "share of both directed surface distances, pooled, within the tolerance",
        "hd95": metrics.HD95_DEFINITION,
        "assd": metrics.ASSD_DEFINITION,
        "missed_structure": "Dice 0, NSD 0, HD95 and ASSD the image diagonal, volume difference "
        "minus the reference's volume",
        "false_positive": "Dice 0, NSD 0, no distances",
        "both_empty": "excluded and counted",
        "failed_prediction": "scored as an empty prediction; Dice 0 whatever the reference holds",
        "volume_difference": "prediction minus reference"
        + ("; a 2-D image is taken to be 1 mm thick" if raster else ""),
        "units": "raster images state no spacing: one pixel is taken for 1 mm"
        if raster
        else "mm, by each image's own spacing",
        "structures": {name: list(values) for name, values in plan.structures.items()},
        "ignore_label": plan.ignore_label,
        "interval": f"{statistics.CONFIDENCE:.0%} BCa bootstrap of the mean, "
        f"{statistics.RESAMPLES} resamples of {'patients' if by_patient else 'cases'}",
    }


def _score(case: CaseFiles, plan: _Plan) -> list[dict[str, Any]]:
    """Return one row per structure of one case."""
    reference, prediction, affine = _masks(case, plan)
    axes = reference.ndim
    scores = metrics.score_case(
        prediction,
        reference,
        [float(size) for size in np.linalg.norm(affine[:axes, :axes], axis=0)],
        plan.structures,
        ignore_label=plan.ignore_label,
        tolerance_mm=plan.tolerance_mm,
    )
    rows = []
    for structure, score in scores.items():
        row = {"case": case.name, "structure": structure, **asdict(score)}
        if case.prediction is None:
            row |= {"outcome": "failed", "dice": 0.0, "nsd": 0.0}
        rows.append(row)
    return rows


def _masks(case: CaseFiles, plan: _Plan) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float64]]:
    """Return reference (*S), prediction (*S) and affine; a failed prediction is empty."""
    explained = (*plan.allowed, *_maybe(plan.ignore_label))
    judged = read_label(case.reference, allowed=explained, options=plan.options)
    reference, affine = np.asarray(judged)[0], np.asarray(judged.meta["affine"], dtype=np.float64)
    if case.prediction is None:
        return reference, np.zeros_like(reference), affine
    prediction = read_label(
        case.prediction, allowed=plan.allowed, like=judged, options=plan.options
    )
    return reference, np.asarray(prediction)[0], affine


def _maybe(value: int | None) -> tuple[int, ...]:
    return () if value is None else (value,)


def _structures(
    cases: Sequence[CaseFiles],
    labels: Mapping[str, int] | None,
    regions: Mapping[str, Sequence[int]] | None,
    ignore_label: int | None,
    options: ReadOptions,
) -> tuple[dict[str, tuple[int, ...]], tuple[int, ...]]:
    """Decide what is scored: the arguments, else the predictions' records, else what is there.

    Returns:
        The structures, and every value that a mask may hold.
    """
    if not labels:
        labels, recorded = _recorded(cases)
        regions = regions or recorded
    if not labels and not regions:
        values = _values_present(cases, options) - {0, *_maybe(ignore_label)}
        labels = {f"label {value}": value for value in sorted(values)}
        if not labels:
            raise InputError("every mask is empty", remedy="name the structures with labels")
    try:
        structures = metrics.structures_of(labels, regions)
    except ValueError as error:
        raise InputError(str(error), field="regions" if regions else "labels") from error
    known = {0, *(int(v) for v in (labels or {}).values())}
    known |= {v for values in structures.values() for v in values}
    if ignore_label is not None and any(ignore_label in v for v in structures.values()):
        raise InputError(
            "is also the value of a structure", field="ignore_label", found=ignore_label
        )
    return structures, tuple(sorted(known))


def _recorded(
    cases: Sequence[CaseFiles],
) -> tuple[dict[str, int] | None, dict[str, list[int]] | None]:
    """Return the labels and regions that the predictions' JSON files name, if they agree."""
    named = {
        json.dumps([case.record.get("labels"), case.record.get("regions")], sort_keys=True): case
        for case in cases
        if case.record.get("labels") or case.record.get("regions")
    }
    if len(named) > 1:
        files = sorted(case.name for case in named.values())
        raise InputError(
            "predictions name different labels or regions",
            found=f"differences between {', '.join(files)}",
            remedy="evaluate the predictions of one model at a time, or give labels",
        )
    for case in named.values():
        return case.record.get("labels"), case.record.get("regions")
    return None, None


def _values_present(cases: Sequence[CaseFiles], options: ReadOptions) -> set[int]:
    paths = [p for case in cases for p in (case.reference, case.prediction) if p is not None]
    return {
        int(value)
        for path in paths
        for value in np.unique(np.asarray(read_label(path, options=options)))
    }


def _pictures(cases: Sequence[CaseFiles], per_case: pd.DataFrame, plan: _Plan) -> list[Picture]:
    """Draw the best, median and worst case by mean Dice, among those with a prediction."""
    by_name = {case.name: case for case in cases if case.prediction is not None}
    scores = statistics.case_means(per_case)["dice"].dropna()
    ranked = scores[scores.index.isin(list(by_name))].sort_values(ascending=False, kind="stable")
    if ranked.empty:
        return []
    places = {0: "Best", (len(ranked) - 1) // 2: "Median", len(ranked) - 1: "Worst"}
    if len(ranked) < 3:
        places = {0: "Best", len(ranked) - 1: "Worst"} if len(ranked) == 2 else {0: "Only"}
    pictures = []
    for place, word in sorted(places.items()):
        case = by_name[str(ranked.index[place])]
        caption = f"Mean Dice {ranked.iloc[place]:.3f}. The dashed line is the reference's outline."
        png = case_figure(_view(case, plan), plan.structures)
        pictures.append(Picture(f"{word}: {case.name}", caption, png))
    return pictures


def _view(case: CaseFiles, plan: _Plan) -> CaseView:
    reference, prediction, affine = _masks(case, plan)
    shown = {}
    for key, path in (("image", case.image), ("doubt", case.doubt)):
        if path is None:
            continue
        # A picture takes what a score would not: the first of several volumes, NaN shown as 0.
        options = replace(plan.options, volume=0, nan_fill=0.0)
        shown[key] = np.asarray(read_image(path, options))
        if shown[key].shape[1:] != reference.shape:
            raise InputError(
                f"{key} is not on the grid of the masks",
                file=path,
                found=shown[key].shape[1:],
                expected=reference.shape,
            )
    doubt = shown["doubt"][0] if "doubt" in shown else None
    lies = affine if reference.ndim == 3 else None
    return CaseView(reference, prediction, lies, shown.get("image"), doubt)
