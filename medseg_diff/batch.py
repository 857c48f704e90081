"""Many scans: find the cases, predict each, never let one stop the rest.

Every case leaves a JSON, whatever became of it; its files appear whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from medseg_diff import __version__, io
from medseg_diff.answer import Answer
from medseg_diff.data.caselist import load_caselist
from medseg_diff.errors import InputError, UsageError
from medseg_diff.files import atomic_text, content_sha256, file_sha256
from medseg_diff.inference import Predictor
from medseg_diff.manifest import DONE, FAILED, Entry, Manifest, canonical

ALL_DONE, NOTHING_DONE, SOME_FAILED = 0, 1, 8


@dataclass(frozen=True)
class Case:
    """A case to predict: its name, and its files by channel."""

    name: str
    channels: dict[str, Path]


@dataclass(frozen=True)
class Outcome:
    """What became of one case: ``record`` is its JSON, ``error`` the line if it failed."""

    case: str
    record: dict[str, Any]
    error: str | None


def find_cases(inputs: Sequence[str | Path], channels: Sequence[str]) -> list[Case]:
    """Group files and folders into cases; a case list (``cases.json``) gives its test part.

    A model of one channel takes every image as a case, an nnU-Net suffix ``_0000`` left aside. A
    model of several groups ``<case>_<channel name>`` or ``<case>_0000``, ``<case>_0001`` ... A
    folder with DICOM files in it, or a zip of them, counts as one image of that name.

    Raises:
        InputError: if no image is found, or two files make one case or one output. A case that
            lacks a channel fails by itself when it is predicted.
    """
    files: list[Path] = []
    listed: list[Case] = []
    for given in map(Path, inputs):
        if given.suffix == ".json":
            known = load_caselist(given)
            listed += [Case(c.case, known.channel_paths(c)) for c in known.part("test")]
        elif given.is_dir():
            files += io.find_scans(given)
        else:
            files.append(given)
    if not files and not listed:
        raise InputError(
            "no image found",
            file=inputs[0] if inputs else None,
            expected=f"{', '.join(io.SUFFIXES)} or DICOM",
        )
    groups: dict[str, dict[str, Path]] = {}
    for path in files:
        name, channel = _split_name(io.case_stem(path), channels)
        other = groups.setdefault(name, {})
        if channel in other:
            raise InputError(
                f"two files for one case: {other[channel].name} and {path.name}",
                file=path,
                field=channel,
                remedy="rename one, or predict them into different folders",
            )
        other[channel] = path
    # Refuses names that would overwrite each other, on this system or on one without case (F44).
    stems = io.output_names(groups)
    return listed + [Case(stems[Path(name)], group) for name, group in groups.items()]


def _split_name(stem: str, channels: Sequence[str]) -> tuple[str, str]:
    """Case name and channel of a file's stem."""
    # The longest name first: "ce_T1" also ends in "_T1".
    for channel in sorted(channels, key=len, reverse=True):
        for separator in ("_", "-"):
            ending = f"{separator}{channel}".lower()
            if len(channels) > 1 and stem.lower().endswith(ending):
                return stem[: -len(ending)], channel
    number = re.fullmatch(r"(.+)_(\d{4})", stem)
    if number and int(number[2]) < len(channels):
        return number[1], channels[int(number[2])]
    return stem, channels[0]


def predict_many(
    predictor: Predictor,
    cases: Sequence[Case],
    out: str | Path,
    *,
    go_on: bool = False,
    report: Callable[[int, Outcome], None] | None = None,
    **settings: Any,
) -> int:
    """Predict cases one by one into a folder; see ``docs/architecture.md`` for what it holds.

    What is done stands in the folder's manifest. With ``go_on`` a case is passed over if the
    manifest says that it was made from the same input, model and parameters, and its files are
    those that were written; several processes may then share one folder.

    Args:
        predictor: Loaded model.
        cases: From :func:`find_cases`.
        out: Folder; made if missing; must not hold the inputs.
        go_on: Trust the manifest of an earlier run and of other processes.
        report: Called after each case with its index and outcome.
        settings: Passed to :meth:`Predictor.predict`; ``dicom_seg`` to :func:`write_answer`.

    Returns:
        Exit code: 0 done, 1 every case failed, 8 some failed.

    Raises:
        InputError: if another process is at work in the folder and ``go_on`` is False.
    """
    folder = check_output(Path(out), cases)
    manifest = Manifest(folder)
    try:
        manifest.enroll([case.name for case in cases], afresh=not go_on)
        with ThreadPoolExecutor(1) as reader:
            _work_through(predictor, cases, folder, manifest, reader, report, settings)
        known = [manifest.entry(case.name) for case in cases]
    finally:
        manifest.close()
    records = [_stored_record(folder, e.name) for e in known if e.status == DONE]
    table = volumes_table([record for record in records if record is not None])
    atomic_text(folder / "volumes.csv", table.to_csv(index=False))
    failed = sum(entry.status == FAILED for entry in known)
    if not failed:
        return ALL_DONE
    return NOTHING_DONE if failed == len(known) else SOME_FAILED


