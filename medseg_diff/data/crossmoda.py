"""crossMoDA: vestibular schwannoma and cochlea, contrast-enhanced T1 against T2 without masks.

Layout and values as read in other people's code and descriptions of the 2021, 2022 and 2023
releases, not in the releases.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from medseg_diff.data.caselist import Case, CaseList, build_caselist, save_caselist
from medseg_diff.data.gather import About, Draft, Item, Labels, Split, refuse, suffix_of
from medseg_diff.data.layouts import mask_item
from medseg_diff.data.rewrite import relabel, renumbered
from medseg_diff.data.sites import SPLIT, find_scans, listed, on_grid_of
from medseg_diff.errors import InputError
from medseg_diff.io import case_stem

CROSSMODA = About("crossMoDA vestibular schwannoma", "see the challenge's terms", "MR")
LABELS = Labels({"background": 0, "vestibular_schwannoma": 1, "cochlea": 2})
TARGET_FILE = "target.json"
_VALUES = {1: 1, 2: 2}
# From 2023 on the tumour has two parts, within (1) and outside (2) the meatus.
_VALUES_2023 = {1: 1, 2: 1, 3: 2}


def from_crossmoda(folder: Path, out: Path, *, split: Split = SPLIT) -> CaseList:
    """crossMoDA: ``X_ceT1.nii.gz`` with ``X_Label.nii.gz``, and ``Y_hrT2.nii.gz`` or ``Y_T2``.

    X and Y are as ``crossmoda_1`` (2021), ``crossmoda2022_etz_1``, ``crossmoda2023_ukm_1``; at any
    depth. Source scans (site ``ceT1``) have masks and are dealt. Target scans (site ``hrT2``) are
    published without masks: they become part ``test``, the only one that may lack them, where they
    can be predicted and not scored; those with a ``_Label`` of the user's own are dealt as the
    source is. A second list, ``target.json``, has the target scans as images alone, without those
    that will be scored, in part ``train`` or, from a folder called validation, ``validation``: for
    training that needs target scans without masks (``data.target_cases``).

    Raises:
        InputError: if a domain has no scan, a source scan no mask, or a mask another value.
    """
    masks = {
        case_stem(p).removesuffix("_Label"): p for p in find_scans(folder, "crossmoda.*_Label")
    }
    drafts, validating = [], set()
    for path in find_scans(folder, r"crossmoda.*_(ceT1|hrT2|T2)"):
        case, sequence = case_stem(path).rsplit("_", 1)
        drafts.append(_draft(case, path, "ceT1" if sequence == "ceT1" else "hrT2", masks.get(case)))
        if "validation" in path.parent.name.lower():
            validating.add(case)
    for site in ("ceT1", "hrT2"):
        if not any(draft.site == site for draft in drafts):
            raise InputError(
                f"no {site} scan found", file=folder, expected=f"crossmoda_1_{site}.nii.gz",
                remedy="give the folder that source and target were unpacked to",
            )  # fmt: skip
    bare = [d.case for d in drafts if d.site == "ceT1" and not d.references]
    refuse("source scans without a mask", bare, "unpack the source's X_Label.nii.gz beside them")
    caselist = listed(drafts, CROSSMODA, "image", LABELS, out, split)
    # Scans that will be scored are in no training, not even as images.
    free = [
        c for c in caselist.cases if c.site == "hrT2" and not (c.part == "test" and c.references)
    ]
    target = images_alone(free, caselist, validating)
    save_caselist(target, out / TARGET_FILE)
    return caselist


def _draft(case: str, path: Path, site: str, mask: Path | None) -> Draft:
    image = {"image": Item(path, f"images/{case}{suffix_of(path)}")}
    if mask is None:
        return Draft(case, case, "test", image, [], site)
    values = _VALUES_2023 if case.startswith("crossmoda2023") else _VALUES
    write = on_grid_of(path, relabel(renumbered(values), len(LABELS.values)))
    return Draft(case, case, "train", image, [mask_item(mask, case, write)], site)


def images_alone(
    cases: Collection[Case], caselist: CaseList, validating: Collection[str]
) -> CaseList:
    """A list of the same images that names no structure, so that training cases need no mask."""
    bare = [
        {
            **case.model_dump(exclude={"references", "sha256", "part"}),
            "part": "validation" if case.case in validating else "train",
            "sha256": {n: h for n, h in case.sha256.items() if n in case.channels.values()},
        }
        for case in cases
    ]
    about = {name: getattr(caselist, name) for name in ("licence", "modality", "channels")}
    content = {**about, "name": f"{caselist.name}, target scans", "labels": {"background": 0}}
    return build_caselist({**content, "cases": bare}, root=caselist.root)
