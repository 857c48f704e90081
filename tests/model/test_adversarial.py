"""SynDiff's model: known answers by hand, whose gradient goes where, and what it must do."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from medseg_diff.config import parse_config
from medseg_diff.data.records import Batch
from medseg_diff.errors import UsageError
from medseg_diff.model import AdversarialModel, Sampling, build_model
from medseg_diff.model.adversarial import (
    DOMAINS,
    OTHER,
    fooled,
    gradient_penalty,
    judged_by_frozen,
    told_apart,
)
from medseg_diff.networks.adversarial import Discriminator
from medseg_diff.recipes.unpaired import syndiff

# Planes of the source and of the target.
TASKS = {"grey": (1, 1), "to_rgb": (1, 3), "to_grey": (3, 1)}
SIZES = {2: (21, 26), 3: (11, 14, 9)}
WALK = Sampling("ancestral", 4)

dims_of = pytest.mark.parametrize("dims", [2, 3])
task_of = pytest.mark.parametrize("task", TASKS)


def keys(dims: int, task: str = "grey", **adversarial: Any) -> dict[str, Any]:
    """The recipe at test width."""
    source, target = TASKS[task]
    return {
        "recipe": "syndiff",
        "data": {"target_cases": "b.json"},
        "task": {
            "channels": ["x"], "target": "y", "target_channel": "y", "input_channels": [source],
            "target_planes": target,
        },
        "plan": {"spatial_dims": dims},
        "model": {
            "features": [4, 8], "time_channels": 16,
            "adversarial": {"discriminator_features": [4, 8], **adversarial},
        },
    }  # fmt: skip


@cache
def _built(dims: int, task: str) -> AdversarialModel:
    torch.manual_seed(0)
    model = build_model(parse_config(keys(dims, task)))
    assert isinstance(model, AdversarialModel)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def built(dims: int = 2, task: str = "grey") -> AdversarialModel:
    """A model of one's own, every parameter moved off its initial zeros and ones."""
    return copy.deepcopy(_built(dims, task))


def batch(dims: int = 2, task: str = "grey", times: tuple[float, float] = (0.6, 0.2)) -> Batch:
    generator = torch.Generator().manual_seed(1)
    size, (source, target) = SIZES[dims], TASKS[task]

    def normal(channels: int) -> Tensor:
        return torch.randn((2, channels, *size), generator=generator)

    return Batch(
        normal(source).tanh(),
        normal(target).tanh(),
        torch.tensor(times, dtype=torch.float64),
        normal(2 * max(source, target) + 1),
        torch.rand(2, 2, dtype=torch.float64, generator=generator),
    )


def drawn(model: AdversarialModel, image: Tensor, noise: Tensor) -> list[Any]:
    def fresh(index: int) -> Tensor:
        return torch.randn(noise.shape, generator=torch.Generator().manual_seed(index))

    with torch.no_grad():
        return list(model.trajectory(model.context(image), noise, WALK, fresh))


# Known answers


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_a_step_back_is_the_posterior_by_gaussian_conditioning(step: int):
    """q(x_s | x_t, clean) from the joint Gaussian of x_s and x_t, betas 0.1 to 20 integrated."""
    model, clean, x_t = built(), 0.3, 1.1
    t, s = step / 4, (step - 1) / 4

    def alpha_bar(time: float) -> float:
        betas = np.linspace(0.1, 0.1 + 19.9 * time, 20001)
        return float(np.exp(-np.trapezoid(betas, dx=time / 20000)))

    at_t, at_s = alpha_bar(t), alpha_bar(s)
    forward = at_t / at_s
    # x_s = sqrt(at_s) clean + noise; x_t = sqrt(forward) x_s + noise: means, variances, covariance.
    variance_s, variance_t = 1 - at_s, forward * (1 - at_s) + 1 - forward
    covariance = np.sqrt(forward) * variance_s
    mean = np.sqrt(at_s) * clean + covariance / variance_t * (x_t - np.sqrt(at_t) * clean)
    variance = variance_s - covariance**2 / variance_t

    def back(noise: float) -> float:
        values = (torch.full((1, 1, 1, 1), v, dtype=torch.float64) for v in (x_t, clean, noise))
        state, image, normal = values
        return float(model._back(state, image, torch.tensor([t], dtype=torch.float64), normal))

    assert back(0) == pytest.approx(mean, abs=1e-6)
    assert back(1) - back(0) == pytest.approx(np.sqrt(max(variance, 0)), abs=1e-6)
    if step == 1:
        assert back(5) == pytest.approx(clean)


