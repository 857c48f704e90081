"""Training: exact resume, several processes, signals, refusals."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import medseg_diff as md
from medseg_diff import checkpoint, io
from medseg_diff.checkpoint import load_tensors
from medseg_diff.config import TrainingConfig
from medseg_diff.errors import InputError
from medseg_diff.files import file_sha256
from medseg_diff.model import SegmentationModel
from medseg_diff.training import resume
from medseg_diff.training.fit import Options, Stopped, fit, learning_rate
from medseg_diff.training.resume import Progress
from tests.training_fixtures import SCRIPT, tiny, write_dataset


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Case list of five synthetic balls."""
    return write_dataset(tmp_path_factory.mktemp("balls"))


@pytest.fixture(scope="module")
def whole(cases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run of ten steps in one go, in a process of its own."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "c.yaml").write_text(tiny(cases).to_yaml())
    _train(folder / "c.yaml", folder / "run")
    return folder


def _train(config: Path, out: Path, die_at: int = 0, how: str = "start") -> int:
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        SCRIPT,
        str(config),
        str(out),
        str(die_at),
        how,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, -9), done.stderr
    return done.returncode


def _state(run: Path, step: int = 10) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    folder = run / "checkpoints" / f"step_{step:08d}"
    return load_tensors(folder / "tensors.safetensors"), json.loads(
        (folder / "state.json").read_text()
    )


