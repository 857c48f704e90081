"""Guidance against Gaussians and against hand-made estimates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from medseg_diff.diffusion.guidance import (
    classifier,
    classifier_free,
    classifier_free_batched,
    clip_dynamic,
    clip_static,
)
from medseg_diff.diffusion.parameterisations import noise_from
from medseg_diff.diffusion.paths import (
    Linear,
    Path,
    VarianceExploding,
    VariancePreserving,
    spread,
)
from medseg_diff.diffusion.samplers.base import Denoise, Denoised

PATHS: dict[str, Path] = {
    "preserving": VariancePreserving("linear"),
    "scaled": VariancePreserving("cosine", 0.5),
    "exploding": VarianceExploding(),
    "linear": Linear(),
}
path_of = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
T = torch.tensor([0.2, 0.8], dtype=torch.float64)


def states(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)


def fixed(clean: Tensor, variance: Tensor | None = None) -> Denoise:
    return lambda x_t, t: Denoised(clean, variance)


@path_of
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_guiding_clean_is_guiding_noise(path: Path, scale: float):
    x_t, with_it, without = states(), states(1), states(2)
    answer = classifier_free(fixed(with_it), fixed(without), scale)(x_t, T)
    found = noise_from(path, answer.clean, x_t, T)
    # Ho & Salimans' form, scale = 1 + w.
    w = scale - 1
    wanted = (1 + w) * noise_from(path, with_it, x_t, T) - w * noise_from(path, without, x_t, T)
    torch.testing.assert_close(found, wanted)


def test_guidance_at_its_ends():
    with_it, without = states(1), states(2)
    calls: list[int] = []

    def counted(x_t: Tensor, t: Tensor) -> Denoised:
        calls.append(1)
        return Denoised(without, states(4))

    variance = states(3)
    conditional = fixed(with_it, variance)
    assert torch.equal(classifier_free(conditional, counted, 1)(states(), T).clean, with_it)
    assert not calls, "scale 1 needs no second call"
    answer = classifier_free(conditional, counted, 0)(states(), T)
    torch.testing.assert_close(answer.clean, without)
    assert len(calls) == 1
    assert answer.variance is not None
    assert torch.equal(answer.variance, variance)
    for wrap in (lambda: classifier_free(counted, counted, -1),
                 lambda: classifier_free_batched(counted, -1),
                 lambda: classifier(counted, lambda x, t: x, Linear(), -1)):  # fmt: skip
        with pytest.raises(ValueError, match="negative"):
            wrap()


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_one_call_of_both_is_two_calls(scale: float):
    def conditional(x_t: Tensor, t: Tensor) -> Denoised:
        return Denoised(x_t * spread(t, x_t) + 1, 3 * x_t)

    def unconditional(x_t: Tensor, t: Tensor) -> Denoised:
        return Denoised(x_t**2 - spread(t, x_t), 5 * x_t)

    def both(x_t: Tensor, t: Tensor) -> Denoised:
        assert len(x_t) == len(t) == 4
        pair = conditional(x_t[:2], t[:2]), unconditional(x_t[2:], t[2:])
        variance = torch.cat([p.variance for p in pair if p.variance is not None])
        return Denoised(torch.cat([p.clean for p in pair]), variance)

    found = classifier_free_batched(both, scale)(states(), T)
    wanted = classifier_free(conditional, unconditional, scale)(states(), T)
    torch.testing.assert_close(found.clean, wanted.clean)
    torch.testing.assert_close(found.variance, wanted.variance)
    plain = classifier_free_batched(lambda x, t: Denoised(x), scale)(states(), T)
    assert plain.variance is None


SD, SEEN, DOUBT = 0.6, 0.9, 0.3


def prior_mean(path: Path) -> Denoise:
    """E[clean | x_t] for clean ~ N(0, SD^2)."""

    def denoise(x_t: Tensor, t: Tensor) -> Denoised:
        a, _, sigma = path.coefficients(t)
        return Denoised(spread(a * SD**2 / (a**2 * SD**2 + sigma**2), x_t) * x_t)

    return denoise


def evidence(path: Path):
    """Log p(y = SEEN | x_t) for y = clean + DOUBT noise at every place: Gaussian again."""

    def log_probability(x_t: Tensor, t: Tensor) -> Tensor:
        a, _, sigma = path.coefficients(t)
        total = a**2 * SD**2 + sigma**2
        gain, left = a * SD**2 / total, SD**2 * sigma**2 / total
        off = SEEN - spread(gain, x_t) * x_t
        return (-(off**2) / (2 * spread(left + DOUBT**2, x_t))).flatten(1).sum(1)

    return log_probability


@path_of
def test_a_classifier_makes_the_conditional_posterior_mean(path: Path):
    x_t = states()
    a, _, sigma = path.coefficients(T)
    # Clean given x_t and y: precisions add.
    precision = 1 / SD**2 + a**2 / sigma**2 + 1 / DOUBT**2
    wanted = (spread(a / sigma**2, x_t) * x_t + SEEN / DOUBT**2) / spread(precision, x_t)
    found = classifier(prior_mean(path), evidence(path), path)(x_t, T).clean
    torch.testing.assert_close(found, wanted)


def test_the_scale_of_a_classifier_is_that_of_its_shift():
    path, x_t = PATHS["preserving"], states()
    plain = prior_mean(path)(x_t, T).clean
    one, three, none = (
        classifier(prior_mean(path), evidence(path), path, scale)(x_t, T).clean - plain
        for scale in (1, 3, 0)
    )
    torch.testing.assert_close(three, 3 * one)
    assert not none.any()
    assert bool((one != 0).all())
    kept = classifier(fixed(plain, x_t), evidence(path), path)(x_t, T)
    assert kept.variance is x_t


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_classifier_guides_where_gradients_are_off(mode):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.SiLU(), nn.Linear(5, 1)).double()

    def log_probability(x_t: Tensor, t: Tensor) -> Tensor:
        return nn.functional.logsigmoid(network(x_t * spread(t, x_t))).squeeze(1)

    path = PATHS["preserving"]
    guided = classifier(prior_mean(path), log_probability, path, 2.0)
    wanted = guided(states(), T).clean
    with mode():
        # Times and states made in inference mode are inference tensors.
        found = guided(states() + 0, T + 0).clean
        assert not found.requires_grad
        torch.testing.assert_close(found, wanted)
    assert all(p.grad is None for p in network.parameters())


def test_a_classifier_asks_for_signal_and_a_gradient():
    path = Linear()
    guided = classifier(prior_mean(path), evidence(path), path)
    with pytest.raises(ValueError, match="signal"):
        guided(states(), torch.ones(2, dtype=torch.float64))
    frozen = classifier(prior_mean(path), lambda x, t: torch.zeros(2), path)
    with pytest.raises(ValueError, match="no_grad"):
        frozen(states(), T)


def test_static_clipping():
    clean = torch.tensor([[[-3.0, -0.5, 0.5, 2.0]]])
    found = clip_static(fixed(clean, clean))(clean, T)
    assert found.clean.flatten().tolist() == [-1, -0.5, 0.5, 1]
    assert found.variance is clean
    assert clip_static(fixed(clean), 0, 0.4)(clean, T).clean.flatten().tolist() == [
        0, 0, pytest.approx(0.4), pytest.approx(0.4),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="below"):
        clip_static(fixed(clean), 1, 1)


def test_dynamic_threshold_by_hand():
    wide = [-4.0, 3.0, 2.0, 1.0, 0.5]
    clean = torch.tensor([[wide], [[0.1, -0.2, 0.3, 0.9, -0.8]]], dtype=torch.float64)
    # Of five absolute values the fourth is the 0.8-percentile: 3 in the first sample, and in the
    # second 0.8, which is below 1.
    found = clip_dynamic(fixed(clean, clean), 0.8)(clean, T)
    assert found.clean[0, 0].tolist() == pytest.approx([-1, 1, 2 / 3, 1 / 3, 1 / 6])
    assert found.clean[1].tolist() == clean[1].tolist()
    assert found.variance is clean
    between = clip_dynamic(fixed(clean), 0.7)(clean, T).clean
    assert torch.equal(between, clip_dynamic(fixed(clean), 0.8)(clean, T).clean)
    whole = clip_dynamic(fixed(clean), 1.0)(clean, T).clean
    assert whole[0, 0].tolist() == pytest.approx([-1, 0.75, 0.5, 0.25, 0.125])
    least = clip_dynamic(fixed(clean), 0.01)(clean, T).clean
    assert least[0, 0].tolist() == [-1, 1, 1, 1, 0.5]


def test_a_percentile_takes_all_channels_of_a_sample_together():
    clean = torch.ones(1, 2, 100, dtype=torch.float64)
    clean[0, 0, 0], clean[0, 1, 0] = 8, -5
    found = clip_dynamic(fixed(clean), 0.995)(clean, T).clean
    # The 199th of 200 values: 5.
    assert found[0, :, 0].tolist() == [1, -1]
    assert float(found[0, 0, 1]) == pytest.approx(1 / 5)
    for wrong in (0.0, 1.5):
        with pytest.raises(ValueError, match="percentile"):
            clip_dynamic(fixed(clean), wrong)
