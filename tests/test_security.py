"""Privacy and security requirements (S) that no other file tests.

S01 dangerous calls: test_architecture. S07 archives, S09 sizes: io/test_faults_dicom_files, F39,
F40. S08 names: F42 to F44, data/test_caselist. S10 identity, S13 checkpoints: io/test_privacy. S11
NIfTI headers: F14, F41. S14 temporary files: pacs/test_private, io/test_dicom, io/test_nifti. S22
hashes: F71. S03 (other programs' weights) and S15 to S20 (server) are about what the package does
not have.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

import medseg_diff as md
from medseg_diff import io
from medseg_diff.batch.manifest import Manifest
from medseg_diff.config import load_config
from medseg_diff.data.caselist import load_caselist
from medseg_diff.errors import InputError, UsageError
from medseg_diff.files import file_sha256
from medseg_diff.training.fit import Options, fit
from tests.io import dicoms
from tests.training_fixtures import tiny, write_dataset

# Trains, loads and predicts where no socket may reach out; the last line is a control.
OFFLINE = """
import socket, sys, torch
torch.set_num_threads(1)
def refuse(event, given):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.gethostbyname"):
        raise PermissionError(f"{event} {given[1:]}")
sys.addaudithook(refuse)
import medseg_diff as md
from medseg_diff.config import load_config
from medseg_diff.training.fit import fit
fit(load_config(sys.argv[1]), sys.argv[2])
answer = md.load(sys.argv[2], device="cpu").predict(sys.argv[3], draws=1, steps=1)
print("answered", tuple(answer.mask.shape))
try:
    socket.create_connection(("127.0.0.1", 9), timeout=1)
except PermissionError:
    print("blocked")
"""


class Planted:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        """What a pickle runs."""
        return os.mkdir, (str(self.marker),)


@pytest.fixture(params=[0, 4], ids=["text", "binary"])
def planted(request: pytest.FixtureRequest, tmp_path: Path) -> bytes:
    """A pickle that leaves ``tmp_path / "ran"`` behind, and does so when it is loaded."""
    marker = tmp_path / "ran"
    content = pickle.dumps(Planted(marker), protocol=request.param)
    pickle.loads(content)  # noqa: S301
    marker.rmdir()
    return content


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, and its data beside it."""
    folder = tmp_path_factory.mktemp("trained")
    fit(tiny(write_dataset(folder / "balls"), steps=2, save_every=1), folder / "run")
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it to be damaged."""
    return Path(shutil.copytree(trained / "run", tmp_path / "run"))


@pytest.mark.parametrize(
    "part", ["model.safetensors", "card.json", "config.yaml", "error_table.json"]
)
def test_S02_a_pickle_in_a_model(run: Path, planted: bytes, part: str) -> None:
    (run / part).write_bytes(planted)
    if part == "model.safetensors":
        card = json.loads((run / "card.json").read_text())
        card["sha256"] = {part: file_sha256(run / part)}
        (run / "card.json").write_text(json.dumps(card))
    with pytest.raises((InputError, UsageError)) as refused:
        md.load(run, device="cpu")
    assert "\n" not in str(refused.value)
    assert not (run.parent / "ran").exists()


def test_S02_a_pickle_for_an_adapter(run: Path, planted: bytes) -> None:
    file = run.parent / "adapter.safetensors"
    file.write_bytes(planted)
    with pytest.raises(InputError):
        md.load(run, device="cpu", adapter=file)
    assert not (run.parent / "ran").exists()


@pytest.mark.parametrize("part", ["tensors.safetensors", "state.json", "sha256.json"])
def test_S02_a_pickle_in_a_resume_point(
    trained: Path, run: Path, planted: bytes, part: str
) -> None:
    """Even one that its own list of hashes vouches for."""
    for folder in (run / "checkpoints").iterdir():
        (folder / part).write_bytes(planted)
        if part != "sha256.json":
            hashes = json.loads((folder / "sha256.json").read_text())
            hashes[part] = file_sha256(folder / part)
            (folder / "sha256.json").write_text(json.dumps(hashes))
    config = tiny(trained / "balls" / "cases.json", steps=3, save_every=1)
    with pytest.raises(InputError) as refused:
        fit(config, run, Options(resume=True))
    assert "\n" not in str(refused.value)
    assert not (run.parent / "ran").exists()


@pytest.mark.parametrize("name", ["s.nii", "s.nii.gz", "s.png", "s.tif", "s.dcm", "s.zip", "s.npy"])
def test_S02_a_pickle_for_a_scan(tmp_path: Path, planted: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(planted)
    with pytest.raises(InputError):
        io.read_image(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_S02_a_pickle_for_a_list(tmp_path: Path, planted: bytes) -> None:
    """Case lists and the manifest of a batch."""
    (tmp_path / "cases.json").write_bytes(planted)
    with pytest.raises(InputError, match="not a JSON file"):
        load_caselist(tmp_path)
    (tmp_path / "manifest.sqlite").write_bytes(planted)
    with pytest.raises(InputError, match="not a readable manifest"):
        Manifest(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_S04_configurations_are_data(tmp_path: Path, run: Path) -> None:
    """No expression is worked out and no class is named, as MONAI's bundles do."""
    text = (run / "config.yaml").read_text()
    marker = tmp_path / "ran"
    expression = f"$__import__('os').mkdir('{marker}')"
    path = tmp_path / "c.yaml"
    path.write_text(text.replace("name: tiny", f'name: "{expression}"', 1))
    assert load_config(path).name == expression
    path.write_text(f"{text}\n_target_: os.mkdir\npath: {marker}\n")
    with pytest.raises(UsageError, match="_target_"):
        load_config(path)
    assert not marker.exists()


