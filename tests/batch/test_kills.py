"""Processes that die, bad files, other disks: the K rows of training and of files."""

from __future__ import annotations

import ast
import csv
import json
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from medseg_diff import checkpoint
from medseg_diff.batch.manifest import DONE, Manifest
from medseg_diff.data import dataset
from medseg_diff.data.workers import Watch
from medseg_diff.errors import InputError
from medseg_diff.files import atomic_text
from medseg_diff.training.fit import Options, fit
from medseg_diff.training.log import TrainingLog
from medseg_diff.training.processes import deaths_named
from medseg_diff.training.resume import Progress
from tests.training_fixtures import tiny, write_dataset

PACKAGE = Path(__file__).resolve().parents[2] / "medseg_diff"
# Trains; after step 2 one of its data-loading processes is killed as the kernel would.
LOADER = """
import os, signal, sys, psutil, torch
torch.set_num_threads(1)
from medseg_diff.config import load_config
from medseg_diff.errors import InputError
from medseg_diff.training.fit import Options, fit
def report(progress, values):
    if progress.step == 2:
        children = psutil.Process().children()
        print(*(child.pid for child in children), flush=True)
        children[0].kill()
try:
    fit(load_config(sys.argv[1]), sys.argv[2], Options(report=report))
except InputError as error:
    sys.exit(f"error: {error}")
"""
# A rank of two. Rank 1 dies or stops before step 4, and says if it ever opens a file to write.
RANK = """
import os, signal, sys, torch
torch.set_num_threads(1)
config, out, how, rank = sys.argv[1], sys.argv[2], sys.argv[3], os.environ["RANK"]
def watch(event, given):
    if event == "open" and str(given[0]).startswith(out) and given[2] & (os.O_WRONLY | os.O_RDWR):
        print("WROTE", given[0], flush=True)
if rank == "1":
    sys.addaudithook(watch)
from medseg_diff.training import fit as training
from medseg_diff.config import load_config
from medseg_diff.errors import InputError
step = training._step
def dying(run, stream):
    if rank == "1" and run.progress.step == 3:
        os.kill(os.getpid(), getattr(signal, how))
    return step(run, stream)
training._step = dying
try:
    training.fit(load_config(config), out)
except InputError as error:
    print(f"error: {error}", file=sys.stderr, flush=True)
    os._exit(1)
"""


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    """Case list of five synthetic balls, to be damaged."""
    return write_dataset(tmp_path / "balls")


def spoil(cases: Path, *names: str) -> None:
    """Cut scans short."""
    for name in names:
        file = cases.parent / "images" / f"{name}.nii.gz"
        # In one move: a loading process that reads meanwhile never sees an empty file.
        cut = file.with_suffix(".cut")
        cut.write_bytes(file.read_bytes()[:200])
        cut.replace(file)


def spoils(cases: Path, *names: str) -> Callable[[Progress, dict[str, float]], None]:
    """Report that damages scans after the second step."""

    def report(progress: Progress, values: dict[str, float]) -> None:
        if progress.step == 2:
            spoil(cases, *names)

    return report


def steps_of(run: Path) -> list[str]:
    with (run / "log.csv").open(newline="") as stream:
        return [row["step"] for row in csv.DictReader(stream)]


