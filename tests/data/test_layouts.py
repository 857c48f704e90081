"""Layouts: every file goes where the list says, masks keep their meaning, faults are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from zlib import crc32

import nibabel as nib
import numpy as np
import pytest
from skimage.io import imread, imsave

from medseg_diff.data.caselist import CaseList, load_caselist, save_caselist, verify_hashes
from medseg_diff.data.gather import About, Labels, Split
from medseg_diff.data.layouts import (
    from_brats,
    from_chase,
    from_decathlon,
    from_folders,
    from_hippocampus,
    from_lidc,
    from_nnunet_raw,
)
from medseg_diff.data.nuclei import from_dsb2018
from medseg_diff.errors import InputError

BINARY = Labels({"background": 0, "lesion": 1})
TOY = About("Toy", "CC0", "RGB")


def nifti(path: Path, values: Any, dtype: str = "int16") -> Path:
    """Write a NIfTI whose orientation is stated, 1 x 2 x 3 mm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(np.asarray(values, dtype=dtype), np.diag([1.0, 2.0, 3.0, 1.0]))
    image.set_sform(image.affine, 1)
    image.set_qform(image.affine, 1)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


def volume(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 900, shape or (5, 4, 3))


def values(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def png(path: Path, array: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    imsave(path, np.asarray(array, dtype=np.uint8), check_contrast=False)
    return path


def picture(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape or (8, 6))


def check(caselist: CaseList) -> None:
    """What holds for every layout: it saves, loads back the same, and its hashes are right."""
    save_caselist(caselist, caselist.root / "cases.json")
    assert load_caselist(caselist.root, verify=True) == caselist


def count(caselist: CaseList) -> tuple[int, int, int]:
    train, validation, test = (caselist.part(p) for p in ("train", "validation", "test"))  # type: ignore[arg-type]
    return len(train), len(validation), len(test)


@pytest.fixture
def nnunet(tmp_path: Path) -> Path:
    """Six training and two test cases of two channels, with a region-based dataset.json."""
    folder = tmp_path / "Dataset001_Toy"
    for i in range(8):
        suffix = "Tr" if i < 6 else "Ts"
        for channel in range(2):
            nifti(
                folder / f"images{suffix}/p{i // 2}_v{i}_{channel:04d}.nii.gz",
                volume(9 * i + channel),
            )
        nifti(folder / f"labels{suffix}/p{i // 2}_v{i}.nii.gz", volume(i) % 4)
    description = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {
            "background": 0,
            "whole": [1, 2, 3],
            "core": [2, 3],
            "enhancing": 3,
            "ignore": 4,
        },
        "licence": "CC0",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def test_nnunet_copies(nnunet: Path, tmp_path: Path) -> None:
    caselist = from_nnunet_raw(nnunet, tmp_path / "out", patient_pattern=r"^(p\d+)_")
    check(caselist)
    assert count(caselist) == (4, 2, 2), "one of three patients validates"
    assert caselist.root == tmp_path / "out"
    assert (caselist.channels, caselist.modality, caselist.licence) == (("T1", "T2"), "MR", "CC0")
    assert caselist.labels == {"background": 0, "label 1": 1, "label 2": 2, "enhancing": 3}
    assert caselist.structures == {"whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}
    assert caselist.ignore_label == 4
    for case in caselist.cases:
        suffix = "Ts" if case.part == "test" else "Tr"
        assert case.patient == case.case[:2]
        for index, path in enumerate(caselist.channel_paths(case).values()):
            original = nnunet / f"images{suffix}/{case.case}_{index:04d}.nii.gz"
            assert path.read_bytes() == original.read_bytes()
        (mask,) = caselist.reference_paths(case)
        assert mask.read_bytes() == (nnunet / f"labels{suffix}/{case.case}.nii.gz").read_bytes()


def test_nnunet_in_place_writes_nothing(nnunet: Path) -> None:
    before = sorted(nnunet.rglob("*"))
    caselist = from_nnunet_raw(nnunet)
    assert sorted(nnunet.rglob("*")) == before
    assert caselist.root == nnunet
    assert caselist.part("test")[0].references == ("labelsTs/p3_v6.nii.gz",)
    check(caselist)


def test_nnunet_without_description_and_without_test_masks(nnunet: Path) -> None:
    (nnunet / "dataset.json").unlink()
    with pytest.raises(InputError, match=r"no dataset.json"):
        from_nnunet_raw(nnunet)
    (nnunet / "labelsTs/p3_v7.nii.gz").unlink()
    labels = Labels({"background": 0, "a": 1, "b": 2, "c": 3})
    caselist = from_nnunet_raw(nnunet, channels=["A", "B"], labels=labels, exclude=["p0_v0"])
    assert count(caselist) == (4, 1, 2)
    assert "p0_v0" not in {case.case for case in caselist.cases}
    assert [len(case.references) for case in caselist.part("test")] == [1, 0]
    assert caselist.structures == {"a": [1], "b": [2], "c": [3]}


def test_F75_nnunet_lists_everything_unpaired(nnunet: Path, tmp_path: Path) -> None:
    (nnunet / "labelsTr/p0_v0.nii.gz").unlink()
    (nnunet / "labelsTr/p1_v2.nii.gz").unlink()
    with pytest.raises(InputError, match=r"images without a mask \(found p0_v0, p1_v2\)"):
        from_nnunet_raw(nnunet, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nnunet_refuses_masks_without_image(nnunet: Path) -> None:
    for suffix, case in (("Ts", "p9_v9"), ("Tr", "p8_v8")):
        nifti(nnunet / f"labels{suffix}/{case}.nii.gz", volume(0) % 4)
        with pytest.raises(InputError, match=rf"masks without an image \(found {case}\)"):
            from_nnunet_raw(nnunet)
        (nnunet / f"labels{suffix}/{case}.nii.gz").unlink()
    assert count(from_nnunet_raw(nnunet)) == (5, 1, 2)


def test_nnunet_refuses_a_missing_channel_and_unnumbered_images(nnunet: Path) -> None:
    path = nnunet / "imagesTr/p0_v1_0001.nii.gz"
    path.rename(nnunet / "imagesTr/p0_v1_0002.nii.gz")
    with pytest.raises(InputError, match=r"p0_v1: channel files differ.*_0000, _0002"):
        from_nnunet_raw(nnunet)
    (nnunet / "imagesTr/p0_v1_0002.nii.gz").rename(nnunet / "imagesTr/p0_v1.nii.gz")
    with pytest.raises(InputError, match="without a channel number"):
        from_nnunet_raw(nnunet)


def test_a_leak_is_refused_before_anything_is_written(nnunet: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="patients in more than one part"):
        from_nnunet_raw(nnunet, tmp_path / "out", patient_pattern="^p", split=Split(validation=0))
    assert not (tmp_path / "out").exists()


def test_the_same_image_in_test_is_found(nnunet: Path) -> None:
    source, target = nnunet / "imagesTr/p0_v0_0000.nii.gz", nnunet / "imagesTs/p3_v6_0000.nii.gz"
    target.write_bytes(source.read_bytes())
    with pytest.raises(InputError, match=r"one image in more than one part.*p0_v0 = p3_v6"):
        from_nnunet_raw(nnunet)


def test_nnunet_colour_file_is_one_channel(tmp_path: Path) -> None:
    for i in range(3):
        png(tmp_path / f"imagesTr/x{i}_0000.png", picture(i, 8, 6, 3))
        png(tmp_path / f"labelsTr/x{i}.png", picture(i) % 2)
    description = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": {"background": 0, "lesion": 1},
    }
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    caselist = from_nnunet_raw(tmp_path)
    assert (caselist.channels, caselist.modality) == (("RGB",), "RGB")
    assert count(caselist) == (2, 1, 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"channel_names": None}, "no channel names"), ({"channel_names": {"1": "T1"}}, "no channel"),
     ({"labels": {}}, "no labels"), ({"labels": {"a": "x"}}, "not whole numbers")],
)  # fmt: skip
def test_bad_descriptions(nnunet: Path, change: dict[str, object], words: str) -> None:
    path = nnunet / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=words):
        from_nnunet_raw(nnunet)


