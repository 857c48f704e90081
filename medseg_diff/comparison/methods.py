"""What is compared: folders that ``evaluation.masks.evaluate`` wrote, one or several per method."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medseg_diff.errors import InputError, UsageError
from medseg_diff.metrics.statistics import MEAN_OF_STRUCTURES, case_means
from medseg_diff.metrics.summary import ALL_HEADINGS, HEADINGS, IMAGE_HEADINGS

KEYS = ["case", "structure"]
# Conventions that change what a number means.
_MUST_AGREE = (
    "surface", "nsd_tolerance_mm", "hd95", "assd", "units", "structures", "ignore_label",
    "data_range",
)  # fmt: skip
# Where an image is judged, in the place of the structures that masks have.
BODY = "body"


@dataclass(frozen=True)
class Method:
    """One method's scores.

    Attributes:
        name: How it is called in tables and sentences.
        per_case: Long per-case table; over several seeds the mean of each number that exists.
        seeds: Evaluations it is the mean of.
        seed_sd: Standard deviation over seeds of the mean over cases, by structure and metric;
            empty for one seed.
        conventions: How the numbers were made, from ``summary.json``.
    """

    name: str
    per_case: pd.DataFrame
    seeds: int = 1
    seed_sd: Mapping[tuple[str, str], float] = field(default_factory=dict)
    conventions: Mapping[str, Any] = field(default_factory=dict)

    @property
    def of_images(self) -> bool:
        """Whether what is scored are translated images, not masks."""
        return "mae" in self.per_case

    @property
    def metrics(self) -> list[str]:
        """Its columns of scores."""
        return [name for name in ALL_HEADINGS if name in self.per_case]

    @property
    def patients(self) -> dict[str, str] | None:
        """Case to patient, or None where the evaluation did not know."""
        if "patient" not in self.per_case:
            return None
        table = self.per_case.drop_duplicates("case")
        return dict(zip(table["case"], table["patient"], strict=True))


def read_method(text: str) -> Method:
    """Read one method: ``FOLDER``, ``NAME=FOLDER``, or ``NAME=FOLDER1,FOLDER2`` for its seeds.

    Raises:
        InputError: if a folder holds no evaluation, or the seeds hold different cases.
        UsageError: if the name is empty.
    """
    name, folders = _split(text)
    read = [read_evaluation(folder) for folder in folders]
    return pool(name, read) if len(read) > 1 else Method(name, read[0][0], conventions=read[0][1])


def read_evaluation(folder: str | Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Read the per-case table and the conventions that an evaluation wrote.

    Raises:
        InputError: if a file is missing or is not what ``evaluate`` writes.
    """
    where = Path(folder)
    remedy = "give folders that `medseg-diff evaluate` wrote"
    table, summary = where / "per_case.csv", where / "summary.json"
    for path in (table, summary):
        if not path.is_file():
            raise InputError("holds no evaluation", file=where, expected=path.name, remedy=remedy)
    words = {"case": str, "structure": str, "patient": str, "outcome": str}
    try:
        # A case may be called NA or 007: only the numbers have blanks.
        per_case = pd.read_csv(
            table, dtype=words, keep_default_na=False, na_values=dict.fromkeys(ALL_HEADINGS, "")
        )
        facts = json.loads(summary.read_text(encoding="utf-8"))
        conventions, of_images = facts["conventions"], facts.get("task") == "translation"
        if of_images:
            # An image equal to its reference has a PSNR of infinity, which has no differences.
            scores = per_case[list(IMAGE_HEADINGS)].replace(math.inf, math.nan)
            per_case = per_case.assign(structure=BODY, **scores)
        scored = [*IMAGE_HEADINGS, "body_voxels"] if of_images else [*HEADINGS, "volume_ref_ml"]
        numbers = per_case[scored].to_numpy(dtype=float)
        keys = per_case[[*KEYS, "outcome"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"not readable: {error}", file=where, remedy=remedy) from error
    if not len(numbers) or keys.duplicated(KEYS).any():
        raise InputError("no row, or two for one case and structure", file=table, remedy=remedy)
    return per_case, conventions


def pool(name: str, seeds: Sequence[tuple[pd.DataFrame, Mapping[str, Any]]]) -> Method:
    """Average the evaluations of one method's seeds, case by case.

    A number that only some seeds have (a distance, where the others found nothing) is the mean
    of those.

    Raises:
        InputError: if the seeds do not hold the same cases, references and conventions.
    """
    members = [
        Method(f"{name}, seed {k}", table, conventions=conventions)
        for k, (table, conventions) in enumerate(seeds, start=1)
    ]
    check_comparable(members)
    scores = members[0].metrics
    sizes = ["body_voxels"] if members[0].of_images else ["volume_ref_ml", "volume_pred_ml"]
    columns = [*scores, *sizes]
    first = members[0].per_case.set_index(KEYS)
    stacked = pd.concat([member.per_case[[*KEYS, *columns]] for member in members])
    pooled = first.drop(columns="outcome").copy()
    pooled[columns] = stacked.groupby(KEYS)[columns].mean().loc[first.index, columns]
    means = [
        by_structure(member.per_case).groupby("structure", sort=False)[scores].mean()
        for member in members
    ]
    sd = {
        (str(structure), metric): float(np.std([m.loc[structure, metric] for m in means], ddof=1))
        for structure in means[0].index
        for metric in scores
    }
    return Method(name, pooled.reset_index(), len(members), sd, members[0].conventions)


def check_comparable(methods: Sequence[Method]) -> None:
    """Refuse methods whose numbers do not mean the same.

    Raises:
        InputError: if there are fewer than two, or they differ in cases, structures, references,
            patients or conventions.
    """
    if len({method.of_images for method in methods}) > 1:
        raise InputError(
            "evaluations of masks and of translated images do not compare",
            found=", ".join(m.name for m in methods if m.of_images),
            remedy="compare them apart",
        )
    check_same_rows({method.name: method.per_case.set_index(KEYS) for method in methods})
    first, *others = methods
    size = "body_voxels" if first.of_images else "volume_ref_ml"
    volumes = first.per_case.set_index(KEYS)[size]
    for other in others:
        for key in _MUST_AGREE:
            ours, theirs = first.conventions.get(key), other.conventions.get(key)
            if ours != theirs:
                raise InputError(
                    f"evaluations {first.name!r} and {other.name!r} were made differently",
                    field=key,
                    found=f"{ours} and {theirs}",
                    remedy="evaluate both with the same settings",
                )
        theirs = other.per_case.set_index(KEYS)[size].loc[volumes.index]
        far = ~np.isclose(volumes, theirs, rtol=1e-4, atol=1e-6)
        if far.any():
            raise InputError(
                f"evaluations {first.name!r} and {other.name!r} were scored against different "
                "references",
                field=size,
                found=" / ".join(map(str, volumes.index[far][0])),
                remedy="evaluate both on the same reference folder",
            )
        if None not in (first.patients, other.patients) and first.patients != other.patients:
            raise InputError(
                f"evaluations {first.name!r} and {other.name!r} disagree on the patients",
                field="patient",
                remedy="evaluate both with the same case list",
            )


def by_structure(per_case: pd.DataFrame) -> pd.DataFrame:
    """Index a per-case table by (case, structure), with the mean of structures added."""
    table = per_case
    if per_case["structure"].nunique() > 1:
        means = case_means(per_case).reset_index().assign(structure=MEAN_OF_STRUCTURES)
        table = pd.concat([per_case, means])
    return table.set_index(KEYS)


def check_same_rows(wide: Mapping[str, pd.DataFrame]) -> None:
    """Refuse tables, indexed by case and structure, that do not hold the same rows.

    Raises:
        InputError: if there are fewer than two, or naming the rows that only one holds.
    """
    if len(wide) < 2:
        raise InputError(
            "a comparison needs two evaluations", found=len(wide), expected="2 or more"
        )
    (first, ours), *others = wide.items()
    for name, theirs in others:
        odd = sorted(set(ours.index) ^ set(theirs.index))
        if odd:
            listed = ", ".join(f"{case} / {structure}" for case, structure in odd)
            raise InputError(
                f"evaluations {first!r} and {name!r} do not hold the same cases and structures",
                found=f"only in one: {listed}",
                remedy="evaluate both on the same reference folder with the same labels",
            )


def _split(text: str) -> tuple[str, list[Path]]:
    """Name and folders of one argument; an existing folder's own name is never taken apart."""
    if Path(text).is_dir():
        return Path(text).resolve().name, [Path(text)]
    name, sign, folders = text.partition("=")
    if not sign:
        return Path(text).name, [Path(text)]
    if not name.strip() or not folders.strip():
        raise UsageError("no name or no folder", found=repr(text), expected="NAME=FOLDER")
    whole = Path(folders)
    return name.strip(), [whole] if whole.is_dir() else [Path(f) for f in folders.split(",")]
