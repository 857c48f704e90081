"""Rules of a case list that look across its cases: targets, and what leaks between parts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import TYPE_CHECKING

from medseg_diff.errors import InputError

if TYPE_CHECKING:
    from medseg_diff.data.caselist import CaseList


def check_targets(caselist: CaseList) -> None:
    """Refuse a list whose target images are incomplete, unnamed or among the channels."""
    have = [case.case for case in caselist.cases if case.target is not None]
    if caselist.target is None and (have or caselist.target_modality is not None):
        raise InputError(
            "a target without a name", field="target",
            found=first_of(have) or caselist.target_modality,
            expected="the list's own key target: the image's name",
            remedy='write "target": "FLAIR", say, beside "channels"',
        )  # fmt: skip
    lacking = [c.case for c in caselist.cases if c.part != "test" and c.target is None]
    if caselist.target is not None and lacking:
        raise InputError(
            "training or validation cases without a target image", field="target",
            found=first_of(lacking), remedy="add their images, or move them to part test",
        )  # fmt: skip
    if caselist.target in caselist.channels:
        raise InputError(
            "the target is also a channel", field="target", found=caselist.target,
            remedy="give it another name, or take it out of channels",
        )  # fmt: skip
    held = [c.case for c in caselist.cases if c.target in c.channels.values()]
    if held:
        raise InputError(
            "the target's file is also a channel's: the answer would be in the question",
            field="target", found=first_of(held),
        )  # fmt: skip


def check_leaks(caselist: CaseList) -> None:
    """Refuse a patient or an image in two parts.

    Only images count as files: two empty masks are the same bytes without being the same case.
    """
    patients: dict[str, set[str]] = defaultdict(set)
    images: dict[str, dict[str, str]] = defaultdict(dict)
    for case in caselist.cases:
        patients[case.patient].add(case.part)
        for name in (*case.channels.values(), *([case.target] if case.target else [])):
            for key in {name, case.sha256.get(name, name)}:
                images[key].setdefault(case.part, case.case)
    split = [name for name, parts in patients.items() if len(parts) > 1]
    if split:
        raise InputError(
            "patients in more than one part", field="patient", found=first_of(split),
            remedy="split by patient (medseg_diff.data.splits)",
        )  # fmt: skip
    shared = {" = ".join(by_part.values()): None for by_part in images.values() if len(by_part) > 1}
    if shared:
        raise InputError(
            "one image in more than one part", field="channels", found=first_of(shared),
            remedy="drop the copies, or give both cases one patient and split again",
        )  # fmt: skip


def first_of(names: Collection[str], count: int = 5) -> str:
    """Up to ``count`` names, then how many more there are."""
    shown = list(names)[:count]
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")