@pytest.fixture
def decathlon(tmp_path: Path) -> Path:
    folder = tmp_path / "Task99"
    names = [f"case_{i}.nii.gz" for i in range(4)]
    for i, name in enumerate(names):
        nifti(folder / "imagesTr" / name, volume(i, 5, 4, 3, 2), "float32")
        nifti(folder / "labelsTr" / name, volume(i) % 2)
    nifti(folder / "imagesTs/case_9.nii.gz", volume(9, 5, 4, 3, 2), "float32")
    description = {
        "name": "Toy task",
        "licence": "CC-BY-SA 4.0",
        "modality": {"0": "FLAIR", "1": "T1w"},
        "labels": {"0": "background", "1": "lesion"},
        "training": [
            {"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names
        ],
        "test": ["./imagesTs/case_9.nii.gz"],
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def test_decathlon_splits_4d_images(decathlon: Path, tmp_path: Path) -> None:
    caselist = from_decathlon(decathlon, tmp_path / "out")
    check(caselist)
    assert count(caselist) == (3, 1, 1)
    assert (caselist.name, caselist.licence) == ("Toy task", "CC-BY-SA 4.0")
    assert caselist.channels == ("FLAIR", "T1w")
    assert caselist.labels == {"background": 0, "lesion": 1}
    for case in caselist.cases:
        suffix = "Ts" if case.part == "test" else "Tr"
        original = nib.load(decathlon / f"images{suffix}/{case.case}.nii.gz")
        for index, path in enumerate(caselist.channel_paths(case).values()):
            np.testing.assert_array_equal(values(path), np.asarray(original.dataobj)[..., index])
            np.testing.assert_allclose(nib.load(path).affine, original.affine)
    assert caselist.part("test")[0].references == ()


def test_decathlon_refusals(decathlon: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be split into channels"):
        from_decathlon(decathlon)
    path = decathlon / "dataset.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "modality": {"0": "a", "1": "b", "2": "c"}}))
    with pytest.raises(InputError, match=r"volumes differ.*found 2; expected 3"):
        from_decathlon(decathlon, tmp_path / "out")
    path.write_text(json.dumps({**content, "training": ["a.nii.gz"]}))
    with pytest.raises(InputError, match="not a Decathlon list"):
        from_decathlon(decathlon, tmp_path / "out")


def test_decathlon_with_one_modality_in_place(decathlon: Path) -> None:
    path = decathlon / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "modality": {"0": "CT"}}))
    caselist = from_decathlon(decathlon, split=Split(validation=0.25, test=0.25))
    assert (caselist.modality, caselist.root) == ("CT", decathlon)
    assert count(caselist) == (2, 1, 2)
    (decathlon / "imagesTr/case_2.nii.gz").unlink()
    with pytest.raises(InputError, match=r"files are missing \(found case_2.nii.gz\)"):
        from_decathlon(decathlon)


