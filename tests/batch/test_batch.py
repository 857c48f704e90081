"""Many scans: grouping, and one bad file among good ones."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from medseg_diff.batch import one_case
from medseg_diff.batch.run import find_cases, predict_many
from medseg_diff.errors import InputError, UsageError
from tests.io import dicoms
from tests.phantoms import NiftiFile, grid_affine, make_phantom
from tests.tiny import threshold_predictor, tiny_config

PHANTOM = make_phantom(grid_affine("RAS", (3.0, 3.2, 3.6), (15, 13, 11)), (15, 13, 11))
BRIGHT = [{"kind": "ct", "mean": 0.0, "sd": 100.0}]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def scan(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    return NiftiFile(PHANTOM.image, PHANTOM.affine).write(path)


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def grouped(folder: Path, channels: list[str]) -> dict[str, dict[str, str]]:
    cases = find_cases([folder], channels)
    return {c.name: {k: p.name for k, p in c.channels.items()} for c in cases}


@pytest.fixture
def predictor():
    return threshold_predictor(tiny_config(plan={"normalisation": BRIGHT}))


def test_channels_are_grouped_by_name(tmp_path: Path):
    folder = touch(
        tmp_path / "in",
        "a_T1.nii.gz",
        "a_FLAIR.nii.gz",
        "b-t1.nii",
        "b-flair.nii",
        "notes.txt",
        ".a_T1.nii.gz",
    )
    assert grouped(folder, ["T1", "FLAIR"]) == {
        "a": {"T1": "a_T1.nii.gz", "FLAIR": "a_FLAIR.nii.gz"},
        "b": {"T1": "b-t1.nii", "FLAIR": "b-flair.nii"},
    }


def test_channels_are_grouped_by_number(tmp_path: Path):
    folder = touch(tmp_path / "in", "x_0000.nii.gz", "x_0001.nii.gz", "y_0000.png", "y_0001.png")
    assert grouped(folder, ["T1", "T2"]) == {
        "x": {"T1": "x_0000.nii.gz", "T2": "x_0001.nii.gz"},
        "y": {"T1": "y_0000.png", "T2": "y_0001.png"},
    }


def test_a_channel_whose_name_ends_in_anothers(tmp_path: Path):
    folder = touch(tmp_path / "in", "a_T1.nii", "a_ce_T1.nii")
    assert grouped(folder, ["T1", "ce_T1"]) == {"a": {"T1": "a_T1.nii", "ce_T1": "a_ce_T1.nii"}}


def test_one_channel_takes_every_file(tmp_path: Path):
    folder = touch(tmp_path / "in", "a_0000.nii.gz", "b_0001.nii.gz", "c_T1.nii.gz")
    assert list(grouped(folder, ["T1"])) == ["a", "b_0001", "c_T1"]


def test_a_folder_without_images_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"no image found.*\.nii\.gz"):
        find_cases([touch(tmp_path / "in", "readme.txt")], ["T1"])


@pytest.mark.parametrize(
    "names",
    [("x.nii", "x.nii.gz"), ("x.nii", "X.nii"), ("x.nii", "x_prob.nii"), ("x_0000.nii", "x.nii")],
)
def test_two_inputs_for_one_output_are_refused(tmp_path: Path, names):
    """F44, before anything is computed."""
    with pytest.raises(InputError, match="Rename"):
        find_cases([touch(tmp_path / "in", *names)], ["T1"])


def test_one_bad_file_does_not_stop_the_rest(tmp_path: Path, predictor):
    folder = tmp_path / "in"
    for name in ("a", "c"):
        scan(folder / f"{name}.nii.gz")
    (folder / "b.nii.gz").write_bytes(b"this is no scan at all")
    out = tmp_path / "out"
    out.mkdir()
    (out / "b.nii.gz").write_bytes(b"left by an earlier run")
    seen = []
    code = predict_many(
        predictor,
        find_cases([folder], ["T1"]),
        out,
        report=lambda i, outcome: seen.append((i, outcome.case, outcome.error is None)),
    )
    assert code == 8
    assert seen == [(0, "a", True), (1, "b", False), (2, "c", True)]
    names = {f"{n}{e}" for n in "ac" for e in (".nii.gz", "_prob.nii.gz", "_doubt.nii.gz", ".json")}
    assert {p.name for p in out.iterdir()} == names | {"b.json", "volumes.csv", "manifest.sqlite"}
    failed = json.loads((out / "b.json").read_text())
    assert failed["status"] == "failed"
    assert failed["case"] == "b"
    assert failed["error"].startswith("b.nii.gz: ")
    assert "\n" not in failed["error"]
    good = json.loads((out / "a.json").read_text())
    assert good["status"] in ("ok", "warning")
    assert set(good["hashes"]) == {"model", "input", "mask", "written"}
    table = pd.read_csv(out / "volumes.csv")
    assert list(table.columns) == ["case", "structure", "voxels", "volume_ml", "pairwise_dice"]
    assert sorted(set(table["case"])) == ["a", "c"]
    assert list(table["structure"][:3]) == ["first", "second", "third"]
    np.testing.assert_allclose(table["volume_ml"], table["voxels"] * 3.0 * 3.2 * 3.6 / 1000)


def test_F69_a_missing_channel_is_named(tmp_path: Path):
    config = tiny_config(
        task={"channels": ["T1", "FLAIR"]}, plan={"normalisation": [*BRIGHT, *BRIGHT]}
    )
    folder = tmp_path / "in"
    for name in ("a_T1", "a_FLAIR", "b_T1"):
        scan(folder / f"{name}.nii.gz")
    cases = find_cases([folder], ["T1", "FLAIR"])
    assert predict_many(threshold_predictor(config), cases, tmp_path / "out") == 8
    record = json.loads((tmp_path / "out" / "b.json").read_text())
    assert "channel is missing" in record["error"]
    assert "FLAIR" in record["error"]
    assert (tmp_path / "out" / "a.nii.gz").is_file()


def test_a_fault_of_any_kind_stays_with_its_case(tmp_path: Path, predictor, monkeypatch):
    folder = tmp_path / "in"
    scan(folder / "a.nii")
    real = predictor.predict

    def breaks(channels, **settings):
        if settings["case"] == "a":
            raise KeyError("surprise")
        return real(channels, **settings)

    monkeypatch.setattr(predictor, "predict", breaks)
    assert predict_many(predictor, find_cases([folder], ["T1"]), tmp_path / "one") == 1
    scan(folder / "b.nii")
    assert predict_many(predictor, find_cases([folder], ["T1"]), tmp_path / "two") == 8
    assert "KeyError" in json.loads((tmp_path / "two" / "a.json").read_text())["error"]


def test_wrong_use_stops_everything(tmp_path: Path, predictor):
    scan(tmp_path / "in" / "a.nii")
    cases = find_cases([tmp_path / "in"], ["T1"])
    with pytest.raises(UsageError, match="--draws"):
        predict_many(predictor, cases, tmp_path / "out", draws=0)
    with pytest.raises(UsageError, match="among the inputs"):
        predict_many(predictor, cases, tmp_path / "in")


def test_a_failure_line_names_no_folder():
    error = PermissionError(13, "Permission denied", "/scans/Jane_Doe/a.nii")
    assert one_case._failure_line(error) == "PermissionError: Permission denied"
    assert one_case._failure_line(ValueError("two\nlines")) == "ValueError: two lines"


def dicom_scan(folder: Path) -> Path:
    """The phantom as a DICOM series."""
    return dicoms.save(dicoms.planes(), folder)


def test_dicom_folders_are_cases(tmp_path: Path):
    study = tmp_path / "study"
    one, two = (dicom_scan(study / name) for name in ("knee", "hip 2"))
    (study / "empty").mkdir()
    (one / "screenshot.png").touch()
    assert grouped(one, ["T1"]) == {"knee": {"T1": "knee"}}
    assert grouped(study, ["T1"]) == {"hip 2": {"T1": "hip 2"}, "knee": {"T1": "knee"}}
    with zipfile.ZipFile(study / "foot.zip", "w") as out:
        for path in two.iterdir():
            out.write(path, path.name)
    touch(study, "shoulder.nii.gz")
    assert set(grouped(study, ["T1"])) == {"foot", "hip 2", "knee", "shoulder"}
    touch(one, "elbow.nii.gz")
    assert set(grouped(one, ["T1"])) == {"knee", "elbow"}


def test_dicom_folders_are_channels(tmp_path: Path):
    for name in ("a_T1", "a_FLAIR"):
        dicom_scan(tmp_path / name)
    found = grouped(tmp_path, ["T1", "FLAIR"])
    assert found == {"a": {"T1": "a_T1", "FLAIR": "a_FLAIR"}}


def test_the_folder_one_stands_in_has_a_name(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(dicom_scan(tmp_path / "knee"))
    assert [case.name for case in find_cases(["."], ["T1"])] == ["knee"]


def test_a_dicom_series_is_predicted_on_its_own_grid(tmp_path: Path, predictor):
    folder = dicom_scan(tmp_path / "in" / "knee")
    cases = find_cases([folder], ["T1"])
    with pytest.raises(UsageError, match="among the inputs"):
        predict_many(predictor, cases, folder)
    out = tmp_path / "out"
    assert predict_many(predictor, cases, out) == 0
    record = json.loads((out / "knee.json").read_text())
    assert record["spacing_mm"] == pytest.approx([3.0, 3.2, 3.6])
    assert "CANARY" not in (out / "knee.json").read_text()
    assert str(tmp_path) not in (out / "knee.json").read_text()
    assert len(record["hashes"]["input"]["T1"]) == 64
    mask, phantom = nib.load(out / "knee.nii.gz"), dicoms.PHANTOM
    np.testing.assert_allclose(mask.affine, phantom.affine, atol=1e-4)
    # The same predictor on the same anatomy as NIfTI.
    (tmp_path / "nifti").mkdir()
    NiftiFile(phantom.image, phantom.affine).write(tmp_path / "nifti" / "knee.nii")
    assert predict_many(predictor, find_cases([tmp_path / "nifti"], ["T1"]), tmp_path / "two") == 0
    twin = nib.load(tmp_path / "two" / "knee.nii.gz")
    np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(twin.dataobj))
    assert np.asarray(mask.dataobj).any()
    assert pd.read_csv(out / "volumes.csv")["volume_ml"].sum() > 0
