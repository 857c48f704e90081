"""Importance-sampled times in training: what is remembered, what it weighs, and what survives."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from medseg_diff.checkpoint import load_tensors
from medseg_diff.config import Config, merged, parse_config
from medseg_diff.data.records import Batch
from medseg_diff.diffusion.time_laws import Importance
from medseg_diff.errors import UsageError
from medseg_diff.model import DiffusionModel, SegmentationModel, build_model
from medseg_diff.training.fit import Options, fit
from tests.tiny import tiny_config
from tests.training_fixtures import SCRIPT, tiny, write_dataset

LAW = {"time_law": "importance", "time_law_bins": 2, "time_law_history": 3}
HYBRID = {
    "model": {"output": "noise", "learned_variance": True},
    "objective": {
        "dice": 1,
        "cross_entropy": 1,
        "focal": 1,
        "squared_error": 1,
        "variational_bound": 0.1,
        "min_snr_gamma": 5.0,
        **LAW,
    },
}


class Halt(Exception):
    """Stops a training from its report."""


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("importance"))


def trained_by(cases: Path, **objective: Any) -> Config:
    keys = tiny(cases, validate_every=100, save_every=1).model_dump(mode="json")
    return parse_config(merged(keys, {"objective": {**LAW, **objective}}))


def final(run: Path) -> dict[str, Tensor]:
    return load_tensors(run / "checkpoints" / "step_00000010" / "tensors.safetensors")


def model_and_batch(**changes: Any) -> tuple[DiffusionModel, Batch]:
    torch.manual_seed(0)
    config = tiny_config(**merged({"plan": {"spatial_dims": 2}}, changes))
    model = build_model(config)
    assert isinstance(model, DiffusionModel)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    batch = Batch(
        torch.randn(3, 1, 8, 8),
        torch.randint(0, 4, (3, 1, 8, 8)),
        torch.tensor([0.1, 0.45, 0.95], dtype=torch.float64),
        torch.randn(3, 4, 8, 8),
        torch.rand(3, 2),
    )
    return model, batch


def one(batch: Batch, index: int) -> Batch:
    parts = (batch.image, batch.labels, batch.t, batch.noise, batch.coins)
    return Batch(*(part[index : index + 1] for part in parts))


def filled(law: Importance) -> None:
    """Early times lose nine times as much as late ones."""
    for _ in range(law.losses.shape[1]):
        law.update(torch.tensor([0.2, 0.8]), torch.tensor([9.0, 1.0]))


@pytest.mark.parametrize("changes", [{"objective": LAW}, HYBRID], ids=["logits", "hybrid"])
def test_the_remembered_losses_are_those_of_each_sample_alone(changes: dict[str, Any]):
    model, batch = model_and_batch(**changes)
    whole = model.loss(batch)
    assert whole.times is not None
    assert whole.samples is not None
    assert whole.times.tolist() == pytest.approx(batch.t.tolist())
    alone = [model.loss(one(batch, k)).total.item() for k in range(3)]
    assert whole.samples.tolist() == pytest.approx(alone, rel=1e-5)
    assert whole.total.item() == pytest.approx(sum(alone) / 3, rel=1e-5)


@pytest.mark.parametrize("changes", [{"objective": LAW}, HYBRID], ids=["logits", "hybrid"])
def test_every_part_carries_the_weight_of_its_time(changes: dict[str, Any]):
    """Nine to one: early times come nine times as often and count a ninth as much."""
    model, batch = model_and_batch(**changes)
    law = model.law
    assert isinstance(law, Importance)
    filled(law)
    drawn = law(batch.t)
    whole = model.loss(batch)
    assert whole.samples is not None
    assert drawn.weight.tolist() == pytest.approx([0.5 / 0.9] * 2 + [0.5 / 0.1], rel=0.01)
    assert drawn.t.tolist() == pytest.approx([0.1 / 1.8, 0.25, 0.75], rel=0.01)
    total = float((drawn.weight * whole.samples).mean())
    assert float(whole.total.detach()) == pytest.approx(total, rel=1e-5)


def test_the_slope_by_the_weights_leaves_the_gradients_alone():
    gradients = []
    for law in ({}, LAW):
        model, batch = model_and_batch(objective=law)
        model.loss(batch).total.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_remembered_anchor_has_no_share():
    """The anchor's loss knows no time."""
    anchor = {"conditioner": "anchored", "output": "correction"}
    model, batch = model_and_batch(model=anchor, objective={**LAW, "anchor": 1.0})
    whole = model.loss(batch)
    assert whole.samples is not None
    without = whole.total.detach() - whole.parts["anchor"]
    assert float(whole.samples.mean()) == pytest.approx(float(without), rel=1e-5)


