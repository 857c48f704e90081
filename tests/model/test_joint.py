"""Image and mask as one state: what is put in, what follows, what is learned."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medseg_diff.config import parse_config
from medseg_diff.errors import UsageError
from medseg_diff.inference.ensemble import Request, infer
from medseg_diff.model import JointModel, Sampling, build_model
from medseg_diff.model.diffusion import Weights
from tests.recipes.test_recipes import SIZES, batch, built, keys

dims_of = pytest.mark.parametrize("dims", [2, 3])


def calls(model: JointModel, image: Tensor, noise: Tensor, sampling: Sampling) -> list[Any]:
    """What the denoiser is handed, call by call: state and time."""
    seen: list[Any] = []
    hook = model.denoiser.register_forward_pre_hook(lambda m, args: seen.append(args[:2]))
    with torch.no_grad():
        walk = model.trajectory(
            model.context(image), noise, sampling, lambda k: noise.roll(k + 1, 2)
        )
        list(walk)
    hook.remove()
    return seen


@dims_of
@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "heun", "dpm_solver_2m"])
def test_the_image_is_put_in_at_every_call(dims: int, sampler: str) -> None:
    """Exactly the target at that call's time, under the draw's own noise, whatever the sampler."""
    model = built("diffatlas", dims)
    given = batch(model, dims)
    seen = calls(model, given.image, given.noise, Sampling(sampler, 3))
    assert len(seen) >= 3
    for state, t in seen:
        wanted = model.path.noised(given.image, given.noise[:, :3], t)
        assert torch.equal(state[:, :3], wanted)
    assert torch.equal(seen[0][0][:, 3:], model.path.start(given.noise, seen[0][1])[:, 3:])


@dims_of
def test_the_mask_follows_the_image_and_no_other_input_knows_it(dims: int) -> None:
    model = built("diffatlas", dims)
    given = batch(model, dims)
    assert model.conditioner is None
    assert not model.context(given.image).features
    masks = []
    for image in (given.image, given.image.flip(2), torch.zeros_like(given.image)):
        with torch.no_grad():
            walk = model.trajectory(model.context(image), given.noise, Sampling("ddim", 2))
            masks.append(list(walk)[-1].clean)
    assert masks[0].shape == (2, 4, *SIZES[dims])
    assert all(float((masks[0] - other).abs().max()) > 1e-3 for other in masks[1:])


def test_training_is_told_of_no_image() -> None:
    """Its image channels hold the noised image at the batch's time, not the target."""
    model = copy.deepcopy(built("diffatlas", 2))
    given = batch(model, 2)
    seen: list[Tensor] = []
    model.denoiser.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    model(given)
    clean = torch.cat([given.image, model.codec.encode(given.labels)], 1)
    torch.testing.assert_close(seen[0], model.path.noised(clean, given.noise, given.t))


def test_image_and_mask_count_alike() -> None:
    """The loss is the sum of two means, however many channels each has."""
    model = built("diffatlas", 2)
    given = batch(model, 2)
    clean = torch.cat([given.image, model.codec.encode(given.labels)], 1)
    t, ones = given.t, torch.ones(2)
    output = torch.zeros_like(clean)
    output[:, 3:] = 7.0
    a, _, sigma = (c[:, None, None, None].float() for c in model.path.coefficients(t))
    wanted = a * given.noise - sigma * clean
    found = model._errors(output, wanted, t, Weights(ones, None))["squared_error"]
    errors = (output - wanted).square()
    assert float(found) == pytest.approx(float(errors[:, :3].mean() + errors[:, 3:].mean()))


@dims_of
def test_a_few_steps_lower_the_loss(dims: int) -> None:
    torch.manual_seed(0)
    model = build_model(parse_config(keys("diffatlas", dims)))
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


def test_windows_of_a_draw_are_drawn_alike_in_any_batch() -> None:
    """Through the ensemble, whose fields have the image's channels too."""
    model = built("diffatlas", 2)
    image = np.random.default_rng(0).standard_normal((3, 30, 24, 2)).astype(np.float32)
    answers = [
        infer([model], image, [16, 16, 1], Request("case", 1, 2, Sampling("ancestral", 2), 0.5, n))
        for n in (1, 8)
    ]
    np.testing.assert_allclose(answers[0].probability, answers[1].probability, atol=1e-5)
    assert answers[0].probability.shape == (4, 30, 24, 2)


@pytest.mark.parametrize(
    ("model", "more", "complaint"),
    [
        ({"concat_image": True}, {}, "no image beside its state"),
        ({"conditioner": "pyramid"}, {}, "no image beside its state"),
        ({"output": "clean"}, {}, "an image has no logits"),
        ({"learned_variance": True}, {}, "no learned_variance"),
        ({"condition_dropout": 0.1}, {}, "joint has no condition"),
        ({"latent": {}}, {}, "leave out latent"),
        ({}, {"plan": {"coordinates": True}}, "leave out plan.coordinates"),
    ],
)
def test_what_does_not_fit_a_joint_state_is_refused(
    model: dict[str, Any], more: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint):
        parse_config({**keys("diffatlas", 2, **model), **more})
