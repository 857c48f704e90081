"""Identity goes where the standard asks for it, and nowhere else: canaries in every place.

`docs/privacy.md` says the same in words.
"""

from __future__ import annotations

import gzip
import logging
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from medseg_diff.batch.run import find_cases, predict_many
from medseg_diff.cli.main import main
from medseg_diff.evaluation.masks import evaluate
from medseg_diff.training.fit import fit
from tests.io.dicom_series import IDENTITY, Series, grid
from tests.phantoms import NiftiFile, make_phantom
from tests.tiny import save_untrained, threshold_predictor, tiny_config
from tests.training_fixtures import tiny, write_dataset

CANARY = "CANARY"
SHAPE, SPACING = (15, 13, 11), (3.0, 3.2, 3.6)
BRIGHT = [{"kind": "ct", "mean": 0.0, "sd": 100.0}]
# PS3.15, table E.1-1: text elements that may identify a person, beside those of IDENTITY.
MORE = (
    "OtherPatientIDs", "PatientBirthName", "PatientMotherBirthName", "PatientAddress",
    "PatientTelephoneNumbers", "PatientComments", "MilitaryRank", "EthnicGroup", "Occupation",
    "AdditionalPatientHistory", "PatientReligiousPreference", "MedicalRecordLocator",
    "IssuerOfPatientID", "InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName",
    "StationName", "PerformingPhysicianName", "OperatorsName", "NameOfPhysiciansReadingStudy",
    "RequestingPhysician", "PhysiciansOfRecord", "StudyDescription", "SeriesDescription",
    "ProtocolName", "ImageComments", "RequestedProcedureDescription", "DeviceSerialNumber",
    "PerformedProcedureStepDescription", "AdmissionID", "DerivationDescription",
    "AcquisitionComments", "StudyComments", "CurrentPatientLocation",
    "PatientInsurancePlanCodeSequence",
)  # fmt: skip
# What PS3.3 makes an answer repeat: Patient and General Study modules, types 1 and 2.
ASKED_FOR = ("PatientName", "PatientID", "StudyID", "AccessionNumber", "ReferringPhysicianName")


def canaries() -> dict[str, object]:
    """Elements of the source; every text is a canary of its own."""
    planted: dict[str, object] = {k: f"{CANARY}{i}" for i, k in enumerate(MORE)}
    item = Dataset()
    item.CodeMeaning = f"{CANARY}CODE"
    planted["PatientInsurancePlanCodeSequence"] = Sequence([item])
    planted |= {k: f"{CANARY}{k}"[:16] for k in ASKED_FOR}
    return planted


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A series below folders that carry names, with a private block."""
    affine = grid((1, 0, 0, 0, 1, 0), SPACING)
    affine[:3, 3] = -affine[:3, :3] @ (np.array(SHAPE) - 1) / 2
    folder = tmp_path / f"{CANARY}_Jane_Doe" / f"{CANARY}_19010203" / "scan"
    series = Series(make_phantom(affine, SHAPE).image, affine, extra=canaries())
    for path in series.write(folder):
        dataset = pydicom.dcmread(path)
        dataset.private_block(0x0011, f"{CANARY}PRIVATE", create=True).add_new(1, "LO", CANARY)
        dataset.save_as(path)
    return folder


def leaks(folder: Path) -> list[str]:
    """Files that hold a canary, in their name or their bytes, unpacked if need be."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
        words = (CANARY, IDENTITY["PatientBirthDate"])
        if CANARY in path.name or any(
            text.encode(code) in raw for text in words for code in ("utf-8", "utf-16-le")
        ):
            found.append(path.name)
    return found


def test_the_search_finds_what_is_there(scan: Path, tmp_path: Path):
    assert len(leaks(scan)) == SHAPE[2]
    (tmp_path / "x.nii.gz").write_bytes(gzip.compress(b"..CANARY.."))
    assert "x.nii.gz" in leaks(tmp_path)


def test_predictions_carry_identity_only_in_dicom(scan: Path, tmp_path: Path, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    predictor = threshold_predictor(tiny_config(plan={"normalisation": BRIGHT}))
    out = tmp_path / "out"
    assert predict_many(predictor, find_cases([scan], ["T1"]), out) == 0
    assert leaks(out) == ["scan_doubt.dcm", "scan_seg.dcm"]
    for name in ("scan_seg.dcm", "scan_doubt.dcm"):
        file = pydicom.dcmread(out / name)
        told = {
            e.keyword
            for e in file.iterall()
            if e.VR not in ("SQ", "OB", "OW", "OF") and CANARY in str(e.value)
        }
        assert told == set(ASKED_FOR)
        assert file.PatientBirthDate == IDENTITY["PatientBirthDate"]
        assert not [e for e in file.iterall() if e.tag.is_private]
    shown = capfd.readouterr()
    assert CANARY not in shown.out + shown.err + caplog.text


def test_reports_carry_none(scan: Path, tmp_path: Path):
    predictor = threshold_predictor(tiny_config(plan={"normalisation": BRIGHT}))
    out, parent = tmp_path / "out", tmp_path / f"{CANARY}_masks"
    assert predict_many(predictor, find_cases([scan], ["T1"]), out) == 0
    parent.mkdir()
    affine = grid((1, 0, 0, 0, 1, 0), SPACING)
    affine[:3, 3] = -affine[:3, :3] @ (np.array(SHAPE) - 1) / 2
    NiftiFile(make_phantom(affine, SHAPE).labels, affine).write(parent / "scan.nii.gz")
    evaluate(out, parent, tmp_path / "report")
    assert (tmp_path / "report" / "report.html").is_file()
    assert leaks(tmp_path / "report") == []


@pytest.mark.parametrize("break_it", ["truncate", "geometry", "identity"])
def test_refusals_carry_none(scan: Path, tmp_path: Path, monkeypatch, capfd, caplog, break_it: str):
    """Damaged files below folders with names: the command line, the log and the JSON."""
    caplog.set_level(logging.DEBUG)
    files = sorted(scan.iterdir())
    if break_it == "truncate":
        files[0].write_bytes(files[0].read_bytes()[:-200])
    elif break_it == "geometry":
        files[3].unlink()
    else:
        for file in files:
            file.write_bytes(file.read_bytes().replace(b"19010203", CANARY.encode() + b"!!"))
    run = save_untrained(tmp_path / "run", tiny_config())
    out = tmp_path / "out"
    words = ["predict", "--model", run, "--input", scan, "--out", out, "--draws", "1"]
    monkeypatch.setattr(sys, "argv", ["medseg-diff", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == (0 if break_it == "identity" else 1)
    assert [name for name in leaks(out) if not name.endswith(".dcm")] == []
    shown = capfd.readouterr()
    # The last line repeats the folder that the user gave for the outputs.
    said = shown.out.replace(f"written to {out}", "") + shown.err + caplog.text
    assert CANARY not in said
    assert "Traceback" not in said


def test_checkpoints_carry_none(tmp_path: Path):
    """Weights, resume points, card and logs; the configuration names the data by its path."""
    data = tmp_path / f"{CANARY}_hospital"
    cases = write_dataset(data)
    cases.write_text(cases.read_text().replace('"patient": "ball', f'"patient": "{CANARY}_ball'))
    run = tmp_path / "run"
    fit(tiny(cases, steps=2, validate_every=2, save_every=2), run)
    assert [name for name in set(leaks(run)) if name != "config.yaml"] == []
