"""Leave-one-patient-out lists of the two open MS sets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg_diff.data.caselist import load_caselist

LONGITUDINAL = ("ms_long_patient01_s1", "ms_long_patient01_s2", "ms_long_patient12_s1")
CROSS_SECTIONAL = ("ms_patient07", "ms_patient19")


def visits(folder: Path, names: tuple[str, ...]) -> Path:
    """Images whose values say which contrast they are."""
    (folder / "imagesTr").mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        for contrast in (0, 2, 3):
            image = nib.Nifti1Image(
                np.full((3, 4, 5), 100 * contrast + number, np.int16), np.eye(4)
            )
            image.to_filename(folder / "imagesTr" / f"{name}_000{contrast}.nii.gz")
    return folder


def prepare(repository: Path, data: Path, *words: str) -> subprocess.CompletedProcess[str]:
    script = str(repository / "data_prep" / "open_ms.py")
    command = [sys.executable, script, "--data", str(data), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("names", "left_out", "train", "test"),
    [
        (LONGITUDINAL, "12", set(LONGITUDINAL[:2]), {LONGITUDINAL[2]}),
        (LONGITUDINAL, "01", {LONGITUDINAL[2]}, set(LONGITUDINAL[:2])),
        (CROSS_SECTIONAL, "19", {"ms_patient07"}, {"ms_patient19"}),
    ],
)
def test_a_patient_is_left_out_with_all_visits(
    repository: Path, tmp_path: Path, names: tuple[str, ...], left_out: str,
    train: set[str], test: set[str],
) -> None:  # fmt: skip
    done = prepare(repository, visits(tmp_path, names), "--target", "T2")
    assert done.returncode == 0, done.stderr
    listed = load_caselist(tmp_path / f"cases_T2_without_{left_out}.json")
    assert {c.case for c in listed.part("train")} == train
    assert {c.case for c in listed.part("test")} == test
    assert (listed.channels, listed.target) == (("T1",), "T2")
    for case in listed.cases:
        source, target = listed.channel_paths(case)["T1"], listed.root / str(case.target)
        assert (np.asarray(nib.load(source).dataobj) // 100 == 0).all()
        assert (np.asarray(nib.load(target).dataobj) // 100 == 2).all()


def test_two_sets_in_one_folder_are_refused(repository: Path, tmp_path: Path) -> None:
    done = prepare(repository, visits(tmp_path, (*LONGITUDINAL, *CROSS_SECTIONAL)))
    assert done.returncode == 1
    assert "both sets in one folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_one_patient_is_too_few(repository: Path, tmp_path: Path) -> None:
    done = prepare(repository, visits(tmp_path, LONGITUDINAL[:2]))
    assert done.returncode == 1
    assert "fewer than two patients" in done.stderr
    assert "Traceback" not in done.stderr