def _work_through(
    predictor: Predictor,
    cases: Sequence[Case],
    folder: Path,
    manifest: Manifest,
    reader: ThreadPoolExecutor,
    report: Callable[[int, Outcome], None] | None,
    settings: Mapping[str, Any],
) -> None:
    """Predict every case that this process can claim and that is not done."""
    keys = [reader.submit(_made_from, predictor, case, settings) for case in cases[:1]]
    for index, case in enumerate(cases):
        # The next scan is read (and so is in the system's cache) while this one is computed.
        if index + 1 < len(cases):
            keys.append(reader.submit(_made_from, predictor, cases[index + 1], settings))
        made_from = keys[index].result()
        if _is_done(manifest.entry(case.name), made_from, folder) or not manifest.claim(case.name):
            continue
        try:
            outcome = _predict_one(predictor, case, folder, settings)
        except BaseException:
            manifest.release(case.name)
            raise
        record = folder / f"{case.name}.json"
        manifest.finish(case.name, made_from, file_sha256(record), outcome.error)
        if report is not None:
            report(index, outcome)


def _made_from(predictor: Predictor, case: Case, settings: Mapping[str, Any]) -> str:
    """Hash of all that a case's result depends on; a file that cannot be read has no hash."""
    inputs: dict[str, str | None] = {}
    for channel, path in case.channels.items():
        try:
            inputs[channel] = content_sha256(path)
        except OSError:
            inputs[channel] = None
    given = {
        key: value for key, value in settings.items() if key not in ("batch_size", "memory_gb")
    }
    content = {
        "inputs": inputs,
        "models": [run.card["sha256"] for run in predictor.runs],
        "defaults": predictor.defaults.model_dump(mode="json"),
        "settings": given,
        "version": __version__,
    }
    return hashlib.sha256(canonical(content).encode()).hexdigest()


def _is_done(entry: Entry, made_from: str, folder: Path) -> bool:
    """Whether a case's files are there, whole, and made from the same."""
    if entry.status != DONE or entry.made_from != made_from:
        return False
    file = folder / f"{entry.name}.json"
    if not file.is_file() or file_sha256(file) != entry.record_sha256:
        return False
    record = _stored_record(folder, entry.name) or {}
    written = record.get("hashes", {}).get("written", {})
    return bool(written) and all(
        (folder / name).is_file() and file_sha256(folder / name) == digest
        for name, digest in written.items()
    )