def test_a_true_step_has_the_marginal_of_its_time():
    """Noised to t and drawn back given the truth, x_s has mean a_s clean and variance sigma_s^2."""
    model, n = built(), 200_000
    generator = torch.Generator().manual_seed(0)
    start, step = (torch.randn((1, 1, n, 1), generator=generator) for _ in range(2))
    clean, t = torch.full((1, 1, n, 1), 0.5), torch.tensor([0.5], dtype=torch.float64)
    x_s = model._back(model.path.noised(clean, start, t), clean, t, step)
    share = float(np.exp(-(0.1 * 0.25 + 9.95 * 0.25**2)))
    assert float(x_s.mean()) == pytest.approx(0.5 * np.sqrt(share), abs=0.01)
    assert float(x_s.var()) == pytest.approx(1 - share, abs=0.01)


def test_the_losses_of_logits_by_hand():
    real, made = torch.tensor([2.0, -1.0]), torch.tensor([0.0, 3.0])
    soft = lambda x: np.log1p(np.exp(x))  # noqa: E731
    assert float(fooled(made)) == pytest.approx((soft(0) + soft(-3)) / 2, rel=1e-6)
    wanted = (soft(-2) + soft(1)) / 2 + (soft(0) + soft(3)) / 2
    assert float(told_apart(real, made)) == pytest.approx(wanted, rel=1e-6)


def test_the_penalty_of_a_linear_discriminator_is_half_its_squared_weight():
    """Whatever the image's size, since it is counted per logit; its gradient is the weight."""
    weight = torch.tensor(0.7, requires_grad=True)
    for size in (3, 8):
        real = torch.randn(2, 1, size, size, requires_grad=True)
        penalty = gradient_penalty(weight * real + 4, real)
        assert float(penalty.detach()) == pytest.approx(0.7**2 / 2, rel=1e-5)
    (slope,) = torch.autograd.grad(penalty, weight)
    assert float(slope) == pytest.approx(0.7, rel=1e-5)


class Nothing(nn.Module):
    """Image in, image out."""

    def forward(self, image: Tensor) -> Tensor:
        """The image itself."""
        return image


def test_translators_that_change_nothing_have_no_cycle_loss():
    model, given = built(), batch()
    before = model(given).parts["cycle"]
    for domain in DOMAINS:
        model.translators[domain] = Nothing()
    assert before > 0.01
    assert model(given).parts["cycle"] == 0


def test_the_parts_by_hand():
    """Every part from the networks' own outputs, each domain told apart."""
    model, given = built(), batch()
    parts = model(given).parts
    real: dict[Any, Tensor] = {"a": given.image, "b": given.labels}
    # 0.6 lies below knot 3 of 4, 0.2 below knot 1.
    t = torch.tensor([0.75, 0.25], dtype=torch.float64)
    wanted = dict.fromkeys(("cycle", "absolute_error", "translators", "generators"), 0.0)
    with torch.no_grad():
        made = {d: model.translators[d](real[OTHER[d]]) for d in DOMAINS}
        for d in DOMAINS:
            back = model.translators[d](made[OTHER[d]])
            wanted["cycle"] += 0.5 * float((back - real[d]).abs().mean())
            wanted["translators"] += float(
                functional.softplus(-model.image_judges[d](made[d])).mean()
            )
            x_t = model.path.noised(real[d], given.noise[:, :1], t)
            clean = model.generators[d](x_t, made[OTHER[d]], given.noise[:, 2:], t)
            wanted["absolute_error"] += 0.5 * float((clean - real[d]).abs().mean())
            pair = torch.cat([model._back(x_t, clean, t, given.noise[:, 1:2]), x_t], 1)
            wanted["generators"] += float(
                functional.softplus(-model.step_judges[d](pair, t)).mean()
            )
    for name, value in wanted.items():
        assert parts[name] == pytest.approx(value, rel=1e-5), name


# Whose gradient goes where

MAKERS, JUDGES = ("translators", "generators"), ("step_judges", "image_judges")