@pytest.fixture
def isic(tmp_path: Path) -> Path:
    for i in range(6):
        png(tmp_path / f"images/ISIC_{i}.png", picture(i, 8, 6, 3))
        ending = ("", "_segmentation", "_mask")[i % 3]
        png(tmp_path / f"masks/ISIC_{i}{ending}.png", 255 * (picture(i) % 2))
    png(tmp_path / "images/ISIC_0_superpixels.png", picture(0))
    (tmp_path / "images/LICENSE.txt").write_text("CC0")
    return tmp_path


def test_folders_make_masks_0_and_1(isic: Path) -> None:
    split = Split(validation=0.2, test=0.3)
    caselist = from_folders(isic / "images", isic / "masks", isic / "out", about=TOY, split=split)
    check(caselist)
    assert count(caselist) == (3, 1, 2)
    for i, case in enumerate(caselist.cases):
        assert (case.case, case.patient) == (f"ISIC_{i}", f"ISIC_{i}")
        np.testing.assert_array_equal(imread(caselist.reference_paths(case)[0]), picture(i) % 2)
        (image,) = caselist.channel_paths(case).values()
        assert image.read_bytes() == (isic / f"images/ISIC_{i}.png").read_bytes()


def test_folders_take_patients_sites_and_parts_from_a_table(isic: Path) -> None:
    rows = ["case,patient,site,part,age"]
    rows += [f"ISIC_{i},007,{'north' if i else ''},{'test' if i > 3 else ''},9" for i in range(6)]
    (isic / "t.csv").write_text("\n".join(rows).replace("007,north,test", "008,north,test"))
    build = lambda split: from_folders(  # noqa: E731
        isic / "images", isic / "masks", isic / "out", about=TOY, table=isic / "t.csv", split=split
    )
    caselist = build(Split(validation=0))
    assert count(caselist) == (4, 0, 2)
    assert {c.patient for c in caselist.part("train")} == {"007"}, "leading zeros are kept"
    assert [c.site for c in caselist.cases] == [None, *["north"] * 5]
    with pytest.raises(InputError, match="fewer patients than parts"):
        build(Split(validation=0.1))
    (isic / "t.csv").write_text("case\nISIC_0\nISIC_1\n")
    with pytest.raises(InputError, match=r"t.csv: case: cases without a row.*ISIC_2, ISIC_3"):
        build(Split())
    (isic / "t.csv").write_text("image\nISIC_0\n")
    with pytest.raises(InputError, match="no column 'case'"):
        build(Split())


