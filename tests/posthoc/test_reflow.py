"""Reflow: pairs that a teacher's flow connects, a straighter flow, and a training that resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medseg_diff.checkpoint import load_run, load_tensors
from medseg_diff.config import Config, merged, parse_config
from medseg_diff.data.records import Batch
from medseg_diff.errors import InputError, UsageError
from medseg_diff.inference.predictor import load
from medseg_diff.model import DiffusionModel, Sampling, build_model
from medseg_diff.posthoc.reflow import Coupling, attach_teacher
from medseg_diff.training.fit import Options, fit
from tests.tiny import tiny_config
from tests.training_fixtures import tiny, write_dataset

FLOW = {
    "model": {
        "conditioner": "none",
        "concat_image": False,
        "path": "linear",
        "output": "flow_velocity",
    },
    "objective": {"squared_error": 1.0, "dice": 0.0, "cross_entropy": 0.0},
}


class Halt(Exception):
    """Stops a training from its report."""


class Pointwise(nn.Module):
    """A network of one voxel: two channels and the time to two channels."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 2)
        )

    def forward(self, x: Tensor, t: Tensor, features: Any) -> Tensor:
        """(B, 2, 1, 1) -> the same."""
        flat = torch.cat([x.flatten(1), t[:, None].to(x)], dim=1)
        return self.layers(flat).reshape(x.shape)


def two_modes(ignore: int | None = None) -> DiffusionModel:
    """Flow model of one voxel that is background or not, each half of the time: two modes."""
    keys = tiny_config(**merged(FLOW, {"plan": {"spatial_dims": 2}})).model_dump(mode="json")
    keys["task"] |= {"labels": {"background": 0, "a": 1}, "ignore_label": ignore}
    model = build_model(parse_config(keys))
    assert isinstance(model, DiffusionModel)
    model.denoiser = Pointwise()
    return model


def batch(generator: torch.Generator, size: int = 256) -> Batch:
    return Batch(
        torch.zeros(size, 1, 1, 1),
        torch.randint(0, 2, (size, 1, 1, 1), generator=generator),
        1 - torch.rand(size, generator=generator, dtype=torch.float64),
        torch.randn(size, 2, 1, 1, generator=generator),
        torch.rand(size, 2, generator=generator),
    )


def learn(model: DiffusionModel, steps: int = 250) -> None:
    generator = torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 5e-3 * (1 - step / steps)
        optimiser.zero_grad()
        model.loss(batch(generator)).total.backward()
        optimiser.step()


def drawn(model: DiffusionModel, noise: Tensor, steps: int) -> Tensor:
    """Clean states at the end of the flow."""
    with torch.no_grad():
        context = model.context(torch.zeros(len(noise), 1, 1, 1))
        return list(model.trajectory(context, noise, Sampling("euler", steps)))[-1].state


def bend(model: DiffusionModel, noise: Tensor) -> float:
    """Mean square distance of the one-step answer from the many-step one."""
    return float((drawn(model, noise, 1) - drawn(model, noise, 40)).square().mean())


@pytest.fixture(scope="module")
def teacher() -> DiffusionModel:
    torch.manual_seed(0)
    model = two_modes()
    learn(model)
    return model.eval()


def test_reflow_straightens(teacher: DiffusionModel):
    """One step of the teacher is the mean of both modes; one of the student picks the mode."""
    torch.manual_seed(1)
    student = two_modes()
    student.coupling = Coupling(teacher, 20)
    learn(student)
    noise = torch.randn(2000, 2, 1, 1, generator=torch.Generator().manual_seed(2))
    many = [drawn(model, noise, 40) for model in (teacher, student)]
    # Both are flows to the two modes, in even shares.
    for states in many:
        assert float(states[:, 0].abs().mean()) > 0.75
        assert float(states[:, 0].mean()) == pytest.approx(0, abs=0.15)
        assert float((states[:, 0] + states[:, 1]).abs().mean()) < 0.2
    assert float(drawn(teacher, noise, 1).abs().mean()) < 0.4
    assert bend(student, noise) < bend(teacher, noise) / 4
    # And it keeps the teacher's pairs.
    assert float((many[0].sign() == many[1].sign()).float().mean()) > 0.95


