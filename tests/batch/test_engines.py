"""Engines: one seam, identical answers, and workers that die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from medseg_diff.batch.engines import ModelSource, cluster, engine_by_name
from medseg_diff.batch.engines.cluster import RayEngine
from medseg_diff.batch.manifest import DONE, FAILED, WAITING, Manifest
from medseg_diff.batch.run import find_cases, predict_many
from medseg_diff.errors import InputError, UsageError
from medseg_diff.files import file_sha256, remove_leftovers
from medseg_diff.inference import predictor as inference
from medseg_diff.inference.ensemble import Request
from tests.phantoms import NiftiFile, grid_affine, make_phantom
from tests.tiny import save_untrained, threshold_predictor, tiny_config

PHANTOM = make_phantom(grid_affine("RAS", (3.0, 3.2, 3.6), (15, 13, 11)), (15, 13, 11))
BRIGHT = [{"kind": "ct", "mean": 0.0, "sd": 100.0}]


def scans(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        NiftiFile(PHANTOM.image + number, PHANTOM.affine).write(folder / f"case{number}.nii.gz")
    return folder


def predictor() -> Any:
    return threshold_predictor(tiny_config(plan={"normalisation": BRIGHT}), 0.2)


def states(out: Path) -> dict[str, str]:
    manifest = Manifest(out)
    found = {entry.name: entry.status for entry in manifest.entries()}
    manifest.close()
    return found


class Token:
    """A reference to an answer to come."""

    def __init__(self, claim: Any, run: Any) -> None:
        self.claim, self.run = claim, run


class FakeRay:
    """As much of Ray as the engine uses, in one process; workers die on command.

    Args:
        deaths: Case -> how often its worker dies.
    """

    class RayError(Exception):
        """As Ray's."""

    class Died(RayError):
        """As Ray's RayActorError."""

    class TaskError(RayError):
        """As Ray's RayTaskError."""

        def __init__(self, cause: Exception) -> None:
            super().__init__(str(cause))
            self.cause = cause

    def __init__(self, deaths: dict[str, int] | None = None, cpus: int = 2) -> None:
        self.deaths, self.cpus = dict(deaths or {}), cpus
        self.flying: list[Any] = []
        self.most = self.started = self.tries = self.busy = 0
        self.sent: list[str] = []
        self.up = False
        self.exceptions = SimpleNamespace(
            RayError=self.RayError,
            RayActorError=self.Died,
            OutOfMemoryError=type("OutOfMemoryError", (self.RayError,), {}),
            RayTaskError=self.TaskError,
            GetTimeoutError=type("GetTimeoutError", (self.RayError,), {}),
        )

    def init(self, **options: Any) -> None:
        """Options that would open something to the world are wrong."""
        assert options["log_to_driver"] is False
        if "address" in options:
            raise ConnectionError("nobody there")
        self.tries += 1
        if self.tries <= self.busy:
            raise Exception("The current node timed out during startup.")
        assert options["include_dashboard"] is False
        self.up = True

    def shutdown(self) -> None:
        self.up = False

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": float(self.cpus)}

    def remote(self, **options: Any) -> Any:
        assert (options["max_restarts"], options["max_task_retries"]) == (0, 0)

        def decorate(kind: Any) -> Any:
            def make(source: Any) -> Any:
                self.started += 1
                worker = kind(source)
                return SimpleNamespace(
                    ready=SimpleNamespace(remote=worker.ready),
                    predict=SimpleNamespace(remote=lambda *given: self.send(worker, *given)),
                )

            return SimpleNamespace(remote=make)

        return decorate

    def send(self, worker: Any, claim: Any, folder: Path, settings: Any) -> Any:
        assert all(path.is_absolute() for path in claim.case.channels.values())
        self.sent.append(claim.case.name)
        token = Token(claim, lambda: worker.predict(claim, folder, settings))
        self.flying.append(token)
        self.most = max(self.most, len(self.flying))
        return token

    def wait(self, tokens: list[Any], num_returns: int) -> Any:
        # The last first: answers come in another order than they were asked for.
        return tokens[-1:], tokens[:-1]

    def get(self, what: Any, timeout: float | None = None) -> Any:
        if isinstance(what, list):
            return what
        self.flying.remove(what)
        name = what.claim.case.name
        if self.deaths.get(name, 0):
            self.deaths[name] -= 1
            raise self.Died("the actor died")
        try:
            return what.run()
        except UsageError as error:
            raise self.TaskError(error) from None


class Source(ModelSource):
    """Loads the hand-made model."""

    def load(self, device: str | None = None) -> Any:
        return predictor()

    def absolute(self) -> Source:
        return self


def on_ray(
    monkeypatch: pytest.MonkeyPatch, fake: FakeRay, source: Path, out: Path, **more: Any
) -> tuple[int, list[str], list[str]]:
    """Exit code, cases reported and lines said of a batch on a pretended cluster."""
    monkeypatch.setattr(cluster, "import_ray", lambda local: fake)
    said: list[str] = []
    engine = RayEngine(Source(("stub",), "cpu"), say=said.append, retries=more.pop("retries", 2))
    seen: list[str] = []
    code = predict_many(
        predictor(),
        find_cases([source], ["T1"]),
        out,
        engine=engine,
        report=lambda before, outcome: seen.append(f"{before} {outcome.case}"),
        **more,
    )
    assert not fake.up
    return code, seen, said