def test_other_laws_remember_nothing():
    model, batch = model_and_batch()
    loss = model.loss(batch)
    assert loss.times is None
    assert loss.samples is None
    assert model.memory() == {}
    model.remember(torch.ones(1), torch.ones(1))
    model.recall({"losses": torch.ones(1, 1)})


def test_a_loss_of_nan_does_not_enter_the_history():
    model, _ = model_and_batch(objective=LAW)
    model.remember(torch.tensor([0.2, 0.8]), torch.tensor([float("nan"), 2.0]))
    assert model.memory()["counts"].tolist() == [0, 1]
    assert model.memory()["losses"][1, 0] == 2


def test_a_history_of_another_size_is_begun_anew():
    model, _ = model_and_batch(objective=LAW)
    other = Importance(5, 2)
    filled(other)
    model.recall(other.state())
    assert model.memory()["counts"].tolist() == [0, 0]


def test_the_history_survives_a_resume_bit_for_bit(cases: Path, tmp_path: Path):
    config = trained_by(cases)
    fit(config, tmp_path / "whole")

    def halt(progress: Any, values: dict[str, float]) -> None:
        if progress.step == 5:
            raise Halt

    with pytest.raises(Halt):
        fit(config, tmp_path / "run", Options(report=halt))
    fit(config, tmp_path / "run", Options(resume=True))
    expected, found = final(tmp_path / "whole"), final(tmp_path / "run")
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[k], v) for k, v in expected.items())
    # Warm before the halt, and twenty samples in all: otherwise nothing was at stake.
    middle = tmp_path / "run" / "checkpoints" / "step_00000009" / "tensors.safetensors"
    assert int(load_tensors(middle)["memory/counts"].sum()) == 18
    assert int(expected["memory/counts"].sum()) == 20


def test_a_forgotten_history_changes_the_training(
    cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Otherwise the test above could not see one that was lost."""
    fit(trained_by(cases), tmp_path / "whole")
    monkeypatch.setattr(DiffusionModel, "remember", SegmentationModel.remember)
    fit(trained_by(cases), tmp_path / "forgetful")
    expected, found = final(tmp_path / "whole"), final(tmp_path / "forgetful")
    assert any(not torch.equal(found[k], v) for k, v in expected.items() if k.startswith("model/"))


def test_two_processes_share_one_history(cases: Path, tmp_path: Path):
    """Both see the losses of both, so that they draw the times that one process draws."""
    (tmp_path / "c.yaml").write_text(trained_by(cases).to_yaml())
    (tmp_path / "train.py").write_text(SCRIPT)
    fit(trained_by(cases), tmp_path / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node=2"),
        *("--master-addr=127.0.0.1", f"--master-port={port}", str(tmp_path / "train.py")),
        *(str(tmp_path / "c.yaml"), str(tmp_path / "two"), "0", "start"),
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one_, two = final(tmp_path / "one"), final(tmp_path / "two")
    assert one_["memory/counts"].tolist() == two["memory/counts"].tolist()
    torch.testing.assert_close(two["memory/losses"], one_["memory/losses"], rtol=2e-4, atol=0)


def test_importance_refuses_an_anchor_that_counts_times():
    with pytest.raises(UsageError, match="anchor_every counts evenly spread times"):
        tiny_config(objective={**LAW, "anchor_every": 5})
