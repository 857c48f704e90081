"""Latent feature translation: what conditions, what is drawn, and where a trajectory starts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medseg_diff.config import parse_config
from medseg_diff.data.appearance import strongly_changed
from medseg_diff.data.records import Batch
from medseg_diff.model import FeatureModel, Sampling, build_model
from medseg_diff.model.features import edges
from medseg_diff.networks.conditioners import Context

SIZE = (21, 26)


def model(**latent: Any) -> FeatureModel:
    torch.manual_seed(0)
    built = build_model(
        parse_config(
            {
                "recipe": "feature_translation",
                "task": {
                    "channels": ["x"],
                    "labels": {"background": 0, "a": 1, "b": 2},
                    "input_channels": [1],
                },
                "plan": {"spatial_dims": 2},
                "model": {
                    "features": [8, 16],
                    "time_channels": 16,
                    "latent": {"features": [8, 16], "channels": 3, "steps": 1, **latent},
                },
            }
        )
    )
    assert isinstance(built, FeatureModel)
    return built.eval()


def batch(coins: float = 0.3) -> Batch:
    draw = torch.Generator().manual_seed(1)
    return Batch(
        torch.randn((2, 1, *SIZE), generator=draw),
        torch.randint(0, 3, (2, 1, *SIZE), generator=draw, dtype=torch.int16),
        torch.tensor([0.6, 0.25], dtype=torch.float64),
        torch.randn((2, 3, *SIZE), generator=draw),
        torch.full((2, 2), coins, dtype=torch.float64),
    )


def test_edges_of_a_ramp_are_one_and_those_of_its_negative_the_same():
    ramp = torch.arange(6.0).expand(1, 1, 5, 6).clone()
    assert torch.allclose(edges(ramp), torch.ones(1, 1, 5, 6))
    image = torch.randn(2, 2, 7, 9, 8)
    assert torch.allclose(edges(image), edges(3 - 2 * image), atol=1e-5)
    assert torch.allclose(edges(image).mean((2, 3, 4)), torch.ones(2, 2), atol=1e-5)


def test_edges_are_the_length_of_the_gradient():
    y, x = torch.meshgrid(torch.arange(5.0), torch.arange(5.0), indexing="ij")
    steep = torch.where(x < 2, 3 * x + 4 * y, 6 + 4 * y)[None, None]
    found = edges(steep)
    assert float(found[0, 0, 2, 0] / found[0, 0, 2, 4]) == pytest.approx(5 / 4)


def test_the_condition_is_changed_and_the_features_are_those_of_the_unchanged_image(monkeypatch):
    built, given = model(), batch()
    built.begin(1)
    seen: list[Tensor] = []
    wanted: list[Tensor] = []

    def context(image: Tensor) -> Context:
        seen.append(image)
        return FeatureModel.context(built, image)

    plain = built.denoising_loss

    def denoising_loss(held: Batch, clean: Tensor, noise: Tensor) -> Any:
        wanted.append(clean)
        return plain(held, clean, noise)

    monkeypatch.setattr(built, "context", context)
    monkeypatch.setattr(built, "denoising_loss", denoising_loss)
    built(given)
    assert torch.equal(wanted[0], built.autoencoder.encode(given.image).z)
    assert len(seen) == 1
    assert not torch.allclose(seen[0], given.image, atol=0.1)
    expected = strongly_changed(given.image[1], np.random.RandomState(int(0.3 * 2**32)))
    assert torch.equal(seen[0][1], expected)


def test_without_change_the_condition_is_the_image(monkeypatch):
    built, given = model(change="none"), batch()
    assert torch.equal(built._changed(given), given.image)


def test_the_same_coins_change_alike_and_others_do_not():
    built = model()
    assert torch.equal(built._changed(batch()), built._changed(batch()))
    assert not torch.equal(built._changed(batch()), built._changed(batch(coins=0.7)))


def test_a_start_from_the_image_is_its_features_noised():
    built, given = model(), batch()
    context, noise = built.context(given.image), built.noise_on_grid(given.noise)
    wanted = Sampling("ddim", 2, t_max=0.4, start="image")
    t = torch.full((2,), 0.4, dtype=torch.float64)
    state = built.path.start(built.starting_noise(context, noise, wanted), t)
    z = built.autoencoder.encode(given.image).z
    assert torch.allclose(state, built.path.noised(z, noise, t), atol=1e-5)
    assert built.starting_noise(context, noise, Sampling("ddim", 2)) is noise


@pytest.mark.parametrize("condition", ["image", "features"])
def test_a_window_is_encoded_once_for_all_draws(monkeypatch, condition: str):
    built, given = model(condition=condition), batch()
    seen: list[int] = []
    plain = built.autoencoder.encode

    def encode(state: Tensor, noise: Tensor | None = None) -> Any:
        seen.append(len(state))
        return plain(state, noise)

    monkeypatch.setattr(built.autoencoder, "encode", encode)
    context = built.context(given.image).repeat(3)
    noise = given.noise.repeat_interleave(3, 0)
    wanted = Sampling("ddim", 2, t_max=0.4, start="image")
    with torch.no_grad():
        last = list(built.trajectory(context, noise, wanted))[-1]
    assert seen == [2]
    # Draws of a window lie together, and each starts from its own window's features.
    assert torch.allclose(last.clean[0], last.clean[2], atol=1e-5)
    assert not torch.allclose(last.clean[0], last.clean[3], atol=1e-3)


def test_hardly_any_noise_returns_the_networks_own_mask():
    """With next to no noise the scan's own features come back, whatever the denoiser says."""
    built, given = model(), batch()
    with torch.no_grad():
        context = built.context(given.image)
        own = list(built.trajectory(context, given.noise, Sampling("anchor", 1)))[-1]
        wanted = Sampling("ddim", 1, t_max=1e-4, start="image")
        near = list(built.trajectory(context, given.noise, wanted))[-1]
    logits = built.autoencoder.decode(built.autoencoder.encode(given.image).z, SIZE)
    assert torch.allclose(own.probabilities, built.mask_codec.probabilities(logits), atol=1e-6)
    assert torch.allclose(near.probabilities, own.probabilities, atol=0.05)


@pytest.mark.parametrize("condition", ["image", "edges", "features"])
def test_each_condition_reaches_what_is_drawn(condition: str):
    built, given = model(condition=condition), batch()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        answers = [
            list(built.trajectory(built.context(image), given.noise, Sampling("ddim", 2)))[-1].clean
            for image in (given.image, -given.image)
        ]
    same = torch.allclose(*answers, atol=1e-5)
    assert same == (condition == "edges"), "an edge does not know which side is bright"


def test_masks_latents_cannot_start_from_the_image():
    keys = {
        "recipe": "lsegdiff",
        "task": {"channels": ["x"], "labels": {"background": 0, "a": 1}, "input_channels": [1]},
        "plan": {"spatial_dims": 2},
    }
    with pytest.raises(ValueError, match="start"):
        build_model(parse_config(keys)).check(Sampling("ddim", 2, start="image"))
    pixels = build_model(parse_config({**keys, "recipe": "diff_unet"}))
    with pytest.raises(ValueError, match=r"latent\.of: features"):
        pixels.check(Sampling("ddim", 2, start="image"))