def test_S05_floors_of_what_had_holes(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert {"torch>=2.10", "monai>=1.6", "pydicom>=3.0.2"} <= set(project["dependencies"])


def test_S06_nothing_reaches_out(trained: Path, tmp_path: Path) -> None:
    """Import, training and prediction, where every attempt to connect is an error."""
    cases = trained / "balls" / "cases.json"
    (tmp_path / "c.yaml").write_text(tiny(cases, steps=1).to_yaml())
    scan = trained / "balls" / "images" / "ball_4.nii.gz"
    command = [sys.executable, "-W", "ignore", "-c", OFFLINE]
    done = subprocess.run(
        [*command, str(tmp_path / "c.yaml"), str(tmp_path / "run"), str(scan)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["answered (1, 16, 16, 16)", "blocked"]


def test_S12_burned_in_text_and_faces_are_warned_of(tmp_path: Path, repository: Path) -> None:
    def burned(ds: Dataset, _: int) -> None:
        ds.BurnedInAnnotation = "YES"

    image = io.read_image(dicoms.save(dicoms.planes(edit=burned), tmp_path / "s"))
    assert any("burned into its pixels" in line for line in image.meta["warnings"])
    clean = io.read_image(dicoms.save(dicoms.planes(), tmp_path / "t"))
    assert not any("burned" in line for line in clean.meta["warnings"])
    for page in ("SECURITY.md", "docs/privacy.md"):
        assert "head scan can identify a person" in (repository / page).read_text()


def test_S21_reports_are_private_and_answered(repository: Path) -> None:
    text = " ".join((repository / "SECURITY.md").read_text().split())
    for words in ("not a medical device", "private vulnerability report", "within 72 hours"):
        assert words in text


@pytest.mark.parametrize("part", ["model.safetensors", "card.json", "config.yaml"])
def test_S22_a_model_needs_its_card(run: Path, part: str) -> None:
    (run / part).unlink()
    with pytest.raises(InputError, match=f"not a trained model: {part} is missing"):
        md.load(run, device="cpu")
