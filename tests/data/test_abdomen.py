"""CHAOS and BTCV from fake files: slices, sides and order voxel by voxel, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medseg_diff.data.abdomen import from_abdomen, masks_of
from medseg_diff.data.caselist import CaseList
from medseg_diff.errors import InputError
from medseg_diff.io import read_image, read_label
from tests.data.test_domains import everywhere, label_of
from tests.data.test_layouts import nifti, volume
from tests.io.dicom_series import Series

# Columns, rows and slices differ, so that no axis can take another's place.
SHAPE = (6, 5, 4)
GREYS = np.array([0, 63, 126, 189, 252])
# Axial slices as scanners write them: columns to the patient's left, rows to the back.
AFFINE = np.diag([-1.5, -1.5, 7.0, 1.0])
AFFINE[:3, 3] = (40, 30, -20)
PATIENTS = ("1", "10", "13", "2")


def organs(seed: int) -> np.ndarray:
    """Labels (I, J, K) of a made-up patient."""
    return np.random.default_rng(seed).integers(0, 5, SHAPE)


def sequence(
    home: Path,
    label: np.ndarray,
    *,
    values: np.ndarray,
    phase: str = "",
    first: int = 1,
    step: int = 1,
    rising: bool = True,
) -> None:
    """Slices named by number, which rises or falls with the position, and their masks."""
    folder = home / "DICOM_anon" / phase
    files = Series(values, AFFINE).write(folder)
    for k, file in enumerate(files):
        number = first + step * (k if rising else len(files) - 1 - k)
        name = f"IMG-0004-{number:05d}"
        file.rename(folder / f"_{name}.dcm")
        mask(home / "Ground" / f"{name}.png", GREYS[label[:, :, k]])
    for path in folder.glob("_*"):
        path.rename(folder / path.name[1:])


def mask(path: Path, greys: np.ndarray) -> None:
    """A mask indexed [column, row] as a picture of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(greys.T.astype(np.uint8)).save(path)


def download(folder: Path, *, rising: bool = True) -> None:
    """Four patients of each set, and a test scan of each."""
    for n, patient in enumerate(PATIENTS):
        home = folder / "CHAOS" / "Train_Sets" / "MR" / patient / "T2SPIR"
        sequence(home, organs(n), values=volume(n, *SHAPE), rising=rising)
    lonely = folder / "CHAOS" / "Test_Sets" / "MR" / "3" / "T2SPIR"
    Series(volume(90, *SHAPE), AFFINE).write(lonely / "DICOM_anon")
    btcv = folder / "Abdomen" / "RawData"
    for n in range(1, 5):
        nifti(btcv / "Training" / "img" / f"img{n:04d}.nii.gz", volume(100 + n, 7, 2, 1))
        every = np.roll(np.arange(14), n).reshape(7, 2, 1)
        nifti(btcv / "Training" / "label" / f"label{n:04d}.nii.gz", every)
    nifti(btcv / "Testing" / "img" / "img0061.nii.gz", volume(9, 7, 2, 1))


def scan_of(caselist: CaseList, name: str) -> Path:
    case = next(c for c in caselist.cases if c.case == name)
    return caselist.channel_paths(case)["image"]


@pytest.mark.parametrize("rising", [True, False], ids=["numbers rise", "numbers fall"])
def test_each_slice_gets_the_mask_of_its_name(tmp_path: Path, rising: bool):
    download(tmp_path / "in", rising=rising)
    caselist = from_abdomen(tmp_path / "in", tmp_path / "out")
    everywhere(caselist, {"MR", "CT"})
    assert len(caselist.cases) == 8
    for n, patient in enumerate(PATIENTS):
        image = read_image(scan_of(caselist, f"chaos_{patient}"))
        np.testing.assert_array_equal(np.asarray(image)[0], volume(n, *SHAPE))
        np.testing.assert_allclose(np.asarray(image.affine), AFFINE, atol=1e-5)
        np.testing.assert_array_equal(label_of(caselist, f"chaos_{patient}"), organs(n))
    case = next(c for c in caselist.cases if c.case == "chaos_2")
    read_label(caselist.reference_paths(case)[0], like=image)


