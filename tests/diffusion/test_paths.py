"""Paths against mathematics: exact marginals, Gaussian conditioning, integration of beta.

A reverse step is affine in (clean, state, noise): probes of zeros and ones read off its gains
exactly, with no random numbers.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from medseg_diff.diffusion.paths import (
    MIN_ALPHA_BAR,
    BetaTable,
    Path,
    VariancePreserving,
    reverse_step,
    spread,
    step_gains,
)

DDPM_BETAS = np.linspace(1e-4, 0.02, 1000)
PATHS: dict[str, Path] = {
    "linear": VariancePreserving("linear"),
    "linear_scaled": VariancePreserving("linear", 0.5),
    "cosine": VariancePreserving("cosine"),
    "cosine_scaled": VariancePreserving("cosine", 0.3),
    "table": BetaTable(DDPM_BETAS.tolist()),
    "table_scaled": BetaTable(DDPM_BETAS.tolist(), 0.5),
}
PAIRS = [(1.0, 0.9), (0.9, 0.2), (0.5, 0.499), (0.5, 0.001), (0.03, 0.002)]

path_of = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
times = pytest.mark.parametrize(("t", "s"), PAIRS)
etas = pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])


def at(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def column(value: float) -> Tensor:
    return torch.full((1, 1, 1), value, dtype=torch.float64)


def gains(path: Path, t: float) -> tuple[float, float]:
    a, _, sigma = path.coefficients(at(t))
    return float(a), float(sigma)


def probe(path: Path, t: float, s: float, eta: float) -> tuple[float, float, float]:
    """Gains of clean, of the state's own noise and of fresh noise, by three probes."""

    def step(clean: float, own: float, fresh: float) -> float:
        x_t = path.noised(column(clean), column(own), at(t))
        moved = reverse_step(path, x_t, column(clean), at(t), at(s), noise=column(fresh), eta=eta)
        return float(moved)

    return step(1, 0, 0), step(0, 1, 0), step(0, 0, 1)


@path_of
@times
@etas
def test_a_reverse_step_keeps_the_marginal_exact(path: Path, t: float, s: float, eta: float):
    mean, kept, fresh = probe(path, t, s, eta)
    a_s, sigma_s = gains(path, s)
    assert mean == pytest.approx(a_s, rel=1e-9)
    assert kept**2 + fresh**2 == pytest.approx(sigma_s**2, rel=1e-9)
    assert kept >= 0
    assert (fresh > 0) == (eta > 0)


@path_of
@times
def test_eta_one_splits_the_noise_as_the_exact_posterior(path: Path, t: float, s: float):
    """q(x_s | x_t, x_0) by conditioning the joint Gaussian of (x_s, x_t) given x_0.

    x_s = a_s x_0 + sigma_s n and x_t = (a_t / a_s) x_s + e, hence the covariance below.
    """
    (a_t, sigma_t), (a_s, sigma_s) = gains(path, t), gains(path, s)
    covariance = np.array([[sigma_s**2, a_t / a_s * sigma_s**2], [0, sigma_t**2]])
    covariance[1, 0] = covariance[0, 1]
    slope = covariance[0, 1] / covariance[1, 1]
    variance = covariance[0, 0] - slope * covariance[0, 1]
    _, kept, fresh = probe(path, t, s, 1.0)
    assert fresh**2 == pytest.approx(variance, rel=1e-7)
    assert kept == pytest.approx(slope * sigma_t, rel=1e-6)


@path_of
@times
def test_eta_scales_the_standard_deviation_of_fresh_noise(path: Path, t: float, s: float):
    whole, part = step_gains(path, at(t), at(s), 1.0), step_gains(path, at(t), at(s), 0.3)
    assert float(part.fresh) == pytest.approx(0.3 * float(whole.fresh), rel=1e-9)


