"""Public sets of several sites, scanners or modalities -> case lists with a site per case.

What the names of files mean was read in code that reads the published folders, not in the
folders themselves; unknown mask values are refused, never guessed. Each site has cases of every
part: patients are dealt site by site. `abdomen`, `crossmoda` and `fundus` are alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

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
from medseg_diff.data.layouts import mask_item
from medseg_diff.data.rewrite import Writer, any_instance, checked_copy, relabel, renumbered
from medseg_diff.data.sites import SPLIT, draft_of, find_scans, listed
from medseg_diff.errors import InputError
from medseg_diff.io import ReadOptions, case_stem, read_image, write_label, write_map
from medseg_diff.io.raster import write_png

MMWHS = About("MM-WHS whole heart, CT and MR", "see the challenge's terms", "other")
PROSTATE = About("Prostate MRI of six sites", "see the sources' terms", "MR")
SPINAL_CORD = About("Spinal cord grey matter challenge 2016", "see the challenge's terms", "MR")
MNMS = About("M&Ms cardiac MRI", "see the challenge's terms", "MR")
RETINA = About("Retinal vessels: DRIVE, STARE, CHASE_DB1", "see each set's terms", "RGB")
# Published values of MM-WHS, in the order of the written labels.
_HEART = {
    "left_ventricle": 500,
    "right_ventricle": 600,
    "left_atrium": 420,
    "right_atrium": 550,
    "myocardium": 205,
    "ascending_aorta": 820,
    "pulmonary_artery": 850,
}


def from_mmwhs(folder: Path, out: Path, *, split: Split = SPLIT) -> CaseList:
    """MM-WHS: ``ct_train_1001_image.nii.gz`` with ``..._label.nii.gz``, ``mr_train_...`` alike.

    At any depth; the modality is the site. Seven structures, renumbered from 1; test scans, which
    are published without masks, are passed over.
    """
    drafts = []
    for path in find_scans(folder, r"(ct|mr)_train_\d+_image"):
        stem = case_stem(path).removesuffix("_image")
        mask = path.with_name(path.name.replace("_image", "_label"))
        values = {value: new for new, value in enumerate(_HEART.values(), start=1)}
        item = mask_item(mask, stem, relabel(renumbered(values), len(_HEART) + 1))
        site = stem[:2].upper()
        drafts.append(draft_of(stem, stem, site, path, [item], "image"))
    labels = {"background": 0, **{name: n for n, name in enumerate(_HEART, start=1)}}
    return listed(drafts, MMWHS, "image", Labels(labels), out, split)


def from_prostate_sites(folder: Path, out: Path, *, split: Split = SPLIT) -> CaseList:
    """Prostate MRI: a folder per site (BIDMC, BMC, HK, I2CVB, RUNMC, UCL), cases side by side.

    ``Case00.nii.gz`` with ``Case00_segmentation.nii.gz`` (upper or lower case). Every value above 0
    is prostate, since some sites mark zones.
    """
    drafts = []
    for site in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        files = {stem.lower(): path for stem, path in list_files(site).items()}
        ending = "_segmentation"
        images = {stem: path for stem, path in files.items() if not stem.endswith(ending)}
        masks = {s.removesuffix(ending): p for s, p in files.items() if s.endswith(ending)}
        check_pairs(images, masks)
        for stem, path in images.items():
            case = f"{site.name}_{stem}"
            item = mask_item(masks[stem], case, relabel(any_instance, 2))
            drafts.append(draft_of(case, case, site.name, path, [item], "T2"))
    return listed(drafts, PROSTATE, "T2", Labels({"background": 0, "prostate": 1}), out, split)


def from_spinal_cord(folder: Path, out: Path, *, split: Split = SPLIT) -> CaseList:
    """Spinal cord grey matter: ``site1-sc01-image.nii.gz``, ``-mask-r1.nii.gz`` to ``-r4``.

    Four readers; 1 is grey and 2 white matter. Test scans without masks are passed over.
    """
    drafts = []
    for path in find_scans(folder, r"site\d+-sc\d+-image"):
        stem = case_stem(path).removesuffix("-image")
        masks = [path.with_name(path.name.replace("-image", f"-mask-r{r}")) for r in range(1, 5)]
        if not any(mask.is_file() for mask in masks):
            continue
        items = [
            Item(mask, f"labels/{stem}_rater{r}{suffix_of(mask)}", checked_copy([0, 1, 2]))
            for r, mask in enumerate(masks, start=1)
        ]
        drafts.append(draft_of(stem, stem, stem.split("-")[0], path, items, "image"))
    labels = Labels({"background": 0, "grey_matter": 1, "white_matter": 2})
    return listed(drafts, SPINAL_CORD, "image", labels, out, split)


def from_mnms(
    folder: Path, out: Path, *, table: Path, by: str = "Vendor", split: Split = SPLIT
) -> CaseList:
    """M&Ms: ``CODE/CODE_sa.nii.gz`` and ``CODE_sa_gt.nii.gz``, 4-D, at any depth.

    Each patient gives two cases, the volumes of end diastole and end systole.

    Args:
        folder: Of the published set.
        out: Where volumes are written.
        table: Its CSV, with columns ``External code``, ``ED``, ``ES`` (volumes from 0) and ``by``.
        by: Column that is the site: ``Vendor`` or ``Centre``.
        split: Of each site's patients.

    Raises:
        InputError: if a column or a patient is missing from the table.
    """
    rows = pd.read_csv(table, dtype=str)
    missing = [name for name in ("External code", "ED", "ES", by) if name not in rows.columns]
    refuse("columns are missing from the table", missing)
    known = {str(row["External code"]): row for row in rows.to_dict("records")}
    drafts = []
    for path in find_scans(folder, r".+_sa_gt"):
        code = case_stem(path).removesuffix("_sa_gt")
        if code not in known:
            raise InputError("patient is not in the table", file=table, found=code)
        scan = path.with_name(path.name.replace("_sa_gt", "_sa"))
        for phase in ("ED", "ES"):
            number, case = int(str(known[code][phase])), f"{code}_{phase}"
            item = Item(path, f"labels/{case}.nii.gz", label_of_volume(number, [0, 1, 2, 3]))
            draft = draft_of(case, code, f"{by}_{known[code][by]}", scan, [item], "cine")
            image = Item(scan, f"images/{case}.nii.gz", volume_of(number))
            drafts.append(replace(draft, channels={"cine": image}))
    labels = Labels({"background": 0, "left_ventricle": 1, "myocardium": 2, "right_ventricle": 3})
    return listed(drafts, MNMS, "cine", labels, out, split)


def from_retina(folder: Path, out: Path, *, split: Split = SPLIT) -> CaseList:
    """Retinal vessels in three folders, ``DRIVE``, ``STARE``, ``CHASE_DB1``; the first reader's.

    DRIVE: ``training/images/21_training.tif``, ``training/1st_manual/21_manual1.gif``, test alike.
    STARE: ``im0001.ppm`` and ``im0001.ah.ppm``, at any depth, unpacked. CHASE_DB1:
    ``Image_01L.jpg``, ``Image_01L_1stHO.png``. All become PNG; eyes of one child stay together.
    """
    found: list[tuple[str, str, str, Path, Path]] = []
    for path in sorted((folder / "DRIVE").glob("*/images/*.tif")):
        eye = path.stem.split("_")[0]
        mask = path.parents[1] / "1st_manual" / f"{eye}_manual1.gif"
        found.append(("DRIVE", f"drive_{eye}", f"drive_{eye}", path, mask))
    masks = {p.name.split(".")[0]: p for p in sorted((folder / "STARE").rglob("im*.ah.ppm"))}
    for path in sorted((folder / "STARE").rglob("im*.ppm")):
        if "." not in path.stem and path.stem in masks:
            case = f"stare_{path.stem}"
            found.append(("STARE", case, case, path, masks[path.stem]))
    for path in sorted((folder / "CHASE_DB1").glob("Image_*.jpg")):
        child = path.stem.removeprefix("Image_")[:-1]
        mask = path.with_name(f"{path.stem}_1stHO.png")
        found.append(("CHASE_DB1", f"chase_{path.stem[6:]}", f"chase_{child}", path, mask))
    drafts = [
        Draft(
            case,
            patient,
            "train",
            {"RGB": Item(image, f"images/{case}.png", as_png)},
            [Item(mask, f"labels/{case}.png", vessels_as_png)],
            site,
        )
        for site, case, patient, image, mask in found
    ]
    return listed(drafts, RETINA, "RGB", Labels({"background": 0, "vessel": 1}), out, split)


def from_site_folders(
    folder: Path, out: Path, *, about: About, labels: Labels, split: Split = SPLIT
) -> CaseList:
    """Anything else, once it is in this shape: ``SITE/images/X.*`` with ``SITE/labels/X.*``.

    Masks hold the values of ``labels`` and are copied as they are. A patient is one case.
    """
    drafts = []
    for site in sorted(p.parent for p in folder.glob("*/images") if p.is_dir()):
        images, masks = list_files(site / "images"), list_files(site / "labels")
        check_pairs(images, masks)
        for stem, path in images.items():
            case, write = f"{site.name}_{stem}", checked_copy(labels.values.values())
            mask = Item(masks[stem], f"labels/{case}{suffix_of(masks[stem])}", write)
            drafts.append(draft_of(case, case, site.name, path, [mask], "image"))
    return listed(drafts, about, "image", labels, out, split)


def volume_of(number: int) -> Writer:
    """A writer that cuts one volume out of a 4-D scan."""

    def write(source: Path, target: Path) -> None:
        one = read_image(source, ReadOptions(volume=number))
        write_map(target, np.asarray(one), one)

    return write


def label_of_volume(number: int, allowed: Sequence[int]) -> Writer:
    """A writer that cuts one volume's mask out of a 4-D file."""

    def write(source: Path, target: Path) -> None:
        one = read_image(source, ReadOptions(volume=number))
        values = np.asarray(one)
        strange = sorted(set(np.unique(values).tolist()) - set(allowed))
        if strange:
            raise InputError("unknown mask values", file=source, found=strange, expected=allowed)
        write_label(target, values.astype(np.int64), one, n_classes=max(allowed) + 1)

    return write


def as_png(source: Path, target: Path) -> None:
    """Write a picture of any format that Pillow reads as 8-bit RGB."""
    write_png(target, np.moveaxis(_pixels(source, "RGB"), -1, 0))


def vessels_as_png(source: Path, target: Path) -> None:
    """Write a black and white mask as 0 and 1; refuses one with greys between."""
    values = _pixels(source, "L")
    between = int(((values != 0) & (values != values.max())).sum())
    if between:
        raise InputError("mask is not black and white", file=source, found=f"{between} grey pixels")
    write_png(target, (values > 0).astype(np.uint8)[None])


def _pixels(source: Path, mode: str) -> NDArray[np.uint8]:
    try:
        with Image.open(source) as image:
            return np.asarray(image.convert(mode), dtype=np.uint8)
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError("not a picture", file=source, found=str(error)) from None