def test_a_right_kidney_lies_on_the_patients_right_in_both_sets(tmp_path: Path):
    download(tmp_path / "in")
    sides = np.zeros(SHAPE, int)
    # Voxels rise to the left here, so the low ones are the right side.
    sides[0], sides[-1] = 2, 3
    home = tmp_path / "in" / "CHAOS" / "Train_Sets" / "MR" / "1" / "T2SPIR"
    for file in (home / "Ground").iterdir():
        mask(file, GREYS[sides[:, :, 0]])
    # BTCV's own numbers; in this grid voxels rise to the right.
    kidneys = np.zeros((7, 2, 1), int)
    kidneys[6], kidneys[0] = 2, 3
    raw = tmp_path / "in" / "Abdomen" / "RawData" / "Training"
    nifti(raw / "label" / "label0001.nii.gz", kidneys)
    caselist = from_abdomen(tmp_path / "in", tmp_path / "out")
    assert caselist.labels["right_kidney"] == 2
    assert caselist.labels["left_kidney"] == 3
    for name in ("chaos_1", "btcv_0001"):
        case = next(c for c in caselist.cases if c.case == name)
        label = read_label(caselist.reference_paths(case)[0])
        affine, values = np.asarray(label.affine), np.asarray(label)[0]
        # The first world axis points to the patient's right.
        x = {v: (affine @ np.r_[np.argwhere(values == v).mean(axis=0), 1])[0] for v in (2, 3)}
        assert x[2] > x[3], name


def test_btcv_keeps_the_four_common_organs(tmp_path: Path):
    download(tmp_path / "in")
    caselist = from_abdomen(tmp_path / "in", tmp_path / "out")
    assert caselist.labels == {
        "background": 0, "liver": 1, "right_kidney": 2, "left_kidney": 3, "spleen": 4,
    }  # fmt: skip
    common = np.array([0, 4, 2, 3, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])
    for n in range(1, 5):
        expected = common[np.roll(np.arange(14), n)].reshape(7, 2, 1)
        np.testing.assert_array_equal(label_of(caselist, f"btcv_{n:04d}"), expected)
        found = np.asarray(read_image(scan_of(caselist, f"btcv_{n:04d}")))[0]
        np.testing.assert_array_equal(found, volume(100 + n, 7, 2, 1))


def test_both_phases_take_the_masks_of_one(tmp_path: Path):
    download(tmp_path / "in")
    for n, patient in enumerate(PATIENTS):
        home = tmp_path / "in" / "CHAOS" / "Train_Sets" / "MR" / patient / "T1DUAL"
        inner = volume(50 + n, *SHAPE)
        sequence(home, organs(20 + n), values=inner, phase="InPhase", first=2, step=2)
        outer = {"values": volume(70 + n, *SHAPE), "phase": "OutPhase", "first": 1, "step": 2}
        sequence(home / "other", organs(20 + n), **outer)
        (home / "other" / "DICOM_anon" / "OutPhase").rename(home / "DICOM_anon" / "OutPhase")
    for phase, first in (("InPhase", 50), ("OutPhase", 70)):
        caselist = from_abdomen(tmp_path / "in", tmp_path / phase, sequence=f"T1DUAL/{phase}")
        for n, patient in enumerate(PATIENTS):
            np.testing.assert_array_equal(label_of(caselist, f"chaos_{patient}"), organs(20 + n))
            image = np.asarray(read_image(scan_of(caselist, f"chaos_{patient}")))[0]
            np.testing.assert_array_equal(image, volume(first + n, *SHAPE))