def test_workers_have_one_case_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more cases under way than workers; every case once; masks as in this process."""
    source, fake = scans(tmp_path / "in", 7), FakeRay(cpus=3)
    code, seen, said = on_ray(monkeypatch, fake, source, tmp_path / "ray")
    assert (code, fake.most, fake.started, said) == (0, 3, 3, [])
    assert sorted(fake.sent) == [f"case{n}" for n in range(7)]
    assert [line.split()[0] for line in seen] == [str(n) for n in range(7)]
    assert sorted(line.split()[1] for line in seen) == sorted(fake.sent)
    predict_many(predictor(), find_cases([source], ["T1"]), tmp_path / "local")
    for file in (tmp_path / "local").glob("*.nii.gz"):
        assert file_sha256(file) == file_sha256(tmp_path / "ray" / file.name)
    # Both engines vouch for the same result: what one did, the other passes over.
    code, seen, _ = on_ray(monkeypatch, FakeRay(), source, tmp_path / "local", go_on=True)
    assert (code, seen) == (0, [])


def test_K16_a_dead_worker_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its case goes back into the queue, and is done once."""
    source, out = scans(tmp_path / "in", 5), tmp_path / "out"
    fake = FakeRay({"case1": 2})
    code, seen, said = on_ray(monkeypatch, fake, source, out)
    assert code == 0
    assert sorted(line.split()[1] for line in seen) == [f"case{n}" for n in range(5)]
    assert fake.sent.count("case1") == 3
    assert fake.started == 2 + 2
    assert said == [
        "case1: its worker was killed by the operating system, probably memory; "
        f"trying again ({n} of 2)"
        for n in (1, 2)
    ]
    assert states(out) == {f"case{n}": DONE for n in range(5)}


def test_K16_a_case_that_kills_every_worker_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = scans(tmp_path / "in", 4), tmp_path / "out"
    code, seen, _ = on_ray(monkeypatch, FakeRay({"case2": 9}), source, out, retries=1)
    assert code == 8
    assert len(seen) == 4
    assert states(out) == {f"case{n}": FAILED if n == 2 else DONE for n in range(4)}
    record = json.loads((out / "case2.json").read_text())
    assert record["error"] == (
        "its worker was killed by the operating system, probably memory (2 times)"
    )
    assert not (out / "case2.nii.gz").exists()


def test_wrong_use_on_a_worker_stops_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And gives back what was taken."""
    source, out = scans(tmp_path / "in", 3), tmp_path / "out"
    with pytest.raises(UsageError, match="--draws"):
        on_ray(monkeypatch, FakeRay(), source, out, draws=0)
    assert set(states(out).values()) == {WAITING}


def test_engines_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = ModelSource(("hippocampus",), "cpu")
    with pytest.raises(UsageError, match=r"--engine: unknown engine .*expected local or ray"):
        engine_by_name("dask", predictor(), source)
    with pytest.raises(UsageError, match="--workers: needs --engine ray"):
        engine_by_name("local", predictor(), source, workers=2)
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
        monkeypatch.setenv(name, "set by the test")
    with pytest.raises(UsageError, match=r"Ray is not installed .*cluster"):
        engine_by_name("ray", predictor(), source)
    monkeypatch.setattr(cluster, "import_ray", lambda local: FakeRay())
    with pytest.raises(UsageError, match="--workers"):
        RayEngine(source, workers=0)
    cases = find_cases([scans(tmp_path / "in", 1)], ["T1"])
    for engine, words in (
        (RayEngine(Source(("stub",), "cpu"), workers=3), "--workers: the cluster is too small"),
        (RayEngine(Source(("stub",), "cpu"), address="127.0.0.1:1"), "no Ray cluster answers"),
    ):
        with pytest.raises(InputError, match=words):
            predict_many(predictor(), cases, tmp_path / "out", engine=engine)


def test_a_busy_computer_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray gives up after half a minute, with a bare exception."""
    source = scans(tmp_path / "in", 1)
    slow, stuck = FakeRay(), FakeRay()
    slow.busy, stuck.busy = 2, 9
    assert on_ray(monkeypatch, slow, source, tmp_path / "out")[0] == 0
    with pytest.raises(InputError, match=r"did not start .* in 3 tries: .* timed out"):
        on_ray(monkeypatch, stuck, source, tmp_path / "out")


def test_K15_memory_of_the_gpu_ends_at_one_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once more with the smallest batches, after the failed attempt's tensors are gone."""
    source, out, model = scans(tmp_path / "in", 3), tmp_path / "out", predictor()
    real, held, tries = inference.infer, [], []

    def infer(members: Any, image: Any, patch: Any, request: Request) -> Any:
        tries.append((request.case, request.batch_size))
        if request.case == "case1" and request.batch_size != 1:
            activations = torch.zeros(1000)
            held.append(weakref.ref(activations))
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        assert all(ref() is None for ref in held)
        return real(members, image, patch, request)

    monkeypatch.setattr(inference, "infer", infer)
    assert predict_many(model, find_cases([source], ["T1"]), out) == 0
    assert [case for case, _ in tries] == ["case0", "case1", "case1", "case2"]
    assert tries[2] == ("case1", 1)
    record = json.loads((out / "case1.json").read_text())
    assert record["status"] == "warning"
    assert any("the GPU's ran out" in line for line in record["warnings"])
    assert not any("GPU" in w for w in json.loads((out / "case2.json").read_text())["warnings"])


