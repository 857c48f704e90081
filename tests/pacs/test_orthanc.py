"""Against a real archive: a study in, a prediction, a Segmentation back in the study."""

from __future__ import annotations

import json
import sys
import tempfile
from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from medseg_diff import io
from medseg_diff.cli.main import main
from tests.io.dicom_series import IDENTITY, LPS
from tests.pacs.orthanc import OWN, PASSWORD, Orthanc
from tests.pacs.scans import STUDY, hippocampus

pytestmark = pytest.mark.pacs
SEG, MAP = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.30"
WAYS = ("web", "get", "move")


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["medseg-diff", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def words(archive: Orthanc, way: str, out: Path) -> list[object]:
    address = archive.web if way == "web" else archive.node
    more = ["--move-port", archive.move] if way == "move" else []
    model = ["--model", "hippocampus", "--draws", 1, "--steps", 1, "--device", "cpu"]
    return ["predict", *model, "--pacs", address, "--study", STUDY, "--out", out, *more]


def held(archive: Orthanc) -> dict[str, bytes]:
    """The study's instances as the archive gives them out, by SOP class; images together."""
    found: dict[str, bytes] = {}
    for one in archive.rest("GET", "/instances"):
        raw = archive.rest("GET", f"/instances/{one}/file")
        found[str(pydicom.dcmread(BytesIO(raw)).SOPClassUID)] = raw
    return found


@pytest.mark.parametrize("way", WAYS)
def test_round_trip(archive: Orthanc, tmp_path: Path, monkeypatch, capfd, way: str):
    archive.fill(hippocampus(tmp_path / "source"))
    out = tmp_path / "out"
    assert call(monkeypatch, *words(archive, way, out), "--store") == 0
    shown = "".join(capfd.readouterr())
    assert "fetched: 40 instances, MR" in shown
    assert "stored: series_2-25-77-1_seg.dcm, series_2-25-77-1_doubt.dcm" in shown
    assert PASSWORD not in shown
    assert list(Path(tempfile.gettempdir()).glob("medseg_diff*")) == []

    instances = held(archive)
    assert set(instances) == {SEG, MAP, "1.2.840.10008.5.1.4.1.1.4"}
    file = tmp_path / "returned.dcm"
    file.write_bytes(instances[SEG])
    seg = hd.seg.segread(file)
    mask = io.read_label(out / "series_2-25-77-1.nii.gz")
    labels, lps = np.asarray(mask)[0], LPS @ np.asarray(mask.affine)
    assert len(np.unique(labels)) == 3
    assert least_dice(seg, labels, lps) == 1.0
    assert seg.FrameOfReferenceUID == "2.25.78.1"
    assert {k: str(seg[k].value) for k in IDENTITY} == IDENTITY
    assert seg.StudyInstanceUID == STUDY
    source = {pydicom.dcmread(f).SOPInstanceUID for f in (tmp_path / "source").iterdir()}
    (referenced,) = seg.ReferencedSeriesSequence
    assert {i.ReferencedSOPInstanceUID for i in referenced.ReferencedInstanceSequence} <= source

    # GDCM reads a Segmentation's frames as slices of bits; ours hold as many voxels.
    frames = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
    assert np.count_nonzero(frames) == np.count_nonzero(labels)


def least_dice(seg: hd.seg.Segmentation, labels: np.ndarray, lps: np.ndarray) -> float:
    """Least Dice between our label map and the archive's, voxel by voxel in the patient."""
    scores = []
    for number in seg.segment_numbers:
        volume = seg.get_volume(segment_numbers=[number])
        index = np.argwhere(volume.array[..., 0])
        places = np.linalg.inv(lps) @ volume.affine @ np.c_[index, np.ones(len(index))].T
        theirs = np.zeros(labels.shape, bool)
        theirs[tuple(np.rint(places[:3]).astype(int))] = True
        ours = labels == number
        scores.append(2 * np.sum(theirs & ours) / (theirs.sum() + ours.sum()))
    return min(scores)


def test_nothing_is_stored_without_being_asked(archive: Orthanc, tmp_path, monkeypatch, capfd):
    archive.fill(hippocampus(tmp_path / "source"))
    assert call(monkeypatch, *words(archive, "web", tmp_path / "out")) == 0
    assert "stored:" not in "".join(capfd.readouterr())
    assert len(archive.rest("GET", "/instances")) == 40
    # Its own answers make no second series of images: the same command goes on working.
    assert call(monkeypatch, *words(archive, "web", tmp_path / "out"), "--continue", "--store") == 0
    assert len(archive.rest("GET", "/instances")) == 42
    assert call(monkeypatch, *words(archive, "get", tmp_path / "again")) == 0
    first, again = (tmp_path / n / "series_2-25-77-1.nii.gz" for n in ("out", "again"))
    assert first.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("way", WAYS)
def test_several_series_are_listed_and_chosen(archive, tmp_path, monkeypatch, capfd, way: str):
    archive.fill(hippocampus(tmp_path / "a"))
    archive.fill(hippocampus(tmp_path / "b", "2"))
    asked = words(archive, way, tmp_path / "out")
    assert call(monkeypatch, *asked) == 1
    line = capfd.readouterr().err.strip()
    assert "\n" not in line
    assert "5.77.1 MR, 40 instances" in line
    assert "--series 5.77." in line
    if way != "web":
        return  # choosing is the same code; fetching has a test of its own
    assert call(monkeypatch, *asked, "--series", "77.2") == 0
    assert json.loads((tmp_path / "out" / "series_2-25-77-2.json").read_text())["status"] == "ok"


@pytest.mark.parametrize("way", WAYS)
def test_no_such_study(archive: Orthanc, tmp_path, monkeypatch, capfd, way: str):
    assert call(monkeypatch, *words(archive, way, tmp_path / "out")) == 1
    assert "no such study" in capfd.readouterr().err


def test_wrong_credentials(archive: Orthanc, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("MEDSEG_DIFF_PACS_PASSWORD", "CANARY-wrong")
    assert call(monkeypatch, *words(archive, "web", tmp_path / "out")) == 1
    line = capfd.readouterr().err
    assert "refuses the credentials" in line
    assert "CANARY" not in line


def test_a_title_that_orthanc_does_not_know(archive: Orthanc, tmp_path, monkeypatch, capfd):
    asked = words(archive, "get", tmp_path / "out")
    assert call(monkeypatch, *asked, "--own-aet", f"NOT{OWN}") == 1
    line = capfd.readouterr().err.strip()
    assert "broke off" in line
    assert "--own-aet" in line
