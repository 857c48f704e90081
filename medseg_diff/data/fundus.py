"""Optic disc and cup in fundus pictures: REFUGE, Drishti-GS, and folders of one's own.

Layouts and greys as read in other people's code that reads the releases, not in the releases. The
masks written have 1 for the rim and 2 for the cup; what is scored are the disc (both) and the cup.
No file says which two eyes are one person's: every picture counts as a patient.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from medseg_diff.data.caselist import CaseList
from medseg_diff.data.gather import (
    About,
    Draft,
    Item,
    Labels,
    Split,
    check_pairs,
    list_files,
    refuse,
    suffix_of,
)
from medseg_diff.data.rewrite import Writer, checked_copy, relabel, values_of
from medseg_diff.data.sites import SPLIT, draft_of, find_files, listed, on_grid_of
from medseg_diff.errors import InputError
from medseg_diff.io import case_stem, read_image, read_label, write_label

Coding = Literal["refuge", "labels"]
CODINGS: tuple[Coding, ...] = get_args(Coding)
DISCS = About("Optic disc and cup: REFUGE and Drishti-GS", "see each set's terms", "RGB")
LABELS = Labels({"background": 0, "rim": 1, "cup": 2}, {"optic_disc": [1, 2], "optic_cup": [2]})
_REFUGE_GREYS = {0: 2, 128: 1, 255: 0}
# The first letter of a picture's name is its release, which is its camera.
_REFUGE = {"gn": "REFUGE_train", "V": "REFUGE_validation", "T": "REFUGE_test"}
# Soft maps of Drishti-GS: 255 where all readers agree. Half of them is enough.
_HALF = 128


def from_optic_discs(folder: Path, out: Path, *, split: Split = SPLIT) -> CaseList:
    """REFUGE and Drishti-GS, or one of them, at any depth of a folder.

    REFUGE: pictures ``Training400/Glaucoma/g0001.jpg``, ``Non-Glaucoma/n0001.jpg``,
    ``V0001.jpg``, ``T0001.jpg``, masks ``Disc_Cup_Masks/.../g0001.bmp`` (0 cup, 128 rim, 255
    background). Its three parts are three sites, since training and validation pictures come from
    two makes of camera; a part without any mask is passed over. Drishti-GS:
    ``Images/drishtiGS_002.png``, ``GT/drishtiGS_002/SoftMap/drishtiGS_002_ODsegSoftmap.png`` and
    ``..._cupsegSoftmap.png`` (the test part's folder is ``Test_GT``).

    Raises:
        InputError: if there is no picture with a mask, or pictures and masks do not go together.
    """
    drafts = [*_refuge(folder), *_drishti(folder)]
    if not drafts:
        raise InputError(
            "no pictures with masks found", file=folder,
            expected="g0001.jpg with g0001.bmp, or drishtiGS_002.png with its soft maps",
            remedy="give the folder that pictures and masks were unpacked to",
        )  # fmt: skip
    return listed(drafts, DISCS, "RGB", LABELS, out, split)


def from_disc_folders(
    folder: Path, out: Path, *, coding: Coding = "refuge", split: Split = SPLIT
) -> CaseList:
    """One's own pictures: ``SITE/images/X.*`` with ``SITE/labels/X.*``, a patient a picture.

    Args:
        folder: Of the sites.
        out: Where pictures and masks are written.
        coding: ``"refuge"``: 0 cup, 128 rim, 255 background; ``"labels"``: 0 background, 1 rim,
            2 cup.
        split: Of each site's pictures.
    """
    drafts = []
    for site in sorted(path.parent for path in folder.glob("*/images") if path.is_dir()):
        images, masks = list_files(site / "images"), list_files(site / "labels")
        check_pairs(images, masks)
        for stem, path in images.items():
            write = _greys if coding == "refuge" else checked_copy(LABELS.values.values())
            name = f"{site.name}_{stem}"
            end = ".png" if coding == "refuge" else suffix_of(masks[stem])
            mask = Item(masks[stem], f"labels/{name}{end}", on_grid_of(path, write))
            drafts.append(draft_of(name, name, site.name, path, [mask], "RGB"))
    if not drafts:
        raise InputError(
            "no pictures found", file=folder, expected="SITE/images/X.jpg and SITE/labels/X.png",
            remedy="give the folder that holds the sites",
        )  # fmt: skip
    about = About(folder.name, modality="RGB")
    return listed(drafts, about, "RGB", LABELS, out, split)


def _refuge(folder: Path) -> list[Draft]:
    pictures = {
        path.stem: path
        # Beside the masks lie pictures with the outlines drawn in, of the same names.
        for path in find_files(folder, r"[gnVT]\d{4}", (".jpg", ".jpeg"), without="Illustration")
    }
    masks = {path.stem: path for path in find_files(folder, r"[gnVT]\d{4}", (".bmp",))}
    drafts = []
    for letters, site in _REFUGE.items():
        images = {stem: path for stem, path in pictures.items() if stem[0] in letters}
        answers = {stem: path for stem, path in masks.items() if stem[0] in letters}
        if not answers:
            continue
        check_pairs(images, answers)
        for stem, path in images.items():
            case = f"refuge_{stem}"
            mask = Item(answers[stem], f"labels/{case}.png", on_grid_of(path, _greys))
            drafts.append(draft_of(case, case, site, path, [mask], "RGB"))
    return drafts


def _drishti(folder: Path) -> list[Draft]:
    number, disc, cup = r"drishtiGS_\d+", "_ODsegSoftmap", "_cupsegSoftmap"
    images = {case_stem(p): p for p in find_files(folder, number, (".png",))}
    discs, cups = (
        {case_stem(p).removesuffix(end): p for p in find_files(folder, number + end, (".png",))}
        for end in (disc, cup)
    )
    check_pairs(images, discs)
    refuse("soft maps of the cup are missing", sorted(set(images) - set(cups)))
    drafts = []
    for stem, path in images.items():
        write = label_of_soft_maps(path, cups[stem])
        mask = Item(discs[stem], f"labels/{stem}.png", write)
        drafts.append(draft_of(stem, stem, "Drishti_GS", path, [mask], "RGB"))
    return drafts


def label_of_soft_maps(image: Path, cup: Path) -> Writer:
    """A writer that makes one mask of the readers' soft maps of disc (its source) and cup.

    A pixel belongs to what half of the readers or more drew there, and a cup is part of its disc.
    """

    def write(source: Path, target: Path) -> None:
        picture = read_image(image)
        disc, inner = (_drawn(path, read_label(path, like=picture)) for path in (source, cup))
        write_label(target, np.where(inner, 2, disc), picture, n_classes=len(LABELS.values))

    return write


def _drawn(path: Path, share: object) -> NDArray[np.int64]:
    values = np.asarray(share)
    if values.max() < _HALF or values.max() > 255:
        raise InputError(
            "not a soft map", file=path, field="grey", found=f"at most {values.max()}",
            expected="255 where all readers agree", remedy="unpack Drishti-GS again",
        )  # fmt: skip
    return (values >= _HALF).astype(np.int64)


_greys = relabel(values_of(_REFUGE_GREYS), len(LABELS.values))