@pytest.mark.parametrize("knot", [2, 3, 500, 1000])
def test_table_step_is_ddpms_posterior(knot: int):
    """Ho et al. (2020), Eq. 6 and 7, one beta at a time."""
    beta = DDPM_BETAS[knot - 1]
    alpha_bar = np.prod(1 - DDPM_BETAS[:knot])
    previous = np.prod(1 - DDPM_BETAS[: knot - 1])
    of_clean = math.sqrt(previous) * beta / (1 - alpha_bar)
    of_state = math.sqrt(1 - beta) * (1 - previous) / (1 - alpha_bar)
    variance = (1 - previous) / (1 - alpha_bar) * beta

    def step(x_t: float, clean: float, fresh: float) -> float:
        return float(
            reverse_step(
                PATHS["table"],
                column(x_t),
                column(clean),
                at(knot / 1000),
                at((knot - 1) / 1000),
                noise=column(fresh),
                eta=1.0,
            )
        )

    assert step(1, 0, 0) == pytest.approx(of_state, rel=1e-7)
    assert step(0, 1, 0) == pytest.approx(of_clean, rel=1e-7)
    assert step(0, 0, 1) ** 2 == pytest.approx(variance, rel=1e-7)


@pytest.mark.parametrize("t", [0.001, 0.1, 0.5, 0.93, 1.0])
def test_linear_alpha_bar_is_the_integral_of_beta(t: float):
    """The continuous limit of betas 1e-4 ... 0.02 in 1000 steps is beta(u) = 0.1 + 19.9 u."""
    integral = quad(lambda u: 0.1 + (20 - 0.1) * u, 0, t)[0]
    assert float(PATHS["linear"].alpha_bar(at(t))) == pytest.approx(math.exp(-integral), rel=1e-12)


@pytest.mark.parametrize("t", [0.01, 0.25, 0.5, 0.9])
def test_cosine_alpha_bar_is_the_integral_of_its_beta(t: float):
    """-d/du log cos^2(angle(u)) = 2 tan(angle) * angle', angle' = (pi / 2) / 1.008."""
    slope = math.pi / 2 / 1.008
    integral = quad(lambda u: 2 * slope * math.tan((u + 0.008) * slope), 0, t)[0]
    assert float(PATHS["cosine"].alpha_bar(at(t))) == pytest.approx(math.exp(-integral), rel=1e-9)


def test_cosine_keeps_a_trace_of_signal_at_one():
    assert float(PATHS["cosine"].alpha_bar(at(1.0))) == MIN_ALPHA_BAR


@pytest.mark.parametrize("k", [100, 500, 1000])
def test_linear_is_near_the_table_that_it_is_the_limit_of(k: int):
    continuous = float(PATHS["linear"].alpha_bar(at(k / 1000)))
    assert float(PATHS["table"].alpha_bar(at(k / 1000))) == pytest.approx(continuous, rel=0.1)


@pytest.mark.parametrize("name", PATHS)
def test_ends_and_monotony(name: str):
    path = PATHS[name]
    scale = path.input_scale
    grid = torch.linspace(0, 1, 1001, dtype=torch.float64)
    a, b, sigma = path.coefficients(grid)
    assert float(a[0]) == scale
    assert float(sigma[0]) == 0
    assert float(a[-1]) < 0.01 * scale
    assert float(sigma[-1]) > 0.999
    assert bool((a.diff() <= 0).all())
    assert bool((sigma.diff() >= 0).all())
    assert not b.any()
    torch.testing.assert_close((a / scale) ** 2 + sigma**2, torch.ones_like(a))


def test_a_table_of_three_betas_has_four_knots():
    path = BetaTable([0.1, 0.2, 0.5])
    assert path.steps == 3
    assert len(path.knots) == 4
    expected = [1.0, 0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.5]
    found = path.alpha_bar(torch.tensor([0, 1 / 3, 2 / 3, 1], dtype=torch.float64))
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_a_table_refuses_times_between_its_knots():
    path = BetaTable([0.1, 0.2, 0.5])
    with pytest.raises(ValueError, match="snap"):
        path.coefficients(at(0.5))
    snapped = path.snap(torch.tensor([0.0, 0.1, 0.3, 0.6, 0.9, 1.0]))
    assert (snapped * 3).tolist() == pytest.approx([0, 0, 1, 2, 3, 3])
    path.coefficients(snapped)
    assert float(PATHS["linear"].snap(at(0.1234567))) == 0.1234567