def _stored_record(folder: Path, name: str) -> dict[str, Any] | None:
    """A case's JSON, or None if it is not there or not whole."""
    try:
        record = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def check_output(out: Path, cases: Sequence[Case]) -> Path:
    """Make the output folder; refuse one that cannot be written or holds an input (K14)."""
    inputs = [p.resolve() for case in cases for p in case.channels.values()]
    folders = {p if p.is_dir() else p.parent for p in inputs}
    if out.resolve() in folders:
        raise UsageError(
            "predictions would be written among the inputs",
            file=out,
            field="--out",
            remedy="give another folder",
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or "error"
        raise UsageError(f"cannot make the folder: {reason}", file=out, field="--out") from None
    if not os.access(out, os.W_OK):
        raise UsageError("the folder is read-only", file=out, field="--out")
    return out


def _predict_one(
    predictor: Predictor, case: Case, out: Path, settings: Mapping[str, Any]
) -> Outcome:
    """Predict one case; a failure becomes its JSON and leaves no image behind."""
    try:
        given = dict(settings)
        dicom = given.pop("dicom_seg", None)
        answer = predictor.predict(case.channels, case=case.name, **given)
        codes = predictor.runs[0].card.get("codes")
        write_answer(answer, out, case.name, dicom=dicom, codes=codes)
        return Outcome(case.name, answer.record, None)
    except UsageError:
        raise
    except Exception as error:  # the boundary of a case: whatever stops one, the rest go on
        line = _failure_line(error)
        record = {"case": case.name, "status": "failed", "error": line, "warnings": []}
        _remove_images(out, case.name)
        atomic_text(out / f"{case.name}.json", json.dumps(record, indent=2) + "\n")
        return Outcome(case.name, record, line)


def _failure_line(error: Exception) -> str:
    """One line for the JSON; an OSError's own text would carry the folders' names."""
    if isinstance(error, InputError):
        return str(error)
    text = error.strerror or "" if isinstance(error, OSError) else str(error)
    return " ".join(f"{type(error).__name__}: {text}".split())


def write_answer(
    answer: Answer,
    out: Path,
    name: str,
    *,
    dicom: bool | None = None,
    codes: Mapping[str, Any] | None = None,
) -> None:
    """Write mask, probability, doubt and, last, the JSON that vouches for them.

    Args:
        answer: From a predictor.
        out: Folder.
        name: Case; the stem of all files.
        dicom: Whether to write mask and doubt as DICOM, too. None does so for scans that were
            DICOM, and warns where theirs cannot be pointed at; True refuses those and all others.
        codes: Model card's codes of the structures, see :func:`medseg_diff.io.write_seg`.
    """
    labels, maps = io.label_suffix(answer.mask), io.map_suffix(answer.mask)
    classes = max(answer.record["labels"].values()) + 1
    with_dicom = dicom is not False and _can_be_dicom(answer, must=dicom is True)
    files = [f"{name}{labels}", f"{name}_doubt{maps}"]
    io.write_label(out / files[0], answer.mask, answer.mask, n_classes=classes)
    io.write_map(out / files[1], answer.doubt, answer.mask)
    if len(answer.probability):
        files.append(f"{name}_prob{maps}")
        io.write_map(out / files[-1], answer.probability, answer.mask)
    if answer.draws is not None:
        files.append(f"{name}_draws{maps}")
        io.write_draws(out / files[-1], answer.draws, answer.mask, n_classes=classes)
    if with_dicom:
        files += _write_dicom(answer, out, name, codes)
    written = {file: file_sha256(out / file) for file in files}
    hashes = {"mask": written[files[0]], "written": written}
    answer.record["hashes"] = {**answer.record["hashes"], **hashes}
    atomic_text(out / f"{name}.json", json.dumps(answer.record, indent=2) + "\n")


def _can_be_dicom(answer: Answer, *, must: bool) -> bool:
    """Whether the answer can point at its scan in DICOM; a DICOM scan where not gets a warning."""
    if answer.mask.meta["kind"] != "dicom" and not must:
        return False
    try:
        io.read_reference(answer.mask)
    except InputError as error:
        if must:
            raise
        answer.record["warnings"] = [*answer.record["warnings"], f"no DICOM-SEG: {error}"]
        answer.record["status"] = "warning"
        return False
    return True


def _write_dicom(
    answer: Answer, out: Path, name: str, codes: Mapping[str, Any] | None
) -> list[str]:
    """Mask as a Segmentation, entropy and variance as a Parametric Map; the files' names."""
    record = answer.record
    values = sorted(record["labels"].items(), key=lambda item: item[1])
    structures = record["regions"] or {k: v for k, v in values if v != 0}
    algorithm = io.Algorithm(__version__, tuple(record["hashes"]["model"]), record["seed"])
    files = [f"{name}_seg.dcm", f"{name}_doubt.dcm"]
    io.write_seg(
        out / files[0], answer.mask, answer.mask, structures, algorithm=algorithm, codes=codes
    )
    # What the doubt is made of stays in the NIfTI: floats cannot be compressed here.
    names = {"ENTROPY": "Predictive entropy, 0 to 1", "VARIANCE": "Variance between draws"}
    doubt = answer.doubt[: len(names)]
    io.write_parametric_map(out / files[1], doubt, answer.mask, names, algorithm=algorithm)
    return files


def _remove_images(out: Path, name: str) -> None:
    for ending in ("", "_prob", "_doubt", "_draws"):
        for suffix in (".nii.gz", ".png", ".tif"):
            (out / f"{name}{ending}{suffix}").unlink(missing_ok=True)
    for ending in ("_seg", "_doubt"):
        (out / f"{name}{ending}.dcm").unlink(missing_ok=True)


def volumes_table(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per case and structure: voxels, and millilitres where the spacing is known."""
    rows = [
        {
            "case": record["case"],
            "structure": name,
            "voxels": count,
            "volume_ml": None if record["volumes_ml"] is None else record["volumes_ml"][name],
            "pairwise_dice": record["pairwise_dice"][name],
        }
        for record in records
        for name, count in record["voxels"].items()
    ]
    return pd.DataFrame(rows, columns=["case", "structure", "voxels", "volume_ml", "pairwise_dice"])