def test_folders_refuse_grey_masks_unless_given_a_threshold(isic: Path) -> None:
    mask = np.array([[0, 100, 128], [200, 255, 0]])
    png(isic / "masks/ISIC_0.png", mask)
    with pytest.raises(InputError, match=r"ISIC_0.png: mask is not binary.*4 values"):
        from_folders(isic / "images", isic / "masks", isic / "out", about=TOY)
    caselist = from_folders(isic / "images", isic / "masks", isic / "out", about=TOY, threshold=128)
    written = imread(caselist.reference_paths(caselist.cases[0])[0])
    np.testing.assert_array_equal(written, [[0, 0, 1], [1, 1, 0]])


def test_folders_with_named_labels_keep_and_check_the_masks(isic: Path) -> None:
    labels = Labels({"background": 0, "a": 1, "b": 2}, ignore=255)
    for i in range(6):
        png(isic / f"masks/{i}.png", np.where(picture(i) % 5 > 2, 255, picture(i) % 5))
        (isic / f"masks/{i}.png").replace(next((isic / "masks").glob(f"ISIC_{i}*")))
    build = lambda: from_folders(  # noqa: E731
        isic / "images", isic / "masks", isic / "out", about=TOY, labels=labels
    )
    caselist = build()
    (mask,) = caselist.reference_paths(caselist.cases[1])
    assert set(np.unique(imread(mask))) == {0, 1, 2, 255}
    png(isic / "masks/ISIC_0.png", np.full((8, 6), 7))
    with pytest.raises(InputError, match="7"):
        build()


def test_folders_may_be_one_folder_and_must_pair(isic: Path) -> None:
    both = isic / "both"
    for i in range(3):
        png(both / f"x{i}.png", picture(i, 8, 6, 3))
        png(both / f"x{i}_mask.png", picture(i) % 2)
    caselist = from_folders(both, both, isic / "out", about=TOY)
    assert [c.case for c in caselist.cases] == ["x0", "x1", "x2"]
    (isic / "masks/ISIC_1_segmentation.png").unlink()
    with pytest.raises(InputError, match=r"images without a mask \(found ISIC_1\)"):
        from_folders(isic / "images", isic / "masks", isic / "out", about=TOY)


def brats_case(home: Path, endings: tuple[str, ...], mask: Any) -> None:
    for ending in endings:
        nifti(home / f"{home.name}{ending}.nii.gz", volume(crc32(f"{home.name}{ending}".encode())))
    nifti(home / f"{home.name}{endings[0][0]}seg.nii.gz", mask, "uint8")


OLD = ("_t1", "_t1ce", "_t2", "_flair")
NEW = ("-t1n", "-t1c", "-t2w", "-t2f")


