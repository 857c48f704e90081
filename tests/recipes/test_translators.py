"""Conformance: what every translator must do, in 2-D and 3-D, odd sizes, one plane and several."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from medseg_diff.checkpoint import TENSORS, latest_checkpoint, load_tensors
from medseg_diff.codecs import ImageCodec
from medseg_diff.config import parse_config
from medseg_diff.data.records import Batch
from medseg_diff.diffusion.paths import BrownianBridge, Linear
from medseg_diff.errors import UsageError
from medseg_diff.model import (
    DiffusionModel,
    LatentModel,
    RegressionModel,
    Sampling,
    build_model,
)
from medseg_diff.model.base import SegmentationModel
from medseg_diff.recipes.translators import TRANSLATORS
from medseg_diff.training.fit import Options, fit
from tests.translation_fixtures import tiny_translator, write_pairs

# Channels of the case list, planes of each, planes of the target.
TASKS: dict[str, dict[str, Any]] = {
    "one": {"channels": ["T1"], "input_channels": [1], "target_planes": 1},
    "several": {"channels": ["T1", "T2"], "input_channels": [1, 1], "target_planes": 1},
    "rgb": {"channels": ["photo"], "input_channels": [3], "target_planes": 3},
}
SIZES = {2: (21, 26), 3: (11, 14, 9)}
SMALL = {"features": [8, 16, 16, 16]}

recipe_of = pytest.mark.parametrize("recipe", TRANSLATORS)
dims_of = pytest.mark.parametrize("dims", [2, 3])
task_of = pytest.mark.parametrize("task", TASKS)


def keys(recipe: str, dims: int, task: str = "one", **model: Any) -> dict[str, Any]:
    """Configuration of a translator at test width."""
    small: dict[str, Any] = SMALL if recipe == "one_step" else SMALL | {"time_channels": 16}
    if recipe == "bbdm_latent":
        small = small | {"latent": {"features": [8, 16], "steps": 1}}
    return {
        "recipe": recipe,
        "task": {"target": "FLAIR", **TASKS[task]},
        "plan": {"spatial_dims": dims},
        "model": {**small, **model},
    }


@cache
def built(recipe: str, dims: int, task: str = "one") -> SegmentationModel:
    """One model per combination, with every parameter moved off its initial zeros and ones."""
    torch.manual_seed(0)
    model = build_model(parse_config(keys(recipe, dims, task)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def batch(dims: int, task: str = "one") -> Batch:
    generator = torch.Generator().manual_seed(1)
    size, planes = SIZES[dims], sum(TASKS[task]["input_channels"])

    def normal(channels: int) -> Tensor:
        return torch.randn((2, channels, *size), generator=generator)

    target = TASKS[task]["target_planes"]
    times = torch.tensor([0.6, 0.25], dtype=torch.float64)
    coins = torch.tensor([[0.9, 0.2], [0.1, 0.8]], dtype=torch.float64)
    return Batch(normal(planes), normal(target).tanh(), times, normal(target), coins)


def drawn(model: SegmentationModel, image: Tensor, noise: Tensor, steps: int = 2) -> list[Any]:
    def fresh(index: int) -> Tensor:
        return torch.randn(noise.shape, generator=torch.Generator().manual_seed(index))

    with torch.no_grad():
        return list(model.trajectory(model.context(image), noise, Sampling("ddim", steps), fresh))


@recipe_of
@dims_of
@task_of
def test_gradients_reach_every_parameter(recipe: str, dims: int, task: str):
    model = copy.deepcopy(built(recipe, dims, task)).train()
    reached: set[str] = set()
    for stage in (0, 1) if isinstance(model, LatentModel) else (0,):
        model.begin(stage)
        model.zero_grad()
        loss = model(batch(dims, task))
        assert sum(loss.parts.values()) == pytest.approx(float(loss.total.detach()), rel=1e-4)
        loss.total.backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                assert torch.isfinite(parameter.grad).all(), name
                reached |= {name} if float(parameter.grad.abs().max()) > 0 else set()
    assert {name for name, _ in model.named_parameters()} == reached


@recipe_of
@dims_of
@task_of
def test_an_image_on_an_odd_grid(recipe: str, dims: int, task: str):
    model, given = built(recipe, dims, task), batch(dims, task)
    last = drawn(model, given.image, given.noise)[-1]
    unit = last.probabilities.detach()
    assert unit.shape == given.labels.shape
    assert float(unit.min()) >= 0
    assert float(unit.max()) <= 1
    assert last.calls == (0 if recipe == "one_step" else 2)
    assert model.stochastic == (recipe not in ("one_step", "flow_from_source"))


@recipe_of
@dims_of
def test_two_equal_calls_agree_bit_for_bit(recipe: str, dims: int):
    model, given = built(recipe, dims), batch(dims)
    first, second = (drawn(model, given.image, given.noise)[-1].clean for _ in range(2))
    assert torch.equal(first, second)
    losses = [float(model(given).total.detach()) for _ in range(2)]
    assert losses[0] == losses[1]


@recipe_of
@dims_of
@task_of
def test_every_plane_of_the_context_changes_the_output(recipe: str, dims: int, task: str):
    model, given = built(recipe, dims, task), batch(dims, task)
    before = drawn(model, given.image, given.noise)[-1].clean
    for plane in range(given.image.shape[1]):
        blank = given.image.clone()
        blank[:, plane] = 0
        after = drawn(model, blank, given.noise)[-1].clean
        assert float((after - before).abs().max()) > 1e-4, plane


@recipe_of
@dims_of
def test_the_noise_decides_where_there_is_some(recipe: str, dims: int):
    model, given = built(recipe, dims), batch(dims)
    first = drawn(model, given.image, given.noise)[-1].clean
    other = drawn(model, given.image, given.noise.flip(2))[-1].clean
    assert torch.equal(first, other) == (not model.stochastic)


@pytest.mark.parametrize("recipe", [name for name in TRANSLATORS if name != "one_step"])
def test_time_changes_the_output(recipe: str):
    model, given = built(recipe, 2), batch(2)
    assert isinstance(model, DiffusionModel)
    with torch.no_grad():
        context = model.context(given.image)
        noise = given.noise
        if isinstance(model, LatentModel):
            noise = model.noise_on_grid(noise)
        early, late = (
            model.raw(noise, torch.full((2,), t, dtype=torch.float64), context)[0]
            for t in (0.1, 0.9)
        )
    assert float((early - late).abs().max()) > 1e-4


@recipe_of
def test_an_interrupted_training_ends_with_the_same_weights(recipe: str, tmp_path: Path):
    """Cut off after its first resume point and resumed: the same tensors, optimiser included."""
    config = tiny_translator(recipe, write_pairs(tmp_path / "data", (14, 17)), 2)

    class Cut(Exception):
        pass

    def cut(progress: Any, values: Any) -> None:
        if progress.step == 4:
            raise Cut

    whole = fit(config, tmp_path / "whole")
    with pytest.raises(Cut):
        fit(config, tmp_path / "parts", Options(report=cut))
    parts = fit(config, tmp_path / "parts", Options(resume=True))
    ours, theirs = (load_tensors(latest_checkpoint(run)[0] / TENSORS) for run in (whole, parts))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if "random" not in name)
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()


def test_each_recipe_is_what_its_paper_says():
    paths = {name: getattr(built(name, 2), "path", None) for name in TRANSLATORS}
    assert isinstance(paths["bbdm"], BrownianBridge)
    assert isinstance(paths["flow_from_noise"], Linear)
    assert not paths["flow_from_noise"].uses_source
    assert paths["flow_from_source"].source_as_noise
    assert isinstance(built("one_step", 2), RegressionModel)
    for name, recipe in TRANSLATORS.items():
        assert "eparture" in (recipe.__doc__ or ""), f"{name}: say what departs from the paper"
        assert recipe()["model"]["features"][:3] == [16, 32, 64]


def test_the_bridge_is_trained_on_the_residual_from_the_source():
    """The loss of BBDM by hand: x_t between target and source, |output - (x_t - target)|."""
    model, given = built("bbdm", 2), batch(2)
    assert isinstance(model, DiffusionModel)
    with torch.no_grad():
        loss = float(model(given).total)
        t = given.t.reshape(2, 1, 1, 1).float()
        source = given.image[:, :1]
        x_t = (1 - t) * given.labels + t * source + (2 * (t - t * t)).sqrt() * given.noise
        output, _ = model.raw(x_t, given.t, model.context(given.image))
    assert loss == pytest.approx(float((output - (x_t - given.labels)).abs().mean()), rel=1e-5)


def test_a_line_from_the_source_starts_at_the_chosen_channel():
    torch.manual_seed(0)
    model = build_model(parse_config(keys("flow_from_source", 2, "several", source="T2"))).eval()
    given = batch(2, "several")
    assert isinstance(model, DiffusionModel)
    source = model.source(model.context(given.image))
    assert source is not None
    assert torch.equal(source, given.image[:, 1:])
    with torch.no_grad():
        velocity, _ = model.raw(source, torch.ones(2).double(), model.context(given.image))
    one = drawn(model, given.image, given.noise, steps=1)[-1].clean
    torch.testing.assert_close(one, (source - velocity).clamp(-1, 1))


def test_an_oracle_of_the_target_is_reached_exactly():
    """A denoiser that knows the residual gives the target back, whatever the number of steps."""
    model, given = copy.deepcopy(built("bbdm", 2)), batch(2)
    assert isinstance(model, DiffusionModel)
    model.raw = lambda x_t, t, context, previous=None: (x_t - given.labels, None)  # type: ignore[method-assign]
    for steps in (1, 3):
        clean = drawn(model, given.image, given.noise, steps)[-1]
        torch.testing.assert_close(clean.state, given.labels, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"objective": {"dice": 1.0}}, "compare masks"),
        ({"model": {"conditioner": "anchored"}}, "made of masks"),
        ({"model": {"kind": "unet", "dropout": 0.5}}, "without dropout"),
        ({"prediction": {"fuse": "staple"}}, "fused by their mean"),
        ({"prediction": {"cleanup": "largest"}}, "for masks"),
        ({"prediction": {"sampler": "analytic"}}, "for masks"),
        ({"model": {"path": "bridge", "output": "residual", "source": "T3"}}, "no input channel"),
        ({"model": {"path": "bridge", "output": "velocity"}}, "cannot give clean"),
        ({"model": {"output": "residual"}}, "defined on path: bridge"),
        ({"model": {"line_from": "source"}}, "path: linear"),
        (
            {"model": {"path": "bridge", "output": "residual", "condition_dropout": 0.1}},
            "hides the image",
        ),
        (
            {
                "model": {"path": "linear", "line_from": "source", "output": "flow_velocity"},
                "objective": {"min_snr_gamma": 5.0},
            },
            "signal against noise",
        ),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], words: str):
    given = keys("palette", 2)
    for section, values in change.items():
        given[section] = {**given.get(section, {}), **values}
    with pytest.raises(UsageError, match=words):
        parse_config(given)


def test_masks_have_no_source_and_a_path_needs_equal_planes():
    given = keys("bbdm", 2)
    given["task"] = {"channels": ["x"], "labels": {"background": 0, "a": 1}}
    with pytest.raises(UsageError, match="masks have none"):
        parse_config(given)
    given["task"] = {"target": "y", "channels": ["x"], "input_channels": [3]}
    with pytest.raises(UsageError, match="3 planes and the target 1"):
        parse_config(given)


def test_a_recipe_of_masks_is_refused_on_a_list_with_a_target(tmp_path: Path):
    cases = write_pairs(tmp_path, (14, 17))
    config = parse_config({"recipe": "diff_unet", "data": {"cases": str(cases)}})
    with pytest.raises(UsageError, match="target image"):
        fit(config, tmp_path / "run")


def test_a_sampler_in_signal_to_noise_is_refused_on_the_line_from_the_source():
    with pytest.raises(ValueError, match="source image"):
        built("flow_from_source", 2).check(Sampling("dpm_solver_2m", 5))


def test_the_codec_of_images_is_the_identity():
    codec, image = ImageCodec(2), torch.randn(1, 2, 4, 5)
    assert codec.encode(image) is image
    assert (codec.channels, codec.structures, codec.exclusive) == (2, 0, False)
    assert codec.weight(image) is None


@pytest.mark.parametrize("recipe", ["rectified_flow", "ensemdiff", "dit"])
def test_recipes_of_masks_without_losses_on_masks_make_images_too(recipe: str):
    torch.manual_seed(0)
    given = keys("palette", 2) | {"recipe": recipe}
    given["model"] |= {} if recipe == "dit" else {"features": [8, 16, 16, 16]}
    if recipe == "dit":
        given["model"] |= {"features": [24, 24], "heads": 2, "token_size": 2}
    if recipe == "rectified_flow":
        given["model"] |= {"conditioner_features": [8, 16, 16, 16]}
    model = build_model(parse_config(given))
    loss = model(batch(2))
    loss.total.backward()
    assert torch.isfinite(loss.total)
    made = drawn(model.eval(), batch(2).image, batch(2).noise)[-1].probabilities
    assert made.shape == batch(2).labels.shape
