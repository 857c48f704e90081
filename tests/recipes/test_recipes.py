"""Conformance: what every recipe must do, in 2-D and 3-D, for one and many classes, odd sizes."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from medseg_diff import recipes
from medseg_diff.config import parse_config
from medseg_diff.data.records import Batch
from medseg_diff.diffusion.parameterisations import noise_from
from medseg_diff.model import (
    LatentModel,
    LatentPriorModel,
    PriorModel,
    Sampling,
    SegmentationModel,
    build_model,
)
from medseg_diff.recipes.priors import PRIORS

# Levels and widths small enough for a test; everything else is the recipe's own.
SMALL = {
    "features": [8, 16, 16, 16],
    "conditioner_features": [8, 16, 16, 16],
    "time_channels": 16,
}
TASKS = {
    "one": {"labels": {"background": 0, "a": 1}, "input_channels": [1]},
    "many": {"labels": {"background": 0, "a": 1, "b": 2, "c": 3}, "input_channels": [3]},
}
SIZES = {2: (21, 26), 3: (11, 14, 9)}
EVERY = recipes.RECIPES | PRIORS
# Drawn classes, joint states, scans and a coarse mask, without a conditioner.
PLAIN = ("ccdm", "berdiff", "diffatlas", "image_prior", "mask_to_image", "refine")
OF_LATENTS = ("lsegdiff", "feature_translation", "latent_synthesis")
BASELINES = ("unet", "mc_dropout", "probabilistic_unet")
DIFFUSION = [name for name in EVERY if name not in BASELINES]
STOCHASTIC = [name for name in EVERY if name != "unet"]

recipe_of = pytest.mark.parametrize("recipe", EVERY)
diffusion_of = pytest.mark.parametrize("recipe", DIFFUSION)
dims_of = pytest.mark.parametrize("dims", [2, 3])


def keys(recipe: str, dims: int, task: str = "many", **model: Any) -> dict[str, Any]:
    """Configuration of a recipe at test width."""
    small = {k: v for k, v in SMALL.items() if k == "features" or recipe != "unet"}
    if recipe in OF_LATENTS or recipe in ("unet", "mc_dropout", "ensemdiff", *PLAIN):
        small.pop("conditioner_features", None)
    if recipe == "dit":
        small = {"features": [24, 24], "heads": 2, "token_size": 2, "time_channels": 16}
    if recipe in OF_LATENTS:
        small["latent"] = {"features": [8, 16], "steps": 1}
    if recipe == "refine":
        small["coarse"] = {"features": [8, 16]}
    return {
        "recipe": recipe,
        "task": {"channels": ["x"], **TASKS[task]},
        "plan": {"spatial_dims": dims},
        "model": {**small, **model},
    }


@cache
def built(recipe: str, dims: int, task: str = "many") -> SegmentationModel:
    """One model per combination, with every parameter moved off its initial zeros and ones."""
    torch.manual_seed(0)
    model = build_model(parse_config(keys(recipe, dims, task)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def batch(model: SegmentationModel, dims: int, task: str = "many") -> Batch:
    generator = torch.Generator().manual_seed(1)
    size, planes = SIZES[dims], TASKS[task]["input_channels"][0]
    classes = model.codec.channels

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    image = normal(2, planes, *size)
    labels = torch.randint(0, classes, (2, 1, *size), generator=generator, dtype=torch.int16)
    if isinstance(model, PriorModel | LatentPriorModel):
        # The scan is what is made; the label map, if anything, is what it is made from.
        labels = labels % model.condition.channels if model.condition else labels[:, :0]
        image, labels = labels.float(), (image / 3).clip(-1, 1)
    return Batch(
        image,
        labels,
        torch.tensor([0.6, 0.25], dtype=torch.float64),
        normal(2, model.noise_channels, *size),
        torch.tensor([[0.9, 0.2], [0.1, 0.8]], dtype=torch.float64),
    )


def drawn(model: SegmentationModel, image: Tensor, noise: Tensor, steps: int = 2) -> list[Any]:
    def fresh(index: int) -> Tensor:
        return torch.randn(noise.shape, generator=torch.Generator().manual_seed(index))

    sampling = Sampling("ddim", steps)
    with torch.no_grad():
        return list(model.trajectory(model.context(image), noise, sampling, fresh))


@recipe_of
@dims_of
@pytest.mark.parametrize("task", TASKS)
def test_gradients_reach_every_parameter(recipe: str, dims: int, task: str):
    model = copy.deepcopy(built(recipe, dims, task)).train()
    stages = [0, 1] if isinstance(model, LatentModel) else [0]
    reached: dict[str, float] = {}
    for stage in stages:
        model.begin(stage)
        model.zero_grad()
        loss = model(batch(model, dims, task))
        assert torch.isfinite(loss.total)
        assert sum(loss.parts.values()) == pytest.approx(float(loss.total.detach()), rel=1e-4)
        loss.total.backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                assert torch.isfinite(parameter.grad).all(), name
                reached[name] = max(reached.get(name, 0.0), float(parameter.grad.abs().max()))
    # A code book moves by averages; anything else must learn.
    silent = [n for n, _ in model.named_parameters() if reached.get(n, 0) == 0 and "book" not in n]
    assert not silent


@recipe_of
@dims_of
@pytest.mark.parametrize("task", TASKS)
def test_probabilities_on_an_odd_grid(recipe: str, dims: int, task: str):
    model = built(recipe, dims, task)
    given = batch(model, dims, task)
    steps = drawn(model, given.image, given.noise)
    assert [step.index for step in steps] == list(range(len(steps)))
    p = steps[-1].probabilities.detach()
    assert p.shape == (2, model.codec.channels, *SIZES[dims])
    assert float(p.min()) >= 0
    assert float(p.max()) <= 1
    assert len(steps) == (2 if recipe in DIFFUSION else 1)
    assert model.stochastic == (recipe in STOCHASTIC)
    assert steps[-1].calls == (len(steps) if model.stochastic else 0)


@recipe_of
@dims_of
def test_two_equal_calls_agree_bit_for_bit(recipe: str, dims: int):
    model = built(recipe, dims)
    given = batch(model, dims)
    first, second = (drawn(model, given.image, given.noise)[-1] for _ in range(2))
    assert torch.equal(first.probabilities, second.probabilities)
    losses = [float(model(given).total.detach()) for _ in range(2)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("recipe", [name for name in EVERY if name != "image_prior"])
@dims_of
def test_the_image_decides(recipe: str, dims: int):
    model = built(recipe, dims)
    given = batch(model, dims)
    with_image = drawn(model, given.image, given.noise)[-1].clean
    without = drawn(model, torch.zeros_like(given.image), given.noise)[-1].clean
    assert float((with_image - without).abs().max()) > 1e-4


@pytest.mark.parametrize("recipe", STOCHASTIC)
@dims_of
def test_the_noise_decides_too(recipe: str, dims: int):
    model = built(recipe, dims)
    given = batch(model, dims)
    first = drawn(model, given.image, given.noise)[-1].clean
    other = drawn(model, given.image, given.noise.flip(2))[-1].clean
    assert float((first - other).abs().max()) > 1e-4


# Without a conditioner the image itself is the condition.
@pytest.mark.parametrize("recipe", [n for n in EVERY if EVERY[n]()["model"].get("conditioner")])
def test_zeroing_the_maps_of_the_context_changes_the_output(recipe: str):
    model = built(recipe, 2)
    given = batch(model, 2)
    with torch.no_grad():
        context = model.context(given.image)
        assert context.features
        blank = copy.copy(context)
        object.__setattr__(blank, "features", tuple(map(torch.zeros_like, context.features)))
        outputs = [
            next(iter(model.trajectory(c, given.noise, Sampling("ddim", 1)))).clean
            for c in (context, blank)
        ]
    assert float((outputs[0] - outputs[1]).abs().max()) > 1e-4


@recipe_of
@dims_of
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_gpu_gives_the_answer_of_the_cpu(recipe: str, dims: int):
    """The same weights, noise and image, in float32; a training step there is finite too."""
    model = built(recipe, dims)
    given = batch(model, dims)
    here = drawn(model, given.image, given.noise)[-1].probabilities
    there = copy.deepcopy(model).cuda()
    far = drawn(there, given.image.cuda(), given.noise.cuda())[-1].probabilities.cpu()
    torch.testing.assert_close(far, here, rtol=0, atol=5e-3)
    loss = there.train()(given.to(torch.device("cuda")))
    loss.total.backward()
    assert torch.isfinite(loss.total)


@diffusion_of
def test_time_changes_the_output(recipe: str):
    model = built(recipe, 2)
    given = batch(model, 2)
    with torch.no_grad():
        context = model.context(given.image)
        noise = given.noise
        if isinstance(model, LatentModel):
            noise = model.noise_on_grid(noise)
        if recipe == "refine":
            noise = noise[:, -model.codec.channels :]
        early, late = (
            model.raw(noise, torch.full((2,), t, dtype=torch.float64), context)[0]
            for t in (0.1, 0.9)
        )
    assert float((early - late).abs().max()) > 1e-4


@pytest.mark.parametrize("name", EVERY)
def test_the_docstring_names_source_and_departures(name: str):
    text = EVERY[name].__doc__ or ""
    assert len(text) > 40
    if name not in ("unet", "anchored", "rectified_flow"):
        assert "eparture" in text, f"{name}: say what departs from the paper"


@pytest.mark.parametrize(
    ("model", "objective"),
    [
        ({"self_conditioning": True}, {}),
        ({"condition_dropout": 0.5}, {}),
        ({"output": "velocity"}, {"squared_error": 1, "min_snr_gamma": 5}),
        ({"output": "velocity"}, {"squared_error": 1, "squared_error_of": "noise"}),
        ({"output": "velocity", "schedule": "sigmoid", "zero_terminal_snr": True}, {}),
        ({"output": "noise", "learned_variance": True}, {"variational_bound": 1}),
        ({"output": "velocity", "path": "variance_exploding"}, {"squared_error": 1}),
        ({"output": "score", "path": "variance_exploding"}, {"squared_error": 1}),
        ({"path": "linear", "output": "flow_velocity"}, {"time_law": "logit_normal"}),
        ({}, {"time_law": "late", "recycling": 1.0}),
        ({}, {"focal": 1.0}),
    ],
)
def test_every_key_trains_and_draws(model: dict[str, Any], objective: dict[str, Any]):
    """Each option of the core works behind the same three calls, and changes the loss."""
    torch.manual_seed(0)
    plain = parse_config(keys("diff_unet", 2))
    config = parse_config(keys("diff_unet", 2, **model) | {"objective": objective})
    assert config.model != plain.model or config.objective != plain.objective
    built_model = build_model(config).train()
    given = batch(built_model, 2)
    loss = built_model(given)
    assert torch.isfinite(loss.total)
    loss.total.backward()
    built_model.eval()
    steps = drawn(built_model, given.image, given.noise, 3)
    assert torch.isfinite(steps[-1].probabilities).all()


def test_an_error_of_the_noise_is_that_of_a_network_which_predicts_it():
    """One network's velocity, read as noise, costs what L_simple costs."""
    torch.manual_seed(0)
    keys_of = {"output": "velocity"}
    objective = {"objective": {"squared_error": 1, "squared_error_of": "noise", "dice": 0}}
    objective["objective"] |= {"cross_entropy": 0}
    model = build_model(parse_config(keys("diff_unet", 2, **keys_of) | objective)).eval()
    given = batch(model, 2)
    with torch.no_grad():
        loss = float(model(given).total)
        clean = model.codec.encode(given.labels)
        x_t = model.path.noised(clean, given.noise, given.t)
        output, _ = model.raw(x_t, given.t, model.context(given.image))
        estimate = model.estimate(output, x_t, given.t)
        noise = noise_from(model.path, estimate, x_t, given.t)
    assert loss == pytest.approx(float((noise - given.noise).square().mean()), rel=1e-4)


