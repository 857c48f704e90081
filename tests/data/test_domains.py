"""Sets of several sites from fake files: what becomes a case, whose it is, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medseg_diff.data import domains
from medseg_diff.data.caselist import CaseList, load_caselist
from medseg_diff.data.gather import About, Labels
from medseg_diff.errors import InputError
from medseg_diff.io import read_image, read_label
from tests.data.test_layouts import check, nifti, volume


def everywhere(caselist: CaseList, sites: set[str]) -> None:
    """Every site has cases of every part, and no patient straddles two."""
    check(caselist)
    assert {c.site for c in caselist.cases} == sites
    parts = Counter((c.site, c.part) for c in caselist.cases)
    for site in sites:
        assert all(parts[site, part] > 0 for part in ("train", "validation", "test"))


def label_of(caselist: CaseList, case: str, reader: int = 0) -> np.ndarray:
    found = next(c for c in caselist.cases if c.case == case)
    return np.asarray(read_label(caselist.reference_paths(found)[reader]))[0]


def test_mmwhs_renumbers_its_structures(tmp_path: Path):
    values = [0, 500, 600, 420, 550, 205, 820, 850]
    for site in ("ct", "mr"):
        for n in range(1001, 1005):
            home = tmp_path / "in" / f"{site}_train"
            nifti(home / f"{site}_train_{n}_image.nii.gz", volume(n, 2, 2, 2) + len(site + str(n)))
            mask = np.array(values).reshape(2, 2, 2)
            nifti(home / f"{site}_train_{n}_label.nii.gz", mask)
        nifti(tmp_path / "in" / f"{site}_test" / f"{site}_test_2001_image.nii.gz", volume(7, 2, 2))
    # Two patients may not share an image.
    for number, path in enumerate(sorted((tmp_path / "in").rglob("*_image.nii.gz"))):
        nifti(path, np.full((2, 2, 2), number))
    caselist = domains.from_mmwhs(tmp_path / "in", tmp_path / "out")
    everywhere(caselist, {"CT", "MR"})
    assert len(caselist.cases) == 8
    assert label_of(caselist, "ct_train_1002").ravel().tolist() == list(range(8))
    assert caselist.labels["pulmonary_artery"] == 7
    bad = tmp_path / "in" / "mr_train" / "mr_train_1003_label.nii.gz"
    nifti(bad, np.array([0, 421, 0, 0, 0, 0, 0, 0]).reshape(2, 2, 2))
    with pytest.raises(InputError, match=r"mr_train_1003_label.*unknown mask values.*421"):
        domains.from_mmwhs(tmp_path / "in", tmp_path / "again")


def write_prostates(folder: Path, sites: tuple[str, ...] = ("BMC", "UCL")) -> None:
    number = 0
    for site in sites:
        for n in range(4):
            number += 1
            nifti(folder / site / f"Case{n:02d}.nii.gz", np.full((2, 2, 2), number))
            ending = "Segmentation" if site == "UCL" else "segmentation"
            nifti(folder / site / f"Case{n:02d}_{ending}.nii.gz", volume(n, 2, 2, 2) % 3)


def test_prostates_keep_their_site(tmp_path: Path):
    write_prostates(tmp_path / "in")
    caselist = domains.from_prostate_sites(tmp_path / "in", tmp_path / "out")
    everywhere(caselist, {"BMC", "UCL"})
    # Case00 of two sites are two patients.
    assert {"BMC_case00", "UCL_case00"} <= {c.patient for c in caselist.cases}
    np.testing.assert_array_equal(label_of(caselist, "UCL_case01"), volume(1, 2, 2, 2) % 3 > 0)
    (tmp_path / "in/BMC/Case03_segmentation.nii.gz").unlink()
    with pytest.raises(InputError, match=r"images without a mask.*case03"):
        domains.from_prostate_sites(tmp_path / "in", tmp_path / "again")


def test_spinal_cords_have_four_readers(tmp_path: Path):
    number = 0
    for site in (1, 2):
        for n in range(1, 5):
            number += 1
            stem = tmp_path / "in" / f"site{site}-sc{n:02d}"
            nifti(stem.with_name(f"{stem.name}-image.nii.gz"), np.full((2, 2, 2), number))
            for r in range(1, 5):
                mask = np.full((2, 2, 2), (number + r) % 3)
                nifti(stem.with_name(f"{stem.name}-mask-r{r}.nii.gz"), mask)
    nifti(tmp_path / "in" / "site1-sc11-image.nii.gz", np.full((2, 2, 2), 99))
    caselist = domains.from_spinal_cord(tmp_path / "in", tmp_path / "out")
    everywhere(caselist, {"site1", "site2"})
    assert len(caselist.cases) == 8
    assert all(len(c.references) == 4 for c in caselist.cases)
    assert label_of(caselist, "site1-sc02", reader=2).ravel().tolist() == [(2 + 3) % 3] * 8
    (tmp_path / "in" / "site2-sc01-mask-r3.nii.gz").unlink()
    with pytest.raises(InputError, match=r"files are missing.*site2-sc01-mask-r3"):
        domains.from_spinal_cord(tmp_path / "in", tmp_path / "again")


def cine(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(values.astype(np.int16), np.eye(4))
    image.set_sform(np.eye(4), 1)
    image.set_qform(np.eye(4), 1)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def test_mnms_gives_two_volumes_of_each_patient(tmp_path: Path):
    lines = ["External code,Vendor,Centre,ED,ES"]
    for number in range(6):
        code, home = f"A{number}", tmp_path / "in" / "Training" / f"A{number}"
        scan = np.arange(2 * 2 * 2 * 5).reshape(2, 2, 2, 5) + 100 * number
        mask = np.zeros((2, 2, 2, 5))
        mask[..., 1], mask[..., 3] = 1, 3
        cine(home / f"{code}_sa.nii.gz", scan)
        cine(home / f"{code}_sa_gt.nii.gz", mask)
        lines.append(f"{code},{'AB'[number % 2]},{number % 3},1,3")
    cine(tmp_path / "in" / "Unlabeled" / "Z" / "Z_sa.nii.gz", np.zeros((2, 2, 2, 5)))
    table = tmp_path / "information.csv"
    table.write_text("\n".join(lines))
    caselist = domains.from_mnms(tmp_path / "in", tmp_path / "out", table=table)
    everywhere(caselist, {"Vendor_A", "Vendor_B"})
    assert len(caselist.cases) == 12
    case = next(c for c in caselist.cases if c.case == "A2_ES")
    image = np.asarray(read_image(caselist.channel_paths(case)["cine"]))[0]
    scan = np.arange(40).reshape(2, 2, 2, 5) + 200
    np.testing.assert_array_equal(image, scan[..., 3])
    assert (label_of(caselist, "A2_ES") == 3).all()
    assert (label_of(caselist, "A2_ED") == 1).all()
    assert case.patient == "A2"
    table.write_text("\n".join(lines[:-1]))
    with pytest.raises(InputError, match=r"not in the table.*A5"):
        domains.from_mnms(tmp_path / "in", tmp_path / "again", table=table)
    table.write_text("External code,ED\n")
    with pytest.raises(InputError, match=r"columns are missing.*ES, Vendor"):
        domains.from_mnms(tmp_path / "in", tmp_path / "again", table=table)


def eyes(folder: Path) -> None:
    """Four eyes a set, in the three sets' own formats."""
    rng = np.random.default_rng(0)

    def save(path: Path, *, mask: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if mask:
            Image.fromarray((rng.random((6, 8)) > 0.5).astype(np.uint8) * 255).save(path)
        else:
            Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)).save(path)

    for part, first in (("training", 21), ("test", 1)):
        for n in range(first, first + 2):
            save(folder / "DRIVE" / part / "images" / f"{n:02d}_{part}.tif")
            save(folder / "DRIVE" / part / "1st_manual" / f"{n:02d}_manual1.gif", mask=True)
    for n in range(1, 5):
        save(folder / "STARE" / "images" / f"im{n:04d}.ppm")
        save(folder / "STARE" / "labels" / f"im{n:04d}.ah.ppm", mask=True)
        for side in "LR":
            save(folder / "CHASE_DB1" / f"Image_{n:02d}{side}.jpg")
            save(folder / "CHASE_DB1" / f"Image_{n:02d}{side}_1stHO.png", mask=True)