def test_K07_K16_a_killed_data_loading_process(cases: Path, tmp_path: Path) -> None:
    """One line that names the case, within a minute, and no process left behind."""
    config = tiny(cases, steps=400, workers=2, validate_every=400, save_every=400)
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    command = [sys.executable, "-W", "ignore", "-c", LOADER]
    process = subprocess.Popen(
        [*command, str(tmp_path / "c.yaml"), str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    workers = [int(word) for word in process.stdout.readline().split()]
    began = time.monotonic()
    _, err = process.communicate(timeout=120)
    assert time.monotonic() - began < 60
    assert process.returncode == 1
    assert re.search(
        r"error: case ball_\d(, ball_\d)*: a data-loading process was killed by the operating "
        r"system, probably memory",
        err,
    ), err
    assert "Traceback" not in err
    assert len(workers) == 2
    assert not [pid for pid in workers if psutil.pid_exists(pid)]


def test_K07_a_pipe_breaks_before_the_process_is_gone() -> None:
    """A dying process closes its files first: its death is waited for."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    watch = Watch(1)
    watch.rows[0] = torch.tensor([child.pid, 7])
    later = threading.Timer(0.3, child.kill)
    later.start()
    assert watch.lost(ConnectionResetError(104, "Connection reset by peer")) == [7]
    child.wait()


@pytest.mark.parametrize("how", ["pipe", "pipe, then torch's signal", "torch's word"])
def test_K07_whichever_news_of_a_death_comes_first(how: str) -> None:
    """The pipe to a dead process may break before torch says that it is gone, or the other way."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    watch = Watch(2)
    watch.rows[0] = torch.tensor([child.pid, 7])
    watch.rows[1] = torch.tensor([os.getpid(), 8])
    broken = ConnectionResetError(104, "Connection reset by peer")
    assert watch.lost(broken) is None
    child.kill()
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    said = RuntimeError(f"DataLoader worker (pid {child.pid}) is killed by signal: Killed. ")
    training_set = SimpleNamespace(watch=watch, case_name=lambda number: f"case {number}")

    def training() -> None:
        try:
            raise said if how == "torch's word" else broken
        finally:
            if "signal" in how:
                raise said

    with (
        pytest.raises(InputError, match="case case 7: a data-loading process was killed"),
        deaths_named(training_set, 1),
    ):
        training()
    child.wait()
    assert watch.lost(ValueError("another matter")) is None


@pytest.mark.parametrize("workers", [0, 1])
def test_K08_a_bad_case_in_the_middle_stops_by_default(
    cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """The file is named, in one line, also from a data-loading process."""
    monkeypatch.setattr(dataset, "CACHE_SHARE", 0.0)
    config = tiny(cases, steps=20, workers=workers)
    with pytest.raises(InputError) as refused:
        fit(config, tmp_path / "run", Options(report=spoils(cases, "ball_1")))
    line = str(refused.value)
    assert line.startswith("case ball_1 cannot be used: ball_1.nii.gz: file ends early")
    assert "--skip-bad" in line
    assert "\n" not in line
    assert "Traceback" not in line
    assert not (tmp_path / "run" / "skipped_cases.json").exists()
    assert 2 <= len(steps_of(tmp_path / "run")) < 20


@pytest.mark.parametrize("workers", [0, 1])
def test_K08_skip_bad_goes_on_and_lists(
    cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Another case takes the place; the list names case and reason, no folder."""
    monkeypatch.setattr(dataset, "CACHE_SHARE", 0.0)
    config = tiny(cases, workers=workers)
    fit(config, tmp_path / "run", Options(report=spoils(cases, "ball_1"), skip_bad=1))
    assert len(steps_of(tmp_path / "run")) == 10
    text = (tmp_path / "run" / "skipped_cases.json").read_text()
    (listed,) = json.loads(text)
    assert listed["case"] == "ball_1"
    assert listed["error"].startswith("ball_1.nii.gz: file ends early")
    assert str(tmp_path) not in text


def test_K08_no_more_than_allowed(cases: Path, tmp_path: Path) -> None:
    """Two bad cases from the start, one of them known to the fingerprint first."""
    spoil(cases, "ball_0", "ball_2")
    with pytest.raises(InputError, match=r"ball_2.*found 2 such cases; expected at most 1"):
        fit(tiny(cases), tmp_path / "one", Options(skip_bad=1))
    fit(tiny(cases), tmp_path / "two", Options(skip_bad=2))
    listed = json.loads((tmp_path / "two" / "skipped_cases.json").read_text())
    assert [entry["case"] for entry in listed] == ["ball_0", "ball_2"]
    spoil(cases, "ball_1")
    with pytest.raises(InputError, match="found 3 such cases; expected at most 2"):
        fit(tiny(cases), tmp_path / "three", Options(skip_bad=2))


def test_K13_nothing_is_downloaded(tmp_path: Path) -> None:
    """Models, sample and configurations travel with the package; only a server or an archive of
    scans, both asked for by the user, may open a connection.
    """
    clients = {"urllib.request", "urllib3", "requests", "httpx", "http.client", "ftplib", "aiohttp"}
    clients |= {"huggingface_hub", "boto3", "gdown", "wget"}
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] in ("pacs", "serve"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                assert not any(name == c or name.startswith(f"{c}.") for c in clients), path


def _rewrite(file: Path, letter: str, times: int) -> None:
    for _ in range(times):
        atomic_text(file, letter * 100_000)


def test_K13_two_processes_prepare_the_same_file(tmp_path: Path) -> None:
    """Case lists, copied scans, models: each is one process's whole file at any moment."""
    file = tmp_path / "cases.json"
    atomic_text(file, "a" * 100_000)
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_rewrite, args=(file, letter, 40)) for letter in "ab"]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert file.read_text() in ("a" * 100_000, "b" * 100_000)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["cases.json"]


def _recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is synced and renamed from now on, in order."""
    events: list[tuple[str, str]] = []
    fsync, replace, rename = os.fsync, os.replace, os.rename

    def synced(descriptor: int) -> None:
        events.append(("fsync", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        fsync(descriptor)

    def moved(real: Any) -> Any:
        def move(source: Any, target: Any, **more: Any) -> None:
            events.append(("rename", f"{Path(source).name} {Path(target).name}"))
            real(source, target, **more)

        return move

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", moved(replace))
    monkeypatch.setattr(os, "rename", moved(rename))
    return events


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="reads names from /proc")
def test_K17_a_file_is_synced_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Temporary file, its bytes, the name, the folder: in that order."""
    events = _recorded(monkeypatch)
    atomic_text(tmp_path / "a.json", "{}")
    (first, temporary), (second, names), (third, folder) = events
    assert (first, second, third) == ("fsync", "rename", "fsync")
    assert names == f"{temporary} a.json"
    assert temporary.endswith(".tmp")
    assert folder == tmp_path.name


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="reads names from /proc")
def test_K17_a_checkpoint_is_synced_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every part and the folder itself come before the rename, the parent after it."""
    run = tmp_path / "run"
    run.mkdir()
    events = _recorded(monkeypatch)
    with checkpoint.new_checkpoint(run, 1) as folder:
        (folder / "tensors").write_text("one")
        temporary = folder.name
    at = events.index(("rename", f"{temporary} step_00000001"))
    before, after = events[:at], events[at + 1 :]
    assert before[:2] == [("fsync", "run"), ("fsync", tmp_path.name)]
    assert {("fsync", name) for name in ("tensors", "sha256.json")} <= set(before)
    assert before[-1] == ("fsync", temporary)
    assert after == [("fsync", "checkpoints")]


def test_K17_the_log_is_only_appended_to(tmp_path: Path) -> None:
    """What a power cut can take is the last row; a torn one is dropped on resume."""
    log = TrainingLog(tmp_path, 0)
    inode, before = log.file.stat().st_ino, log.file.read_bytes()
    for step in (1, 2, 3):
        log.row(step, {"loss": 0.5})
        now = log.file.read_bytes()
        assert now.startswith(before)
        assert len(now) > len(before)
        assert log.file.stat().st_ino == inode
        before = now
    log.close()
    log.file.write_bytes(before[:-4])
    TrainingLog(tmp_path, 2).close()
    assert steps_of(tmp_path) == ["1", "2"]


def _start_ranks(config: Path, out: Path, how: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    shared |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", RANK, str(config), str(out), how],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP"])
def test_K18_a_rank_dies(cases: Path, tmp_path: Path, how: str) -> None:
    """The other leaves with one line, at once or when its patience ends; only rank 0 wrote."""
    config = tiny(cases, save_every=1, validate_every=100, patience_minutes=0.2)
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    out = tmp_path / "run"
    first, second = _start_ranks(tmp_path / "c.yaml", out, how)
    try:
        _, err = first.communicate(timeout=300)
    finally:
        second.kill()
        said, _ = second.communicate()
        first.kill()
    assert first.returncode == 1, err
    assert "another of the 2 processes of this training is gone or does not answer" in err
    assert "Traceback" not in err
    assert "WROTE" not in said
    assert checkpoint.latest_checkpoint(out)[0].name == "step_00000003"
    fit(config, out, Options(resume=True))
    assert steps_of(out) == [str(n) for n in range(1, 11)]


@pytest.fixture(params=["disk", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A folder on the normal disk, and one on a file system in memory (tmpfs)."""
    if request.param == "disk":
        yield tmp_path
        return
    import tempfile

    if not Path("/dev/shm").is_dir():
        pytest.skip("no /dev/shm here")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def test_K21_names_and_locks_hold_on_disk_and_tmpfs(place: Path) -> None:
    """Replacing names, whole checkpoints, and the manifest's lock between two connections."""
    for text in ("one", "two"):
        atomic_text(place / "a.txt", text)
    assert (place / "a.txt").read_text() == "two"
    for step in (1, 1, 2):
        with checkpoint.new_checkpoint(place, step) as folder:
            (folder / "part").write_text(str(step))
    assert checkpoint.latest_checkpoint(place) == (place / "checkpoints" / "step_00000002", [])
    mine, other = Manifest(place), Manifest(place, owner=f"elsewhere|{os.getpid()}|1.00")
    mine.enroll(["a", "b"], afresh=True)
    assert mine.claim("a")
    other._base.execute("PRAGMA busy_timeout=0")
    with mine._transaction(), pytest.raises(Exception, match="locked"):
        other.claim("b")
    assert other.claim("b")
    mine.finish("a", "x", "y", None)
    assert other.entry("a").status == DONE
    assert {p.name for p in place.iterdir()} == {"a.txt", "checkpoints", "manifest.sqlite"}
    mine.close()
    other.close()
