"""Baselines that draw: Probabilistic U-Net, MC dropout, an ensemble of U-Nets."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

import medseg_diff as md
from medseg_diff.checkpoint import load_tensors
from medseg_diff.codecs import OneHotCodec
from medseg_diff.config import parse_config
from medseg_diff.data.records import Batch
from medseg_diff.errors import UsageError
from medseg_diff.inference.ensemble import infer
from medseg_diff.inference.noise import NoiseField, draw_normals
from medseg_diff.inference.windows import windows
from medseg_diff.model import (
    DropoutUNetModel,
    Estimate,
    Sampling,
    SegmentationModel,
    UNetModel,
    build_model,
    with_flips,
)
from medseg_diff.model.base import first_normals
from medseg_diff.networks.conditioners import Context
from medseg_diff.training.fit import Options, fit
from tests.baseline_fixtures import batch_of, config_of, image_of, model_of, request, unpacked
from tests.phantoms import grid_affine, make_phantom
from tests.tiny import KEYS, save_untrained
from tests.training_fixtures import tiny, write_dataset

TWO = OneHotCodec(((0,), (1,)))
kind_of = pytest.mark.parametrize("recipe", ["probabilistic_unet", "mc_dropout"])
# Widths of the trained models besides the U-Net's.
NARROW: dict[str, dict[str, Any]] = {
    "mc_dropout": {},
    "probabilistic_unet": {"conditioner_features": [4, 8]},
}
dims_of = pytest.mark.parametrize("dims", [2, 3])


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


# What a draw is made of


def test_the_normals_of_a_draw_are_its_own():
    given = draw_normals(0, "c", 1, 0, 200)
    assert given.dtype == np.float32
    assert np.array_equal(draw_normals(0, "c", 1, 0, 6), given[:6])
    for other in (
        draw_normals(1, "c", 1, 0, 200),
        draw_normals(0, "d", 1, 0, 200),
        draw_normals(0, "c", 2, 0, 200),
        draw_normals(0, "c", 1, 1, 200),
        NoiseField(0, "c", 1, 0, 1).window((0, 0, 0), (32, 32, 1)).ravel()[:200],
    ):
        assert abs(np.corrcoef(given, other)[0, 1]) < 0.3
        assert len(np.intersect1d(given, other)) < 3


def test_the_normals_of_a_draw_are_standard_normal():
    values = np.concatenate([draw_normals(0, "c", n, 0, 50) for n in range(400)]).astype(float)
    assert abs(values.mean()) < 4 / np.sqrt(values.size)
    assert abs(values.var() - 1) < 4 * np.sqrt(2 / values.size)


def test_the_normals_of_a_draw_are_pinned():
    """A change here changes every answer of every released model: bump the version and say so."""
    golden = [-0.09412, -0.174087, -0.883769, -1.868401]
    assert draw_normals(7, "pinned", 2, 1, 4).tolist() == pytest.approx(golden, abs=1e-6)


def test_first_normals_of_a_field_and_of_a_vector():
    field = torch.arange(12.0).reshape(1, 2, 3, 2)
    assert first_normals(field, 7)[0].tolist() == [0, 1, 2, 3, 4, 5, 6]
    vector = torch.arange(4.0)[None]
    assert torch.equal(first_normals(vector, 4), vector)
    with pytest.raises(ValueError, match="takes 5 random numbers and its noise has 4"):
        first_normals(vector, 5)


class Echo(SegmentationModel):
    """Answers with the first of its draw's normals, everywhere."""

    stochastic, draw_normals = True, 3

    def __init__(self) -> None:
        super().__init__()
        self.codec, self.weight = TWO, nn.Parameter(torch.zeros(1))
        self.seen: list[torch.Tensor] = []

    def loss(self, batch):
        raise NotImplementedError

    def context(self, image):
        return Context(image)

    def trajectory(self, context, noise, sampling, fresh_noise=None):
        self.seen.append(noise)
        level = noise[:, :1].sigmoid().reshape(-1, *[1] * (context.image.ndim - 1))
        one = level.expand(-1, 1, *context.image.shape[2:])
        p = torch.cat([1 - one, one], 1)
        yield Estimate(0, 0.0, 2 * p - 1, 2 * p - 1, 1, self.codec.probabilities_from_state)


@pytest.mark.parametrize("patch", [(8, 8, 8), (6, 6, 1)])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_windows_of_a_draw_share_one_latent(patch: tuple[int, ...], batch_size: int):
    """The blend of overlapping windows is then flat, and its level the mean over the draws."""
    model = Echo()
    fused = infer([model], image_of(11, 9, 8), patch, request(draws=4, batch_size=batch_size))
    numbers = np.stack([draw_normals(0, "c", n, 0, 3) for n in range(4)])
    levels = 1 / (1 + np.exp(-numbers[:, 0]))
    np.testing.assert_allclose(fused.probability[1], levels.mean(), atol=1e-6)
    np.testing.assert_allclose(fused.variance, levels.var(), atol=1e-6)
    seen = torch.cat(model.seen).numpy()
    places = len(windows((11, 9, 8), patch, 0.5))
    assert places > 1
    assert seen.shape == (4 * places, 3)
    assert {row.tobytes() for row in seen} == {row.tobytes() for row in numbers}