def test_retinas_of_three_sets_become_one_list(tmp_path: Path):
    eyes(tmp_path / "in")
    caselist = domains.from_retina(tmp_path / "in", tmp_path / "out")
    everywhere(caselist, {"DRIVE", "STARE", "CHASE_DB1"})
    assert Counter(c.site for c in caselist.cases) == {"DRIVE": 4, "STARE": 4, "CHASE_DB1": 8}
    assert {c.patient for c in caselist.cases if c.case.startswith("chase_02")} == {"chase_02"}
    case = next(c for c in caselist.cases if c.case == "stare_im0002")
    with Image.open(tmp_path / "in/STARE/images/im0002.ppm") as image:
        original = np.moveaxis(np.asarray(image), -1, 0)
    # A raster is read with rows before columns, whatever wrote it.
    found = np.asarray(read_image(caselist.channel_paths(case)["RGB"]))
    assert np.array_equal(found.reshape(3, -1), original.reshape(3, -1)) or np.array_equal(
        np.swapaxes(found, 1, 2), original
    )
    assert set(np.unique(label_of(caselist, "drive_21"))) == {0, 1}
    grey = tmp_path / "in/STARE/labels/im0003.ah.ppm"
    Image.fromarray(np.array([[0, 128, 255]], np.uint8)).save(grey)
    with pytest.raises(InputError, match=r"not black and white.*1 grey"):
        domains.from_retina(tmp_path / "in", tmp_path / "again")