def gradients(model: AdversarialModel, loss: Tensor) -> dict[str, float]:
    """Largest gradient within each kind of network; None counts as 0."""
    model.zero_grad(set_to_none=True)
    loss.backward(retain_graph=True)
    return {
        kind: max(
            0.0 if p.grad is None else float(p.grad.abs().max())
            for p in getattr(model, kind).parameters()
        )
        for kind in (*MAKERS, *JUDGES)
    }


def parts_of(model: AdversarialModel, given: Batch, domain: Any = "b") -> dict[str, Tensor]:
    real: dict[Any, Tensor] = {"a": given.image, "b": given.labels}
    made = {d: model.translators[d](real[OTHER[d]]) for d in DOMAINS}
    cycled = model.translators[domain](made[OTHER[domain]])
    t = torch.tensor([0.75, 0.25], dtype=torch.float64)
    return model._image_losses(domain, real[domain], made[domain], cycled) | model._step_losses(
        domain, real[domain], made[OTHER[domain]], t, given.noise
    )


@pytest.mark.parametrize("name", ["cycle", "absolute_error", "translators", "generators"])
def test_who_makes_images_never_moves_a_discriminator(name: str):
    model = built().train()
    found = gradients(model, parts_of(model, batch())[name])
    assert found["step_judges"] == 0
    assert found["image_judges"] == 0
    assert found["translators"] > 0
    assert (found["generators"] > 0) == (name in ("absolute_error", "generators"))


@pytest.mark.parametrize("name", ["step_judges", "image_judges", "r1"])
def test_who_judges_never_moves_what_makes_images(name: str):
    model = built().train()
    found = gradients(model, parts_of(model, batch())[name])
    assert found["translators"] == 0
    assert found["generators"] == 0
    own = "image_judges" if name == "image_judges" else "step_judges"
    assert found[own] > 0
    assert found[({*JUDGES} - {own}).pop()] == 0


def test_a_frozen_judge_gives_the_same_logits_and_a_gradient_to_its_input():
    torch.manual_seed(0)
    judge, image = Discriminator(2, 1, (4, 8), 8), torch.randn(2, 1, 13, 10, requires_grad=True)
    t = torch.tensor([0.25, 1.0])
    logits = judged_by_frozen(judge, image, t)
    assert torch.equal(logits, judge(image, t))
    logits.sum().backward()
    assert float(image.grad.abs().max()) > 0
    assert all(p.grad is None for p in judge.parameters())


def test_the_penalty_comes_every_tenth_step():
    model, given = built(), batch()
    for step in (0, 1, 9, 10, 20, 21):
        model.begin(step)
        assert ("r1" in model(given).parts) == (step % 10 == 0), step


def test_the_penalty_can_be_left_out():
    model = build_model(parse_config(keys(2, r1=0)))
    assert "r1" not in model(batch()).parts


# What every model must do


@dims_of
@task_of
def test_gradients_reach_every_parameter(dims: int, task: str):
    model = built(dims, task).train()
    loss = model(batch(dims, task))
    assert sum(loss.parts.values()) == pytest.approx(float(loss.total.detach()), rel=1e-4)
    loss.total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert float(parameter.grad.abs().max()) > 0, name


@dims_of
@task_of
@pytest.mark.parametrize("domain", DOMAINS)
def test_both_directions_on_an_odd_grid(dims: int, task: str, domain: Any):
    model, given = built(dims, task), batch(dims, task)
    model.make(domain)
    source = given.image if domain == "b" else given.labels
    steps = drawn(model, source, given.noise)
    assert [step.index for step in steps] == [0, 1, 2, 3]
    assert [step.t for step in steps] == [1, 0.75, 0.5, 0.25]
    assert steps[-1].calls == 4
    unit = steps[-1].probabilities
    planes = TASKS[task][1 if domain == "b" else 0]
    assert unit.shape == (2, planes, *SIZES[dims])
    assert float(unit.min()) >= 0
    assert float(unit.max()) <= 1
    torch.testing.assert_close(steps[-1].state, steps[-1].clean)


@dims_of
def test_two_equal_calls_agree_bit_for_bit(dims: int):
    model, given = built(dims), batch(dims)
    first, second = (drawn(model, given.image, given.noise)[-1].clean for _ in range(2))
    assert torch.equal(first, second)
    losses = [float(model(given).total.detach()) for _ in range(2)]
    assert losses[0] == losses[1]


