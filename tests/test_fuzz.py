"""Two thousand damaged files; `tests/fuzz.py` makes as many as one likes."""

from __future__ import annotations

import logging
import random
import sqlite3
from pathlib import Path

import pytest

from medseg_diff import io
from medseg_diff.batch.manifest import Manifest
from medseg_diff.config import load_config
from medseg_diff.data.caselist import load_caselist
from medseg_diff.errors import InputError
from tests.fuzz import READERS, SHARES, run


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_accepted_or_refused(name: str) -> None:
    """Nothing else is raised, no child dies, nothing takes long."""
    logging.disable(logging.CRITICAL)
    try:
        found = run(name, range(round(2000 * SHARES[name])), seed=1)
    finally:
        logging.disable(logging.NOTSET)
    assert found["uncaught"] == 0
    assert found["refused"] > 0.2 * 2000 * SHARES[name]
    assert found["accepted"] > 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: 2001-99-99", "not valid YAML: month must be in 1..12"),
        ("name: " + "9" * 5000, "not valid YAML: Exceeds the limit"),
        ("name: " + "[" * 3000, "not valid YAML: nested more than 30 deep"),
        ("name: &a [*a]", "not valid YAML: aliases"),
    ],
)
def test_configurations_that_only_look_like_yaml(tmp_path: Path, text: str, words: str) -> None:
    """What the YAML library raises besides its own error, or takes minutes over."""
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(InputError, match=r"x\.yaml") as refused:
        load_config(tmp_path / "x.yaml")
    assert words in str(refused.value)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"name": ' + "9" * 5000 + "}"])
def test_case_lists_that_json_cannot_take(tmp_path: Path, text: str) -> None:
    (tmp_path / "cases.json").write_text(text)
    with pytest.raises(InputError, match=r"cases.json: not a JSON file"):
        load_caselist(tmp_path / "cases.json")


@pytest.mark.filterwarnings("ignore")
def test_a_sequence_that_breaks_when_it_is_asked_for(tmp_path: Path) -> None:
    """Pydicom parses sequences late, and raises what the bytes lead it to."""
    file = tmp_path / "x.dcm"
    file.write_bytes(READERS["dicom"].make(random.Random("dicom 0 395")))
    with pytest.raises(InputError, match=r"x.dcm: damaged DICOM element"):
        io.read_image(file)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (6442, "PixelData: pixel data cannot be parsed (found NotImplementedError)"),
        (9976, "NumberOfFrames: file ends early (found 65535 frames"),
    ],
)
def test_pixels_of_no_type_and_frames_of_no_bytes(tmp_path: Path, number: int, words: str) -> None:
    """Half a minute went into describing 65535 frames of a file of 1800 bytes."""
    file = tmp_path / "x.dcm"
    file.write_bytes(READERS["dicom"].make(random.Random(f"dicom 0 {number}")))
    with pytest.raises(InputError, match=r"x.dcm: ") as refused:
        io.read_image(file)
    assert words in str(refused.value)


@pytest.mark.filterwarnings("ignore")
def test_an_affine_without_a_rotation(tmp_path: Path) -> None:
    reader = READERS["nifti"]
    file = tmp_path / "x.nii"
    file.write_bytes(reader.make(random.Random("nifti 0 1708")))
    with pytest.raises(InputError, match=r"x.nii: "):
        io.read_image(file)


@pytest.mark.parametrize("owner", ["x", "a|b", "a|b|c", "", 7, b"\xff"])
def test_a_claim_of_no_process_is_nobodys(tmp_path: Path, owner: object) -> None:
    Manifest(tmp_path).enroll(["a"], afresh=True)
    with sqlite3.connect(tmp_path / "manifest.sqlite") as base:
        base.execute("UPDATE cases SET status = 'running', owner = ?", (owner,))
    base.close()
    assert Manifest(tmp_path).claim("a")


def test_a_manifest_that_breaks_later_is_refused(tmp_path: Path) -> None:
    """A damaged page is met when it is read, not when the file is opened."""
    manifest = Manifest(tmp_path)
    manifest.enroll([f"case{n}" for n in range(200)], afresh=True)
    file = tmp_path / "manifest.sqlite"
    raw = bytearray(file.read_bytes())
    for page in range(4096, len(raw), 4096):
        raw[page : page + 64] = b"\xff" * 64
    file.write_bytes(raw)
    with pytest.raises(InputError, match=r"manifest.sqlite: not a readable manifest"):
        Manifest(tmp_path).claim("case150")
