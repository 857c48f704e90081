"""From the files of a public dataset to a folder that a case list describes.

A layout (`layouts`) says in `Draft` objects which source files form which case; `assemble`
deals the parts, checks the list before it touches a disk, then places and hashes the files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from medseg_diff.data.caselist import CaseList, Part, build_caselist, hash_files
from medseg_diff.data.rewrite import Writer, copy_file
from medseg_diff.data.splits import deal_patients
from medseg_diff.errors import InputError
from medseg_diff.io.names import SUFFIXES, case_stem

Modality = Literal["MR", "CT", "RGB", "other"]


@dataclass(frozen=True)
class About:
    """What a dataset is called, what it may be used for and what took its pictures."""

    name: str
    licence: str = "unknown"
    modality: Modality = "other"


@dataclass(frozen=True)
class Labels:
    """What the values of the written masks mean (see the case list's keys of these names)."""

    values: Mapping[str, int]
    regions: Mapping[str, Sequence[int]] | None = None
    ignore: int | None = None


@dataclass(frozen=True)
class Split:
    """Shares of the training patients that become validation and test, and the seed."""

    validation: float = 0.1
    test: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Item:
    """One file to place: where it comes from, its name below the list, how it gets there.

    The source is a folder for writers that make one file of many.
    """

    source: Path
    name: str
    write: Writer = copy_file


@dataclass(frozen=True)
class Draft:
    """A case before its files are placed; part ``"train"`` is still to be split."""

    case: str
    patient: str
    part: Part
    channels: Mapping[str, Item]
    references: Sequence[Item] = ()
    site: str | None = None

    @property
    def items(self) -> tuple[Item, ...]:
        """Images, then references."""
        return (*self.channels.values(), *self.references)


def assemble(
    drafts: Sequence[Draft],
    about: About,
    channels: Sequence[str],
    labels: Labels,
    *,
    root: Path,
    split: Split,
) -> CaseList:
    """Deal the parts, check the list, place the files below ``root`` and hash them.

    Items whose source already lies at its name below ``root`` stay untouched.

    Raises:
        InputError: as `build_caselist`, or if sources are missing; nothing is written then.
    """
    missing = sorted({i.source.name for d in drafts for i in d.items if not i.source.exists()})
    refuse("files are missing", missing)
    if not drafts:
        raise InputError("no cases found", remedy="check the folder against data_prep/README.md")
    caselist = build_caselist(
        {
            "name": about.name,
            "licence": about.licence,
            "modality": about.modality,
            "channels": list(channels),
            "labels": dict(labels.values),
            "regions": labels.regions,
            "ignore_label": labels.ignore,
            "cases": _deal(drafts, split),
        },
        root=root,
    )
    for item in (item for draft in drafts for item in draft.items):
        target = root / item.name
        target.parent.mkdir(parents=True, exist_ok=True)
        item.write(item.source, target)
    return hash_files(caselist)


def _deal(drafts: Sequence[Draft], split: Split) -> list[dict[str, object]]:
    """Case list entries; a patient of training drafts who also has test cases is refused later."""
    shares: dict[Part, float] = {
        "train": 1.0 - split.validation - split.test,
        "validation": split.validation,
        "test": split.test,
    }
    training = [draft.patient for draft in drafts if draft.part == "train"]
    part_of = deal_patients(training, shares, split.seed) if training else {}
    return [
        {
            "case": draft.case,
            "patient": draft.patient,
            "site": draft.site,
            "part": part_of[draft.patient] if draft.part == "train" else draft.part,
            "channels": {name: item.name for name, item in draft.channels.items()},
            "references": [item.name for item in draft.references],
        }
        for draft in drafts
    ]


def list_files(folder: Path) -> dict[str, Path]:
    """Image files of a folder by stem, sorted; hidden files and other kinds are passed over.

    Raises:
        InputError: if the folder is missing or two files have one stem.
    """
    if not folder.is_dir():
        raise InputError(
            "no such folder", file=folder, remedy="check the folder against data_prep/README.md"
        )
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.name.lower().endswith(SUFFIXES):
            continue
        stem = case_stem(path)
        if stem in found:
            raise InputError("two files with one stem", file=path, found=found[stem].name)
        found[stem] = path
    return found


def suffix_of(path: Path) -> str:
    """What follows the stem: ``.nii.gz``, ``.png`` ..."""
    return path.name.removeprefix(case_stem(path))


def check_pairs(images: Iterable[str], masks: Iterable[str]) -> None:
    """Raise `InputError` listing every image without a mask and every mask without an image."""
    images, masks = set(images), set(masks)
    refuse("images without a mask", sorted(images - masks))
    refuse("masks without an image", sorted(masks - images))


def refuse(problem: str, names: Sequence[str], remedy: str | None = None) -> None:
    """Raise `InputError` listing all ``names``, if there are any."""
    if names:
        raise InputError(problem, found=", ".join(names), remedy=remedy)


def patient_of(case: str, pattern: str | None) -> str:
    """The pattern's first group (or whole match) in a case id; without a pattern, the id."""
    if pattern is None:
        return case
    match = re.search(pattern, case)
    if match is None:
        raise InputError("case id does not match the patient pattern", found=case, expected=pattern)
    return match.group(1) if match.re.groups else match.group(0)


def read_table(path: Path, cases: Iterable[str]) -> dict[str, dict[str, str]]:
    """Read a CSV of patients: column ``case``, and any of ``patient``, ``site``, ``part``.

    Returns:
        For each given case its non-empty cells by column.

    Raises:
        InputError: if the column is missing, an id comes twice, or a case has no row.
    """
    table = pd.read_csv(path, dtype=str, skipinitialspace=True)
    if "case" not in table.columns:
        raise InputError(
            "no column 'case'", file=path, found=", ".join(map(str, table.columns)),
            expected="case, and any of patient, site, part",
        )  # fmt: skip
    double = sorted(set(table["case"][table["case"].duplicated()].astype(str)))
    absent = sorted(set(cases) - set(table["case"]))
    for problem, names in (("cases come twice", double), ("cases without a row", absent)):
        if names:
            raise InputError(problem, file=path, field="case", found=", ".join(names))
    columns = [name for name in ("patient", "site", "part") if name in table.columns]
    rows = table.set_index("case")[columns].to_dict("index")
    return {
        case: {str(k): v for k, v in rows[case].items() if isinstance(v, str)} for case in cases
    }
