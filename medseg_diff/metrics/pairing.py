"""Which prediction, reference and image are one case: files paired by their names' stems."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg_diff.errors import InputError
from medseg_diff.io import case_stem

MASK_SUFFIXES = (".nii.gz", ".nii", ".png", ".tif", ".tiff", ".bmp")
IMAGE_SUFFIXES = (*MASK_SUFFIXES, ".jpg", ".jpeg")
_COMPANIONS = ("_prob", "_doubt", "_draws")
_SYNTHETIC = "_SYNTHETIC"


@dataclass(frozen=True)
class CaseFiles:
    """Files of one case.

    Attributes:
        prediction: None where the case's JSON says that predicting it failed.
        record: The prediction's JSON, empty where there is none.
        doubt: The prediction's doubt map, if it was written.
        draws: The label maps of its single draws, one volume or page each, if they were written.
    """

    name: str
    reference: Path
    prediction: Path | None
    record: Mapping[str, Any]
    image: Path | None = None
    doubt: Path | None = None
    draws: Path | None = None


def pair_cases(
    pred_dir: str | Path,
    references_in: str | Path | Mapping[str, Path],
    images: str | Path | Mapping[str, Path] | None = None,
    only: Collection[str] | None = None,
) -> list[CaseFiles]:
    """Match predictions, references and images, sorted by case.

    With ``only``, other references are left aside, but each case named there must be predicted.
    A case whose JSON says ``"status": "failed"`` needs no mask, and one that is there is not used.

    Raises:
        InputError: if a folder is missing or empty, or naming every file without a partner and
            every case with several.
    """
    pred = _folder(pred_dir, "predictions")
    written = _files(pred, MASK_SUFFIXES)
    predictions = {s: paths for s, paths in written.items() if not s.endswith(_COMPANIONS)}
    doubts, draws = (
        {s.removesuffix(end): p[0] for s, p in written.items() if s.endswith(end)}
        for end in ("_doubt", "_draws")
    )
    references = _references(references_in, only)
    records = _records(pred)
    failed = {stem for stem, record in records.items() if record.get("status") == "failed"}
    answered = set(predictions) | failed
    pictures = _images(images)
    common = answered & set(references)
    problems = {
        "prediction without reference": sorted(answered - set(references)),
        "reference without prediction": sorted(set(references) - answered),
        "several predictions of one case": sorted(s for s, p in predictions.items() if len(p) > 1),
        "several references of one case": sorted(s for s, p in references.items() if len(p) > 1),
        "case without image": sorted(common - set(pictures)) if images is not None else [],
    }
    _refuse(problems)
    if not common:
        raise InputError(
            "no masks to score", file=pred, expected=f"files ending in {', '.join(MASK_SUFFIXES)}"
        )
    return [
        CaseFiles(
            name=stem,
            reference=references[stem][0],
            prediction=None if stem in failed else predictions[stem][0],
            record=records.get(stem, {}),
            image=pictures.get(stem),
            doubt=doubts.get(stem),
            draws=draws.get(stem),
        )
        for stem in sorted(common)
    ]


def pair_translations(
    pred_dir: str | Path,
    references_in: str | Path | Mapping[str, Path],
    only: Collection[str] | None = None,
    images: str | Path | Mapping[str, Path] | None = None,
) -> list[CaseFiles]:
    """Match the images that ``translate`` wrote with reference images, sorted by case.

    The scans that they were made from, ``images``, are shown where they are known; a file's
    ``doubt`` is the spread between draws.

    Raises:
        InputError: as `pair_cases`.
    """
    pred = _folder(pred_dir, "translations")
    written = _files(pred, MASK_SUFFIXES)
    predictions, spreads = (
        {s.removesuffix(end): paths for s, paths in written.items() if s.endswith(end)}
        for end in (_SYNTHETIC, f"{_SYNTHETIC}_spread")
    )
    pictures = _images(images)
    records = _records(pred)
    failed = {stem for stem, record in records.items() if record.get("status") == "failed"}
    references, answered = _references(references_in, only), set(predictions) | failed
    _refuse(
        {
            "translation without reference": sorted(answered - set(references)),
            "reference without translation": sorted(set(references) - answered),
            "several translations of one case": sorted(
                s for s, p in predictions.items() if len(p) > 1
            ),
            "several references of one case": sorted(
                s for s, p in references.items() if len(p) > 1
            ),
        }
    )
    if not answered:
        raise InputError(
            "no images to score", file=pred, expected=f"files named <case>{_SYNTHETIC}.nii.gz"
        )
    return [
        CaseFiles(
            stem,
            references[stem][0],
            None if stem in failed else predictions[stem][0],
            records.get(stem, {}),
            pictures.get(stem),
            spreads.get(stem, [None])[0],
        )
        for stem in sorted(answered)
    ]


def holds_translations(pred_dir: str | Path) -> bool:
    """Whether a folder of predictions says that images were made, not masks."""
    folder = Path(pred_dir)
    if not folder.is_dir():
        return False
    return any(record.get("synthetic") for record in _records(folder).values())


def holds_restorations(pred_dir: str | Path) -> bool:
    """Whether the images are scans restored from themselves, not another contrast."""
    folder = Path(pred_dir)
    return folder.is_dir() and any(r.get("restoration") for r in _records(folder).values())


def _folder(path: str | Path, what: str) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"no such folder of {what}", file=folder)
    return folder


def _references(
    references_in: str | Path | Mapping[str, Path], only: Collection[str] | None
) -> dict[str, list[Path]]:
    """Return the references asked for, by stem."""
    if isinstance(references_in, Mapping):
        references = {stem: [path] for stem, path in references_in.items()}
    else:
        references = _files(_folder(references_in, "references"), MASK_SUFFIXES)
    return {s: paths for s, paths in references.items() if only is None or s in only}


def _refuse(problems: Mapping[str, Sequence[str]]) -> None:
    """Name every stem that stands under a problem; nothing if none does."""
    found = "; ".join(f"{what}: {', '.join(stems)}" for what, stems in problems.items() if stems)
    if found:
        raise InputError(
            "cases do not pair up",
            found=found,
            expected="one prediction and one reference per case, with the same stem",
            remedy="add, rename or remove these files",
        )


def _files(folder: Path, suffixes: Sequence[str]) -> dict[str, list[Path]]:
    """Return the folder's files of the given kinds by stem, leaving out hidden ones."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        hidden = path.name.startswith(".")
        if path.is_file() and not hidden and path.name.lower().endswith(tuple(suffixes)):
            found.setdefault(case_stem(path), []).append(path)
    return found


def _records(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Return the JSON record of every prediction, by stem."""
    records: dict[str, Mapping[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(
                "not readable as JSON", file=path, found=str(error), remedy="predict it again"
            ) from error
        if isinstance(record, dict):
            records[path.stem] = record
    return records


def _images(images: str | Path | Mapping[str, Path] | None) -> dict[str, Path]:
    if images is None:
        return {}
    if isinstance(images, Mapping):
        return {case: Path(path) for case, path in images.items()}
    found = _files(_folder(images, "images"), IMAGE_SUFFIXES)
    plain = {stem: paths[0] for stem, paths in found.items()}
    # nnU-Net's layout appends the channel's number; the first channel is shown.
    first = {s.removesuffix("_0000"): path for s, path in plain.items() if s.endswith("_0000")}
    return {**first, **plain}
