"""Latent feature translation along its axes: how the condition enters, which depths are drawn."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch

from medseg_diff.config import merged, parse_config
from medseg_diff.data.records import Batch
from medseg_diff.model import FeatureModel, Sampling, build_model
from medseg_diff.networks.autoencoder import MaskAutoencoder
from medseg_diff.networks.depths import DepthsAutoencoder

SIZES = {2: (21, 26), 3: (11, 14, 9)}
KEYS: dict[str, Any] = {
    "recipe": "feature_translation",
    "task": {
        "channels": ["x"],
        "labels": {"background": 0, "a": 1, "b": 2},
        "input_channels": [1],
    },
    "model": {
        "features": [8, 16],
        "time_channels": 16,
        "latent": {"features": [8, 16], "channels": 5, "steps": 1},
    },
}
AXES: dict[str, dict[str, Any]] = {
    "cross_attention": {"mixer": "cross_attention"},
    "zero_convolution": {"mixer": "zero_convolution"},
    "three levels": {"latent": {"features": [8, 16, 16]}},
    "one of two depths": {"latent": {"features": [8, 16, 16], "depths": 2}},
    "every skip": {"latent": {"depths": 2}},
    "every skip, of features": {
        "mixer": "cross_attention",
        "latent": {"depths": 2, "condition": "features"},
    },
}
along = pytest.mark.parametrize("axis", AXES)
dims_of = pytest.mark.parametrize("dims", [2, 3])


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def keys(dims: int, **model: Any) -> dict[str, Any]:
    return merged(KEYS, {"plan": {"spatial_dims": dims}, "model": model})


@cache
def built(axis: str, dims: int) -> FeatureModel:
    """Every parameter moved off its initial zeros and ones."""
    torch.manual_seed(0)
    made = build_model(parse_config(keys(dims, **AXES[axis])))
    assert isinstance(made, FeatureModel)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made.eval()


def batch(made: FeatureModel, dims: int) -> Batch:
    draw, size = torch.Generator().manual_seed(1), SIZES[dims]
    return Batch(
        torch.randn((2, 1, *size), generator=draw),
        torch.randint(0, 3, (2, 1, *size), generator=draw, dtype=torch.int16),
        torch.tensor([0.6, 0.25], dtype=torch.float64),
        torch.randn((2, made.noise_channels, *size), generator=draw),
        torch.tensor([[0.9, 0.2], [0.6, 0.8]], dtype=torch.float64),
    )


@along
@dims_of
def test_gradients_reach_every_parameter(axis: str, dims: int):
    made = copy.deepcopy(built(axis, dims)).train()
    reached: set[str] = set()
    for stage in (0, 1):
        made.begin(stage)
        made.zero_grad()
        loss = made(batch(made, dims))
        assert torch.isfinite(loss.total)
        loss.total.backward()
        learning = [(n, p) for n, p in made.named_parameters() if p.grad is not None]
        reached |= {name for name, parameter in learning if bool(parameter.grad.any())}
    assert not {name for name, _ in made.named_parameters()} - reached


@along
@dims_of
def test_an_odd_grid_comes_back_and_its_context_decides(axis: str, dims: int):
    made = built(axis, dims)
    given = batch(made, dims)
    with torch.no_grad():
        context = made.context(given.image)
        blank = copy.copy(context)
        object.__setattr__(blank, "features", tuple(map(torch.zeros_like, context.features)))
        seen, unseen = (
            list(made.trajectory(each, given.noise, Sampling("ddim", 2)))[-1]
            for each in (context, blank)
        )
        probabilities = seen.probabilities
    assert probabilities.shape == (2, 3, *SIZES[dims])
    assert torch.allclose(probabilities.sum(1), torch.ones(2, *SIZES[dims]), atol=1e-5)
    assert float((seen.clean - unseen.clean).abs().max()) > 1e-3


@along
def test_hardly_any_noise_returns_the_networks_own_mask(axis: str):
    made = built(axis, 2)
    given = batch(made, 2)
    with torch.no_grad():
        context = made.context(given.image)
        own = list(made.trajectory(context, given.noise, Sampling("anchor", 1)))[-1]
        near = Sampling("ddim", 1, t_max=1e-4, start="image")
        last = list(made.trajectory(context, given.noise, near))[-1]
        logits = made.autoencoder.decode(made.autoencoder.encode(given.image).z, SIZES[2])
        wanted = made.mask_codec.probabilities(logits)
    assert torch.allclose(own.probabilities, wanted, atol=1e-6)
    assert torch.allclose(last.probabilities, wanted, atol=0.05)


def test_noise_is_asked_for_in_as_many_channels_as_the_latent_needs():
    """Three classes; four voxels to one of the latent's hold 12 numbers, one holds 3."""
    assert built("three levels", 2).noise_channels == 3
    assert built("one of two depths", 2).noise_channels == 3
    assert built("every skip", 2).noise_channels == 10
    assert built("every skip", 3).noise_channels == 10


