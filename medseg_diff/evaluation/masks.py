"""Score a folder of predicted masks against a folder of reference masks.

Masks are paired by the stem of their file names. Nothing is left out silently: a case without its
partner is refused before anything is computed, a structure that was missed costs the full price,
and a case whose prediction failed counts as an empty prediction.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medseg_diff.data.caselist import CaseList, Part, load_caselist
from medseg_diff.errors import InputError
from medseg_diff.evaluation.appraisal import Appraisal
from medseg_diff.files import atomic_text
from medseg_diff.io import ReadOptions, read_label
from medseg_diff.metrics import masks as metrics
from medseg_diff.metrics import statistics
from medseg_diff.metrics.pairing import CaseFiles, pair_cases
from medseg_diff.metrics.summary import summarise_table
from medseg_diff.report import render_report
from medseg_diff.report.gallery import gallery

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

    def describe(self) -> str:
        """Table of a few lines: Dice with its interval, NSD, HD95 and misses per structure."""
        blocks = {**self.summary["structures"], "mean": self.summary["mean"]}
        rows = []
        for name, block in blocks.items():
            dice, found = block["metrics"]["dice"], block["metrics"]
            interval = (
                "" if dice["ci_low"] is None else f"[{dice['ci_low']:.3f}, {dice['ci_high']:.3f}]"
            )
            rows.append(
                {
                    "structure": name,
                    "n": block["n"],
                    "Dice": _shown(dice["mean"], 3),
                    "95 % CI": interval,
                    "NSD": _shown(found["nsd"]["mean"], 3),
                    "HD95 mm": _shown(found["hd95_mm"]["mean"], 2),
                    "misses": block["misses"],
                }
            )
        return pd.DataFrame(rows).to_string(index=False)


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
    ref_dir: str | Path | Mapping[str, Path],
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
    annotators: Mapping[str, Sequence[Path]] | None = None,
) -> Evaluation:
    """Score every case and write ``per_case.csv``, ``summary.json`` and ``report.html``.

    Args:
        pred_dir: Masks named ``<case>.nii.gz`` or ``<case>.png``, their JSON files beside them.
        ref_dir: Reference masks with the same stems, or case to file.
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
        patients: Case to patient, so that intervals resample patients; the table then says whose
            each case is.
        only: Cases to score, where ``ref_dir`` holds more; each must be predicted.
        options: How to read masks whose headers do not speak for themselves.
        seed: Of the bootstrap.
        annotators: Case to all of its reference masks, where there are several: draws are scored
            against the set.

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
    appraisal = Appraisal(structures, annotators or {}, ignore_label, options)
    rows = []
    for case in cases:
        reference, prediction, affine = _masks(case, plan)
        rows += _score(case, plan, reference, prediction, affine)
        appraisal.add(case, reference, affine)
    per_case = pd.DataFrame(rows, columns=list(COLUMNS))
    if patients is not None:
        per_case["patient"] = [patients.get(case, case) for case in per_case["case"]]
    raster = not any(case.reference.name.lower().endswith((".nii", ".nii.gz")) for case in cases)
    summary = {
        "title": title or "Segmentation results",
        **summarise_table(per_case, patients=patients, seed=seed),
        **appraisal.summary(per_case, patients),
        "conventions": _conventions(plan, patients is not None, raster),
    }
    folder.mkdir(parents=True, exist_ok=True)
    atomic_text(folder / "per_case.csv", per_case.to_csv(index=False, float_format="%.6g"))
    atomic_text(folder / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    plausible = appraisal.plausible_cases()
    if len(plausible):
        text = plausible.to_csv(index=False, float_format="%.6g")
        atomic_text(folder / "plausibility.csv", text)
    extras = appraisal.extras(per_case)
    pictures = gallery(cases, per_case, structures, lambda case: _masks(case, plan), options)
    page = render_report(summary, per_case, pictures, attribution=attribution, extras=extras)
    return Evaluation(per_case, summary, atomic_text(folder / "report.html", page))


def evaluate_part(
    pred_dir: str | Path,
    cases: str | Path | CaseList,
    out_dir: str | Path,
    *,
    part: Part = "test",
    **settings: Any,
) -> Evaluation:
    """Score one part of a case list, with its own images, labels, patients and attribution.

    Where a case has several annotators, the first one is the reference of Dice and distances;
    calibration and draws are judged by all of them.
    """
    listed = cases if isinstance(cases, CaseList) else load_caselist(cases)
    chosen = [case for case in listed.part(part) if case.references]
    if not chosen:
        raise InputError(f"no {part} case with a reference", field="cases")
    given = {
        "images": {c.case: next(iter(listed.channel_paths(c).values())) for c in chosen},
        "labels": listed.labels if listed.regions is None else None,
        "regions": listed.regions,
        "ignore_label": listed.ignore_label,
        "patients": {c.case: c.patient for c in chosen},
        "attribution": f"Data: {listed.name}. Licence: {listed.licence}",
        "annotators": {c.case: listed.reference_paths(c) for c in chosen if len(c.references) > 1},
    }
    references = {c.case: listed.reference_paths(c)[0] for c in chosen}
    return evaluate(pred_dir, references, out_dir, **{**given, **settings})


def score_part(
    pred_dir: str | Path, cases: CaseList, *, part: Part = "test", tolerance_mm: float = 1.0
) -> pd.DataFrame:
    """The long per-case table of `evaluate_part` alone: no summary, no pictures, no files.

    Raises:
        InputError: as `evaluate`.
    """
    chosen = [case for case in cases.part(part) if case.references]
    if not chosen:
        raise InputError(f"no {part} case with a reference", field="cases")
    references = {c.case: cases.reference_paths(c)[0] for c in chosen}
    found = pair_cases(pred_dir, references, None, None)
    labels = cases.labels if cases.regions is None else None
    structures, allowed = _structures(found, labels, cases.regions, cases.ignore_label, _DEFAULT)
    plan = _Plan(structures, allowed, cases.ignore_label, tolerance_mm, _DEFAULT)
    rows = [row for case in found for row in _score(case, plan, *_masks(case, plan))]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    patients = {c.case: c.patient for c in chosen}
    return table.assign(patient=[patients[case] for case in table["case"]])


def _shown(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


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


def _score(
    case: CaseFiles,
    plan: _Plan,
    reference: NDArray[Any],
    prediction: NDArray[Any],
    affine: NDArray[np.float64],
) -> list[dict[str, Any]]:
    """Return one row per structure of one case."""
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
