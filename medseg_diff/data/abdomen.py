"""Abdomen, MR against CT: CHAOS and BTCV as one case list of the four organs that both name.

Layouts, grey levels and the order of slices as read in other people's code that converts the two
releases, not in the releases. CHAOS: a folder a patient, sequences as DICOM, a PNG mask a slice,
named after its DICOM file. BTCV: NIfTI, thirteen organs. Right and left are the patient's in both.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from medseg_diff.data.caselist import CaseList
from medseg_diff.data.gather import About, Draft, Item, Labels, Split
from medseg_diff.data.layouts import mask_item
from medseg_diff.data.rewrite import Writer, relabel, renumbered
from medseg_diff.data.sites import SPLIT, draft_of, find_scans, listed, on_grid_of
from medseg_diff.errors import InputError
from medseg_diff.io import read_image, read_label, write_label, write_map

ChaosSequence = Literal["T2SPIR", "T1DUAL/InPhase", "T1DUAL/OutPhase"]
CHAOS_SEQUENCES: tuple[ChaosSequence, ...] = get_args(ChaosSequence)
ABDOMEN = About("Abdomen: CHAOS (MR) and BTCV (CT)", "see each set's terms", "other")
ORGANS = ("liver", "right_kidney", "left_kidney", "spleen")
# Greys of an organ in CHAOS's MR masks: above the first, up to the second.
_GREYS = {
    "liver": (55, 70),
    "right_kidney": (110, 135),
    "left_kidney": (175, 200),
    "spleen": (240, 255),
}
# BTCV numbers thirteen organs from 1; those that CHAOS lacks become background.
_BTCV = {"spleen": 1, "right_kidney": 2, "left_kidney": 3, "liver": 6}
_BTCV_ORGANS = 13


def from_abdomen(
    folder: Path, out: Path, *, sequence: ChaosSequence = "T2SPIR", split: Split = SPLIT
) -> CaseList:
    """CHAOS's MR scans (site ``MR``) and BTCV's CT scans (site ``CT``), at any depth of a folder.

    CHAOS: ``MR/1/T2SPIR/DICOM_anon/*.dcm`` with ``MR/1/T2SPIR/Ground/*.png``, and
    ``MR/1/T1DUAL/DICOM_anon/InPhase`` and ``OutPhase``, which share one ``Ground``; its CT scans
    name the liver alone and are left out. BTCV: ``img/img0001.nii.gz`` beside
    ``label/label0001.nii.gz``. Test scans, published without masks, are passed over.

    Args:
        folder: Holds both sets, unpacked.
        out: Where scans and masks are written as NIfTI.
        sequence: Of CHAOS.
        split: Of each site's patients.

    Raises:
        InputError: if a set has no patient, or slices and masks do not go together.
    """
    labels = {"background": 0, **{name: n for n, name in enumerate(ORGANS, start=1)}}
    drafts = [*_chaos(folder, sequence), *_btcv(folder)]
    return listed(drafts, ABDOMEN, "image", Labels(labels), out, split)


def _chaos(folder: Path, sequence: ChaosSequence) -> list[Draft]:
    name, _, phase = sequence.partition("/")
    drafts = []
    for home in sorted(path for path in folder.rglob(name) if path.is_dir()):
        masks, scan = home / "Ground", home / "DICOM_anon" / phase
        if not any(masks.glob("*.png")):
            continue
        if not scan.is_dir():
            raise InputError(
                "masks without a scan", file=home.parent, field=sequence, found="no such folder",
                expected=f"{name}/{scan.relative_to(home).as_posix()}", remedy="unpack CHAOS again",
            )  # fmt: skip
        case = f"chaos_{home.parent.name}"
        image = Item(scan, f"images/{case}.nii.gz", dicom_as_nifti)
        label = Item(masks, f"labels/{case}.nii.gz", label_of_slices(scan))
        drafts.append(Draft(case, case, "train", {"image": image}, [label], "MR"))
    if not drafts:
        raise _nobody(folder, "CHAOS", f"MR/1/{name}/DICOM_anon and MR/1/{name}/Ground")
    return drafts


def _btcv(folder: Path) -> list[Draft]:
    values = dict.fromkeys(range(1, _BTCV_ORGANS + 1), 0)
    values |= {_BTCV[organ]: new for new, organ in enumerate(ORGANS, start=1)}
    drafts = []
    for path in find_scans(folder, r"img\d{4}"):
        masks = path.parents[1] / "label"
        if not masks.is_dir():
            continue
        case = f"btcv_{path.name[3:7]}"
        write = on_grid_of(path, relabel(renumbered(values), len(ORGANS) + 1))
        mask = mask_item(masks / path.name.replace("img", "label"), case, write)
        drafts.append(draft_of(case, case, "CT", path, [mask], "image"))
    if not drafts:
        raise _nobody(folder, "BTCV", "img/img0001.nii.gz and label/label0001.nii.gz")
    return drafts


def _nobody(folder: Path, of: str, expected: str) -> InputError:
    return InputError(
        f"no patient of {of} found", file=folder, expected=f"{expected}, at any depth",
        remedy="give the folder that both sets were unpacked to",
    )  # fmt: skip


def dicom_as_nifti(source: Path, target: Path) -> None:
    """Write a DICOM series as NIfTI on its own grid."""
    image = read_image(source)
    write_map(target, np.asarray(image), image)


def label_of_slices(scan: Path) -> Writer:
    """A writer that stacks a folder of PNG masks on the grid of a DICOM series.

    Rows and columns of a mask are those of its slice.
    """

    def write(source: Path, target: Path) -> None:
        image = read_image(scan)
        columns, rows, _ = image.shape[1:]
        slices = [Path(file) for file in image.meta["dicom"]["files"]]
        masks = masks_of(slices, sorted(source.glob("*.png")))
        stack = np.stack([_organs(mask, (rows, columns)) for mask in masks])
        write_label(target, stack.transpose(2, 1, 0)[None], image, n_classes=len(ORGANS) + 1)

    return write


def masks_of(slices: Sequence[Path], masks: Sequence[Path]) -> list[Path]:
    """The mask of each slice.

    Masks named after their slices belong by name, whatever the order. Where no name agrees, as
    for the phase that the masks were not drawn on, some code pairs the numbers of both files in
    rising order, and other code the masks' numbers with positions along the slices' normal. That
    is done here where both say the same, and refused elsewhere.

    Args:
        slices: DICOM files in the order of their positions.
        masks: PNG files.

    Raises:
        InputError: if a slice has no mask, or a mask no slice.
    """
    named = {mask.stem: mask for mask in masks}
    stems = {file.stem for file in slices}
    by_name = bool(stems & set(named))
    alone = sorted(stems ^ set(named)) if by_name else []
    if alone or len(slices) != len(masks):
        raise InputError(
            "slices and masks do not go together", file=slices[0].parent,
            field=f"masks in {masks[0].parent.name}",
            found=f"{len(masks)}" + (f", alone: {', '.join(alone[:4])}" if alone else ""),
            expected=f"{len(slices)}, one a slice", remedy="unpack CHAOS again",
        )  # fmt: skip
    if by_name:
        return [named[file.stem] for file in slices]
    if sorted(slices, key=_number) != list(slices):
        raise InputError(
            "names of files and positions order the slices differently", file=slices[0],
            field="ImagePositionPatient", found="masks that are named otherwise",
            expected="masks named after their slices, or numbers that rise with the position",
            remedy="take the sequence that the masks are named after",
        )  # fmt: skip
    return sorted(masks, key=_number)


def _number(path: Path) -> tuple[int, str]:
    numbers = re.findall(r"\d+", path.stem)
    return (int(numbers[-1]) if numbers else -1, path.stem)


def _organs(path: Path, size: tuple[int, int]) -> NDArray[np.int64]:
    """Labels (rows, columns) of one slice's mask."""
    greys = np.asarray(read_label(path), dtype=np.int64)[0]
    if greys.shape != size:
        raise InputError(
            "mask has another size than its slice", file=path, field="rows x columns",
            found=" x ".join(map(str, greys.shape)), expected=" x ".join(map(str, size)),
            remedy="unpack CHAOS again",
        )  # fmt: skip
    label, known = np.zeros_like(greys), greys == 0
    for value, (above, most) in enumerate(_GREYS.values(), start=1):
        inside = (greys > above) & (greys <= most)
        label[inside] = value
        known |= inside
    if not known.all():
        raise InputError(
            "unknown mask values", file=path, field="grey", found=np.unique(greys[~known]).tolist(),
            expected="0, "
            + ", ".join(f"{a + 1} to {m} ({organ})" for organ, (a, m) in _GREYS.items()),
            remedy="correct the mask: no organ has that grey",
        )  # fmt: skip
    return label
