"""Which scans are to be made, and the case list that trains on them, alone or beside real ones."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg_diff.batch.cases import Case
from medseg_diff.batch.manifest import DONE, Manifest
from medseg_diff.config import TaskConfig
from medseg_diff.data.caselist import FILE_NAME, CaseList, Part, build_caselist, save_caselist
from medseg_diff.data.caselist import Case as Listed
from medseg_diff.data.fingerprint import task_of
from medseg_diff.errors import InputError, UsageError
from medseg_diff.files import atomic_file, file_sha256
from medseg_diff.synthesis import MASK, Synthesizer

# Folder of the output that holds the real cases' files, where there are any.
REAL = "real"


@dataclass(frozen=True)
class Wanted:
    """A scan to make.

    Attributes:
        case: Its name, and the label map that it is made from.
        patient: Whose label map that is; the scan counts as this patient's wherever parts are
            kept apart.
    """

    case: Case
    patient: str


def from_masks(cases: CaseList, part: Part, count: int | None) -> list[Wanted]:
    """Scans to make from a part's label maps, one each, and in further rounds from the first on.

    A case of several annotators gives another one's map in every round.

    Args:
        cases: List whose masks are taken.
        part: Part of it.
        count: How many scans; None makes one of each case.

    Raises:
        InputError: if the part has no mask.
    """
    chosen = [case for case in cases.part(part) if case.references]
    if not chosen:
        raise InputError(f"no {part} case with a mask", field="--masks", remedy="choose --part")
    wanted = []
    for number in range(len(chosen) if count is None else count):
        again, index = divmod(number, len(chosen))
        case = chosen[index]
        references = cases.reference_paths(case)
        name = f"{case.case}_SYNTHETIC_{again + 1:02d}"
        mask = references[again % len(references)]
        wanted.append(Wanted(Case(name, {MASK: mask}), case.patient))
    return wanted


def from_noise(count: int) -> list[Wanted]:
    """Scans to make from noise alone; each is a patient of its own."""
    names = [f"SYNTHETIC_{number:04d}" for number in range(1, count + 1)]
    return [Wanted(Case(name, {}), name) for name in names]


def check_masks(model: Synthesizer, cases: CaseList, file: Path) -> None:
    """Refuse a list whose masks do not mean what the model was trained on.

    Raises:
        InputError: naming the key that differs.
    """
    for key in ("labels", "regions", "ignore_label"):
        found, wanted = getattr(task_of(cases), key), getattr(model.task, key)
        if found != wanted:
            raise InputError(
                "its masks are not those that the model knows", file=file, field=key, found=found,
                expected=wanted, remedy="give a list of the model's own task",
            )  # fmt: skip


def write_list(
    model: Synthesizer, wanted: Sequence[Wanted], out: Path, real: CaseList | None = None
) -> Path:
    """Write ``cases.json``: every scan that was made, part train, and the real list's cases.

    Real files come below the output's folder as hard links, or as copies where the file system
    allows no links, since a list names only files below its own folder.

    Args:
        model: What made them.
        wanted: What was asked for; what failed is left out.
        out: Folder of the scans.
        real: List whose cases are added, in their own parts.

    Returns:
        The list's path.

    Raises:
        InputError: if nothing was made, or the lists do not fit each other.
    """
    made = [_listed(one, out) for one in _done(wanted, out)]
    if not made:
        raise InputError("nothing was made", file=out, remedy="look at the cases' JSONs")
    card, task = model.runs[0].card, model.task
    content: dict[str, Any] = {
        "name": f"{card['name']} SYNTHETIC",
        "licence": card["data"]["licence"],
        "modality": task.modality,
        "channels": list(task.channels),
        # Without masks there is nothing to segment: such a list trains a prior alone.
        "labels": task.labels if model.takes_masks else {"background": 0},
        "regions": task.regions if model.takes_masks else None,
        "ignore_label": task.ignore_label if model.takes_masks else None,
        "cases": made,
    }
    if real is not None:
        _check_real(real, task, takes_masks=model.takes_masks)
        content |= {
            "name": f"{real.name} and {content['name']}",
            "licence": real.licence,
            "cases": [*(_brought(real, case, out) for case in real.cases), *made],
        }
    save_caselist(build_caselist(content, root=out), out / FILE_NAME)
    return out / FILE_NAME


def _done(wanted: Sequence[Wanted], out: Path) -> list[Wanted]:
    """Those that the folder's manifest vouches for."""
    manifest = Manifest(out)
    try:
        return [one for one in wanted if manifest.entry(one.case.name).status == DONE]
    finally:
        manifest.close()


def _listed(one: Wanted, out: Path) -> Listed:
    """A scan that was made as a training case."""
    record = json.loads((out / f"{one.case.name}.json").read_text(encoding="utf-8"))
    return Listed(
        case=one.case.name,
        patient=one.patient,
        site="synthetic",
        part="train",
        channels=record["files"],
        references=(record["mask"],) if "mask" in record else (),
        sha256=record["hashes"]["written"],
    )


def _check_real(real: CaseList, task: TaskConfig, *, takes_masks: bool) -> None:
    """Refuse a real list that does not hold the same channels and labels.

    Raises:
        UsageError: naming the key that differs.
    """
    if not takes_masks:
        raise UsageError(
            "adds labelled cases, and scans from noise alone have no labels", field="--with",
            remedy="leave it out, or use a run of recipe mask_to_image",
        )  # fmt: skip
    for key in ("modality", "channels", "labels", "regions", "ignore_label"):
        found, wanted = getattr(task_of(real), key), getattr(task, key)
        if found != wanted:
            raise UsageError(
                f"its {key} is not that of the scans that are made", field="--with",
                found=found, expected=wanted,
            )  # fmt: skip


def _brought(real: CaseList, case: Listed, out: Path) -> Listed:
    """A real case with its files below the output's folder."""
    names = {name: f"{REAL}/{name}" for name in case.files}
    for name, inside in names.items():
        _link(real.root / name, out / inside)
    return case.model_copy(
        update={
            "channels": {channel: names[name] for channel, name in case.channels.items()},
            "references": tuple(names[name] for name in case.references),
            "sha256": {names[name]: digest for name, digest in case.sha256.items()},
        }
    )


def _link(source: Path, path: Path) -> None:
    """One more name for a file, or a copy of it; what is there already and the same stays."""
    if path.exists():
        if path.samefile(source) or file_sha256(path) == file_sha256(source):
            return
        raise InputError(
            "another file stands in the place of a real case's", file=path,
            remedy="give a new --out folder",
        )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        os.link(source.resolve(), path)
        return
    with atomic_file(path) as stream, source.open("rb") as content:
        shutil.copyfileobj(content, stream)