@dims_of
@pytest.mark.parametrize("domain", DOMAINS)
def test_scan_noise_and_latent_change_the_answer(dims: int, domain: Any):
    model, given = built(dims), batch(dims)
    model.make(domain)
    before = drawn(model, given.image, given.noise)[-1].clean
    blank = drawn(model, torch.zeros_like(given.image), given.noise)[-1].clean
    assert float((blank - before).abs().max()) > 1e-4
    for plane in (0, 2):
        other = given.noise.clone()
        other[:, plane] = other[:, plane].flip(1)
        after = drawn(model, given.image, other)[-1].clean
        assert float((after - before).abs().max()) > 1e-5, plane


def test_time_changes_generators_and_discriminators():
    model, given = built(), batch()
    early, late = (torch.full((2,), t, dtype=torch.float64) for t in (0.25, 1.0))
    for d in DOMAINS:
        made = [
            model.generators[d](given.image, given.labels, given.noise[:, :1], t).detach()
            for t in (early, late)
        ]
        assert float((made[0] - made[1]).abs().max()) > 1e-4
        pair = torch.cat([given.image, given.labels], 1)
        judged = [model.step_judges[d](pair, t).detach() for t in (early, late)]
        assert float((judged[0] - judged[1]).abs().max()) > 1e-4


def test_a_discriminator_sees_contrast():
    """Without norms: an image and the same image with three times its contrast differ to it."""
    torch.manual_seed(0)
    judge, image = Discriminator(2, 1, (4, 8)), torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        assert float((judge(image) - judge(3 * image)).abs().max()) > 1e-2


def test_an_oracle_of_the_target_is_reached_exactly():
    model, given = built(), batch()

    class Oracle(nn.Module):
        def forward(self, x_t: Tensor, source: Tensor, latent: Tensor, t: Tensor) -> Tensor:
            return given.labels

    model.generators["b"] = Oracle()
    steps = drawn(model, given.image, given.noise)
    assert all(torch.equal(step.clean, given.labels) for step in steps)
    noisy = [float((step.state - given.labels).abs().mean()) for step in steps]
    assert noisy == sorted(noisy, reverse=True)
    assert noisy[0] > 0.5
    assert noisy[-1] < 1e-6


@pytest.mark.parametrize(
    "other", [Sampling("ddim", 4), Sampling("ancestral", 5), Sampling("ancestral", 4, t_max=0.9)]
)
def test_other_ways_of_sampling_are_refused(other: Sampling):
    model = built()
    model.check(WALK)
    with pytest.raises(ValueError, match="4 steps of sampler 'ancestral'"):
        model.check(other)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": {"target_cases": None}}, "two case lists without pairs"),
        ({"model": {"adversarial": None}}, "two case lists without pairs"),
        ({"model": {"kind": "unet"}}, "generators of its own"),
        ({"model": {"path": "linear"}}, "variance preserving path"),
        ({"model": {"output": "velocity"}}, "variance preserving path"),
        ({"model": {"input_scale": 0.5}}, "betas and input_scale"),
        ({"model": {"self_conditioning": True}}, "a noisy image and a source alone"),
        ({"objective": {"squared_error": 1.0}}, "trained by objective.absolute_error"),
        ({"prediction": {"steps": 5}}, "the same number"),
        ({"prediction": {"sampler": "ddim"}}, "sampler: ancestral"),
        ({"plan": {"normalisation": [{"kind": "percentile"}]}}, "can be inverted"),
        ({"plan": {"coordinates": True}}, "no coordinates"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], words: str):
    given = keys(2)
    for section, values in change.items():
        given[section] = {**given.get(section, {}), **values}
    with pytest.raises(UsageError, match=words):
        parse_config(given)


def test_the_recipe_is_what_its_paper_says():
    config = parse_config(keys(2))
    adversarial = config.model.adversarial
    assert adversarial is not None
    assert (adversarial.steps, adversarial.cycle, adversarial.r1, adversarial.r1_every) == (
        4, 0.5, 1, 10,
    )  # fmt: skip
    assert config.objective.absolute_error == 0.5
    assert config.training.betas == (0.5, 0.9)
    assert "Departures" in (syndiff.__doc__ or "")
