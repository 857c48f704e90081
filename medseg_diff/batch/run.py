"""Many scans: claim the cases one by one, hand them to an engine, write down what became of them.

Every case leaves a JSON, whatever became of it; its files appear whole or not at all. The manifest
says what is done, and only this process writes to it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd

from medseg_diff.batch.cases import Case, find_cases
from medseg_diff.batch.engines import Engine, LocalEngine
from medseg_diff.batch.manifest import DONE, FAILED, Entry, Manifest
from medseg_diff.batch.one_case import Claim, Outcome, made_from, write_answer
from medseg_diff.errors import UsageError
from medseg_diff.files import atomic_file, file_sha256, remove_leftovers
from medseg_diff.inference.predictor import Predictor

__all__ = ["Case", "Outcome", "check_output", "find_cases", "predict_many", "write_answer"]

ALL_DONE, NOTHING_DONE, SOME_FAILED = 0, 1, 8
VOLUME_COLUMNS = ["case", "structure", "voxels", "volume_ml", "pairwise_dice"]
Report = Callable[[int, Outcome], None]


def predict_many(
    predictor: Predictor,
    cases: Sequence[Case],
    out: str | Path,
    *,
    go_on: bool = False,
    report: Report | None = None,
    engine: Engine | None = None,
    **settings: Any,
) -> int:
    """Predict cases into a folder; see ``docs/architecture.md`` for what it holds.

    What is done stands in the folder's manifest. With ``go_on`` a case is passed over if the
    manifest says that it was made from the same input, model and parameters, and its files are
    those that were written; several processes may then share one folder.

    Args:
        predictor: Loaded model.
        cases: From :func:`find_cases`.
        out: Folder; made if missing; must not hold the inputs.
        go_on: Trust the manifest of an earlier run and of other processes.
        report: Called after each case with its outcome and the number of cases before it that are
            settled: done, failed or passed over.
        engine: Where the cases are computed; in this process by default.
        settings: Passed to :meth:`Predictor.predict`, or to a translator's ``translate``;
            ``dicom_seg`` to :func:`write_answer`.

    Returns:
        Exit code: 0 done, 1 every case failed, 8 some failed.

    Raises:
        InputError: if another process is at work in the folder and ``go_on`` is False, or an
            engine cannot work.
    """
    folder = check_output(Path(out), cases)
    engine = engine or LocalEngine(predictor)
    manifest = Manifest(folder)
    try:
        manifest.enroll([case.name for case in cases], afresh=not go_on)
        manifest.while_alone(lambda: remove_leftovers(folder))
        with ThreadPoolExecutor(1) as reader:
            book = _Book(
                predictor, cases, folder, manifest, reader if engine.reads_ahead else None, settings
            )
            _work_through(book, engine, report)
        # Workers that died may have left an unfinished file.
        manifest.while_alone(lambda: remove_leftovers(folder))
        known = [manifest.entry(case.name) for case in cases]
    finally:
        manifest.close()
    if not predictor.translates:
        _write_volumes(folder, (entry.name for entry in known if entry.status == DONE))
    failed = sum(entry.status == FAILED for entry in known)
    if not failed:
        return ALL_DONE
    return NOTHING_DONE if failed == len(known) else SOME_FAILED


def _work_through(book: _Book, engine: Engine, report: Report | None) -> None:
    """Have the engine compute every case that this process can claim and that is not done."""
    outcomes = engine.outcomes(book.claims(), book.folder, book.settings)
    try:
        # Closed before anything is given back: no worker writes a case that others may claim.
        with contextlib.closing(outcomes):
            for outcome in outcomes:
                book.record(outcome)
                if report is not None:
                    report(book.settled - 1, outcome)
    except BaseException:
        book.give_back()
        raise


class _Book:
    """Which case next, and what became of it: the manifest as an engine's work meets it.

    Args:
        predictor: Whose models decide what a result is made from.
        cases: All of them.
        folder: Where the answers lie.
        manifest: Of that folder.
        reader: Reads (and hashes) the next scan while one is computed; None reads only what an
            earlier run has done.
        settings: What the results depend on.
    """

    def __init__(
        self,
        predictor: Predictor,
        cases: Sequence[Case],
        folder: Path,
        manifest: Manifest,
        reader: ThreadPoolExecutor | None,
        settings: Mapping[str, Any],
    ) -> None:
        self.predictor, self.cases, self.folder = predictor, cases, folder
        self.manifest, self.reader, self.settings = manifest, reader, settings
        self.taken: set[str] = set()
        self.settled = 0

    def claims(self) -> Iterator[Claim]:
        """Cases to compute, each taken at the moment it is asked for."""
        ahead: Future[str] | None = None
        for index, case in enumerate(self.cases):
            entry = self.manifest.entry(case.name)
            key: str | None = None
            if self.reader is not None:
                # The next scan is read (and so is in the system's cache) while this one is
                # computed.
                key = (ahead or self.reader.submit(self._key, case)).result()
                rest = self.cases[index + 1 : index + 2]
                ahead = self.reader.submit(self._key, rest[0]) if rest else None
            elif entry.status == DONE:
                key = self._key(case)
            done = key is not None and _is_done(entry, key, self.folder)
            if done or not self.manifest.claim(case.name, seen=entry):
                self.settled += 1
                continue
            self.taken.add(case.name)
            yield Claim(case, key)

    def record(self, outcome: Outcome) -> None:
        """Write down what became of a claim."""
        digest = file_sha256(self.folder / f"{outcome.case}.json")
        self.manifest.finish(outcome.case, outcome.made_from, digest, outcome.error)
        self.taken.discard(outcome.case)
        self.settled += 1

    def give_back(self) -> None:
        """Release what was taken and is not done."""
        for name in self.taken:
            self.manifest.release(name)

    def _key(self, case: Case) -> str:
        return made_from(self.predictor, case, self.settings)


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


def _write_volumes(folder: Path, names: Iterable[str]) -> None:
    """``volumes.csv``: one row per case and structure, however many cases there are.

    Voxels, and millilitres where the spacing is known.
    """
    with atomic_file(folder / "volumes.csv") as stream:
        stream.write(f"{','.join(VOLUME_COLUMNS)}\n".encode())
        for name in names:
            record = _stored_record(folder, name)
            if record is not None:
                table = pd.DataFrame(_volumes(record), columns=VOLUME_COLUMNS)
                stream.write(table.to_csv(index=False, header=False).encode())


def _volumes(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "case": record["case"],
            "structure": name,
            "voxels": count,
            "volume_ml": None if record["volumes_ml"] is None else record["volumes_ml"][name],
            "pairwise_dice": record["pairwise_dice"][name],
        }
        for name, count in record["voxels"].items()
    ]