def test_members_of_an_ensemble_have_latents_of_their_own():
    model = Echo()
    infer([model, model], image_of(4, 4, 4), (4, 4, 4), request(draws=2))
    wanted = np.stack([draw_normals(0, "c", n, 0, 3) for n in range(4)])
    assert np.array_equal(torch.cat(model.seen).numpy(), wanted)


# Both models


@kind_of
@dims_of
def test_batch_size_does_not_change_the_answer(recipe: str, dims: int):
    """Overlapping windows; a 2-D network walks the slices of a volume. Calls are counted."""
    model = model_of(recipe, dims)
    image = image_of(11, 9, 8) if dims == 3 else image_of(11, 9, 2)
    patch = [8, 8, 8 if dims == 3 else 1]
    answers = [infer([model], image, patch, request(batch_size=n)) for n in (1, 5, 64)]
    for other in answers[1:]:
        np.testing.assert_allclose(other.probability, answers[0].probability, atol=1e-5)
        assert other.network_calls == answers[0].network_calls
    places = len(windows(image.shape[1:], patch, 0.5))
    assert answers[0].network_calls == {"context": places, "denoiser": 3 * places}
    assert float(answers[0].variance.max()) > 1e-6


@kind_of
def test_draws_depend_on_seed_case_and_number_alone(recipe: str):
    """Not on the global generator, on train() and eval(), or on how many draws are made."""
    model = model_of(recipe)
    image, patch = image_of(12, 9, 1), (8, 8, 1)
    first = infer([model], image, patch, request())
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = infer([model.train()], image, patch, request())
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(first.probability, again.probability)
    assert np.array_equal(first.variance, again.variance)
    model.eval()
    more = infer([model], image, patch, request(draws=8))
    assert np.array_equal(unpacked(more)[:3], unpacked(first))
    # Two draws may drop the same of six channels.
    assert len({mask.tobytes() for mask in unpacked(more)}) >= 6
    for changed in (request(seed=1), request(case="d")):
        other = infer([model], image, patch, changed)
        assert float(np.abs(other.probability - first.probability).max()) > 1e-3


@kind_of
def test_a_mirrored_member_draws_too(recipe: str):
    members = with_flips(model_of(recipe), [0])
    fused = infer(members, image_of(8, 9, 1), (8, 8, 1), request(draws=2))
    assert len(fused.masks) == 4
    assert [m.draw_normals for m in members] == [members[0].draw_normals] * 2


@kind_of
@dims_of
def test_a_few_steps_lower_the_loss(recipe: str, dims: int):
    torch.manual_seed(0)
    model = build_model(config_of(recipe, dims)).train()
    given = batch_of(*(9, 10, 8)[:dims])
    # A mask that the image shows.
    labels = (given.image > 0).to(torch.int16) + (given.image > 1).to(torch.int16)
    given = Batch(given.image, labels, given.t, given.noise, given.coins)
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(40):
        loss = model(given).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


@kind_of
def test_ten_steps_equal_five_a_stop_and_five_more(recipe: str, tmp_path: Path):
    """Masks and latents of a training step come with its batch: a resume point needs no more."""
    cases = write_dataset(tmp_path / "balls", size=12)
    base = tiny(cases).model_dump(exclude={"model", "objective", "recipe", "prediction"})
    config = parse_config(
        {**base, "recipe": recipe, "model": {"features": [4, 8]} | NARROW[recipe]}
    )

    class Stop(Exception):
        pass

    def report(progress, values):
        if progress.step == 7:
            raise Stop

    fit(config, tmp_path / "whole")
    with pytest.raises(Stop):
        fit(config, tmp_path / "parts", Options(report=report))
    fit(config, tmp_path / "parts", Options(resume=True))
    step = Path("checkpoints") / "step_00000010" / "tensors.safetensors"
    whole, parts = (load_tensors(tmp_path / name / step) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"recipe": "unet", "objective": {"kl": 1.0}}, "set both or none"),
        ({"recipe": "probabilistic_unet", "objective": {"kl": 0.0}}, "set both or none"),
        ({"recipe": "anchored", "model": {"dropout": 0.5}}, "set kind: unet"),
        ({"recipe": "probabilistic_unet", "model": {"dropout": 0.5}}, "set kind: unet"),
        ({"recipe": "unet", "model": {"latent": {}}}, "diffuses nothing"),
        ({"recipe": "mc_dropout", "model": {"dropout": 1.0}}, "less than 1"),
        ({"recipe": "probabilistic_unet", "model": {"latent_size": 0}}, "greater than or equal"),
    ],
)
def test_what_cannot_stand_together_is_refused(changes: dict[str, Any], sentence: str):
    with pytest.raises(UsageError, match=sentence):
        parse_config(changes)