@pytest.mark.parametrize("betas", [[], [0.0, 0.1], [0.1, 1.0], [-0.1], [[0.1, 0.2]], [math.nan]])
def test_impossible_tables_are_refused(betas: list):
    with pytest.raises(ValueError, match="betas"):
        BetaTable(betas)


@pytest.mark.parametrize("scale", [0.0, -1.0, 1.01])
def test_input_scale_outside_its_range_is_refused(scale: float):
    with pytest.raises(ValueError, match="input_scale"):
        VariancePreserving("linear", scale)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="schedule"):
        VariancePreserving("quadratic")  # type: ignore[arg-type]


def test_noised_is_the_three_gains_per_sample():
    path = VariancePreserving("linear", 0.5)
    t = torch.tensor([0.2, 0.7], dtype=torch.float64)
    a, _, sigma = path.coefficients(t)
    clean = torch.tensor([1.0, -1.0], dtype=torch.float64).reshape(2, 1, 1)
    noise = torch.tensor([3.0, 5.0], dtype=torch.float64).reshape(2, 1, 1)
    state = path.noised(clean, noise, t).flatten()
    assert float(state[0]) == pytest.approx(float(a[0]) + 3 * float(sigma[0]), rel=1e-12)
    assert float(state[1]) == pytest.approx(-float(a[1]) + 5 * float(sigma[1]), rel=1e-12)


def test_each_sample_steps_by_its_own_times():
    path = PATHS["linear"]
    t, s = torch.tensor([0.9, 0.4]), torch.tensor([0.5, 0.1])
    x = torch.tensor([1.0, 2.0], dtype=torch.float64).reshape(2, 1)
    clean = torch.tensor([0.3, -0.2], dtype=torch.float64).reshape(2, 1)
    both = reverse_step(path, x, clean, t, s)
    alone = [
        reverse_step(path, x[i : i + 1], clean[i : i + 1], t[i : i + 1], s[i : i + 1])
        for i in range(2)
    ]
    torch.testing.assert_close(both, torch.cat(alone), rtol=0, atol=0)


def test_shape_and_dtype_are_the_states():
    x = torch.ones(2, 3, 4, 5)
    moved = reverse_step(PATHS["linear"], x, x, torch.tensor([1.0, 1.0]), torch.tensor([0.5, 0.0]))
    assert moved.shape == x.shape
    assert moved.dtype == torch.float32
    assert spread(torch.ones(2, dtype=torch.float64), x).shape == (2, 1, 1, 1)
    torch.testing.assert_close(moved[1], x[1])


def test_wrong_use_of_a_step_is_refused():
    x = column(1.0)
    with pytest.raises(ValueError, match="noise"):
        reverse_step(PATHS["linear"], x, x, at(0.5), at(0.2), eta=0.5)
    for s in (0.5, 0.6):
        with pytest.raises(ValueError, match="back in time"):
            reverse_step(PATHS["linear"], x, x, at(0.5), at(s))


class Bridge(Path):
    """Brownian bridge, to test the source term and the end where sigma is 0."""

    def coefficients(self, t: Tensor):
        from medseg_diff.diffusion.paths import Coefficients

        t = t.double()
        return Coefficients(1 - t, t, (2 * (t - t**2)).clamp_min(0).sqrt())


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_source_enters_by_its_own_gain(eta: float):
    path, t, s = Bridge(), 0.8, 0.3
    clean, source, own = column(0.7), column(-2.0), column(1.5)
    x_t = path.noised(clean, own, at(t), source)
    assert float(x_t) == pytest.approx(0.2 * 0.7 - 0.8 * 2 + math.sqrt(2 * 0.16) * 1.5, rel=1e-12)
    moved = reverse_step(path, x_t, clean, at(t), at(s), source=source, noise=column(0.0), eta=eta)
    kept = float(step_gains(path, at(t), at(s), eta).kept)
    assert float(moved) == pytest.approx(0.7 * 0.7 - 0.3 * 2 + kept * 1.5, rel=1e-9)


def test_a_bridges_first_posterior_step_is_wholly_fresh():
    step = step_gains(Bridge(), at(1.0), at(0.6), 1.0)
    assert float(step.kept) == 0
    assert float(step.fresh) == pytest.approx(math.sqrt(2 * 0.24), rel=1e-12)