def test_numbers_are_read_as_numbers():
    slices = [Path(f"a{n}.dcm") for n in (1, 2, 10)]
    masks = [Path(f"m{n}.png") for n in (1, 10, 2)]
    assert [p.stem for p in masks_of(slices, masks)] == ["m1", "m2", "m10"]


def test_an_order_that_two_rules_read_differently_is_refused():
    slices = [Path(f"a{n}.dcm") for n in (3, 2, 1)]
    masks = [Path(f"m{n}.png") for n in (1, 2, 3)]
    with pytest.raises(InputError, match=r"a3.dcm: ImagePositionPatient: .* differently.*Take the"):
        masks_of(slices, masks)


def _lose_a_mask(ground: Path) -> None:
    (ground / "IMG-0004-00002.png").unlink()


def _add_a_mask(ground: Path) -> None:
    mask(ground / "IMG-0004-00009.png", np.zeros(SHAPE[:2]))


def _grey(ground: Path) -> None:
    mask(ground / "IMG-0004-00003.png", np.full(SHAPE[:2], 55))


def _lose_the_scan(ground: Path) -> None:
    (ground.parent / "DICOM_anon").rename(ground.parent / "elsewhere")


def _transposed(ground: Path) -> None:
    mask(ground / "IMG-0004-00003.png", np.zeros(SHAPE[:2]).T)


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (_lose_a_mask, r"masks in Ground: slices and masks.*3, alone: IMG-0004-00002.*4, one a sl"),
        (_add_a_mask, r"masks in Ground: slices and masks.*5, alone: IMG-0004-00009; expected 4"),
        (
            _grey,
            r"00003.png: grey: unknown mask values \(found \[55\]; .*56 to 70 \(liver",
        ),
        (_lose_the_scan, r"10: T2SPIR: masks without a scan.*expected T2SPIR/DICOM_anon\). Unpack"),
        (_transposed, r"00003.png: rows x columns: .*found 6 x 5; expected 5 x 6\). Unpack"),
    ],
)
def test_masks_that_do_not_fit_are_refused(
    tmp_path: Path, spoil: Callable[[Path], None], line: str
):
    download(tmp_path / "in")
    spoil(tmp_path / "in" / "CHAOS" / "Train_Sets" / "MR" / "10" / "T2SPIR" / "Ground")
    with pytest.raises(InputError, match=line):
        from_abdomen(tmp_path / "in", tmp_path / "out")


def test_bad_files_of_btcv_are_refused(tmp_path: Path):
    download(tmp_path / "in")
    home = tmp_path / "in" / "Abdomen" / "RawData" / "Training" / "label"
    nifti(home / "label0002.nii.gz", np.full((7, 2, 1), 14))
    with pytest.raises(InputError, match=r"label0002.*unknown mask values.*\[14\]"):
        from_abdomen(tmp_path / "in", tmp_path / "out")
    nifti(home / "label0002.nii.gz", np.zeros((7, 2, 2)))
    with pytest.raises(InputError, match=r"label0002.*shape differs.*7, 2, 2.*7, 2, 1.*img0002"):
        from_abdomen(tmp_path / "in", tmp_path / "again")
    (home / "label0002.nii.gz").unlink()
    with pytest.raises(InputError, match=r"files are missing.*label0002"):
        from_abdomen(tmp_path / "in", tmp_path / "third")


@pytest.mark.parametrize(("lost", "line"), [("CHAOS", "CHAOS"), ("Abdomen", "BTCV")])
def test_a_set_that_is_not_there_is_named(tmp_path: Path, lost: str, line: str):
    download(tmp_path / "in")
    (tmp_path / "in" / lost).rename(tmp_path / lost)
    with pytest.raises(InputError, match=rf"in: no patient of {line} found.*any depth.*Give the"):
        from_abdomen(tmp_path / "in", tmp_path / "out")
    with pytest.raises(InputError, match="no patient of CHAOS"):
        from_abdomen(tmp_path / "nowhere", tmp_path / "out")