# MC dropout


def test_a_dropout_model_is_a_unet_under_a_mask():
    model = model_of("mc_dropout")
    assert isinstance(model, DropoutUNetModel)
    plain = model_of("unet")
    assert isinstance(plain, UNetModel)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in plain.parameters())
    image = torch.randn(2, 1, 9, 10)
    # The deeper of two levels alone loses channels: features[1] = 6 of them, at every draw.
    assert model.draw_normals == 6
    normals = torch.tensor([[1.0, -1, 1, 1, -1, -1], [1.0, 1, 1, -1, -1, 1]])
    with torch.no_grad():
        (step,) = model.trajectory(model.context(image), normals, Sampling())
        maps = plain.network.maps(image)
        for n in range(2):
            deep = 2 * maps.encoder[1][n : n + 1] * (normals[n] > 0).reshape(1, 6, 1, 1)
            up = plain.network.up[0](deep)
            merged = plain.network.merge[0](torch.cat([maps.encoder[0][n : n + 1], up], 1), None)
            wanted = plain.network.head(merged)[..., :9, :10].softmax(1)
            torch.testing.assert_close(step.probabilities[n : n + 1], wanted)


def test_training_masks_come_from_the_batch():
    model, given = model_of("mc_dropout").train(), batch_of(9, 10)
    torch.manual_seed(1)
    first = float(model(given).total.detach())
    torch.manual_seed(2)
    assert float(model(given).total.detach()) == first
    other = Batch(given.image, given.labels, given.t, given.noise.flip(2), given.coins)
    assert float(model(other).total.detach()) != first


# An ensemble of U-Nets


def test_unets_count_as_draws():
    """Three networks, three draws: mean, variance and pairwise Dice against plain loops."""
    models = []
    for seed in range(3):
        torch.manual_seed(seed)
        models.append(build_model(config_of("unet")).eval())
    image = image_of(8, 8, 1)
    fused = infer(models, image, (8, 8, 1), request(draws=7, overlap=0.0))
    with torch.no_grad():
        given = torch.from_numpy(image[None, ..., 0])
        alone = np.stack([m.network(given).softmax(1)[0].numpy() for m in models])
    np.testing.assert_allclose(fused.probability[..., 0], alone.mean(0), atol=1e-6)
    np.testing.assert_allclose(fused.variance[..., 0], alone.var(0).mean(0), atol=1e-6)
    assert fused.network_calls == {"context": 3, "denoiser": 0}
    winners = alone.argmax(1)
    for k, spread in enumerate(fused.pairwise_dice, start=1):
        dice = []
        for a, b in itertools.combinations(winners, 2):
            dice.append(2 * ((a == k) & (b == k)).sum() / ((a == k).sum() + (b == k).sum()))
        assert spread == pytest.approx(np.mean(dice), abs=1e-6)
        assert 0 < spread < 1


@pytest.mark.parametrize(
    ("model", "objective", "runs", "made", "denoiser"),
    [
        ({"kind": "unet"}, {}, 3, 3, 0),
        ({"kind": "unet", "dropout": 0.5}, {}, 2, 8, 8),
        ({"kind": "probabilistic_unet"}, {"kl": 1.0}, 1, 4, 4),
    ],
    ids=["unet", "mc_dropout", "probabilistic_unet"],
)
def test_run_folders_make_an_ensemble(tmp_path: Path, model, objective, runs, made, denoiser):
    """Several folders given to --model: each stochastic one draws, each U-Net has one answer."""
    affine = grid_affine(shape=(16, 14, 12), spacing=(2.5, 2.5, 2.5))
    phantom = make_phantom(affine, (16, 14, 12))
    nib.save(nib.Nifti1Image(phantom.image, affine), tmp_path / "scan.nii.gz")
    keys = {**KEYS, "model": {"features": [4, 6], **model}}
    keys["objective"] = {**KEYS["objective"], **objective}
    config = parse_config(keys)
    folders = [save_untrained(tmp_path / str(n), config, seed=n) for n in range(runs)]
    answer = md.load(folders, device="cpu").predict(tmp_path / "scan.nii.gz", draws=4)
    assert answer.record["draws_made"] == made
    assert answer.record["models"] == runs
    assert answer.record["network_calls"]["denoiser"] == denoiser
    assert any(v is not None and v < 1 for v in answer.record["pairwise_dice"].values())
