"""Greys that are alike within a structure: the energy by hand, and where it leads a prior."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from medseg_diff.adaptation.rows.guided_prior import steered
from medseg_diff.diffusion.paths import spread
from medseg_diff.diffusion.samplers import Denoised
from medseg_diff.model import DiffusionModel, Sampling, build_model
from medseg_diff.model.evidence import Evidence, distances, spread_within
from tests.tiny import tiny_config

SIZE = 24


def disc(dims: int = 2, radius: float = 6.0) -> Tensor:
    grid = np.indices([SIZE] * dims) - SIZE / 2
    return torch.from_numpy(np.square(grid).sum(0) < radius**2).float()


def classes(mask: Tensor) -> Tensor:
    return torch.stack([1 - mask, mask])[None]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("reach", [None, 3.0])
def test_two_tones_have_no_spread_within_their_mask(dims: int, reach: float | None):
    mask = disc(dims)
    image = (1 + 2 * mask)[None, None]
    # A voxel's share of the sum that floating point and the filter's tails leave.
    right = float(spread_within(image, classes(mask), reach)) / mask.numel()
    wrong = float(spread_within(image, classes(mask.roll(4, 0)), reach)) / mask.numel()
    assert right < 1e-4
    assert wrong > 0.05


def test_the_spread_of_a_wrong_mask_by_hand():
    """Greys 0, 0, 4, 4 cut after the first: 0, and (0, 4, 4) around 8/3 makes 32/3; two planes."""
    line = torch.tensor([0.0, 0.0, 4.0, 4.0]).reshape(1, 1, 1, 4)
    p = torch.zeros(1, 2, 1, 4)
    p[..., 0, :1], p[..., 1, :, 1:] = 0, 1
    p[:, 0, :, 0] = 1
    found = spread_within(torch.cat([line, -line], dim=1), p, None)
    assert float(found) == pytest.approx(2 * 32 / 3, rel=1e-4)


@pytest.mark.parametrize("reach", [None, 3.0])
def test_turning_the_greys_around_changes_nothing(reach: float | None):
    torch.manual_seed(0)
    image, p = torch.randn(1, 1, SIZE, SIZE), torch.rand(1, 2, SIZE, SIZE).softmax(1)
    inside = (slice(None), slice(None), slice(12, 14), slice(12, 14))
    turned = spread_within(3 - image, p, reach) / spread_within(image, p, reach)
    if reach is None:
        assert float(turned) == pytest.approx(1, rel=1e-3)
    gradients = []
    for grey in (image, -image):
        each = p.clone().requires_grad_(True)
        spread_within(grey, each, reach).sum().backward()
        gradients.append(each.grad[inside])
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


def test_local_means_see_through_a_gain_field():
    """A ramp across the image: the true disc beats a threshold only where means are local."""
    mask = disc()
    ramp = torch.linspace(-4, 4, SIZE)[:, None].expand(SIZE, SIZE)
    image = (ramp + mask)[None, None]
    cut = (image[0, 0] > 0).float()
    values = {
        reach: [float(spread_within(image, classes(m), reach)) for m in (mask, cut)]
        for reach in (None, 2.0)
    }
    assert values[None][0] > values[None][1]
    assert values[2.0][0] < values[2.0][1]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("reach", [None, 3.0])
def test_distances_are_the_gradient_of_the_spread(dims: int, reach: float | None):
    torch.manual_seed(0)
    shape = [9, 8, 7][:dims]
    image, logits = torch.randn(1, 2, *shape), torch.randn(1, 3, *shape)
    p = logits.softmax(1).double().requires_grad_(True)
    spread_within(image.double(), p, reach).sum().backward()
    found = distances(image.double(), p.detach(), reach)
    torch.testing.assert_close(found, p.grad, rtol=1e-3, atol=1e-3)


def test_bayes_by_hand():
    """Greys 0, 0, 2, 2; a prior of 0, 1/2, 1/2, 1: means 1/2 and 3/2, sd 1."""
    image = torch.tensor([0.0, 0.0, 2.0, 2.0]).reshape(1, 1, 1, 4)
    second = torch.tensor([0.0, 0.5, 0.5, 1.0]).clamp(1e-4, 1 - 1e-4)
    p = torch.stack([1 - second, second]).reshape(1, 2, 1, 4)
    evidence = Evidence(tiny_codec(), 1, sd=1.0, reach=None)
    found = evidence.posterior(image, p)[0, 1, 0]
    # d = (0 - 1/2)^2 and (0 - 3/2)^2: odds exp((1/4 - 9/4) / 2) of the second class.
    odds = math.exp(-1)
    wanted = torch.tensor([odds / (1 + odds), 1 / (1 + odds)])
    torch.testing.assert_close(found[1:3], wanted, rtol=1e-3, atol=1e-4)
    assert float(found[0]) < 1e-4 < 1 - 1e-4 < float(found[3])


def test_regions_are_asked_one_by_one():
    mask = disc()
    image = (1 + 2 * mask)[None, None]
    both = torch.stack([0.3 + 0.4 * mask, 0.4 + 0.2 * mask.roll(4, 0)])[None]
    evidence = Evidence(_regions(), 1)
    found = evidence.posterior(image, both)
    for index in range(2):
        one = both[:, index : index + 1]
        alone = Evidence(tiny_codec(), 1).posterior(image, torch.cat([1 - one, one], dim=1))
        torch.testing.assert_close(found[:, index], alone[:, 1])


def tiny_codec():
    return build_model(tiny_config(task={"labels": {"background": 0, "disc": 1}})).codec


def _regions():
    return build_model(
        tiny_config(task={"regions": {"whole": [1, 2, 3], "core": [2]}}, plan={"spatial_dims": 2})
    ).codec


def a_prior(monkeypatch: pytest.MonkeyPatch) -> DiffusionModel:
    """Exact denoiser of masks whose voxels are 1 more likely in the middle than at the border."""
    labels = {"background": 0, "disc": 1}
    keys = {"task": {"labels": labels}, "plan": {"spatial_dims": 2}}
    model = build_model(tiny_config(**keys, model={"conditioner": "none"})).eval()
    odds = (4 * disc(radius=8.0) - 2)[None]

    def denoised(x: Tensor, t: Tensor, context, previous=None) -> Denoised:
        a, _, sigma = (spread(c, x) for c in model.path.coefficients(t))
        second = torch.tanh(a * (x[:, 1:] - x[:, :1]) / sigma**2 + odds / 2)
        return Denoised(torch.cat([-second, second], 1))

    monkeypatch.setattr(model, "denoised", denoised)
    return model


def dice(found: Tensor, truth: Tensor) -> float:
    return float(2 * (found * truth).sum() / (found.sum() + truth.sum()))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_prior_is_led_to_the_disc_whatever_the_contrast(
    monkeypatch: pytest.MonkeyPatch, sign: float
):
    """Radius 6 in the image, 8 in the prior; bright on dark, and dark on bright."""
    model, truth = a_prior(monkeypatch), disc()
    torch.manual_seed(0)
    image = sign * (2 * truth - 1)[None, None] + 0.2 * torch.randn(1, 1, SIZE, SIZE)
    noise = torch.randn(1, 2, SIZE, SIZE)
    sampling = Sampling("ddim", 10, t_max=0.95)

    def drawn() -> Tensor:
        with torch.inference_mode():
            steps = list(model.trajectory(model.context(image), noise, sampling))
        return (steps[-1].probabilities[0, 1] > 0.5).float()

    before = dice(drawn(), truth)
    # Voxels of this prior are independent: means over the whole window, or speckle stays.
    model.steer = Evidence(model.codec, 1, sd=0.3, reach=None)
    assert dice(drawn(), truth) > 0.95
    assert before < 0.9


def test_the_steering_ends_with_its_scan():
    """A network of its own, another answer inside the block, and the same before and after."""
    torch.manual_seed(0)
    keys = {"plan": {"spatial_dims": 2}, "model": {"conditioner": "none", "concat_image": False}}
    model = build_model(tiny_config(**keys)).eval()
    image, noise = disc()[None, None], torch.randn(1, 4, SIZE, SIZE)
    sampling = Sampling("ddim", 2, t_max=0.95)

    def last() -> Tensor:
        with torch.inference_mode():
            return list(model.trajectory(model.context(image), noise, sampling))[-1].clean

    plain = last()
    with steered(1)(model, None, None):
        led = last()
    assert (led - plain).abs().max() > 1e-4
    assert model.steer is None
    assert torch.equal(last(), plain)
