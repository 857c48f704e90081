"""Paths against mathematics: exact marginals, integration of beta, inverses, slopes, ends.

The reverse step has a file of its own, ``test_reverse_step.py``.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from medseg_diff.diffusion.paths import (
    MIN_ALPHA_BAR,
    BetaTable,
    BrownianBridge,
    Linear,
    Path,
    VarianceExploding,
    VariancePreserving,
    spread,
)
from tests.diffusion.oracle import DDPM_BETAS, PATHS, WITHOUT_SOURCE, at, gains

path_of = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
PRESERVING = {n: p for n, p in PATHS.items() if isinstance(p, VariancePreserving)}
CONTINUOUS = {n: p for n, p in PATHS.items() if p.continuous}


@pytest.mark.parametrize("t", [0.001, 0.1, 0.5, 0.93, 1.0])
def test_linear_alpha_bar_is_the_integral_of_beta(t: float):
    """The continuous limit of betas 1e-4 ... 0.02 in 1000 steps is beta(u) = 0.1 + 19.9 u."""
    integral = quad(lambda u: 0.1 + (20 - 0.1) * u, 0, t)[0]
    assert float(PRESERVING["linear"].alpha_bar(at(t))) == pytest.approx(
        math.exp(-integral), rel=1e-12
    )


@pytest.mark.parametrize("t", [0.01, 0.25, 0.5, 0.9])
def test_cosine_alpha_bar_is_the_integral_of_its_beta(t: float):
    """-d/du log cos^2(angle(u)) = 2 tan(angle) * angle', angle' = (pi / 2) / 1.008."""
    slope = math.pi / 2 / 1.008
    integral = quad(lambda u: 2 * slope * math.tan((u + 0.008) * slope), 0, t)[0]
    assert float(PRESERVING["cosine"].alpha_bar(at(t))) == pytest.approx(
        math.exp(-integral), rel=1e-9
    )


@pytest.mark.parametrize("t", [0.0, 0.2, 0.5, 0.9])
def test_sigmoid_alpha_bar_is_the_integral_of_its_own_slope(t: float):
    """The logistic curve's area between -3 and 3 is even about its middle, where half is left."""
    peak = quad(lambda u: 1 / math.cosh(3 * u - 1.5) ** 2, 0, 1)[0]
    passed = quad(lambda u: 1 / math.cosh(3 * u - 1.5) ** 2, 0, t)[0]
    found = float(PRESERVING["sigmoid"].alpha_bar(at(t)))
    assert found == pytest.approx(1 - passed / peak, rel=1e-9)
    assert float(PRESERVING["sigmoid"].alpha_bar(at(0.5))) == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize("name", ["cosine", "sigmoid"])
def test_these_schedules_keep_a_trace_of_signal_at_one(name: str):
    assert float(PRESERVING[name].alpha_bar(at(1.0))) == pytest.approx(MIN_ALPHA_BAR, rel=1e-9)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid"])
def test_zero_terminal_snr_moves_only_the_end(schedule):
    """Lin et al. (2024), Alg. 1: sqrt(alpha_bar) is an affine image of the old, 1 to 0."""
    path = VariancePreserving(schedule, zero_terminal_snr=True)
    t = torch.tensor([0.0, 0.2, 0.5, 0.8], dtype=torch.float64)
    new = path.alpha_bar(t).sqrt()
    old = VariancePreserving(schedule).alpha_bar(t).sqrt()
    slope = (new[1] - new[2]) / (old[1] - old[2])
    torch.testing.assert_close(new[3], new[2] + slope * (old[3] - old[2]), rtol=1e-9, atol=0)
    assert float(new[0]) == pytest.approx(1, abs=1e-12)
    assert gains(path, 1.0) == (0.0, 0.0, 1.0)
    grid = torch.linspace(0, 1, 5001, dtype=torch.float64)
    assert bool((path.coefficients(grid).a.diff() < 0).all())
    if schedule == "linear":
        end = math.exp(-10.05 / 2)
        assert float(new[2]) == pytest.approx(
            (math.exp(-(0.05 + 19.9 / 8) / 2) - end) / (1 - end), rel=1e-9
        )


@pytest.mark.parametrize("k", [100, 500, 1000])
def test_linear_is_near_the_table_that_it_is_the_limit_of(k: int):
    continuous = float(PRESERVING["linear"].alpha_bar(at(k / 1000)))
    assert float(PRESERVING["table"].alpha_bar(at(k / 1000))) == pytest.approx(continuous, rel=0.1)


