"""Models of drawn classes: what they learn, for classes and for regions, in 2-D and 3-D."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from medseg_diff.config import parse_config
from medseg_diff.errors import UsageError
from medseg_diff.model import DiscreteModel, Sampling, build_model
from tests.recipes.test_recipes import batch, built, keys

RECIPES = ("ccdm", "berdiff", "hidiff")
REGIONS = {
    "channels": ["x"],
    "labels": {"background": 0, "a": 1, "b": 2, "c": 3},
    "regions": {"whole": [1, 2, 3], "core": [2, 3]},
    "input_channels": [3],
}


def fresh_model(recipe: str, dims: int, **more: Any) -> DiscreteModel:
    torch.manual_seed(0)
    model = build_model(parse_config({**keys(recipe, dims), **more}))
    assert isinstance(model, DiscreteModel)
    return model


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("dims", [2, 3])
def test_a_few_steps_lower_the_loss(recipe: str, dims: int) -> None:
    """Four classes that the image shows, learned from one batch."""
    model = fresh_model(recipe, dims)
    given = batch(model, dims)
    given = replace(given, image=given.labels.expand(-1, 3, *given.labels.shape[2:]).float() - 1.5)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        optimiser.zero_grad()
        loss = model(given).total
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0], losses


@pytest.mark.parametrize("recipe", RECIPES)
def test_overlapping_regions_train_and_draw(recipe: str) -> None:
    model = fresh_model(recipe, 2, task=REGIONS)
    given = batch(model, 2)
    loss = model(given)
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert all(p.grad is not None for p in model.parameters())
    with torch.no_grad():
        context = model.eval().context(given.image)
        walk = model.trajectory(
            context, given.noise, Sampling("ancestral", 3), lambda k: given.noise.roll(k + 1, 2)
        )
        steps = list(walk)
    assert set(steps[0].state.unique().tolist()) == {-1.0, 1.0}
    assert steps[-1].probabilities.shape == given.noise.shape


def test_an_ignored_voxel_does_not_count() -> None:
    task = keys("ccdm", 2)["task"] | {"ignore_label": 255}
    model = fresh_model("ccdm", 2, task=task)
    given = batch(model, 2)
    labels = given.labels.clone()
    labels[:, :, :, :13] = 255
    loss = model(replace(given, labels=labels)).total
    assert torch.isfinite(loss)
    context = model.context(given.image)
    prior = model.prior(context)
    assert torch.equal(prior, torch.full_like(prior, 0.25))


def test_the_segmenters_mask_is_the_prior_and_what_a_draw_starts_from() -> None:
    model = copy.deepcopy(built("hidiff", 2))
    given = batch(model, 2)
    with torch.no_grad():
        context = model.context(given.image)
        prior = model.prior(context)
        own = model.codec.probabilities(context.anchor)
        torch.testing.assert_close(prior, 0.99 * own + 0.01 / 4)
        sure = replace(context, anchor=100 * torch.eye(4)[2][None, :, None, None] + 0 * own)
        seen: list[torch.Tensor] = []
        hook = model.denoiser.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
        next(iter(model.trajectory(sure, given.noise, Sampling("ddim", 1))))
        hook.remove()
    state = seen[0][:, :4]
    assert float((state[:, 2] == 1).float().mean()) > 0.95
    # State, image of three planes, prior.
    torch.testing.assert_close(seen[0][:, 7:], 2 * model.prior(sure) - 1)


def test_the_prior_decides_beside_image_and_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights, image and noise, from a uniform prior: another answer."""
    model = copy.deepcopy(built("hidiff", 2))
    given = batch(model, 2)
    masks = []
    for even in (False, True):
        if even:
            monkeypatch.setattr(model, "prior", lambda context: torch.full_like(given.noise, 1 / 4))
        with torch.no_grad():
            context = model.context(given.image)
            masks.append(next(iter(model.trajectory(context, given.noise, Sampling("ddim", 1)))))
    assert float((masks[0].clean - masks[1].clean).abs().max()) > 1e-3


def test_no_gradient_of_the_diffusion_reaches_the_prior() -> None:
    """The segmenter learns by its own mask and by its maps, not by moving its target."""
    model = copy.deepcopy(built("hidiff", 2)).train()
    assert not model.prior(model.context(batch(model, 2).image)).requires_grad


@pytest.mark.parametrize(
    ("model", "more", "complaint"),
    [
        ({"output": "velocity"}, {}, "predicts the mask's logits"),
        ({"path": "linear"}, {}, "has no path but model.schedule"),
        ({"input_scale": 0.5}, {}, "has no path but model.schedule"),
        ({"self_conditioning": True}, {}, "no self_conditioning"),
        ({"condition_dropout": 0.1}, {}, "has no guidance"),
        ({"discrete_prior": "segmenter"}, {}, "an anchor's mask"),
        ({}, {"objective": {"squared_error": 1.0}}, "trained by kl"),
        ({}, {"prediction": {"sampler": "heun"}}, "ancestral or ddim"),
        ({}, {"prediction": {"t_max": 0.9}}, "starts from its prior"),
        ({}, {"prediction": {"steps": 251}}, "discrete_steps: 250"),
    ],
)
def test_what_does_not_fit_drawn_classes_is_refused(
    model: dict[str, Any], more: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint):
        parse_config({**keys("ccdm", 2, **model), **more})


@pytest.mark.parametrize(
    ("sampling", "complaint"),
    [
        (Sampling("heun", 3), "by sampler ancestral or ddim"),
        (Sampling("ddim", 3, t_max=0.9), "starts from its prior"),
        (Sampling("ddim", 3, guidance=2.0), "no guidance"),
        (Sampling("ddim", 251), "too many"),
    ],
)
def test_a_way_of_drawing_that_does_not_fit_is_refused(sampling: Sampling, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        built("ccdm", 2).check(sampling)
