"""Ensemble: the answer does not depend on how the work was cut, nor memory on the draws."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from torch import nn

from medseg_diff.codecs import OneHotCodec
from medseg_diff.inference.draws import Fused
from medseg_diff.inference.ensemble import Request, infer
from medseg_diff.inference.noise import NoiseField
from medseg_diff.inference.windows import importance, windows
from medseg_diff.model import Estimate, Sampling, SegmentationModel, build_model
from medseg_diff.networks.conditioners import Context
from tests.tiny import Threshold, tiny_config

TWO = OneHotCodec(((0,), (1,)))


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def request(**changes) -> Request:
    settings = {"case": "c", "seed": 0, "draws": 3, "sampling": Sampling("ancestral", 2)}
    return Request(**{**settings, **changes})


def image_of(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)


class Constant(SegmentationModel):
    """The same probabilities everywhere, or the image's own values in [0, 1]."""

    def __init__(self, p: float | None = None, stochastic: bool = False) -> None:
        super().__init__()
        self.codec, self.p, self.stochastic = TWO, p, stochastic
        self.weight = nn.Parameter(torch.zeros(1))

    def loss(self, batch):
        raise NotImplementedError

    def context(self, image):
        return Context(image)

    def trajectory(self, context, noise, sampling, fresh_noise=None):
        one = context.image[:, :1] if self.p is None else torch.full_like(noise[:, :1], self.p)
        p = torch.cat([1 - one, one], 1)
        yield Estimate(0, 0.0, 2 * p - 1, 2 * p - 1, 0, self.codec.probabilities_from_state)


def assert_same(a: Fused, b: Fused) -> None:
    np.testing.assert_allclose(a.probability, b.probability, rtol=0, atol=1e-5)
    np.testing.assert_allclose(a.variance, b.variance, rtol=0, atol=1e-5)
    np.testing.assert_allclose(a.pairwise_dice, b.pairwise_dice, rtol=0, atol=1e-2)
    assert a.network_calls == b.network_calls


@pytest.mark.parametrize("dims", [2, 3])
def test_batch_size_does_not_change_the_answer(dims: int):
    """Overlapping windows, ancestral noise, several models; a 2-D network walks the slices."""
    torch.manual_seed(0)
    patch = (8, 8, 8)[:dims]
    config = tiny_config(plan={"spatial_dims": dims, "patch_size": patch})
    models = [build_model(config).eval() for _ in range(2)]
    image = image_of(11, 9, 8) if dims == 3 else image_of(11, 9, 2)
    window = [*patch, 1][:3]
    answers = [infer(models, image, window, request(batch_size=n)) for n in (1, 5, 64)]
    for other in answers[1:]:
        assert_same(other, answers[0])
    assert answers[0].probability.shape == (4, *image.shape[1:])
    assert answers[0].variance.shape == image.shape[1:]
    assert float(answers[0].variance.max()) > 1e-6
    places = len(windows(image.shape[1:], window, 0.5))
    calls = {"context": 2 * places, "denoiser": 2 * places * 3 * 2}
    assert answers[0].network_calls == calls


@pytest.mark.parametrize(
    ("shape", "patch"), [((11, 9, 13), (8, 8, 8)), ((10, 9, 4), (4, 4, 1)), ((3, 2, 20), (8, 8, 8))]
)
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.75])
def test_blending_keeps_a_constant(shape, patch, overlap: float):
    fused = infer([Constant(0.7)], image_of(*shape), patch, request(overlap=overlap))
    assert fused.probability.shape == (2, *shape)
    np.testing.assert_allclose(fused.probability[1], 0.7, atol=1e-6)
    np.testing.assert_allclose(fused.probability[0], 0.3, atol=1e-6)
    assert not fused.variance.any()
    entropy = -(0.3 * np.log(0.3) + 0.7 * np.log(0.7)) / np.log(2)
    np.testing.assert_allclose(fused.entropy, entropy, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "patch"), [((11, 9, 13), (8, 8, 8)), ((10, 9, 4), (4, 4, 1)), ((3, 2, 20), (8, 8, 8))]
)
def test_every_voxel_comes_back_to_its_place(shape, patch):
    values = np.random.default_rng(1).random((1, *shape)).astype(np.float32)
    fused = infer([Constant()], values, patch, request())
    np.testing.assert_allclose(fused.probability[1], values[0], atol=1e-5)


def test_windows_cover_the_grid_and_fit_in_it():
    seen = np.zeros((11, 9, 8), int)
    for place in windows(seen.shape, (8, 8, 8), 0.5):
        assert [s.stop - s.start for s in place] == [8, 8, 8]
        seen[place] += 1
    assert seen.min() >= 1


def test_moments_over_draws_are_those_of_the_draws():
    """Against plain loops: one window, so that fusing is a mean and a variance."""
    model, image = Threshold(TWO, noise=0.5), image_of(8, 8, 8)
    fused = infer([model], image, (8, 8, 8), request(draws=5, batch_size=2))
    alone = []
    for draw in range(5):
        noise = torch.from_numpy(NoiseField(0, "c", draw, 0, 2).window((0, 0, 0), (8, 8, 8)))
        context = model.context(torch.from_numpy(image)[None])
        with torch.no_grad():
            (one,) = model.trajectory(context, noise[None], Sampling())
        alone.append(one.probabilities[0].numpy())
    draws = np.stack(alone)
    np.testing.assert_allclose(fused.probability, draws.mean(0), atol=1e-6)
    np.testing.assert_allclose(fused.variance, draws.var(0).mean(0), atol=1e-6)
    entropy = -(draws * np.log(np.clip(draws, 1e-12, 1))).sum(1) / np.log(2)
    np.testing.assert_allclose(fused.entropy, entropy.mean(0), atol=1e-5)
    assert fused.entropy.max() > 0.01
    masks = draws.argmax(1) == 1
    pairs = [(i, j) for i in range(5) for j in range(i)]
    dice = [2 * (masks[i] & masks[j]).sum() / (masks[i].sum() + masks[j].sum()) for i, j in pairs]
    assert fused.pairwise_dice == pytest.approx([np.mean(dice)], abs=1e-6)
    assert 0.1 < fused.pairwise_dice[0] < 0.99


