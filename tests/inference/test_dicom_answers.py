"""From a DICOM series through a model to files beside the NIfTIs, and back."""

from __future__ import annotations

import json
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
import torch

from medseg_diff import io
from medseg_diff.batch.run import find_cases, predict_many, write_answer
from medseg_diff.errors import InputError
from medseg_diff.files import file_sha256
from tests.io.dicom_series import LPS, Series, grid
from tests.phantoms import BALLS, NiftiFile, make_phantom
from tests.tiny import threshold_predictor, tiny_config

SPACING, SHAPE = (1.5, 1.6, 1.8), (30, 26, 22)
BRIGHT = [{"kind": "ct", "mean": 0.0, "sd": 100.0}]


def centred(orientation: tuple[float, ...]):
    """Affine of a series whose middle is the world's origin, where the phantom lies."""
    affine = grid(orientation, SPACING)
    affine[:3, 3] = -affine[:3, :3] @ (np.array(SHAPE) - 1) / 2
    return affine


AFFINE = centred((1, 0, 0, 0, -1, 0))
PHANTOM = make_phantom(AFFINE, SHAPE)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def predictor():
    return threshold_predictor(tiny_config(plan={"normalisation": BRIGHT}))


def series(folder: Path, **extra: object) -> Path:
    Series(PHANTOM.image, AFFINE, extra=extra).write(folder)
    return folder


def predict(predictor, source: Path, out: Path, **settings: object) -> dict:
    code = predict_many(predictor, find_cases([source], ["T1"]), out, **settings)
    record = json.loads((out / f"{source.name}.json").read_text())
    return {**record, "code": code}


def test_the_helper_and_the_reader_agree(tmp_path: Path):
    image = io.read_image(series(tmp_path / "s"))
    np.testing.assert_array_equal(np.asarray(image)[0], PHANTOM.image)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, -1, 0), (0, 1, 0, 0, 0, -1)])
def test_a_series_gets_a_segmentation_and_its_doubt(tmp_path: Path, predictor, orientation):
    affine = centred(orientation)
    phantom = make_phantom(affine, SHAPE)
    Series(phantom.image, affine).write(tmp_path / "in" / "scan")
    out = tmp_path / "out"
    predictor.runs[0].card["codes"] = {"second": "liver"}
    record = predict(predictor, tmp_path / "in" / "scan", out)
    assert record["code"] == 0
    written = {p.name: file_sha256(p) for p in out.iterdir() if p.suffix in (".dcm", ".gz")}
    assert record["hashes"]["written"] == written
    assert {"scan_seg.dcm", "scan_doubt.dcm", "scan.nii.gz"} <= set(written)
    mask = np.asarray(io.read_label(out / "scan.nii.gz"))[0]
    seg = hd.seg.segread(out / "scan_seg.dcm")
    everything = []
    for number, name in enumerate(("first", "second", "third"), 1):
        volume = seg.get_volume(segment_numbers=[number])
        voxels = np.argwhere(volume.array[..., 0])
        theirs = (volume.affine @ np.c_[voxels, np.ones(len(voxels))].T)[:3].T
        index = np.argwhere(mask == number)
        ours = (LPS @ affine @ np.c_[index, np.ones(len(index))].T)[:3].T
        assert len(theirs) == len(ours) == record["voxels"][name]
        np.testing.assert_allclose(np.sort(theirs, 0), np.sort(ours, 0), atol=1e-3)
        everything.append(theirs)
    # The rim of a ball takes the labels of darker ones, but lies around the same centre.
    found = np.concatenate(everything)
    for number, (centre, radius) in BALLS.items():
        near = np.linalg.norm(found - (LPS @ [*centre, 1])[:3], axis=1) < radius + 3
        truth = (LPS @ [*phantom.centroid(number), 1])[:3]
        assert np.linalg.norm(found[near].mean(0) - truth) < min(SPACING) / 2
    described = seg.get_segment_description(2)
    assert described.segmented_property_type.meaning == "Liver"
    assert (
        "model_sha256"
        in described.SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters
    )
    doubt = pydicom.dcmread(out / "scan_doubt.dcm")
    assert doubt.NumberOfFrames == 2 * SHAPE[2]