def test_folders_of_sites(tmp_path: Path):
    number = 0
    for site in ("one", "two"):
        for n in range(4):
            number += 1
            nifti(tmp_path / "in" / site / "images" / f"x{n}.nii.gz", np.full((2, 2, 2), number))
            nifti(tmp_path / "in" / site / "labels" / f"x{n}.nii.gz", np.full((2, 2, 2), n % 3))
    asked = {"about": About("Toy"), "labels": Labels({"background": 0, "a": 1, "b": 2})}
    caselist = domains.from_site_folders(tmp_path / "in", tmp_path / "out", **asked)
    everywhere(caselist, {"one", "two"})
    assert (label_of(caselist, "two_x2") == 2).all()
    nifti(tmp_path / "in" / "two" / "labels" / "x3.nii.gz", np.full((2, 2, 2), 5))
    with pytest.raises(InputError, match="x3"):
        domains.from_site_folders(tmp_path / "in", tmp_path / "again", **asked)


def test_a_site_of_too_few_patients_is_refused(tmp_path: Path):
    write_prostates(tmp_path / "in")
    for path in (tmp_path / "in" / "UCL").glob("Case0[23]*"):
        path.unlink()
    with pytest.raises(InputError, match="fewer patients than parts"):
        domains.from_prostate_sites(tmp_path / "in", tmp_path / "out")


def test_the_script(tmp_path: Path, repository: Path):
    write_prostates(tmp_path / "in")

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, repository / "data_prep" / "domains.py", "--data",
                   tmp_path / "in", "--out", tmp_path / "out", *words]  # fmt: skip
        return subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, check=False,
            cwd=repository, env={"PYTHONPATH": str(repository), "PATH": "/usr/bin:/bin"},
        )  # fmt: skip

    done = run("--set", "prostate")
    assert done.returncode == 0, done.stderr
    assert {c.site for c in load_caselist(tmp_path / "out").cases} == {"BMC", "UCL"}
    assert "--table" in run("--set", "mnms").stderr
    wrong = run("--set", "prostate", "--coding", "labels").stderr
    assert "--coding belongs to --set disc_folders" in wrong


def test_the_script_says_what_can_be_scored(tmp_path: Path, repository: Path):
    for n in range(1, 5):
        nifti(tmp_path / "in" / f"crossmoda_{n}_ceT1.nii.gz", np.full((2, 2, 2), n))
        nifti(tmp_path / "in" / f"crossmoda_{n}_Label.nii.gz", volume(n, 2, 2, 2) % 3)
        nifti(tmp_path / "in" / f"crossmoda_{n}00_hrT2.nii.gz", np.full((2, 2, 2), 100 * n))
    command = [sys.executable, repository / "data_prep" / "domains.py", "--set", "crossmoda",
               "--data", tmp_path / "in", "--out", tmp_path / "out"]  # fmt: skip
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False,
        cwd=repository, env={"PYTHONPATH": str(repository), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    assert rows[0] == ["cases", "patients", "with", "masks"]
    # Part, cases, patients, cases with masks: four of the test cases are target scans.
    assert ["test", "5", "5", "1"] in rows
    assert len(load_caselist(tmp_path / "out" / "target.json").part("train")) == 4