def test_models_have_draws_of_their_own():
    model, image = Threshold(TWO, noise=0.5), image_of(8, 8, 8)
    twice = infer([model, model], image, (8, 8, 8), request(draws=2))
    four = infer([model], image, (8, 8, 8), request(draws=4))
    np.testing.assert_allclose(twice.probability, four.probability, atol=1e-6)
    assert twice.pairwise_dice == pytest.approx(four.pairwise_dice)


def test_models_with_one_answer_are_averaged():
    fused = infer([Constant(0.2), Constant(0.6)], image_of(4, 4, 4), (4, 4, 4), request(draws=7))
    np.testing.assert_allclose(fused.probability[1], 0.4, atol=1e-6)
    np.testing.assert_allclose(fused.variance, 0.04, atol=1e-6)
    assert fused.pairwise_dice == [0.0]
    assert fused.network_calls == {"context": 2, "denoiser": 0}


def test_a_model_of_one_answer_beside_one_of_many():
    both = [Constant(0.9), Threshold(TWO, noise=0.5)]
    fused = infer(both, image_of(8, 8, 8), (8, 8, 8), request(draws=9, batch_size=4))
    draws = infer(both[1:], image_of(8, 8, 8), (8, 8, 8), request(draws=18)).probability
    # The stub answers in one call a draw, whatever the steps asked for.
    assert fused.network_calls["denoiser"] == 9
    assert fused.probability.shape == draws.shape
    assert 0 < fused.pairwise_dice[0] < 1


def test_equal_draws_have_pairwise_dice_one():
    fused = infer(
        [Constant(stochastic=True)], np.abs(image_of(9, 6, 5)).clip(0, 1), (4, 4, 4), request()
    )
    assert fused.pairwise_dice == [1.0]
    assert float(fused.variance.max()) < 1e-12


def test_each_window_is_encoded_once():
    model = Threshold(TWO, noise=0.5)
    infer([model], image_of(11, 9, 8), (8, 8, 8), request(draws=7, batch_size=2))
    assert model.contexts == len(windows((11, 9, 8), (8, 8, 8), 0.5))


def test_memory_is_flat_in_the_number_of_draws():
    """One bit per voxel, structure and draw; everything else is bounded by window and batch."""
    shape, patch = (256, 24, 24), (16, 24, 24)
    image = image_of(*shape)

    def peak(draws: int) -> int:
        tracemalloc.start()
        infer([Constant(0.7, stochastic=True)], image, patch, request(draws=draws, overlap=0.0))
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(1)
    bits = 8 * (peak(40) - peak(8)) / (32 * image[0].size)
    assert bits < 2, f"{bits:.2f} bits per voxel and draw"


class Echo(Constant):
    """Answers with a noise it was given: the start's, or the fresh one of a step."""

    def __init__(self, step: int | None) -> None:
        super().__init__(stochastic=True)
        self.step = step

    def trajectory(self, context, noise, sampling, fresh_noise=None):
        given = noise if self.step is None else fresh_noise(self.step)
        one = given[:, :1].sigmoid()
        p = torch.cat([1 - one, one], 1)
        yield Estimate(0, 0.0, 2 * p - 1, 2 * p - 1, 1, self.codec.probabilities_from_state)


@pytest.mark.parametrize(("step", "number"), [(None, 0), (0, 1), (1, 2)])
def test_windows_see_the_noise_of_their_place_draw_and_step(step: int | None, number: int):
    """Overlapping windows of one draw agree, so that the blend is the field itself."""
    shape = (11, 9, 8)
    fused = infer([Echo(step)], image_of(*shape), (8, 8, 8), request(draws=2, batch_size=8))
    fields = [NoiseField(0, "c", d, number, 2).window((0, 0, 0), shape)[0] for d in range(2)]
    expected = np.mean([1 / (1 + np.exp(-f)) for f in fields], axis=0)
    np.testing.assert_allclose(fused.probability[1], expected, atol=1e-5)


class Half(Constant):
    """Foreground in the first half of every window."""

    def trajectory(self, context, noise, sampling, fresh_noise=None):
        p = torch.zeros_like(noise[:, :1])
        p[:, :, : noise.shape[2] // 2] = 1
        both = torch.cat([1 - p, p], 1)
        yield Estimate(0, 0.0, 2 * both - 1, 2 * both - 1, 1, self.codec.probabilities_from_state)


def test_a_draws_mask_comes_from_the_window_it_lies_most_central_in():
    shape, patch = (21, 4, 4), (8, 4, 4)
    fused = infer([Half()], image_of(*shape), patch, request(overlap=0.75))
    (mask,) = fused.masks
    weight, best = importance(patch), np.zeros(shape)
    wanted = np.zeros(shape, bool)
    places = windows(shape, patch, 0.75)
    assert len(places) > 5
    for place in places:
        closer = weight > best[place]
        inside = np.zeros(patch, bool)
        inside[:4] = True
        wanted[place] = np.where(closer, inside, wanted[place])
        best[place] = np.maximum(best[place], weight)
    np.testing.assert_array_equal(mask[0], wanted)
