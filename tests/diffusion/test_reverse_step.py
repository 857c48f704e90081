"""The reverse step against Gaussian conditioning.

A step is affine in (clean, own noise, fresh noise, source): probes of zeros and ones read off its
gains exactly, with no random numbers.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from medseg_diff.diffusion.paths import (
    BrownianBridge,
    Path,
    VarianceExploding,
    reverse_step,
    step_gains,
    step_variances,
)
from tests.diffusion.oracle import DDPM_BETAS, LINEAR_VP, PATHS, at, gains

PAIRS = [(1.0, 0.9), (0.9, 0.2), (0.5, 0.499), (0.5, 0.001), (0.03, 0.002), (0.6, 0.0), (1.0, 0.0)]
NOISY = {n: p for n, p in PATHS.items() if not p.source_as_noise}

path_of = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
noisy_path_of = pytest.mark.parametrize("path", NOISY.values(), ids=NOISY.keys())
times = pytest.mark.parametrize(("t", "s"), PAIRS)
etas = pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])


def column(value: float) -> Tensor:
    return torch.full((1, 1, 1), value, dtype=torch.float64)


def probe(path: Path, t: float, s: float, eta: float) -> list[float]:
    """Gains of clean, of the state's own noise, of fresh noise and of source, by four probes."""

    def step(clean: float, own: float, fresh: float, source: float) -> float:
        x_t = path.noised(column(clean), column(own), at(t), column(source))
        return reverse_step(
            path,
            x_t,
            column(clean),
            at(t),
            at(s),
            source=column(source),
            noise=column(fresh),
            eta=eta,
            pinned_noise=column(own),
        ).item()

    return [step(*row) for row in np.eye(4).tolist()]


@path_of
@times
@etas
def test_a_reverse_step_keeps_the_marginal_exact(path: Path, t: float, s: float, eta: float):
    mean, kept, fresh, of_source = probe(path, t, s, eta)
    a_s, b_s, sigma_s = gains(path, s)
    assert mean == pytest.approx(a_s, rel=1e-9)
    assert of_source == pytest.approx(b_s, rel=1e-9)
    assert kept**2 + fresh**2 == pytest.approx(sigma_s**2, rel=1e-9, abs=1e-24)
    assert kept >= 0
    assert (fresh > 0) == (eta > 0 and sigma_s > 0)


def covariance(path: Path, t: float, s: float) -> float:
    """Cov(x_s, x_t | clean, source), each process from its own definition."""
    (a_t, _, sigma_t), (a_s, _, sigma_s) = gains(path, t), gains(path, s)
    if isinstance(path, BrownianBridge):
        # A Brownian bridge's min(s, t) - s t, at the variance scale's diffusion.
        return 2 * path.variance_scale * (s - s * t)
    if isinstance(path, VarianceExploding):
        # Independent increments: the later state holds the earlier one's noise.
        return min(sigma_s, sigma_t) ** 2
    # A Markov chain that fades clean by a_t / a_s fades the noise of x_s by as much.
    return a_t / a_s * sigma_s**2


@noisy_path_of
@times
def test_eta_one_splits_the_noise_as_the_exact_posterior(path: Path, t: float, s: float):
    """q(x_s | x_t, clean, source) by conditioning the joint Gaussian of (x_s, x_t)."""
    sigma_t, sigma_s = gains(path, t)[2], gains(path, s)[2]
    both = covariance(path, t, s)
    slope = both / sigma_t**2 if sigma_t > 0 else 0.0
    _, kept, fresh, _ = probe(path, t, s, 1.0)
    assert fresh**2 == pytest.approx(sigma_s**2 - slope * both, rel=1e-7, abs=1e-24)
    assert kept == pytest.approx(slope * sigma_t, rel=1e-6, abs=1e-12)


@noisy_path_of
@times
def test_lower_and_upper_variance_are_posterior_and_transition(path: Path, t: float, s: float):
    """Upper is Var(x_t | x_s) for the same joint Gaussian."""
    sigma_t, sigma_s = gains(path, t)[2], gains(path, s)[2]
    lower, upper = (float(v) for v in step_variances(path, at(t), at(s)))
    if sigma_s <= sigma_t:  # a bridge's noise shrinks again towards its source
        assert lower <= upper * (1 + 1e-12)
    if sigma_t > 0 and sigma_s > 0:
        expected = sigma_t**2 - covariance(path, t, s) ** 2 / sigma_s**2
        assert upper == pytest.approx(expected, rel=1e-6)
        assert lower == pytest.approx(expected * sigma_s**2 / sigma_t**2, rel=1e-6)


@noisy_path_of
def test_eta_scales_the_standard_deviation_of_fresh_noise(path: Path):
    whole, part = (step_gains(path, at(0.7), at(0.2), eta) for eta in (1.0, 0.3))
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
    t, s = at(knot / 1000), at((knot - 1) / 1000)

    def step(x_t: float, clean: float, fresh: float) -> float:
        moved = reverse_step(
            PATHS["table"], column(x_t), column(clean), t, s, noise=column(fresh), eta=1.0
        )
        return float(moved)

    assert step(1, 0, 0) == pytest.approx(of_state, rel=1e-7)
    assert step(0, 1, 0) == pytest.approx(of_clean, rel=1e-7)
    assert step(0, 0, 1) ** 2 == pytest.approx(variance, rel=1e-7)
    assert float(step_variances(PATHS["table"], t, s)[1]) == pytest.approx(beta, rel=1e-7)