def test_a_pair_is_the_end_of_the_teachers_flow(teacher: DiffusionModel):
    given = batch(torch.Generator().manual_seed(3), 16)
    for steps in (1, 7):
        found = Coupling(teacher, steps)(given)
        assert torch.equal(found, drawn(teacher, given.noise, steps))
        assert not found.requires_grad


def test_the_pair_stands_in_the_place_of_the_labels(teacher: DiffusionModel):
    """By hand: velocity is noise - mask on the line between them."""
    student, given = two_modes(), batch(torch.Generator().manual_seed(4), 8)
    student.coupling = Coupling(teacher, 3)
    mask = drawn(teacher, given.noise, 3)
    t = given.t.float()[:, None, None, None]
    output = student.denoiser((1 - t) * mask + t * given.noise, given.t, None)
    wanted = (output - (given.noise - mask)).square().mean()
    torch.testing.assert_close(student.loss(given).total, wanted)
    other = Batch(given.image, 1 - given.labels, given.t, given.noise, given.coins)
    assert torch.equal(student.loss(other).total, student.loss(given).total)


def test_ignored_voxels_have_pairs_too(teacher: DiffusionModel):
    student, given = two_modes(ignore=9), batch(torch.Generator().manual_seed(5), 8)
    student.coupling = Coupling(teacher, 2)
    nothing = Batch(
        given.image, torch.full_like(given.labels, 9), given.t, given.noise, given.coins
    )
    assert float(student.loss(nothing).total.detach()) > 0.1


def test_the_teacher_is_no_part_of_the_student(teacher: DiffusionModel):
    student = two_modes()
    before = set(student.state_dict())
    student.coupling = Coupling(teacher, 2)
    assert set(student.state_dict()) == before
    assert len(list(student.parameters())) == len(list(teacher.parameters()))


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("reflow"))


def flow_config(cases: Path, **training: Any) -> Config:
    keys = tiny(cases, steps=4, validate_every=100, save_every=1).model_dump(mode="json")
    keys = merged(keys, {"model": {"conditioner": "pyramid", "output": "flow_velocity"}})
    keys = merged(keys, {"model": {"path": "linear", "input_scale": 1.0}})
    keys["objective"] = {"squared_error": 1.0}
    keys["prediction"] = {"draws": 2, "steps": 1, "sampler": "euler"}
    return parse_config(merged(keys, {"recipe": None, "training": training}))