@pytest.mark.parametrize("path", PRESERVING.values(), ids=PRESERVING.keys())
def test_ends_and_monotony_of_variance_preserving_paths(path: VariancePreserving):
    scale = path.input_scale
    grid = torch.linspace(0, 1, 1001, dtype=torch.float64)
    a, b, sigma = path.coefficients(grid)
    assert float(a[0]) == pytest.approx(scale, abs=1e-12)
    assert float(sigma[0]) == 0
    assert float(a[-1]) < 0.01 * scale
    assert float(sigma[-1]) > 0.999
    assert bool((a.diff() <= 0).all())
    assert bool((sigma.diff() >= 0).all())
    assert not b.any()
    torch.testing.assert_close((a / scale) ** 2 + sigma**2, torch.ones_like(a))


def test_exploding_noise_grows_geometrically_from_its_smallest():
    """Song et al. (2021), Eq. 30: equal times, equal ratios; a clean knot below the smallest."""
    path = VarianceExploding(0.01, 100.0)
    a, b, sigma = path.coefficients(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
    assert sigma.tolist() == pytest.approx([0, 0.1, 1.0, 10.0, 100.0], rel=1e-6)
    assert a.tolist() == [1.0] * 5
    assert b.tolist() == [0.0] * 5
    assert gains(path, 1e-9)[2] == pytest.approx(0.01, rel=1e-6)
    assert path.input_gain(at(1.0)).item() == pytest.approx(1 / math.sqrt(1 + 1e4), rel=1e-9)
    assert path.input_gain(at(0.5)).item() == pytest.approx(math.sqrt(0.5), rel=1e-9)
    assert PATHS["linear"].input_gain(at(0.9)).tolist() == [1.0]


def test_the_lines_and_bridges_gains_by_hand():
    assert gains(Linear(), 0.25) == (0.75, 0.0, 0.25)
    assert gains(Linear(source_as_noise=True), 0.25) == (0.75, 0.25, 0.0)
    assert gains(BrownianBridge(), 0.25) == pytest.approx((0.75, 0.25, math.sqrt(0.375)))
    assert gains(BrownianBridge(2.0), 0.5) == pytest.approx((0.5, 0.5, 1.0))
    assert gains(BrownianBridge(), 0.0) == (1.0, 0.0, 0.0)
    assert gains(BrownianBridge(), 1.0) == (0.0, 1.0, 0.0)
    uses = {n for n, p in PATHS.items() if p.uses_source}
    assert uses == {"bridge", "bridge_wide", "flow_of_source"}
    assert [n for n, p in PATHS.items() if p.source_as_noise] == ["flow_of_source"]


@path_of
@pytest.mark.parametrize("t", [0.05, 0.4, 1.0])
def test_probes_of_the_marginal_are_the_three_gains(path: Path, t: float):
    zero, one = torch.zeros(1, 1, 1, dtype=torch.float64), torch.ones(1, 1, 1, dtype=torch.float64)
    a, b, sigma = gains(path, t)
    assert path.noised(one, zero, at(t), zero).item() == a
    assert path.noised(zero, one, at(t), zero).item() == sigma
    assert path.noised(zero, zero, at(t), one).item() == b
    assert path.noised(one, one, at(t)).item() == pytest.approx(a + sigma, rel=1e-12)
    assert path.start(one, at(t), zero).item() == sigma
    assert path.start(zero, at(t), one).item() == b
    assert path.start(one, at(t)).item() == sigma


def test_noised_is_the_three_gains_per_sample():
    path = VariancePreserving("linear", 0.5)
    t = torch.tensor([0.2, 0.7], dtype=torch.float64)
    a, _, sigma = path.coefficients(t)
    clean = torch.tensor([1.0, -1.0], dtype=torch.float64).reshape(2, 1, 1)
    noise = torch.tensor([3.0, 5.0], dtype=torch.float64).reshape(2, 1, 1)
    state = path.noised(clean, noise, t).flatten()
    assert float(state[0]) == pytest.approx(float(a[0]) + 3 * float(sigma[0]), rel=1e-12)
    assert float(state[1]) == pytest.approx(-float(a[1]) + 5 * float(sigma[1]), rel=1e-12)


@pytest.mark.parametrize("name", [n for n in PATHS if n != "flow_of_source"])
def test_log_snr_falls_and_has_an_inverse(name: str):
    path = PATHS[name]
    t = torch.tensor([0.003, 0.02, 0.3, 0.75, 0.99], dtype=torch.float64)
    found = path.log_snr(t)
    for value, ratio in zip(t, found, strict=True):
        a, _, sigma = gains(path, float(value))
        assert float(ratio) == pytest.approx(math.log(a / sigma), rel=1e-12)
    assert bool((found.diff() < 0).all())
    torch.testing.assert_close(path.time_of(found), t, rtol=1e-7, atol=1e-9)
    assert float(path.log_snr(at(0.0))) == math.inf


@pytest.mark.parametrize("name", ["linear_zero_snr", "cosine_zero_snr", "flow", "bridge"])
def test_log_snr_ends_in_minus_infinity_where_no_signal_is_left(name: str):
    assert float(PATHS[name].log_snr(at(1.0))) == -math.inf


def test_a_tables_inverse_gives_the_nearest_knot():
    path = BetaTable(DDPM_BETAS.tolist())
    knots = torch.arange(1, 1001, dtype=torch.float64) / 1000
    ratios = path.log_snr(knots)
    torch.testing.assert_close(path.time_of(ratios), knots, rtol=0, atol=0)
    between = ratios[:-1] + 0.4 * ratios.diff()
    torch.testing.assert_close(path.time_of(between), knots[:-1], rtol=0, atol=0)
    between = ratios[:-1] + 0.6 * ratios.diff()
    torch.testing.assert_close(path.time_of(between), knots[1:], rtol=0, atol=0)
    assert path.time_of(torch.tensor([math.inf, -math.inf, 100.0])).tolist() == [0.0, 1.0, 0.001]


@pytest.mark.parametrize("path", CONTINUOUS.values(), ids=CONTINUOUS.keys())
@pytest.mark.parametrize("t", [0.02, 0.3, 0.9])
def test_rates_are_finite_differences(path: Path, t: float):
    h = 1e-5
    slopes = [
        (after - before) / (2 * h)
        for after, before in zip(gains(path, t + h), gains(path, t - h), strict=True)
    ]
    found = [float(rate) for rate in path.rates(at(t))]
    assert found == pytest.approx(slopes, rel=1e-6, abs=1e-8)


def test_rates_need_no_graph_and_leave_none():
    with torch.no_grad():
        rates = PATHS["flow"].rates(torch.tensor([0.2, 1.0]))
    assert rates.a.tolist() == [-1.0, -1.0]
    assert rates.b.tolist() == [0.0, 0.0]
    assert rates.sigma.tolist() == [1.0, 1.0]
    assert not rates.a.requires_grad
    end = PATHS["linear_zero_snr"].rates(at(1.0))
    near = PATHS["linear_zero_snr"].rates(at(1 - 1e-9))
    assert float(end.a) == pytest.approx(float(near.a), rel=1e-6)
    assert float(end.a) < -0.01
    with pytest.raises(ValueError, match="table"):
        PATHS["table"].rates(at(0.5))


def test_a_table_of_three_betas_has_four_knots():
    path = BetaTable([0.1, 0.2, 0.5])
    assert path.steps == 3
    assert len(path.knots) == 4
    assert path.earliest == pytest.approx(1 / 3)
    expected = [1.0, 0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.5]
    found = path.alpha_bar(torch.tensor([0, 1 / 3, 2 / 3, 1], dtype=torch.float64))
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    assert BetaTable([0.36], 0.5).coefficients(at(1.0)).a.item() == pytest.approx(0.4, rel=1e-12)


def test_timestep_i_is_knot_i_plus_one():
    """The published alpha_bar of "timestep i" has passed i + 1 betas."""
    path = BetaTable(DDPM_BETAS.tolist())
    published = np.cumprod(1 - DDPM_BETAS)
    for timestep in (0, 1, 499, 999):
        knot = at((timestep + 1) / 1000)
        assert float(path.alpha_bar(knot)) == pytest.approx(published[timestep], rel=1e-12)


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


def test_other_impossible_paths_are_refused():
    with pytest.raises(ValueError, match="schedule"):
        VariancePreserving("quadratic")  # type: ignore[arg-type]
    for low, high in ((0.0, 1.0), (1.0, 1.0), (2.0, 1.0)):
        with pytest.raises(ValueError, match="sigma_min"):
            VarianceExploding(low, high)
    with pytest.raises(ValueError, match="variance_scale"):
        BrownianBridge(0.0)


def test_gains_are_float64_and_spread_takes_the_states_shape_and_type():
    x = torch.ones(2, 3, 4, 5)
    for path in WITHOUT_SOURCE.values():
        for gain in path.coefficients(torch.tensor([1.0, 0.5])):
            assert gain.dtype == torch.float64
            assert gain.shape == (2,)
    assert spread(torch.ones(2, dtype=torch.float64), x).shape == (2, 1, 1, 1)
    assert spread(torch.ones(2, dtype=torch.float64), x).dtype == torch.float32
