"""The manifest: what counts as done, who may work on what, and kills at any moment."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg_diff.batch.manifest import DONE, FAILED, RUNNING, WAITING, Manifest, this_process
from medseg_diff.batch.run import find_cases, predict_many
from medseg_diff.errors import InputError
from medseg_diff.files import file_sha256
from tests.phantoms import NiftiFile, grid_affine, make_phantom
from tests.tiny import threshold_predictor, tiny_config

PHANTOM = make_phantom(grid_affine("RAS", (3.0, 3.2, 3.6), (15, 13, 11)), (15, 13, 11))
BRIGHT = [{"kind": "ct", "mean": 0.0, "sd": 100.0}]
HOST, PID, START = this_process().split("|")
# One case of a batch takes this long here, so that a kill meets one at work.
WORKER = """
import sys, torch
from pathlib import Path
from tests.batch.test_manifest import many
torch.set_num_threads(1)
print("ready", flush=True)
sys.exit(many(Path(sys.argv[1]), Path(sys.argv[2])))
"""


def scans(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        image = PHANTOM.image + number
        NiftiFile(image, PHANTOM.affine).write(folder / f"case{number}.nii.gz")
    return folder


def many(source: Path, out: Path, go_on: bool = True, **settings) -> int:
    predictor = threshold_predictor(tiny_config(plan={"normalisation": BRIGHT}), 0.2)
    return predict_many(predictor, find_cases([source], ["T1"]), out, go_on=go_on, **settings)


def counted(source: Path, out: Path, **settings) -> list[str]:
    done: list[str] = []
    many(source, out, report=lambda _, outcome: done.append(outcome.case), **settings)
    return done


def states(out: Path) -> dict[str, str]:
    manifest = Manifest(out)
    found = {entry.name: entry.status for entry in manifest.entries()}
    manifest.close()
    return found


def test_K10_what_is_done_is_passed_over(tmp_path: Path) -> None:
    source, out = scans(tmp_path / "in", 3), tmp_path / "out"
    assert counted(source, out) == ["case0", "case1", "case2"]
    assert states(out) == dict.fromkeys(("case0", "case1", "case2"), DONE)
    volumes = (out / "volumes.csv").read_bytes()
    assert counted(source, out) == []
    assert (out / "volumes.csv").read_bytes() == volumes


@pytest.mark.parametrize(
    "harm",
    [
        lambda out, source: (out / "case1.nii.gz").write_bytes(b"other"),
        lambda out, source: (out / "case1_prob.nii.gz").unlink(),
        lambda out, source: (out / "case1.json").write_text("{}"),
        lambda out, source: NiftiFile(PHANTOM.image * 0.9, PHANTOM.affine).write(
            source / "case1.nii.gz"
        ),
    ],
    ids=["mask", "map", "record", "input"],
)
def test_K10_existence_is_not_enough(tmp_path: Path, harm) -> None:
    """A file that changed, on either side, is made again; the others are not."""
    source, out = scans(tmp_path / "in", 3), tmp_path / "out"
    many(source, out)
    harm(out, source)
    assert counted(source, out) == ["case1"]
    assert counted(source, out) == []


def test_other_parameters_or_weights_are_other_results(tmp_path: Path) -> None:
    source, out = scans(tmp_path / "in", 2), tmp_path / "out"
    many(source, out, draws=2)
    assert counted(source, out, draws=3) == ["case0", "case1"]
    assert counted(source, out, draws=3, batch_size=1) == []
    assert counted(source, out, draws=3, seed=1) == ["case0", "case1"]


def test_without_continue_everything_is_made_anew(tmp_path: Path) -> None:
    source, out = scans(tmp_path / "in", 2), tmp_path / "out"
    many(source, out)
    assert counted(source, out, go_on=False) == ["case0", "case1"]


def test_K11_a_failed_case_is_tried_again(tmp_path: Path) -> None:
    source, out = scans(tmp_path / "in", 3), tmp_path / "out"
    good = (source / "case1.nii.gz").read_bytes()
    (source / "case1.nii.gz").write_bytes(good[: len(good) // 2])
    assert many(source, out) == 8
    assert states(out) == {"case0": DONE, "case1": FAILED, "case2": DONE}
    (source / "case1.nii.gz").write_bytes(good)
    assert counted(source, out) == ["case1"]
    assert many(source, out) == 0


def test_K12_a_living_process_keeps_its_case(tmp_path: Path) -> None:
    """The parent of this process lives; its claim holds, and a fresh start is refused."""
    parent = Manifest(tmp_path, owner=owner_of(os.getppid()))
    parent.enroll(["a", "b"], afresh=True)
    assert parent.claim("a")
    mine = Manifest(tmp_path)
    assert not mine.claim("a")
    assert mine.claim("b")
    with pytest.raises(InputError, match="another process is predicting"):
        mine.enroll(["a", "b"], afresh=True)
    parent.release("a")
    assert mine.claim("a")
    parent.close()
    mine.close()


@pytest.mark.parametrize(
    "gone",
    [f"{HOST}|{PID}|1.00", f"{HOST}|4194303|1.00", "elsewhere|1|1.00"],
    ids=["number given anew", "no such process", "lease over"],
)
def test_K12_a_dead_process_loses_its_case(tmp_path: Path, gone: str) -> None:
    dead = Manifest(tmp_path, owner=gone)
    dead.enroll(["a"], afresh=True)
    assert dead.claim("a")
    dead.close()
    mine = Manifest(tmp_path, lease=0.0)
    assert mine.entry("a").status == RUNNING
    assert mine.claim("a")
    assert mine.entry("a").owner == this_process()
    mine.close()


def test_K12_another_computer_holds_its_case_for_the_lease(tmp_path: Path) -> None:
    far = Manifest(tmp_path, owner="elsewhere|1|1.00")
    far.enroll(["a"], afresh=True)
    far.claim("a")
    far.close()
    mine = Manifest(tmp_path, lease=60.0)
    assert not mine.claim("a")
    mine.close()


def test_K12_two_processes_share_a_folder(tmp_path: Path) -> None:
    """Each case is done once, and the table holds them all."""
    source, out = scans(tmp_path / "in", 8), tmp_path / "out"
    workers = [start(source, out) for _ in range(2)]
    for worker in workers:
        worker.communicate(timeout=120)
    assert [worker.returncode for worker in workers] == [0, 0]
    assert set(states(out).values()) == {DONE}
    assert many(source, out) == 0
    lines = (out / "volumes.csv").read_text().splitlines()
    assert len(lines) == 1 + 8 * 3


def test_a_file_that_is_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "manifest.sqlite").write_bytes(b"not a database, not by far" * 100)
    with pytest.raises(InputError, match=r"manifest\.sqlite: not a readable manifest"):
        Manifest(tmp_path)


def test_K22_the_same_run_gives_the_same_masks(tmp_path: Path) -> None:
    source = scans(tmp_path / "in", 2)
    for out in ("one", "two"):
        many(source, tmp_path / out)
    for name in ("case0.nii.gz", "case1.nii.gz", "case0_prob.nii.gz", "case1_doubt.nii.gz"):
        assert file_sha256(tmp_path / "one" / name) == file_sha256(tmp_path / "two" / name)


def test_a_signal_gives_the_case_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = scans(tmp_path / "in", 2), tmp_path / "out"

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("medseg_diff.batch.engines.predict_one", stopped)
    with pytest.raises(KeyboardInterrupt):
        many(source, out)
    assert states(out) == {"case0": WAITING, "case1": WAITING}


def owner_of(pid: int) -> str:
    import psutil

    return f"{HOST}|{pid}|{psutil.Process(pid).create_time():.2f}"


def start(source: Path, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(source), str(out)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).resolve().parents[2],
    )


def whole(out: Path) -> set[str]:
    """Cases whose record stands; every image beside it must be readable and vouched for."""
    found = set()
    for file in out.glob("*.nii.gz"):
        np.asarray(nib.load(file).dataobj)
    for file in out.glob("*.json"):
        record = json.loads(file.read_text())
        for name, digest in record["hashes"]["written"].items():
            assert file_sha256(out / name) == digest
        found.add(file.stem)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_K10_killed_at_a_random_moment(tmp_path: Path, seed: int) -> None:
    """Nothing half-written, nothing lost, nothing done twice."""
    source, out = scans(tmp_path / "in", 6), tmp_path / "out"
    clock, wanted = random.Random(seed), {f"case{n}" for n in range(6)}
    for _ in range(50):
        worker = start(source, out)
        assert worker.stdout is not None
        worker.stdout.readline()
        time.sleep(clock.uniform(0.0, 0.6))
        worker.send_signal(signal.SIGKILL)
        worker.communicate()
        if out.is_dir() and whole(out) == wanted:
            break
    done = {name for name, status in states(out).items() if status == DONE}
    assert done <= whole(out)
    again = counted(source, out)
    assert not done & set(again)
    assert states(out) == dict.fromkeys(sorted(wanted), DONE)


def test_the_command_says_what_it_passed_over(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from medseg_diff.cli.main import app
    from tests.tiny import save_untrained

    source = scans(tmp_path / "in", 2)
    run = save_untrained(tmp_path / "run", tiny_config(plan={"normalisation": BRIGHT}))
    words = ["predict", "--model", run, "--input", source, "--out", tmp_path / "out", "--continue"]
    first = CliRunner().invoke(app, [str(word) for word in words])
    assert first.exit_code == 0, first.output
    assert "[2/2] case1" in first.output
    assert "done before" not in first.output
    again = CliRunner().invoke(app, [str(word) for word in words])
    assert "2 cases were done before" in again.output