def test_a_nifti_gets_none(tmp_path: Path, predictor):
    (tmp_path / "in").mkdir()
    scan = NiftiFile(PHANTOM.image, AFFINE).write(tmp_path / "in" / "scan.nii.gz")
    code = predict_many(predictor, find_cases([scan], ["T1"]), tmp_path / "a")
    assert code == 0
    assert not list((tmp_path / "a").glob("*.dcm"))
    code = predict_many(predictor, find_cases([scan], ["T1"]), tmp_path / "b", dicom_seg=True)
    assert code == 1
    record = json.loads((tmp_path / "b" / "scan.json").read_text())
    assert "DICOM input" in record["error"]
    assert not list((tmp_path / "b").glob("*.nii.gz"))


def test_it_can_be_left_out(tmp_path: Path, predictor):
    out = tmp_path / "out"
    record = predict(predictor, series(tmp_path / "in" / "scan"), out, dicom_seg=False)
    assert record["code"] == 0
    assert not list(out.glob("*.dcm"))
    record = predict(predictor, tmp_path / "in" / "scan", out, dicom_seg=None, go_on=True)
    assert len(list(out.glob("*.dcm"))) == 2, "another setting is another result"


def test_a_scan_that_cannot_be_pointed_at_is_a_warning(tmp_path: Path, predictor):
    folder = series(tmp_path / "in" / "scan", StudyInstanceUID=None)
    record = predict(predictor, folder, tmp_path / "out")
    assert (record["code"], record["status"]) == (0, "warning")
    (line,) = [w for w in record["warnings"] if "DICOM-SEG" in w]
    assert "StudyInstanceUID" in line
    assert (tmp_path / "out" / "scan.nii.gz").is_file()
    assert not list((tmp_path / "out").glob("*.dcm"))
    record = predict(predictor, folder, tmp_path / "must", dicom_seg=True)
    assert record["code"] == 1
    assert "StudyInstanceUID" in record["error"]


def test_a_failing_write_leaves_no_image(tmp_path: Path, predictor, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "scan_seg.dcm").write_bytes(b"left by an earlier run")

    def full(*_: object, **__: object) -> None:
        raise InputError("cannot be written: No space left on device", file="scan_doubt.dcm")

    monkeypatch.setattr(io, "write_parametric_map", full)
    record = predict(predictor, series(tmp_path / "in" / "scan"), out)
    assert record["code"] == 1
    assert "No space" in record["error"]
    assert {p.name for p in out.iterdir()} == {"scan.json", "volumes.csv", "manifest.sqlite"}


def test_overlapping_regions(tmp_path: Path):
    """Nested regions share voxels: each is a segment that holds all of its own."""
    regions = {"whole": [1, 2, 3], "core": [2, 3]}
    config = tiny_config(plan={"normalisation": BRIGHT}, task={"regions": regions})
    scan = series(tmp_path / "scan")
    answer = threshold_predictor(tiny_config(plan={"normalisation": BRIGHT})).predict(scan)
    answer.record["regions"] = {k: list(v) for k, v in config.task.structures.items()}
    (tmp_path / "out").mkdir()
    write_answer(answer, tmp_path / "out", "scan")
    seg = hd.seg.segread(tmp_path / "out" / "scan_seg.dcm")
    assert [seg.get_segment_description(n).segment_label for n in (1, 2)] == ["whole", "core"]
    mask = np.asarray(answer.mask)
    for number, least in ((1, 1), (2, 2)):
        assert seg.get_volume(segment_numbers=[number]).array.sum() == (mask >= least).sum() > 0
