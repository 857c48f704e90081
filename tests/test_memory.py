"""Memory: estimated first, made do with, or refused with numbers (faults F73, F74, K15)."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medseg_diff import memory
from medseg_diff.batch.run import find_cases, predict_many
from medseg_diff.data.dataset import TrainingSet, batches, cached_cases
from medseg_diff.data.prepare import prepare
from medseg_diff.errors import InputError
from medseg_diff.fusion import StreamedEntropy, predictive_entropy
from medseg_diff.inference.scan import need_of, read_scan
from medseg_diff.memory import GIB, Need, fit
from tests.phantoms import NiftiFile, grid_affine, make_phantom
from tests.tiny import Threshold, threshold_predictor, tiny_config
from tests.training_fixtures import tiny, write_dataset

# A CT of the whole body, as `benchmarks/memory_large.py` predicts it.
BODY = Need((512, 512, 800), 512 * 512 * 800, 1, 20, 19, 1, (128, 128, 128), 8, 2**28)
SHAPE = (30, 26, 22)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    phantom = make_phantom(grid_affine("RAS"))
    noisy = phantom.image + np.random.default_rng(0).normal(0, 20, SHAPE).astype(np.float32)
    (tmp_path / "in").mkdir()
    return NiftiFile(noisy, phantom.affine).write(tmp_path / "in" / "big.nii.gz")


@pytest.fixture
def predictor(monkeypatch: pytest.MonkeyPatch):
    """A model with several windows to a scan, and no margin that would hide its small needs."""
    monkeypatch.setattr(memory, "MARGIN", 0)
    bright = [{"kind": "ct", "mean": 0.0, "sd": 100.0}]
    plan = {"normalisation": bright, "spacing_mm": [1.5, 1.6, 1.8]}
    return threshold_predictor(tiny_config(plan=plan, prediction={"draws": 3}), 0.2)


def need(predictor, scan: Path, **changes) -> Need:
    """What the predictor takes a scan to need."""
    placed = read_scan({"T1": scan}, predictor.task, predictor.plan, memory_options(), GIB)
    settings = predictor.defaults
    members = [run.model for run in predictor.runs]
    config = predictor.runs[0].config
    found = need_of(placed, config, members, settings, maps=True, save_draws=False)
    return replace(found, **changes)


def memory_options():
    from medseg_diff.io import ReadOptions

    return ReadOptions()


def test_F73_a_body_of_twenty_classes_fits_24_gib_or_says_what_it_needs() -> None:
    """With maps it is refused with three numbers; without them it is done in 16 bits."""
    free = 22 * GIB
    with pytest.raises(InputError) as refused:
        fit(BODY, free, None, file="body.nii.gz")
    line = str(refused.value)
    assert line.startswith("body.nii.gz: memory: not enough memory for this case")
    assert "found 22.0 GiB free; expected 3" in line
    assert "With --no-probability it needs 2" in line
    plan = fit(replace(BODY, maps=False), free, None)
    assert plan.compact
    assert any("16 bits" in note for note in plan.notes)


def test_F73_steps_come_in_order() -> None:
    """As asked; smaller batches; 16 bits; refused. A GPU lowers the batch alone."""
    asked, least = BODY.host_bytes(), replace(BODY, batch=1).host_bytes()
    small = replace(BODY, maps=False, model_shape=(128, 128, 128), scan_voxels=128**3)
    assert fit(BODY, asked, None) == memory.Plan(8)
    crowded = fit(small, replace(small, batch=2).host_bytes(), None)
    assert (crowded.batch, crowded.compact) == (2, False)
    assert "2 instead of 8 windows x draws a call (needs host" in crowded.notes[0]
    assert fit(BODY, least - 1, None).compact
    gpu = fit(BODY, asked, replace(BODY, batch=4).device_bytes())
    assert (gpu.batch, gpu.compact) == (4, False)
    with pytest.raises(InputError, match="not enough GPU memory for one window"):
        fit(BODY, asked, 1000)


@pytest.mark.parametrize("step", ["batch", "compact"])
def test_F73_the_answer_is_the_same_with_less(predictor, scan: Path, step: str) -> None:
    """To 1e-5, whatever was lowered; the JSON says what it was."""
    plain = predictor.predict(scan)
    asked = need(predictor, scan)
    lesser = replace(asked, batch=1, compact=step == "compact")
    assert lesser.host_bytes() < asked.host_bytes()
    answer = predictor.predict(scan, memory_gb=lesser.host_bytes() / GIB)
    notes = [line for line in answer.record["warnings"] if line.startswith("memory: ")]
    assert any(("16 bits" if step == "compact" else "windows x draws") in n for n in notes)
    for ours, theirs in (
        (answer.probability, plain.probability),
        (answer.doubt[1], plain.doubt[1]),
    ):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=0, atol=1e-5)
    assert (np.asarray(answer.mask) == np.asarray(plain.mask)).mean() > 0.9999


def test_F73_without_maps_less_is_held(predictor, scan: Path, tmp_path: Path) -> None:
    """The mask and the doubt are the same; no probability is kept or written."""
    plain, lean = predictor.predict(scan), predictor.predict(scan, maps=False)
    assert len(lean.probability) == 0
    assert torch.equal(lean.mask.as_tensor(), plain.mask.as_tensor())
    assert torch.equal(lean.doubt.as_tensor(), plain.doubt.as_tensor())
    lean_one, one = (replace(BODY, batch=1, maps=m).host_bytes() for m in (False, True))
    assert lean_one < one - 15 * GIB
    predict_many(predictor, find_cases([scan], ["T1"]), tmp_path / "out", maps=False)
    assert {p.name for p in (tmp_path / "out").glob("*.nii.gz")} == {
        "big.nii.gz",
        "big_doubt.nii.gz",
    }


def test_F74_host_memory_too_small_is_one_line_naming_the_case(
    predictor, scan: Path, tmp_path: Path
) -> None:
    """At once, with what is needed and what is free; the other cases go on."""
    little = make_phantom(grid_affine("RAS", shape=(8, 8, 8)), (8, 8, 8))
    small = NiftiFile(little.image, little.affine).write(scan.with_name("small.nii.gz"))
    lesser = [need(predictor, file, batch=1, compact=True) for file in (small, scan)]
    room = sum(each.host_bytes() for each in lesser) / 2 / GIB
    began, out = time.monotonic(), tmp_path / "out"
    cases = find_cases([scan.parent], ["T1"])
    assert predict_many(predictor, cases, out, memory_gb=room) == 8
    assert time.monotonic() - began < 60
    record = json.loads((out / "big.json").read_text())
    assert record["error"].startswith("big.nii.gz: memory: not enough memory")
    assert "MiB free; expected" in record["error"]
    assert "--no-probability it needs" in record["error"]
    assert "\n" not in record["error"]
    assert (out / "small.nii.gz").is_file()
    assert not (out / "big.nii.gz").exists()


def test_F74_what_cannot_be_read_is_refused_before_it_is(predictor, scan: Path) -> None:
    with pytest.raises(InputError, match=r"big.nii.gz: memory: not enough memory to read it"):
        predictor.predict(scan, memory_gb=1e-6)


def test_K15_a_gpu_that_runs_out_is_asked_for_less(predictor, scan: Path, monkeypatch) -> None:
    """Once more with one window and draw at a time; with no room for that, one line."""
    plain, draw = predictor.predict(scan), Threshold.trajectory
    most = 1

    def cramped(self, context, *rest):
        if len(context.image) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        yield from draw(self, context, *rest)

    monkeypatch.setattr(Threshold, "trajectory", cramped)
    answer = predictor.predict(scan)
    assert any("the GPU's ran out" in line for line in answer.record["warnings"])
    np.testing.assert_allclose(
        np.asarray(answer.probability), np.asarray(plain.probability), rtol=0, atol=1e-5
    )
    most = 0
    with pytest.raises(InputError, match=r"big.nii.gz: memory: the GPU's memory does not suf"):
        predictor.predict(scan, batch_size=1)


@pytest.fixture(scope="module")
def training_set(tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    config, cases, _ = prepare(tiny(write_dataset(tmp_path_factory.mktemp("balls")), workers=1))
    part = cases.part("train")
    return TrainingSet(cached_cases(cases, part, config.task, config.plan), config, 2)


def test_F74_shared_memory_too_small_for_workers(tmp_path: Path, monkeypatch, training_set) -> None:
    """Checked before the first worker starts, not found out by a crash."""
    sample = training_set[0]
    wanted = sum(sample[key].nbytes for key in ("image", "label", "noise"))
    assert training_set.sample_bytes == wanted

    def tight(folder: Path):
        return type("Usage", (), {"free": 2**20})()

    monkeypatch.setattr(memory.shutil, "disk_usage", tight)
    memory.check_shared(2**20, workers=0)
    memory.check_shared(2**18, workers=1, folder=tmp_path)
    with pytest.raises(InputError, match=r"training.workers: not enough shared memory") as refused:
        memory.check_shared(2**18, workers=2, folder=tmp_path)
    assert "found 1.0 MiB free; expected 1.2 MiB" in str(refused.value)
    monkeypatch.setattr("medseg_diff.data.dataset.check_shared", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(batches(training_set, 0, 2))


@pytest.mark.parametrize("version", [1, 2])
def test_a_containers_limit_counts(tmp_path: Path, version: int) -> None:
    """The tightest limit on the way up; caches are given back on demand."""
    own, base = tmp_path / "own", tmp_path if version == 2 else tmp_path / "memory"
    own.write_text("0::/a/b\n" if version == 2 else "4:memory:/a/b\n3:cpu:/\n")
    names = (
        ("memory.max", "memory.current", "inactive_file")
        if version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    for folder, limit in ((base, "max"), (base / "a", "1000"), (base / "a" / "b", "5000")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / names[0]).write_text(f"{limit}\n")
        (folder / names[1]).write_text("700\n")
        (folder / "memory.stat").write_text(f"anon 1\n{names[2]} 50\n")
    assert min(memory._cgroup_rooms(tmp_path, own)) == 350
    assert memory._cgroup_rooms(tmp_path, tmp_path / "none") == []
    assert 0 < memory.free_host_bytes() <= memory.psutil.virtual_memory().total


@pytest.mark.parametrize("exclusive", [True, False])
def test_entropy_channel_by_channel(exclusive: bool) -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(5), (6, 4)).T.astype(np.float32)
    streamed = StreamedEntropy(5, exclusive=exclusive)
    for plane in p:
        streamed.add(plane)
    np.testing.assert_allclose(
        streamed.entropy(), predictive_entropy(p, exclusive=exclusive), atol=1e-6
    )