def _log(run: Path) -> list[dict[str, str]]:
    with (run / "log.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.mark.parametrize("die_at", [5, 7])
def test_K04_ten_steps_equal_five_kill_five(whole: Path, tmp_path: Path, die_at: int) -> None:
    """Weights, average, optimiser, random states, progress and log, bit for bit."""
    assert _train(whole / "c.yaml", tmp_path / "run", die_at) == -9
    assert _train(whole / "c.yaml", tmp_path / "run", how="resume") == 0
    (tensors, state), (expected, wanted) = _state(tmp_path / "run"), _state(whole / "run")
    assert tensors.keys() == expected.keys()
    assert {k.split("/")[0] for k in tensors} >= {"model", "average", "optimiser", "random"}
    for name, value in expected.items():
        assert torch.equal(tensors[name], value), name
    assert state == wanted
    assert _log(tmp_path / "run") == _log(whole / "run")
    assert len(_log(whole / "run")) == 10
    best = [load_tensors(r / "model.safetensors") for r in (tmp_path / "run", whole / "run")]
    assert all(torch.equal(best[0][k], best[1][k]) for k in best[1])


def test_the_average_differs_from_the_weights(whole: Path) -> None:
    """Otherwise the test above could not see an average that was lost."""
    tensors, _ = _state(whole / "run")
    pairs = [(v, tensors["average/" + k[6:]]) for k, v in tensors.items() if k.startswith("model/")]
    assert any(not torch.equal(a, b) for a, b in pairs)


def test_training_learns(cases: Path, tmp_path: Path) -> None:
    """Forty steps lower the loss, and the run predicts its ball."""
    losses = []
    config = tiny(cases, steps=60, validate_every=60, learning_rate=0.01)
    fit(config, tmp_path / "run", Options(report=lambda p, v: losses.append(v["loss"])))
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    image = cases.parent / "images" / "ball_4.nii.gz"
    answer = md.load(tmp_path / "run").predict(image, draws=2)
    truth = np.asarray(io.read_label(cases.parent / "labels" / "ball_4.nii.gz"))
    found = np.asarray(answer.mask)
    assert 2 * (found * truth).sum() / (found.sum() + truth.sum()) > 0.7


def test_two_processes_give_the_losses_of_one(whole: Path, tmp_path: Path) -> None:
    """The same global batch split over two processes, through torchrun."""
    (tmp_path / "train.py").write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node=2"),
        *("--master-addr=127.0.0.1", f"--master-port={port}", str(tmp_path / "train.py")),
        *(str(whole / "c.yaml"), str(tmp_path / "run"), "0", "start"),
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one = [float(row["loss"]) for row in _log(whole / "run")]
    two = [float(row["loss"]) for row in _log(tmp_path / "run")]
    np.testing.assert_allclose(two, one, rtol=2e-4)
    assert len(two) == 10


def test_K01_a_kill_during_the_write_leaves_the_old_checkpoint(
    whole: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever moment the write stops at, the previous checkpoint is still the latest."""
    run = tmp_path / "run"
    with checkpoint.new_checkpoint(run, 1) as folder:
        (folder / "a").write_text("one")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    def write() -> None:
        with checkpoint.new_checkpoint(run, 2) as folder:
            (folder / "a").write_text("two")
            assert [p.name for p in checkpoint.checkpoints(run)] == ["step_00000001"]

    for moment in ("sync", "file_sha256"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, moment, stop)
            with pytest.raises(KeyboardInterrupt):
                write()
        found, warnings = checkpoint.latest_checkpoint(run)
        assert (found / "a").read_text() == "one"
        assert not warnings
    # A real kill leaves its temporary folder behind; the next start removes it.
    leftover = run / "checkpoints" / ".new_x"
    leftover.mkdir()
    checkpoint.latest_checkpoint(run)
    assert not leftover.exists()


def test_K02_a_full_disk_leaves_the_old_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One line that says how much room there is; nothing of the new checkpoint stays."""
    run = tmp_path / "run"
    with checkpoint.new_checkpoint(run, 1) as folder:
        (folder / "a").write_text("one")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for moment in ("sync", "file_sha256"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, moment, full)
            with pytest.raises(InputError) as caught, checkpoint.new_checkpoint(run, 2) as folder:
                (folder / "a").write_text("two")
        line = str(caught.value)
        assert "step 2 cannot be written: No space left on device" in line
        assert "MiB free" in line
        assert "--resume; whole: step_00000001" in line
        assert "\n" not in line
        assert [p.name for p in (run / "checkpoints").iterdir()] == ["step_00000001"]
    assert (checkpoint.latest_checkpoint(run)[0] / "a").read_text() == "one"


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_K05_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str) -> None:
    """The one before it is used, with a warning; with none left it is an error."""
    for step in (1, 2):
        with checkpoint.new_checkpoint(tmp_path, step) as folder:
            (folder / "a").write_bytes(bytes(range(100)))
    part = tmp_path / "checkpoints" / "step_00000002" / "a"
    content = part.read_bytes()
    if damage == "truncate":
        part.write_bytes(content[:-1])
    elif damage == "flip":
        part.write_bytes(content[:50] + b"\xff" + content[51:])
    else:
        part.unlink()
    found, warnings = checkpoint.latest_checkpoint(tmp_path)
    assert found.name == "step_00000001"
    assert warnings == ["step_00000002 is damaged and was passed over"]
    (found / "a").unlink()
    with pytest.raises(InputError, match="nothing to resume from"):
        checkpoint.latest_checkpoint(tmp_path)


def test_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    """Older ones are removed once a newer one is whole."""
    for step in (1, 2, 3):
        with checkpoint.new_checkpoint(tmp_path, step) as folder:
            (folder / "a").write_text(str(step))
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == ["step_00000002", "step_00000003"]


def test_K05_resume_with_nothing_is_refused(cases: Path, tmp_path: Path) -> None:
    """Never a silent new training."""
    with pytest.raises(InputError, match="nothing to resume from"):
        fit(tiny(cases), tmp_path / "run", Options(resume=True))


def test_a_used_folder_is_refused(cases: Path, tmp_path: Path) -> None:
    """A run never overwrites another."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        fit(tiny(cases), tmp_path / "run")
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_K06_resume_with_other_settings_is_refused(
    cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The difference is named; --allow-mismatch goes on with a warning."""
    fit(tiny(cases, steps=2, save_every=1), tmp_path / "run")
    changed = tiny(cases, steps=3, save_every=1, learning_rate=0.5)
    with pytest.raises(InputError, match=r"config.training.learning_rate: 0.001 -> 0.5"):
        fit(changed, tmp_path / "run", Options(resume=True))
    fit(changed, tmp_path / "run", Options(resume=True, allow_mismatch=True))
    assert "learning_rate: 0.001 -> 0.5" in capsys.readouterr().err
    assert [row["step"] for row in _log(tmp_path / "run")] == ["1", "2", "3"]


def test_K06_a_run_of_an_older_version_goes_on(cases: Path, tmp_path: Path) -> None:
    """Keys that it did not know are at their defaults; lists of sections lay in one piece."""
    run = tmp_path / "run"
    fit(tiny(cases, steps=1, save_every=1), run)
    state = run / "checkpoints" / "step_00000001" / "state.json"
    record = json.loads(state.read_text())
    known = record["identity"]
    names = [k for k in known if k.startswith("config.plan.normalisation.0.")]
    spec = {name.rpartition(".")[2]: json.loads(known.pop(name)) for name in names}
    del spec["scale"], known["config.training.betas"], known["config.restoration"]
    known["config.plan.normalisation"] = json.dumps([spec], sort_keys=True)
    state.write_text(json.dumps(record))
    hashes = {p.name: file_sha256(p) for p in state.parent.iterdir() if p.name != "sha256.json"}
    (state.parent / "sha256.json").write_text(json.dumps(hashes))
    shutil.copytree(run, tmp_path / "other")
    fit(tiny(cases, steps=1, save_every=1), run, Options(resume=True))
    chosen = tiny(cases, steps=1, save_every=1, betas=[0.5, 0.9])
    with pytest.raises(InputError, match=r"config.training.betas: None -> \[0.5, 0.9\]"):
        fit(chosen, tmp_path / "other", Options(resume=True))


def test_K06_other_data_is_noticed(cases: Path) -> None:
    """A changed file hash changes the identity of the data."""
    from medseg_diff.data.prepare import prepare

    config, listed, _ = prepare(tiny(cases))
    before = resume.identity(config, listed)
    first = listed.cases[0]
    altered = first.model_copy(update={"sha256": {next(iter(first.channels.values())): "0" * 64}})
    after = resume.identity(config, listed.with_cases([altered, *listed.cases[1:]]))
    assert {k for k in before if before[k] != after[k]} == {"data"}


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_K03_a_signal_saves_and_stops(
    cases: Path, tmp_path: Path, signum: signal.Signals, code: int
) -> None:
    """The running step is finished and saved; the run goes on from there."""

    def report(progress: Progress, values: dict[str, float]) -> None:
        if progress.step == 2:
            os.kill(os.getpid(), signum)

    with pytest.raises(Stopped) as stopped:
        fit(tiny(cases, save_every=100), tmp_path / "run", Options(report=report))
    assert stopped.value.exit_code == code
    assert checkpoint.latest_checkpoint(tmp_path / "run")[0].name == "step_00000003"
    fit(tiny(cases, save_every=100), tmp_path / "run", Options(resume=True))
    assert len(_log(tmp_path / "run")) == 10


def test_K09_a_loss_that_stays_nan_stops_and_names_the_cases(
    cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After three in a row; no optimiser step is made and the last checkpoint stays."""
    seen: list[int] = []
    original = SegmentationModel.forward

    def poisoned(self: SegmentationModel, batch: object) -> object:
        loss = original(self, batch)  # type: ignore[arg-type]
        seen.append(1)
        return type(loss)(loss.total * math.nan, loss.parts) if len(seen) > 4 else loss

    monkeypatch.setattr(SegmentationModel, "forward", poisoned)
    config = tiny(cases, save_every=1, validate_every=100, stop_after_bad_losses=3)
    with pytest.raises(InputError, match="not finite"):
        fit(config, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "bad_losses.json").read_text())
    assert len(record["batches"]) == 3
    assert all(name.startswith("ball_") for batch in record["batches"] for name in batch)
    tensors = load_tensors(
        checkpoint.latest_checkpoint(tmp_path / "run")[0] / "tensors.safetensors"
    )
    assert all(bool(torch.isfinite(v.float()).all()) for v in tensors.values())


def test_init_takes_over_weights(whole: Path, cases: Path, tmp_path: Path) -> None:
    """Fine-tuning starts from the given run, not from a fresh network."""
    given = load_tensors(whole / "run" / "model.safetensors")
    config = tiny(cases, steps=1, learning_rate=1e-12, weight_decay=0.0)
    fit(config, tmp_path / "run", Options(init=whole / "run"))
    tuned = load_tensors(tmp_path / "run" / "model.safetensors")
    assert all(torch.allclose(tuned[k], v, atol=1e-6) for k, v in given.items())
    other = config.model_copy(
        update={
            "model": config.model.model_copy(
                update={"features": (6, 10), "conditioner_features": (6, 10), "time_channels": 20}
            )
        }
    )
    fit(other, tmp_path / "partly", Options(init=whole / "run"))


def test_the_run_describes_itself(whole: Path) -> None:
    """Configuration complete, card with hash and labels, no path and no case in either."""
    run = md.load(whole / "run").runs[0]
    assert run.config.plan.spacing_mm is not None
    assert run.config.plan.normalisation is not None
    assert run.card["labels"] == {"background": 0, "ball": 1}
    assert run.card["data"]["training_cases"] == 3
    assert "ball_" not in (whole / "run" / "card.json").read_text()
    assert {p.name for p in (whole / "run").iterdir()} == {
        *("card.json", "checkpoints", "config.yaml", "log.csv", "model.safetensors", "tensorboard")
    }


def test_F70_weights_of_another_architecture(whole: Path, tmp_path: Path) -> None:
    """The keys that differ are named."""
    import shutil

    shutil.copytree(whole / "run", tmp_path / "run")
    config = (tmp_path / "run" / "config.yaml").read_text()
    (tmp_path / "run" / "config.yaml").write_text(
        config.replace("time_channels: 16", "time_channels: 20")
    )
    with pytest.raises(InputError, match=r"weights do not fit the model: denoiser\."):
        md.load(tmp_path / "run")


@pytest.mark.parametrize("content", [b"", b"\x80\x04planted", b"0" * 100])
def test_F71_a_file_that_is_no_checkpoint(whole: Path, tmp_path: Path, content: bytes) -> None:
    """Refused in one line, and nothing in it runs, even if the card vouches for it."""
    import shutil

    shutil.copytree(whole / "run", tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="not those that the model card describes"):
        md.load(tmp_path / "run")
    card = json.loads((tmp_path / "run" / "card.json").read_text())
    card["sha256"] = {"model.safetensors": file_sha256(tmp_path / "run" / "model.safetensors")}
    (tmp_path / "run" / "card.json").write_text(json.dumps(card))
    with pytest.raises(InputError, match="not a readable safetensors file") as refused:
        md.load(tmp_path / "run")
    assert "\n" not in str(refused.value)


def test_learning_rate_warms_up_and_decays() -> None:
    """Linear to the peak, then cosine to almost nothing; polynomial by hand."""
    cosine = TrainingConfig(steps=100, warmup_steps=10, learning_rate=1.0)
    assert learning_rate(0, cosine) == pytest.approx(0.1)
    assert learning_rate(9, cosine) == pytest.approx(1.0)
    assert learning_rate(55, cosine) == pytest.approx(0.5)
    assert learning_rate(99, cosine) < 0.001
    polynomial = cosine.model_copy(update={"schedule": "polynomial"})
    assert learning_rate(55, polynomial) == pytest.approx(0.5**0.9)