def test_K15_a_case_too_large_for_the_gpu_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out, model = scans(tmp_path / "in", 3), tmp_path / "out", predictor()
    real = inference.infer

    def infer(members: Any, image: Any, patch: Any, request: Request) -> Any:
        if request.case == "case1":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return real(members, image, patch, request)

    monkeypatch.setattr(inference, "infer", infer)
    assert predict_many(model, find_cases([source], ["T1"]), out) == 8
    assert states(out) == {"case0": DONE, "case1": FAILED, "case2": DONE}
    error = json.loads((out / "case1.json").read_text())["error"]
    assert error.startswith("case1.nii.gz: memory: the GPU's memory does not suffice")


def test_what_another_process_has_just_finished_is_not_taken(tmp_path: Path) -> None:
    """Between looking and taking lies time: a case is not done twice."""
    mine, other = Manifest(tmp_path), Manifest(tmp_path, owner="elsewhere|1|1.00")
    mine.enroll(["a", "b"], afresh=True)
    seen = mine.entry("a")
    assert other.claim("a")
    other.finish("a", "x", "y", None)
    assert not mine.claim("a", seen=seen)
    assert mine.claim("a", seen=mine.entry("a"))
    mine.close()
    other.close()


def test_K10_unfinished_files_of_the_dead_are_removed(tmp_path: Path) -> None:
    """Theirs alone: not what was touched just now, nor what bears another name."""
    names = {".0123456789abcdef.tmp": 60, ".fedcba9876543210.tmp": 0, ".mine.tmp": 60, "a.tmp": 60}
    for name, age in names.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    remove_leftovers(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == set(names) - {".0123456789abcdef.tmp"}


def test_time_left_is_readable() -> None:
    from medseg_diff.cli.progress import duration

    shown = [duration(s) for s in (40, 720, 19200, 273600)]
    assert shown == ["40 s", "12 min", "5 h 20 min", "3 d 4 h"]


@pytest.mark.slow
def test_K16_ray_gives_the_local_masks_though_a_worker_is_killed(tmp_path: Path) -> None:
    """A real cluster of two workers; one is killed at work. Nothing is lost or done twice."""
    pytest.importorskip("ray", reason="needs the extra [cluster]")
    source = scans(tmp_path / "in", 5)
    run = save_untrained(tmp_path / "run", tiny_config(plan={"normalisation": BRIGHT}))
    words = ["predict", "--model", run, "--input", f"{source}/*.nii.gz", "--draws", 30]
    command = [sys.executable, "-W", "ignore", "-m", "medseg_diff.cli", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).resolve().parents[2]
    local, ray = tmp_path / "local", tmp_path / "ray"
    subprocess.run([*command, "--out", str(local)], check=True, env=environment, cwd=root)
    driver = subprocess.Popen(
        [*command, "--out", str(ray), "--engine", "ray", "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=root,
    )
    _kill_one_at_work(driver)
    out, err = driver.communicate(timeout=400)
    assert driver.returncode == 0, err
    assert "killed by the operating system, probably memory; trying again (1 of 2)" in err
    assert "Traceback" not in out + err
    reported = [line.split("] ")[1].split(":")[0] for line in out.splitlines() if "] case" in line]
    assert sorted(reported) == [f"case{n}" for n in range(5)]
    assert states(ray) == {f"case{n}": DONE for n in range(5)}
    files = sorted(p.name for p in local.glob("*.nii.gz"))
    assert len(files) == 15
    assert [file_sha256(ray / n) for n in files] == [file_sha256(local / n) for n in files]
    assert (ray / "volumes.csv").read_bytes() == (local / "volumes.csv").read_bytes()


def _kill_one_at_work(driver: subprocess.Popen[str]) -> None:
    """SIGKILL a worker in the middle of a case; Ray names a process after what it does."""
    while driver.poll() is None:
        time.sleep(0.05)
        family = psutil.Process(driver.pid).children(recursive=True)
        for process in family:
            try:
                busy = "CaseWorker.predict" in " ".join(process.cmdline())
            except psutil.Error:
                continue
            if busy:
                process.send_signal(signal.SIGKILL)
                for each in (p for p in family if p.is_running() and p.pid != process.pid):
                    for open_ in each.net_connections("inet"):
                        if open_.status == psutil.CONN_LISTEN:
                            assert open_.laddr.ip.removeprefix("::ffff:") == "127.0.0.1"
                return
    err = driver.communicate()[1]
    if "Ray did not start on this computer" in err:
        pytest.skip("the computer is too busy for Ray to start")
    raise AssertionError(f"no worker was ever at work: {err}")
