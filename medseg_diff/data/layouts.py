"""Public dataset layouts -> case lists. One function per layout; `data_prep/` calls them.

Layouts whose files can serve as they are take ``out=None`` and then describe the data folder
in place; with ``out`` they copy. Layouts whose masks must be rewritten always need ``out``.
Training cases are split by patient (`Split`); a layout's own test part stays as it is.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path

from medseg_diff.data.caselist import CaseList, Part
from medseg_diff.data.gather import (
    About,
    Draft,
    Item,
    Labels,
    Split,
    assemble,
    check_pairs,
    list_files,
    patient_of,
    read_table,
    refuse,
    suffix_of,
)
from medseg_diff.data.nnunet import (
    about_from,
    channel_names,
    label_meaning,
    name_channels,
    numbered,
    read_description,
)
from medseg_diff.data.rewrite import (
    Writer,
    binary,
    brats_new,
    brats_old,
    checked_copy,
    copy_file,
    one_reader,
    one_volume,
    relabel,
)
from medseg_diff.errors import InputError
from medseg_diff.io import case_stem

HIPPOCAMPUS = About("MSD Task04 Hippocampus", "CC-BY-SA 4.0", "MR")
HIPPOCAMPUS_LABELS = Labels({"background": 0, "anterior": 1, "posterior": 2})
LIDC = About("LIDC-IDRI nodules, four readers", "CC BY 3.0", "CT")
CHASE = About("CHASE_DB1 retinal vessels, two readers", "CC BY 4.0", "RGB")
BRATS = About("BraTS gliomas", "see the challenge's terms", "MR")
BRATS_LABELS = Labels(
    {"background": 0, "necrosis": 1, "edema": 2, "enhancing": 3},
    regions={"whole": [1, 2, 3], "core": [1, 3], "enhancing": [3]},
)
BRATS_CHANNELS = ("T1", "T1Gd", "T2", "FLAIR")
_BRATS_OLD = {"t1": "T1", "t1ce": "T1Gd", "t2": "T2", "flair": "FLAIR", "seg": "seg"}
_BRATS_NEW = {"t1n": "T1", "t1c": "T1Gd", "t2w": "T2", "t2f": "FLAIR", "seg": "seg"}
SPLIT = Split()
SPLIT_WITH_TEST = Split(test=0.1)
PARTS: tuple[tuple[str, Part], ...] = (("Tr", "train"), ("Ts", "test"))


def from_nnunet_raw(
    folder: Path,
    out: Path | None = None,
    *,
    channels: Sequence[str] | None = None,
    labels: Labels | None = None,
    about: About | None = None,
    patient_pattern: str | None = None,
    exclude: Collection[str] = (),
    split: Split = SPLIT,
) -> CaseList:
    """nnU-Net raw: ``imagesTr/<case>_0000.nii.gz``, ``labelsTr/<case>.nii.gz``, same with Ts.

    Args:
        folder: Holds those folders and perhaps a ``dataset.json``.
        out: Where to copy to; None describes ``folder`` in place.
        channels: Names of _0000, _0001 ...; needed where ``dataset.json`` is absent.
        labels: Meaning of the values; needed where ``dataset.json`` is absent.
        about: Name, licence and modality; by default from ``dataset.json`` and the folder.
        patient_pattern: Regular expression that cuts the patient out of a case id.
        exclude: Case ids to leave out.
        split: How training cases are dealt.

    Raises:
        InputError: listing images without a mask, masks without an image, and the like.
    """
    description = read_description(folder, required=channels is None or labels is None)
    names = list(channels or channel_names(description))
    labels = labels or label_meaning(description)
    drafts = []
    for suffix, part in PARTS:
        if part == "test" and not (folder / "imagesTs").is_dir():
            continue
        images = numbered(folder / f"images{suffix}")
        masks = {}
        if part == "train" or (folder / "labelsTs").is_dir():
            masks = list_files(folder / f"labels{suffix}")
        if part == "train":
            check_pairs(images, masks)
        else:
            refuse("test masks without an image", sorted(set(masks) - set(images)))
        for case, files in images.items():
            if case in exclude:
                continue
            named = name_channels(case, files, names)
            drafts.append(
                Draft(
                    case,
                    patient_of(case, patient_pattern),
                    part,
                    {name: _copied(path, folder, out, "images") for name, path in named.items()},
                    [_copied(masks[case], folder, out, "labels")] if case in masks else [],
                )
            )
    if drafts:
        names = list(drafts[0].channels)
    about = about or about_from(folder, description, names)
    return assemble(drafts, about, names, labels, root=out or folder, split=split)


def from_hippocampus(
    folder: Path,
    out: Path | None = None,
    *,
    leave_out: Collection[str] = (),
    split: Split = SPLIT,
) -> CaseList:
    """MSD Task04 in nnU-Net raw layout; every case is a patient; ``leave_out`` names cases."""
    return from_nnunet_raw(
        folder, out, channels=["T1"], labels=HIPPOCAMPUS_LABELS, about=HIPPOCAMPUS,
        exclude=leave_out, split=split,
    )  # fmt: skip


def from_decathlon(
    folder: Path,
    out: Path | None = None,
    *,
    patient_pattern: str | None = None,
    split: Split = SPLIT,
) -> CaseList:
    """Medical Segmentation Decathlon: ``dataset.json`` lists training pairs and test images.

    Images of several modalities are 4-D files; they are written to ``out`` as one file per
    channel. Test cases come without masks.
    """
    description = read_description(folder, required=True)
    names = channel_names(description)
    if len(names) > 1 and out is None:
        raise InputError(
            "4-D images must be split into channels", file=folder, found=", ".join(names),
            remedy="give a folder to write to (--out)",
        )  # fmt: skip
    pairs: list[tuple[str, str | None, Part]]
    try:
        pairs = [(entry["image"], entry["label"], "train") for entry in description["training"]]
        pairs += [(str(image), None, "test") for image in description.get("test", [])]
    except (KeyError, TypeError) as error:
        raise InputError(
            "not a Decathlon list", file="dataset.json", field="training", found=repr(error)[:80],
            expected='a list of {"image": ..., "label": ...}',
        ) from None  # fmt: skip
    drafts = []
    for image, label, part in pairs:
        source = folder / image
        case = case_stem(source)
        if len(names) == 1:
            items = {names[0]: _copied(source, folder, out, "images")}
        else:
            items = {
                name: Item(
                    source, f"images/{case}_{index:04d}.nii.gz", one_volume(index, len(names))
                )
                for index, name in enumerate(names)
            }
        masks = [] if label is None else [_copied(folder / label, folder, out, "labels")]
        drafts.append(Draft(case, patient_of(case, patient_pattern), part, items, masks))
    about = about_from(folder, description, names)
    labels = label_meaning(description)
    return assemble(drafts, about, names, labels, root=out or folder, split=split)


def from_folders(
    images: Path,
    masks: Path,
    out: Path,
    *,
    about: About,
    labels: Labels | None = None,
    table: Path | None = None,
    threshold: int | None = None,
    split: Split = SPLIT,
) -> CaseList:
    """A folder of images and one of masks, named alike (ISIC: ``X.jpg``, ``X_segmentation.png``).

    A mask has its image's stem, or that followed by ``_segmentation`` or ``_mask``.

    Args:
        images: Folder of images; other kinds of files in it are passed over.
        masks: Folder of masks; may be the same one.
        out: Where images and masks are written.
        about: Name, licence and modality.
        labels: Meaning of the values; by default a mask is binary (0 and one other value, such
            as 255) and is rewritten with the values 0 and 1.
        table: CSV with a column ``case`` and any of ``patient``, ``site``, ``part``. Without
            it every image counts as a patient of its own.
        threshold: Foreground is at least this value, for binary masks with in-between values.
        split: How cases of part train (all, without a table) are dealt.
    """
    found = {re.sub("_(segmentation|mask)$", "", s): p for s, p in list_files(masks).items()}
    pictures = {
        stem: path
        for stem, path in list_files(images).items()
        if path not in found.values() and not stem.endswith("_superpixels")
    }
    check_pairs(pictures, found)
    rows = read_table(table, pictures) if table else {case: {} for case in pictures}
    if labels is None:
        write = relabel(binary(threshold), 2)
    else:
        known = [*labels.values.values(), *([] if labels.ignore is None else [labels.ignore])]
        write = checked_copy(known)
    drafts = [
        Draft(
            case,
            rows[case].get("patient", case),
            rows[case].get("part", "train"),  # type: ignore[arg-type]  # checked by the list
            {"image": Item(path, f"images/{path.name}")},
            [mask_item(found[case], case, write)],
            rows[case].get("site"),
        )
        for case, path in pictures.items()
    ]
    labels = labels or Labels({"background": 0, "foreground": 1})
    return assemble(drafts, about, ["image"], labels, root=out, split=split)


def from_brats(
    folder: Path, out: Path, *, about: About = BRATS, split: Split = SPLIT_WITH_TEST
) -> CaseList:
    """BraTS: one folder per case, at any depth, with four contrasts and ``seg``.

    Both namings are known: ``_t1, _t1ce, _t2, _flair, _seg`` (until 2021; enhancing tumour is
    4) and ``-t1n, -t1c, -t2w, -t2f, -seg`` (from 2023; enhancing tumour is 3, and the last
    number of a case id is the visit). Masks are rewritten with the values 0 to 3.
    """
    cases: dict[Path, dict[str, Path]] = defaultdict(dict)
    new_names = set()
    for path in sorted(folder.rglob("*.nii*")):
        match = re.fullmatch(r".+([_-])(t1n|t1c|t2w|t2f|t1ce|t1|t2|flair|seg)", case_stem(path))
        if match and not path.name.startswith("."):
            key = {**_BRATS_OLD, **_BRATS_NEW}[match[2]]
            cases[path.parent][key] = path
            if match[1] == "-":
                new_names.add(path.parent)
    refuse("cases without seg", [home.name for home, files in cases.items() if "seg" not in files])
    drafts = []
    for home, files in cases.items():
        rule, patient = brats_old, home.name
        if home in new_names:
            rule, patient = brats_new, re.sub(r"^(BraTS-.+-\d+)-\d+$", r"\1", home.name)
        items = {
            name: Item(files[name], f"images/{home.name}_{name}{suffix_of(files[name])}")
            for name in BRATS_CHANNELS
            if name in files
        }
        masks = [mask_item(files["seg"], home.name, relabel(rule, 4))]
        drafts.append(Draft(home.name, patient, "train", items, masks))
    return assemble(drafts, about, BRATS_CHANNELS, BRATS_LABELS, root=out, split=split)


def from_lidc(folder: Path, out: Path, *, split: Split = SPLIT) -> CaseList:
    """LIDC-IDRI nodule slices whose PNG packs four readers: reader r marks bit r.

    Readers are not the same persons from patient to patient, and an empty mask means that a
    reader marked nothing there.
    """
    drafts = []
    for suffix, part in PARTS:
        images = list_files(folder / f"images{suffix}")
        masks = list_files(folder / f"labels{suffix}")
        check_pairs(images, masks)
        drafts += [
            Draft(
                case,
                patient_of(case, r"^LIDC-IDRI-\d{4}"),
                part,
                {"CT": Item(path, f"images/{path.name}")},
                [
                    mask_item(masks[case], f"{case}_rater{r + 1}", relabel(one_reader(r), 2))
                    for r in range(4)
                ],
            )
            for case, path in images.items()
        ]
    labels = Labels({"background": 0, "nodule": 1})
    return assemble(drafts, LIDC, ["CT"], labels, root=out, split=split)


def from_chase(folder: Path, out: Path, *, split: Split = SPLIT) -> CaseList:
    """CHASE_DB1: two eyes per child, vessels drawn by two readers.

    Known are ``imagesTr/chase_01L.jpg`` with ``labelsTr/chase_01L_rater1.png`` (Ts: test), and
    the original flat ``Image_01L.jpg`` with ``_1stHO`` and ``_2ndHO``, whose children 11 to 14
    become the test part (the usual first 20 images for training).
    """
    flat = not (folder / "imagesTr").is_dir()
    drafts = []
    for suffix, part in PARTS:
        images = list_files(folder if flat else folder / f"images{suffix}")
        masks = images if flat else list_files(folder / f"labels{suffix}")
        for stem, path in images.items():
            match = re.fullmatch(r"(?:.*_)?(\d+)([LR])", stem)
            if match is None or (flat and (int(match[1]) > 10) != (part == "test")):
                continue
            raters = [
                masks.get(f"{stem}_1stHO" if flat else f"{stem}_rater1"),
                masks.get(f"{stem}_2ndHO" if flat else f"{stem}_rater2"),
            ]
            references = [
                mask_item(mask, f"{stem}_rater{r}", relabel(binary(), 2))
                for r, mask in enumerate(raters, start=1)
                if mask is not None
            ]
            if len(references) < 2:
                raise InputError("a reader's mask is missing", file=path, found=len(references),
                                 expected=2)  # fmt: skip
            channels = {"RGB": Item(path, f"images/{path.name}")}
            drafts.append(Draft(stem, f"chase_{match[1]}", part, channels, references))
    labels = Labels({"background": 0, "vessel": 1})
    return assemble(drafts, CHASE, ["RGB"], labels, root=out, split=split)


def mask_item(source: Path, stem: str, write: Writer) -> Item:
    """A mask to be written: NIfTI stays NIfTI, any raster format becomes lossless PNG."""
    nifti = ".nii" in suffix_of(source)
    return Item(source, f"labels/{stem}{'.nii.gz' if nifti else '.png'}", write)


def _copied(source: Path, folder: Path, out: Path | None, below: str) -> Item:
    if out is None:
        return Item(source, source.relative_to(folder).as_posix())
    return Item(source, f"{below}/{source.name}", copy_file)