@pytest.mark.parametrize("m", [1, 4, 9])
def test_bridge_step_is_bbdms_posterior(m: int):
    """Li et al. (2023), Eq. 7 and 8: the conditional variances of T = 10 discrete steps."""
    path, t, s = BrownianBridge(), (m + 1) / 10, m / 10
    delta_t, delta_s = 2 * (t - t**2), 2 * (s - s**2)
    transition = delta_t - delta_s * (1 - t) ** 2 / (1 - s) ** 2
    _, kept, fresh, _ = probe(path, t, s, 1.0)
    if m < 9:
        assert fresh**2 == pytest.approx(transition * delta_s / delta_t, rel=1e-9)
    else:
        assert (kept, fresh) == (0.0, pytest.approx(math.sqrt(delta_s), rel=1e-12))


def test_a_pinned_bridge_keeps_the_noise_it_is_given():
    path, source = BrownianBridge(), column(-2.0)
    x, clean, own = path.start(column(9.0), at(1.0), source), column(0.7), column(1.5)
    assert float(x) == -2.0
    for eta in (0.0, 0.3):
        step = step_gains(path, at(1.0), at(0.6), eta)
        moved = reverse_step(
            path,
            x,
            clean,
            at(1.0),
            at(0.6),
            source=source,
            noise=column(0.0),
            eta=eta,
            pinned_noise=own,
        )
        expected = 0.4 * 0.7 + 0.6 * -2 + float(step.kept) * 1.5
        assert float(moved) == pytest.approx(expected, rel=1e-12)
        with pytest.raises(ValueError, match="pinned_noise"):
            reverse_step(
                path, x, clean, at(1.0), at(0.6), source=source, noise=column(0.0), eta=eta
            )
    fresh = reverse_step(
        path, x + 0.1, clean, at(1.0), at(0.6), source=source, noise=column(1.0), eta=1.0
    )
    assert float(fresh) == pytest.approx(0.28 - 1.2 + math.sqrt(2 * 0.24), rel=1e-12)


def test_pinned_noise_is_ignored_where_the_state_holds_its_own():
    x, clean = column(1.0), column(0.2)
    plain = reverse_step(LINEAR_VP, x, clean, at(0.5), at(0.2))
    pinned = reverse_step(LINEAR_VP, x, clean, at(0.5), at(0.2), pinned_noise=column(77.0))
    assert float(plain) == float(pinned)


def test_a_given_gain_replaces_the_fresh_and_not_the_kept():
    """An upper variance may exceed sigma_s^2, so it must never enter the kept gain."""
    x, clean, noise = column(1.0), column(0.2), column(1.0)
    options = {"noise": noise, "eta": 1.0}
    plain = reverse_step(LINEAR_VP, x, clean, at(0.5), at(0.1), **options)
    wide = reverse_step(LINEAR_VP, x, clean, at(0.5), at(0.1), fresh_gain=column(5.0), **options)
    fresh = float(step_gains(LINEAR_VP, at(0.5), at(0.1), 1.0).fresh)
    assert float(wide - plain) == pytest.approx(5 - fresh, rel=1e-12)


def test_each_sample_steps_by_its_own_times():
    t, s = torch.tensor([0.9, 0.4]), torch.tensor([0.5, 0.1])
    x = torch.tensor([1.0, 2.0], dtype=torch.float64).reshape(2, 1)
    clean = torch.tensor([0.3, -0.2], dtype=torch.float64).reshape(2, 1)
    both = reverse_step(LINEAR_VP, x, clean, t, s)
    alone = [
        reverse_step(LINEAR_VP, x[i : i + 1], clean[i : i + 1], t[i : i + 1], s[i : i + 1])
        for i in range(2)
    ]
    torch.testing.assert_close(both, torch.cat(alone), rtol=0, atol=0)


def test_shape_and_dtype_are_the_states():
    x = torch.ones(2, 3, 4, 5)
    moved = reverse_step(LINEAR_VP, x, x, torch.tensor([1.0, 1.0]), torch.tensor([0.5, 0.0]))
    assert moved.shape == x.shape
    assert moved.dtype == torch.float32
    torch.testing.assert_close(moved[1], x[1])


def test_wrong_use_of_a_step_is_refused():
    x = column(1.0)
    with pytest.raises(ValueError, match="noise"):
        reverse_step(LINEAR_VP, x, x, at(0.5), at(0.2), eta=0.5)
    for s in (0.5, 0.6):
        with pytest.raises(ValueError, match="back in time"):
            reverse_step(LINEAR_VP, x, x, at(0.5), at(s))
    for name in ("bridge", "flow_of_source"):
        with pytest.raises(ValueError, match="source"):
            reverse_step(PATHS[name], x, x, at(0.5), at(0.2))
