"""One case of a batch: predict it and write its files, whatever becomes of it.

What runs here runs the same in this process and in a worker of a cluster, and knows nothing of
either. A case leaves a JSON; its images appear whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg_diff import __version__, io
from medseg_diff.batch.cases import Case
from medseg_diff.batch.manifest import canonical
from medseg_diff.errors import InputError, UsageError
from medseg_diff.files import atomic_text, content_sha256, file_sha256
from medseg_diff.inference.answer import Answer
from medseg_diff.inference.predictor import Predictor
from medseg_diff.synthesis import Synthesizer, write_synthesis
from medseg_diff.translation.translator import Translation, Translator


@dataclass(frozen=True)
class Claim:
    """A case that the batch has taken up.

    Attributes:
        case: What to predict.
        made_from: Hash of all that its result depends on, where that is known already.
    """

    case: Case
    made_from: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of one case.

    Attributes:
        case: Its name.
        record: Its JSON.
        error: The line, if it failed.
        made_from: Hash of all that the result depends on.
    """

    case: str
    record: dict[str, Any]
    error: str | None
    made_from: str = ""


def predict_one(
    predictor: Predictor, claim: Claim, out: Path, settings: Mapping[str, Any]
) -> Outcome:
    """Predict one case; a failure becomes its JSON and leaves no image behind.

    Raises:
        UsageError: what is wrong is the use, not the case.
    """
    case = claim.case
    key = claim.made_from or made_from(predictor, case, settings)
    try:
        given = dict(settings)
        if isinstance(predictor, Translator):
            translation = predictor.translate(case.channels, case=case.name, **given)
            write_translation(translation, out, case.name)
            return Outcome(case.name, translation.record, None, key)
        if isinstance(predictor, Synthesizer):
            made = predictor.synthesize(case.channels, case=case.name, **given)
            write_synthesis(made, out, case.name)
            return Outcome(case.name, made.record, None, key)
        dicom = given.pop("dicom_seg", None)
        answer = predictor.predict(case.channels, case=case.name, **given)
        codes = predictor.runs[0].card.get("codes")
        write_answer(answer, out, case.name, dicom=dicom, codes=codes)
        return Outcome(case.name, answer.record, None, key)
    except UsageError:
        raise
    except Exception as error:  # the boundary of a case: whatever stops one, the rest go on
        return write_failure(case.name, out, _failure_line(error), key)


def write_failure(name: str, out: Path, line: str, key: str) -> Outcome:
    """The JSON of a case that failed; images that an earlier run left go."""
    record: dict[str, Any] = {"case": name, "status": "failed", "error": line, "warnings": []}
    _remove_images(out, name)
    atomic_text(out / f"{name}.json", json.dumps(record, indent=2) + "\n")
    return Outcome(name, record, line, key)


def made_from(predictor: Predictor, case: Case, settings: Mapping[str, Any]) -> str:
    """Hash of all that a case's result depends on; a file that cannot be read has no hash."""
    inputs: dict[str, str | None] = {}
    for channel, path in case.channels.items():
        try:
            inputs[channel] = content_sha256(path)
        except OSError:
            inputs[channel] = None
    if settings.get("mask") is not None:
        inputs["--mask"] = content_sha256(Path(settings["mask"]))
    given = {
        key: value
        for key, value in settings.items()
        if key not in ("batch_size", "memory_gb", "mask")
    }
    content = {
        "inputs": inputs,
        "models": [run.card["sha256"] for run in predictor.runs],
        "defaults": predictor.defaults.model_dump(mode="json"),
        "settings": given,
        "version": __version__,
    }
    return hashlib.sha256(canonical(content).encode()).hexdigest()


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


def write_translation(translation: Translation, out: Path, name: str) -> None:
    """Write the image, the spread between draws and, last, the JSON that vouches for them.

    The files' names and headers say SYNTHETIC, so that no copy can pass for a scan.

    Args:
        translation: From a translator.
        out: Folder.
        name: Case; the stem of all files.
    """
    image, record = translation.image, translation.record
    suffix = io.map_suffix(image)
    target = record["target"].encode("ascii", "replace").decode("ascii")[:40]
    files = [f"{name}_SYNTHETIC{suffix}", f"{name}_SYNTHETIC_spread{suffix}"]
    words = f"SYNTHETIC {target}", f"spread of SYNTHETIC {target}"
    for file, values, what in zip(files, (image, translation.spread), words, strict=True):
        io.write_map(out / file, values, image, description=f"{what} (medseg_diff)")
    written = {file: file_sha256(out / file) for file in files}
    record["hashes"] = {**record["hashes"], "image": written[files[0]], "written": written}
    atomic_text(out / f"{name}.json", json.dumps(record, indent=2) + "\n")


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
    for ending in io.DERIVED:
        for suffix in (".nii.gz", ".png", ".tif"):
            (out / f"{name}{ending}{suffix}").unlink(missing_ok=True)
    for ending in ("_seg", "_doubt"):
        (out / f"{name}{ending}.dcm").unlink(missing_ok=True)