@pytest.fixture(scope="module")
def run(cases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(flow_config(cases), tmp_path_factory.mktemp("teacher") / "run")


def test_a_reflow_resumes_bit_for_bit_and_predicts_alone(cases: Path, run: Path, tmp_path: Path):
    moved = tmp_path / "teacher"
    moved.symlink_to(run)
    config = flow_config(cases, reflow_from=str(moved), reflow_steps=2)
    fit(config, tmp_path / "whole", Options(init=run))

    def halt(progress: Any, values: dict[str, float]) -> None:
        if progress.step == 2:
            raise Halt

    with pytest.raises(Halt):
        fit(config, tmp_path / "run", Options(report=halt, init=run))
    # The teacher may lie elsewhere by then: it is known by its weights.
    elsewhere = flow_config(cases, reflow_from=str(run), reflow_steps=2)
    fit(elsewhere, tmp_path / "run", Options(resume=True))
    part = Path("checkpoints") / "step_00000004" / "tensors.safetensors"
    whole, resumed = (load_tensors(tmp_path / name / part) for name in ("whole", "run"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(resumed[k], v) for k, v in whole.items())
    moved.unlink()
    answer = load(tmp_path / "whole").predict(cases.parent / "images" / "ball_4.nii.gz")
    assert answer.record["steps"] == 1
    plain = load_tensors(run / "model.safetensors")
    assert load_tensors(tmp_path / "whole" / "model.safetensors").keys() == plain.keys()


def test_the_pairs_matter(cases: Path, run: Path, tmp_path: Path):
    """Otherwise the test above could not see a coupling that was lost."""
    losses: dict[str, list[float]] = {"with": [], "without": []}
    for name, keys in (("with", {"reflow_from": str(run), "reflow_steps": 2}), ("without", {})):
        seen = losses[name]
        config = flow_config(cases, **keys)
        fit(config, tmp_path / name, Options(report=lambda p, v, s=seen: s.append(v["loss"])))
    assert losses["with"] != losses["without"]


def test_another_teacher_is_another_training(cases: Path, run: Path, tmp_path: Path):
    config = flow_config(cases, reflow_from=str(run), steps=2)
    fit(config, tmp_path / "run")
    other = fit(flow_config(cases, learning_rate=0.1), tmp_path / "other")
    changed = flow_config(cases, reflow_from=str(other), steps=2)
    with pytest.raises(InputError, match=r"other settings: teacher: "):
        fit(changed, tmp_path / "run", Options(resume=True))


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"model": {"output": "clean"}}, "straightens a flow"),
        (
            {"model": {"path": "variance_preserving", "output": "velocity"}},
            "straightens a flow",
        ),
        ({"model": {"kind": "unet"}}, "straightens a flow"),
        ({"model": {"latent": {}}}, "leave out model.latent"),
        ({"model": {"condition_dropout": 0.1}}, "condition_dropout: 0"),
        ({"objective": {"dice": 1.0}}, "squared_error alone"),
        (
            {"objective": {"variational_bound": 1.0}, "model": {"learned_variance": True}},
            "squared_error alone",
        ),
    ],
)
def test_what_reflow_does_not_straighten_is_refused(keys: dict[str, Any], sentence: str):
    given = merged(FLOW, {"training": {"reflow_from": "somewhere"}})
    assert tiny_config(**given).training.reflow_from == "somewhere"
    assert tiny_config(**merged(given, {"model": {"output": "velocity"}}))
    with pytest.raises(UsageError, match=sentence):
        tiny_config(**merged(given, keys))


def test_a_teacher_that_does_not_fit_is_refused(cases: Path, run: Path, tmp_path: Path):
    config = load_run(run).config
    named = config.training.model_copy(update={"reflow_from": str(run)})
    config = config.model_copy(update={"training": named})
    model = build_model(config)
    card = json.loads((run / "card.json").read_text())
    assert attach_teacher(model, config, "cpu") == {"teacher": card["sha256"]["model.safetensors"]}
    assert isinstance(model.coupling, Coupling)
    assert not any(p.requires_grad for p in model.coupling.teacher.parameters())
    assert not model.coupling.teacher.training
    assert model.coupling.steps == config.training.reflow_steps
    plan = config.plan.model_copy(update={"spacing_mm": (2.0, 2.0, 2.0)})
    with pytest.raises(InputError, match=r"plan\.spacing_mm: the teacher sees other images"):
        attach_teacher(model, config.model_copy(update={"plan": plan}), "cpu")
    crooked = fit(tiny(cases, steps=1), tmp_path / "crooked")
    named = named.model_copy(update={"reflow_from": str(crooked)})
    with pytest.raises(InputError, match="no flow of masks on the straight path"):
        attach_teacher(model, config.model_copy(update={"training": named}), "cpu")
    named = named.model_copy(update={"reflow_from": str(tmp_path / "none")})
    with pytest.raises(InputError, match="not a trained model"):
        attach_teacher(model, config.model_copy(update={"training": named}), "cpu")
    alone = build_model(config)
    named = named.model_copy(update={"reflow_from": None})
    assert attach_teacher(alone, config.model_copy(update={"training": named}), "cpu") == {}
    assert alone.coupling is None