def test_brats_old_names_move_4_to_3(tmp_path: Path) -> None:
    mask = np.arange(60).reshape(5, 4, 3) % 4
    mask[mask == 3] = 4
    for i in range(4):
        brats_case(tmp_path / f"in/HGG/BraTS20_{i:03d}", OLD, mask)
    caselist = from_brats(tmp_path / "in", tmp_path / "out")
    check(caselist)
    assert count(caselist) == (2, 1, 1)
    assert caselist.structures == {"whole": [1, 2, 3], "core": [1, 3], "enhancing": [3]}
    for case in caselist.cases:
        written = values(caselist.reference_paths(case)[0])
        np.testing.assert_array_equal(written, np.arange(60).reshape(5, 4, 3) % 4)
        home = tmp_path / f"in/HGG/{case.case}"
        for name, ending in zip(("T1", "T1Gd", "T2", "FLAIR"), OLD, strict=True):
            source = home / f"{case.case}{ending}.nii.gz"
            assert caselist.channel_paths(case)[name].read_bytes() == source.read_bytes()


def test_brats_new_names_and_visits(tmp_path: Path) -> None:
    mask = np.arange(60).reshape(5, 4, 3) % 4
    for patient, visit in ((1, 0), (1, 1), (2, 0), (3, 0)):
        brats_case(tmp_path / f"in/BraTS-GLI-0000{patient}-00{visit}", NEW, mask)
    caselist = from_brats(tmp_path / "in", tmp_path / "out")
    assert {c.patient for c in caselist.cases} == {f"BraTS-GLI-0000{i}" for i in (1, 2, 3)}
    case = caselist.cases[0]
    source = tmp_path / "in/BraTS-GLI-00001-000/BraTS-GLI-00001-000-t1c.nii.gz"
    assert caselist.channel_paths(case)["T1Gd"].read_bytes() == source.read_bytes()
    np.testing.assert_array_equal(values(caselist.reference_paths(case)[0]), mask)
    brats_case(tmp_path / "in/BraTS-GLI-00004-000", NEW, mask + (mask == 3))
    with pytest.raises(InputError, match="resection cavity"):
        from_brats(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize("bad", [5, None])
def test_brats_refusals(tmp_path: Path, bad: int | None) -> None:
    mask = np.arange(60).reshape(5, 4, 3) % 3
    for i in range(3):
        brats_case(tmp_path / f"in/BraTS20_{i}", OLD, mask)
    path = tmp_path / "in/BraTS20_1/BraTS20_1_seg.nii.gz"
    if bad is None:
        path.unlink()
    else:
        nifti(path, np.where(mask == 2, bad, mask), "uint8")
    words = "cases without seg.*BraTS20_1" if bad is None else "BraTS20_1_seg.nii.gz: not a BraTS"
    with pytest.raises(InputError, match=words):
        from_brats(tmp_path / "in", tmp_path / "out")


def test_lidc_unpacks_bits(tmp_path: Path) -> None:
    packed = np.arange(48).reshape(8, 6) % 16
    for i, suffix in enumerate(("Tr", "Tr", "Tr", "Ts")):
        name = f"LIDC-IDRI-000{i}_nodule-0_slice-1.png"
        png(tmp_path / f"in/images{suffix}/{name}", picture(i))
        png(tmp_path / f"in/labels{suffix}/{name}", packed)
    caselist = from_lidc(tmp_path / "in", tmp_path / "out")
    check(caselist)
    assert count(caselist) == (2, 1, 1)
    case = caselist.part("test")[0]
    assert case.patient == "LIDC-IDRI-0003"
    raters = [imread(path) for path in caselist.reference_paths(case)]
    assert all(set(np.unique(r)) == {0, 1} for r in raters)
    np.testing.assert_array_equal(raters[0] + 2 * raters[1] + 4 * raters[2] + 8 * raters[3], packed)
    png(tmp_path / "in/labelsTr/LIDC-IDRI-0001_nodule-0_slice-1.png", packed + 1)
    with pytest.raises(InputError, match="not four bits"):
        from_lidc(tmp_path / "in", tmp_path / "out")


def test_chase_original_layout(tmp_path: Path) -> None:
    for child in (1, 2, 3, 11, 14):
        for eye in "LR":
            stem = f"Image_{child:02d}{eye}"
            png(tmp_path / f"in/{stem}.png", picture(100 * child + ord(eye), 8, 6, 3))
            for r, ending in enumerate(("1stHO", "2ndHO")):
                png(tmp_path / f"in/{stem}_{ending}.png", 255 * (picture(child + r) % 2))
    caselist = from_chase(tmp_path / "in", tmp_path / "out")
    check(caselist)
    assert count(caselist) == (4, 2, 4)
    assert {c.patient for c in caselist.part("test")} == {"chase_11", "chase_14"}
    case = next(c for c in caselist.cases if c.case == "Image_02L")
    first, second = (imread(path) for path in caselist.reference_paths(case))
    np.testing.assert_array_equal(first, picture(2) % 2)
    np.testing.assert_array_equal(second, picture(3) % 2)
    (tmp_path / "in/Image_03R_2ndHO.png").unlink()
    with pytest.raises(InputError, match=r"Image_03R.png: a reader's mask is missing"):
        from_chase(tmp_path / "in", tmp_path / "out")


def test_dsb_mixed_domains_become_colour(tmp_path: Path) -> None:
    for domain, shape in (("fluo", (8, 6)), ("histo", (8, 6, 3))):
        for i, suffix in enumerate(("Tr", "Tr", "Tr", "Ts")):
            seed = i + len(domain)
            png(tmp_path / f"in/{domain}/images{suffix}/{domain}{i}.png", picture(seed, *shape))
            png(tmp_path / f"in/{domain}/labels{suffix}/{domain}{i}.png", picture(seed) % 7)
    caselist = from_dsb2018(tmp_path / "in", tmp_path / "out")
    check(caselist)
    assert caselist.modality == "RGB"
    assert {c.site for c in caselist.cases} == {"fluo", "histo"}
    by_id = {c.case: c for c in caselist.cases}
    grey = imread(caselist.channel_paths(by_id["fluo1"])["image"])
    np.testing.assert_array_equal(grey, np.stack([picture(5)] * 3, axis=-1))
    histo = caselist.channel_paths(by_id["histo1"])["image"]
    assert histo.read_bytes() == (tmp_path / "in/histo/imagesTr/histo1.png").read_bytes()
    mask = imread(caselist.reference_paths(by_id["fluo1"])[0])
    np.testing.assert_array_equal(mask, picture(5) % 7 > 0)
    alone = from_dsb2018(tmp_path / "in", tmp_path / "alone", domains=["fluo"])
    assert (alone.modality, len(alone.cases)) == ("other", 4)
    assert imread(alone.channel_paths(alone.cases[0])["image"]).shape == (8, 6)


def test_dsb_in_grey_is_luminance_and_not_turned_around(tmp_path: Path) -> None:
    for domain, shape in (("fluo", (8, 6)), ("histo", (8, 6, 3))):
        for i, suffix in enumerate(("Tr", "Tr", "Tr", "Ts")):
            png(tmp_path / f"in/{domain}/images{suffix}/{domain}{i}.png", picture(i, *shape))
            png(tmp_path / f"in/{domain}/labels{suffix}/{domain}{i}.png", picture(i) % 7)
    caselist = from_dsb2018(tmp_path / "in", tmp_path / "out", grey=True)
    check(caselist)
    assert caselist.modality == "other"
    by_id = {c.case: c for c in caselist.cases}
    grey = imread(caselist.channel_paths(by_id["fluo1"])["image"])
    np.testing.assert_array_equal(grey, picture(1, 8, 6))
    colour = picture(1, 8, 6, 3).astype(float)
    wanted = 0.2125 * colour[..., 0] + 0.7154 * colour[..., 1] + 0.0721 * colour[..., 2]
    found = imread(caselist.channel_paths(by_id["histo1"])["image"])
    assert found.shape == (8, 6)
    np.testing.assert_allclose(found, wanted, atol=0.51)


def test_rebuilding_is_deterministic(nnunet: Path, tmp_path: Path) -> None:
    first = from_nnunet_raw(nnunet, tmp_path / "out")
    assert from_nnunet_raw(nnunet, tmp_path / "out") == first
    verify_hashes(first)
    other = from_nnunet_raw(nnunet, tmp_path / "out", split=Split(seed=1))
    assert {c.case for c in other.part("validation")} != {c.case for c in first.part("validation")}


def test_real_hippocampus(shared_data: Path) -> None:
    caselist = from_hippocampus(shared_data / "msd_hippocampus", leave_out=["hippocampus_001"])
    assert count(caselist) == (161, 18, 28)
    assert all(case.patient == case.case for case in caselist.cases)
    assert len(caselist.cases[0].sha256) == 2


def test_real_multimodal(shared_data: Path, tmp_path: Path) -> None:
    caselist = from_nnunet_raw(
        shared_data / "ms_multimodal", tmp_path, channels=["T1", "T1Gd", "T2", "FLAIR"],
        labels=BINARY, patient_pattern=r"patient\d+",
    )  # fmt: skip
    check(caselist)
    assert count(caselist) == (1, 1, 0)
    assert {c.patient for c in caselist.cases} == {"patient07", "patient19"}


def test_real_lidc(shared_data: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    for kind in ("images", "labels"):
        for suffix, n in (("Tr", 20), ("Ts", 8)):
            (source / f"{kind}{suffix}").mkdir(parents=True)
            folder = shared_data / f"lidc_nodules_4raters/{kind}{suffix}"
            for path in sorted(folder.iterdir())[:n]:
                (source / f"{kind}{suffix}" / path.name).symlink_to(path)
    caselist = from_lidc(source, tmp_path / "out")
    check(caselist)
    assert len(caselist.part("test")) == 8
    for case in caselist.cases:
        assert len(case.references) == 4
        masks = [imread(path) for path in caselist.reference_paths(case)]
        assert sum(int(mask.sum()) for mask in masks) > 0


def test_real_chase(shared_data: Path, tmp_path: Path) -> None:
    caselist = from_chase(shared_data / "retina_chase_db1", tmp_path)
    check(caselist)
    assert count(caselist) == (14, 2, 4)
    # The two readers' published agreement on the test eyes, as the dataset's notes give it.
    dice = []
    for case in caselist.part("test"):
        first, second = (imread(path) > 0 for path in caselist.reference_paths(case))
        dice.append(2 * (first & second).sum() / (first.sum() + second.sum()))
    assert np.mean(dice) == pytest.approx(0.777, abs=0.002)


def test_real_nuclei(shared_data: Path, tmp_path: Path) -> None:
    caselist = from_dsb2018(shared_data / "dsb2018_nuclei", tmp_path, domains=["histo320"])
    check(caselist)
    assert count(caselist) == (43, 5, 20)
    assert caselist.modality == "RGB"


@pytest.mark.parametrize(
    ("script", "extra"),
    [("nnunet_raw", ["--patient-pattern", r"^(p\d+)_"]), ("hippocampus", ["--help"]),
     ("decathlon", ["--help"]), ("folders", ["--help"]), ("brats", ["--help"]),
     ("lidc", ["--help"]), ("chase", ["--help"]), ("dsb2018", ["--help"]),
     ("build_sample", ["--help"])],
)  # fmt: skip
def test_scripts_run(script: str, extra: list[str], nnunet: Path, repository: Path) -> None:
    program = repository / "data_prep" / f"{script}.py"
    done = subprocess.run(
        [sys.executable, program, "--data", nnunet, *extra],
        capture_output=True, text=True, check=False, cwd=repository,
        env={"PYTHONPATH": str(repository), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    if extra[0] == "--help":
        assert "--validation" in done.stdout or "--out" in done.stdout
    else:
        assert count(load_caselist(nnunet)) == (4, 2, 2)
        assert "train" in done.stdout


def test_a_script_refuses_in_one_line(tmp_path: Path, repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, repository / "data_prep/lidc.py", "--data", tmp_path, "--out", tmp_path],
        capture_output=True, text=True, check=False, cwd=repository,
        env={"PYTHONPATH": str(repository), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: imagesTr: no such folder")
    assert done.stderr.count("\n") == 1