def test_guidance_asks_twice_and_changes_the_answer():
    torch.manual_seed(0)
    model = build_model(parse_config(keys("diff_unet", 2, condition_dropout=0.2))).eval()
    given = batch(model, 2)
    with torch.no_grad():
        context = model.context(given.image)
        plain, guided = (
            list(model.trajectory(context, given.noise, Sampling("ddim", 2, guidance=scale)))[-1]
            for scale in (1.0, 3.0)
        )
    assert (plain.calls, guided.calls) == (2, 4)
    assert float((plain.clean - guided.clean).abs().max()) > 1e-4


@pytest.mark.parametrize(("size", "halvings"), [("s", 4), ("b", 5), ("l", 6), ("plusplus", 6)])
def test_a_recipe_for_each_size_of_the_paper(size: str, halvings: int):
    """Built without memory: as deep as the paper says, 25 draws of 100 steps fused by STAPLE."""
    keys = {
        "recipe": f"medsegdiff_v1_{size}",
        "task": {"channels": ["x"], "labels": {"background": 0, "a": 1}, "input_channels": [1]},
        "plan": {"spatial_dims": 2},
    }
    config = parse_config(keys)
    with torch.device("meta"):
        model = build_model(config)
    assert model.denoiser.factor == 2**halvings
    wanted = config.prediction
    assert (wanted.draws, wanted.steps, wanted.fuse) == (25, 100, "staple")
