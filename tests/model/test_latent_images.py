"""A bridge in the latent of images: two stages, one autoencoder of both contrasts, fixed units."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medseg_diff.config import merged, parse_config
from medseg_diff.data.records import Batch
from medseg_diff.errors import UsageError
from medseg_diff.model import LatentModel, Sampling, build_model
from medseg_diff.model.latent_image import LatentImageModel
from medseg_diff.networks.autoencoder import ImageAutoencoder
from medseg_diff.training.fit import fit
from medseg_diff.translation.translator import load_translator
from tests.translation_fixtures import tiny_translator, write_pairs

KEYS: dict[str, Any] = {
    "recipe": "bbdm_latent",
    "task": {"channels": ["T1", "T2"], "target": "FLAIR", "input_channels": [1, 1]},
    "plan": {"spatial_dims": 2},
    "model": {
        "features": [8, 16],
        "time_channels": 8,
        "latent": {"features": [4, 8], "channels": 2, "steps": 3},
    },
}


def built(**changes: Any) -> LatentImageModel:
    torch.manual_seed(0)
    model = build_model(parse_config(merged(KEYS, changes)))
    assert isinstance(model, LatentImageModel)
    return model


def batch(size: tuple[int, ...] = (16, 12)) -> Batch:
    generator = torch.Generator().manual_seed(1)

    def normal(channels: int) -> torch.Tensor:
        return torch.randn((2, channels, *size), generator=generator)

    times = torch.tensor([0.6, 0.25], dtype=torch.float64)
    return Batch(normal(2).tanh(), normal(1).tanh(), times, normal(1), torch.rand(2, 2))


def test_each_stage_trains_its_own_part():
    model = built().train()
    for step, silent in ((0, "denoiser"), (3, "autoencoder")):
        model.begin(step)
        model.zero_grad()
        loss = model(batch())
        loss.total.backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is None) == name.startswith(silent), (step, name)
        assert ("reconstruction" in loss.parts) == (step == 0)


def test_the_first_stage_gives_target_and_channels_back():
    """The mean absolute error of all three images, by hand."""
    model = built(model={"latent": {"regulariser": "vq"}}).eval()
    model.begin(0)
    model.autoencoder.eval()
    given = batch()
    with torch.no_grad():
        loss = model(given)
        errors = []
        for image in (given.labels, given.image[:, :1], given.image[:, 1:]):
            z = model.autoencoder.encode(image).z
            errors.append(float((model.autoencoder.decode(z, (16, 12)) - image).abs().mean()))
    assert loss.parts["reconstruction"] == pytest.approx(np.mean(errors), rel=1e-4)


@pytest.mark.parametrize(("source", "place"), [(None, 0), ("T2", 1)])
def test_the_bridge_runs_between_the_latents_of_target_and_source(source: Any, place: int):
    model = built(model={"source": source}).eval()
    model.begin(3)
    given = batch()
    with torch.no_grad():
        context = model.context(given.image)
        z = model.autoencoder.encode(given.labels).z
        ends = model.autoencoder.encode(given.image[:, place : place + 1]).z
        torch.testing.assert_close(model.source(context), ends)
        noise = model.noise_on_grid(given.noise)
        t = given.t.reshape(2, 1, 1, 1).float()
        x_t = (1 - t) * z + t * ends + (2 * (t - t * t)).sqrt() * noise
        output, _ = model.raw(x_t, given.t, context)
        assert output.shape == (2, 2, 8, 6)
        loss = float(model(given).total)
    assert loss == pytest.approx(float((output - (x_t - z)).abs().mean()), rel=1e-5)


def test_an_oracle_of_the_latent_gives_what_the_decoder_makes_of_it():
    model = built().eval()
    given = batch((13, 9))
    with torch.no_grad():
        z = model.autoencoder.encode(given.labels).z
        model.raw = lambda x_t, t, context, previous=None: (x_t - z, None)  # type: ignore[method-assign]
        context = model.context(given.image)
        steps = model.trajectory(context, given.noise, Sampling("ddim", 3))
        last = list(steps)[-1]
        expected = (model.autoencoder.decode(z, (13, 9)).clamp(-1, 1) + 1) / 2
        torch.testing.assert_close(last.probabilities, expected, atol=1e-4, rtol=0)


def test_a_latents_units_are_those_of_the_training_not_of_the_window():
    """In training unit variance over the batch; later one map for all, which keeps brightness."""
    torch.manual_seed(0)
    coder = ImageAutoencoder(2, 1, 3, (4, 8))
    images = torch.randn(6, 1, 16, 16).tanh()
    for _ in range(60):
        z = coder.encode(images).z
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.var((0, 2, 3)), torch.ones(3), atol=0.02, rtol=0)
    coder.eval()
    with torch.no_grad():
        torch.testing.assert_close(coder.encode(images).z, z, atol=0.05, rtol=0.05)
        alone = coder.encode(images[:1]).z
        torch.testing.assert_close(alone, coder.encode(images).z[:1])
        assert float(alone.mean((0, 2, 3)).abs().max()) > 1e-4


def test_it_learns_to_give_images_back(tmp_path: Path):
    """A few steps of the first stage make the reconstruction better."""
    model = built().train()
    model.begin(0)
    optimiser = torch.optim.Adam(model.autoencoder.parameters(), lr=1e-2)
    given, losses = batch(), []
    for _ in range(40):
        optimiser.zero_grad()
        loss = model(given)
        loss.total.backward()
        optimiser.step()
        losses.append(loss.parts["reconstruction"])
    assert losses[-1] < 0.7 * losses[0]


def test_a_trained_run_translates_on_the_scans_grid(tmp_path: Path):
    cases = write_pairs(tmp_path / "data")
    run = fit(tiny_translator("bbdm_latent", cases), tmp_path / "run")
    translator = load_translator(run, "cpu")
    assert isinstance(translator.runs[0].model, LatentModel)
    scan = tmp_path / "data" / "T1" / "head_4.nii.gz"
    first, again = (translator.translate(scan, seed=1) for _ in range(2))
    assert first.image.shape == (1, 15, 18, 13)
    np.testing.assert_array_equal(first.image.numpy(), again.image.numpy())
    assert float(first.spread.max()) > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"conditioner": "pyramid"}}, "nothing else"),
        ({"model": {"latent": {"end_to_end": True}}}, "two stages"),
        ({"plan": {"coordinates": True}}, "nothing else"),
        ({"task": {"input_channels": [1, 3]}}, "not like a target"),
        ({"model": {"concat_image": True}}, "coarser grid"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], words: str):
    with pytest.raises(UsageError, match=words):
        parse_config(merged(KEYS, change))
