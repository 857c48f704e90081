"""Score a folder of translated images against their references.

Nothing is left out silently: a case without its partner is refused before anything is computed,
and a case that failed counts as an image of the range's lowest value throughout.
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

from medseg_diff.data.caselist import CaseList, Part, load_caselist
from medseg_diff.errors import InputError
from medseg_diff.figures import TranslationView, translation_figure
from medseg_diff.files import atomic_text
from medseg_diff.io import ReadOptions, read_image, require_same_grid
from medseg_diff.metrics import images as image_scores
from medseg_diff.metrics import statistics
from medseg_diff.metrics.pairing import (
    CaseFiles,
    holds_restorations,
    holds_translations,
    pair_translations,
)
from medseg_diff.metrics.summary import IMAGE_HEADINGS
from medseg_diff.report import Picture, render_images

COLUMNS = ("case", *image_scores.METRICS, "body_voxels", "outcome")
CONVENTIONS = {
    "body": "the reference above Otsu's threshold, largest piece, holes filled; all scores are "
    "inside it",
    "psnr": "10 log10(range^2 / mean squared error), the range as stated",
    "ssim": f"local map with a uniform window of {image_scores.SSIM_WINDOW} voxels (in slices "
    "where a volume is thinner), mean over the body; scikit-image",
    "ms_ssim": f"{image_scores.MS_SSIM_SCALES} scales, Gaussian window "
    f"{image_scores.MS_SSIM_WINDOW}, slices along the shortest axis, outside the body the "
    "reference; blank below "
    f"{image_scores.MS_SSIM_LEAST} pixels a side; MONAI",
    "nmi": f"(H(a) + H(b)) / H(a, b), {image_scores.NMI_BINS} bins, 1 to 2; scikit-image",
    "failed": "scored as the range's lowest value throughout",
}


@dataclass(frozen=True)
class ImageEvaluation:
    """What was found: the per-case table, the summary and the report's path."""

    per_case: pd.DataFrame
    summary: dict[str, Any]
    report: Path

    def describe(self) -> str:
        """Table of a few lines: every metric's mean with its interval."""
        low, high = self.summary["range"]
        table = summary_table(self.summary).to_string(index=False)
        return f"{table}\ndata range {low:g} to {high:g}"