def test_widths_choose_the_depth_of_the_latent():
    for widths, factor in (([8, 16], 2), ([8, 16, 16], 4), ([8, 8, 16, 16], 8)):
        made = build_model(parse_config(keys(2, latent={"features": widths})))
        assert made.autoencoder.factor == factor
        assert type(made.autoencoder) is MaskAutoencoder
        z = made.autoencoder.encode(torch.randn(1, 1, 32, 32)).z
        assert z.shape == (1, 5, 32 // factor, 32 // factor)
    assert type(built("every skip", 2).autoencoder) is DepthsAutoencoder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"latent": {"depths": 3}}, "latent.features more widths"),
        ({"latent": {"depths": 2, "regulariser": "vq"}}, "regulariser: kl"),
        ({"latent": {"depths": 2, "of": "mask"}}, "latent.of: features"),
        (
            {"latent": {"features": [8, 8, 8, 8], "depths": 3}},
            "does not see a latent of 3 depths whole",
        ),
        ({"mixer": "cross_attention", "heads": 3}, "heads, 3, divides"),
        ({"mixer": "cross_attention", "features": [4, 8]}, "at least 6"),
        ({"mixer": "cross_attention", "conditioner_features": [8, 5]}, "at least 6"),
        ({"mixer": "zero_convolution", "conditioner": "none"}, "set denoiser: unet"),
        ({"mixer": "add", "conditioner": "none"}, None),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], words: str | None):
    if words is None:
        assert parse_config(keys(2, **changes)).model.mixer == "add"
        return
    with pytest.raises(ValueError, match=words):
        parse_config(keys(2, **changes))


@pytest.mark.parametrize(
    ("recipe", "changes", "words"),
    [
        ("unet", {"mixer": "cross_attention"}, "conditioner: pyramid"),
        ("dit", {"mixer": "cross_attention"}, "set denoiser: unet"),
        ("refine", {"mixer": "zero_convolution", "conditioner": "pyramid"}, "condition_noise"),
        ("medsegdiff_v1", {"mixer": "zero_convolution"}, "set denoiser: unet"),
        (
            "probabilistic_unet",
            {"mixer": "zero_convolution", "conditioner": "pyramid"},
            "of a denoiser",
        ),
    ],
)
def test_other_networks_have_no_mixer(recipe: str, changes: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        parse_config({"recipe": recipe, "model": changes})


def test_masks_under_a_mixer_learn_as_well():
    torch.manual_seed(0)
    small = {"features": [8, 16], "conditioner_features": [8, 16], "time_channels": 16}
    task = {"channels": ["x"], "labels": {"background": 0, "a": 1}, "input_channels": [1]}
    for mixer in ("zero_convolution", "cross_attention"):
        config = parse_config(
            {
                "recipe": "diff_unet",
                "task": task,
                "plan": {"spatial_dims": 2},
                "model": {**small, "mixer": mixer},
            }
        )
        made = build_model(config)
        image = torch.randn(1, 1, 13, 18)
        noise = torch.randn(1, 2, 13, 18)
        last = list(made.trajectory(made.context(image), noise, Sampling("ddim", 2)))[-1]
        assert last.probabilities.shape == (1, 2, 13, 18)
