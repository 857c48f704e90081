"""What the case lists of several sites share: finding scans, dealing patients site by site."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medseg_diff.data.caselist import CaseList, Part
from medseg_diff.data.gather import (
    About,
    Draft,
    Item,
    Labels,
    Split,
    assemble,
    refuse,
    suffix_of,
)
from medseg_diff.data.rewrite import Writer
from medseg_diff.data.splits import deal_patients
from medseg_diff.errors import InputError
from medseg_diff.io import case_stem, read_image, read_label

SPLIT = Split(validation=0.1, test=0.2)


def find_scans(folder: Path, pattern: str) -> list[Path]:
    """NIfTI files at any depth whose stem has a pattern, sorted.

    Raises:
        InputError: if there is no such folder, or a name comes twice.
    """
    return find_files(folder, pattern, (".nii", ".nii.gz"))


def find_files(
    folder: Path, pattern: str, suffixes: Sequence[str], *, without: str | None = None
) -> list[Path]:
    """Files at any depth whose stem has a pattern, sorted; as `find_scans`.

    Folders whose name holds ``without`` are passed over.
    """
    if not folder.is_dir():
        raise InputError("no such folder", file=folder, remedy="check the path")
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.name.lower().endswith(tuple(suffixes)) and re.fullmatch(pattern, case_stem(path))
    ]
    if without is not None:
        inner = [path.relative_to(folder).parent.parts for path in found]
        found = [p for p, parts in zip(found, inner, strict=True) if without not in "/".join(parts)]
    counts = Counter(path.name for path in found)
    refuse("files of one name in several folders", [n for n, count in counts.items() if count > 1])
    return found


def draft_of(
    case: str, patient: str, site: str, path: Path, masks: Sequence[Item], channel: str
) -> Draft:
    """A case of one image that is copied as it is; its part is still to be dealt."""
    image = Item(path, f"images/{case}{suffix_of(path)}")
    return Draft(case, patient, "train", {channel: image}, masks, site)


def on_grid_of(image: Path, write: Writer) -> Writer:
    """A writer of a mask that first sees that the mask has its image's grid."""

    def checked(source: Path, target: Path) -> None:
        read_label(source, like=read_image(image))
        write(source, target)

    return checked


def listed(
    drafts: Sequence[Draft], about: About, channel: str, labels: Labels, out: Path, split: Split
) -> CaseList:
    """Deal each site's patients of part ``train`` by themselves, then write."""
    shares: dict[Part, float] = {
        "train": 1.0 - split.validation - split.test,
        "validation": split.validation,
        "test": split.test,
    }
    by_site: dict[str | None, list[Draft]] = defaultdict(list)
    for draft in drafts:
        if draft.part == "train":
            by_site[draft.site].append(draft)
    dealt = [draft for draft in drafts if draft.part != "train"]
    for members in by_site.values():
        part_of = deal_patients([d.patient for d in members], shares, split.seed)
        dealt += [replace(d, part=part_of[d.patient]) for d in members]
    return assemble(dealt, about, [channel], labels, root=out, split=Split(0.0, 0.0, split.seed))