def evaluate_images(
    pred_dir: str | Path,
    ref_dir: str | Path | Mapping[str, Path],
    out_dir: str | Path,
    *,
    ends: tuple[float, float] | None = None,
    patients: Mapping[str, str] | None = None,
    title: str | None = None,
    attribution: str | None = None,
    only: Collection[str] | None = None,
    images: str | Path | Mapping[str, Path] | None = None,
    options: ReadOptions | None = None,
    seed: int = 0,
) -> ImageEvaluation:
    """Score every case and write ``per_case.csv``, ``summary.json`` and ``report.html``.

    Args:
        pred_dir: What ``translate`` wrote.
        ref_dir: Reference images with the cases' names, or case to file.
        out_dir: Made if missing; the three files are replaced.
        ends: Data range of PSNR and SSIM; by default the one that the predictions' JSONs state.
        patients: Case to patient, so that intervals resample patients.
        title: Heading of the report.
        attribution: Source and licence of the data.
        only: Cases to score, where ``ref_dir`` holds more.
        images: Scans that the images were made from, for the report's pictures.
        options: How to read images whose headers do not speak for themselves.
        seed: Of the bootstrap.

    Raises:
        InputError: if images do not pair up or are not on one grid, or the range is not known.
    """
    folder = Path(out_dir)
    if folder.exists() and not folder.is_dir():
        raise InputError("is a file, not a folder", file=folder, remedy="give another --out")
    cases = pair_translations(pred_dir, ref_dir, only, images)
    chosen = _range(cases) if ends is None else _checked(ends)
    options = options or ReadOptions()
    rows = [_score(case, chosen, options) for case in cases]
    per_case = pd.DataFrame(rows, columns=list(COLUMNS))
    if patients is not None:
        per_case["patient"] = [patients.get(case, case) for case in per_case["case"]]
    summary = {
        "title": title or "Translation results",
        "task": "translation",
        "range": list(chosen),
        **_summarise(per_case, patients, seed),
        "conventions": {**CONVENTIONS, "data_range": f"{chosen[0]:g} to {chosen[1]:g}"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    atomic_text(folder / "per_case.csv", per_case.to_csv(index=False, float_format="%.6g"))
    atomic_text(folder / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    page = render_images(
        summary,
        summary_table(summary),
        case_table(per_case),
        translation_pictures(cases, per_case, chosen, options),
        attribution=attribution,
    )
    return ImageEvaluation(per_case, summary, atomic_text(folder / "report.html", page))


def evaluate_images_part(
    pred_dir: str | Path,
    cases: CaseList,
    out_dir: str | Path,
    *,
    part: Part = "test",
    **settings: Any,
) -> ImageEvaluation:
    """Score one part of a case list, with its own targets, patients and attribution.

    What a scan was restored from is that scan: the list's own channel is the reference.
    """
    restored = holds_restorations(pred_dir)
    chosen = [case for case in cases.part(part) if restored or case.target is not None]
    if not chosen:
        raise InputError(f"no {part} case with a target image", field="cases")
    given: dict[str, Any] = {
        "patients": {case.case: case.patient for case in chosen},
        "attribution": f"Data: {cases.name}. Licence: {cases.licence}",
    }
    references = {
        case.case: cases.root / (case.channels[cases.channels[0]] if restored else str(case.target))
        for case in chosen
    }
    if not restored:
        # What a scan was restored from is not kept.
        given["images"] = {
            case.case: cases.channel_paths(case)[cases.channels[0]] for case in chosen
        }
    return evaluate_images(pred_dir, references, out_dir, **{**given, **settings})


def evaluate_translations(
    pred: Path,
    ref: Path,
    out: Path,
    ends: tuple[float, float] | None = None,
    images: Path | None = None,
) -> ImageEvaluation | None:
    """Score images where the case list, or what lies in ``pred``, says that they are; else None.

    Raises:
        InputError: if images stand beside a case list of masks.
    """
    made = holds_translations(pred)
    if ref.suffix != ".json":
        return evaluate_images(pred, ref, out, ends=ends, images=images) if made else None
    cases = load_caselist(ref)
    if cases.target is not None or holds_restorations(pred):
        return evaluate_images_part(pred, cases, out, ends=ends)
    if made:
        raise InputError(
            "the predictions are images and the case list has no target",
            file=ref,
            field="target",
            remedy="give the case list that the translator was trained on",
        )
    return None


def summary_table(summary: Mapping[str, Any]) -> pd.DataFrame:
    """Every metric's mean ± sd [interval] as text, one row a metric."""
    rows = []
    for name, heading in IMAGE_HEADINGS.items():
        found = summary["metrics"][name]
        text = "–"
        if found["mean"] is not None:
            text = f"{found['mean']:.{heading.digits}f}"
            text += "" if found["sd"] is None else f" ± {found['sd']:.{heading.digits}f}"
        interval = "–"
        if found["ci_low"] is not None:
            ends = (f"{found[end]:.{heading.digits}f}" for end in ("ci_low", "ci_high"))
            interval = f"[{', '.join(ends)}]"
        better = "higher" if heading.higher_is_better else "lower"
        rows.append(
            {
                "metric": heading.text, "n": found["n"], "mean ± sd": text, "95 % CI": interval,
                "better": better,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def case_table(per_case: pd.DataFrame) -> pd.DataFrame:
    """Every case as text, the largest error first."""
    ranked = per_case.sort_values("mae", ascending=False)
    text = pd.DataFrame({"Case": ranked["case"], "Outcome": ranked["outcome"]})
    for name, heading in IMAGE_HEADINGS.items():
        text[heading.text] = [
            "–" if math.isnan(value) else f"{value:.{heading.digits}f}" for value in ranked[name]
        ]
    return text


def translation_pictures(
    cases: Sequence[CaseFiles],
    per_case: pd.DataFrame,
    ends: tuple[float, float],
    options: ReadOptions,
) -> list[Picture]:
    """The cases with the smallest, the median and the largest error, of those that were made."""
    known = per_case[per_case["outcome"] == "scored"].sort_values("mae", kind="stable")
    places = {0: "Best", len(known) // 2: "Median", len(known) - 1: "Worst"} if len(known) else {}
    if len(places) < 3:
        places = dict.fromkeys(places, "Case")
    files = {case.name: case for case in cases}
    found = []
    for place in sorted(places):
        row = known.iloc[place]
        scores = [f"{h.text} {row[name]:.{h.digits}f}" for name, h in _SHOWN.items()]
        png = translation_figure(_view(files[row["case"]], ends, options))
        heading = f"{places[place]}: {row['case']}"
        found.append(Picture(heading, f"{', '.join(scores)}. Middle slice.", png))
    return found


_SHOWN = {name: IMAGE_HEADINGS[name] for name in ("mae", "psnr_db", "ssim")}


def _view(case: CaseFiles, ends: tuple[float, float], options: ReadOptions) -> TranslationView:
    if case.prediction is None:
        raise ValueError("a failed case has no picture")
    target = read_image(case.reference, options)
    spread = None if case.doubt is None else np.asarray(read_image(case.doubt, options))[0]
    source = None if case.image is None else np.asarray(read_image(case.image, options))
    if source is not None and source.shape[1:] != target.shape[1:]:
        source = None
    return TranslationView(
        np.asarray(target),
        np.asarray(read_image(case.prediction, options)),
        ends,
        None if target.meta["kind"] == "raster" else np.asarray(target.affine),
        source,
        spread,
    )


def _score(case: CaseFiles, ends: tuple[float, float], options: ReadOptions) -> dict[str, Any]:
    reference = read_image(case.reference, options)
    truth = np.asarray(reference, np.float32)
    if case.prediction is None:
        made = np.full_like(truth, ends[0])
    else:
        image = read_image(case.prediction, options)
        require_same_grid(image, reference)
        made = np.asarray(image, np.float32)
    try:
        score = image_scores.score_image(made, truth, ends)
    except ValueError as error:
        raise InputError(str(error), file=case.reference) from None
    outcome = "failed" if case.prediction is None else "scored"
    return {"case": case.name, **asdict(score), "outcome": outcome}


def _range(cases: Sequence[CaseFiles]) -> tuple[float, float]:
    """The data range that the predictions' JSONs agree on."""
    stated = {tuple(case.record["range"]) for case in cases if case.record.get("range")}
    if len(stated) != 1:
        shown = ", ".join(f"{low:g} to {high:g}" for low, high in sorted(stated))
        raise InputError(
            "the data range of PSNR and SSIM is not known" if not stated else "ranges differ",
            field="range",
            found=shown or "none in the predictions' JSONs",
            expected="one range for all cases",
            remedy="give --range LOW HIGH, the same for all rows of a table",
        )
    return _checked(stated.pop())


def _checked(ends: Sequence[float]) -> tuple[float, float]:
    low, high = (float(end) for end in ends)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(
            "not a data range", field="--range", found=f"{low:g} {high:g}", expected="LOW < HIGH"
        )
    return low, high


def _summarise(
    per_case: pd.DataFrame, patients: Mapping[str, str] | None, seed: int
) -> dict[str, Any]:
    names = list(per_case["case"])
    who = [patients.get(name, name) for name in names] if patients else None
    found = {}
    for metric in image_scores.METRICS:
        values = per_case[metric].replace(math.inf, math.nan).to_numpy(dtype=float)
        s = statistics.summarise(values, patients=who, seed=seed)
        numbers = {"mean": s.mean, "sd": s.sd, "ci_low": s.low, "ci_high": s.high}
        numbers |= {"median": s.median}
        known = {key: None if math.isnan(v) else v for key, v in numbers.items()}
        found[metric] = {"n": s.n, **known}
    failed = sorted(per_case.loc[per_case["outcome"] == "failed", "case"])
    notes = ["Images are SYNTHETIC: structures can be missing from them, or made up."]
    if failed:
        notes.append(f"Translation failed for {len(failed)}: {', '.join(failed)}.")
    equal = int((per_case["psnr_db"] == math.inf).sum())
    if equal:
        notes.append(f"Equal to the reference, so without a PSNR: {equal}.")
    return {
        "n_cases": len(names),
        "n_patients": len(set(who)) if who else None,
        "n_failed": len(failed),
        "failed": failed,
        "metrics": found,
        "notes": notes,
        "interval": f"{statistics.CONFIDENCE:.0%} BCa bootstrap of the mean, "
        f"{statistics.RESAMPLES} resamples of {'patients' if who else 'cases'}",
    }
