"""Samplers on Gaussian data N(0, 0.2^2): known values, declared orders, and the two-mode mixture.

MONAI's DDPMScheduler returns 0.98 at 10 steps and 0.56 at 200 where 0.2 is true: it steps from t to
t - 1 whatever the grid. Every sampler here knows both ends of its step.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from medseg_diff.diffusion.grids import T_MIN, GridName, time_grid
from medseg_diff.diffusion.paths import (
    BetaTable,
    BrownianBridge,
    Linear,
    Path,
    VarianceExploding,
    VariancePreserving,
    spread,
)
from medseg_diff.diffusion.samplers import SAMPLERS, Denoised, Problem, last, sample
from medseg_diff.diffusion.samplers.langevin import predictor_corrector
from medseg_diff.diffusion.samplers.multistep import dpm_solver
from medseg_diff.diffusion.samplers.posterior import reverse_walk
from tests.diffusion.oracle import (
    DATA_SD,
    DDPM_BETAS,
    LINEAR_VP,
    WITHOUT_SOURCE,
    at,
    flow_limit,
    gains,
    noise_like,
    posterior_mean,
    sampled_sd,
    sampled_sds,
    true_sd,
    two_modes,
)


@pytest.mark.parametrize(
    ("sampler", "grid", "at_10", "at_200"),
    [
        ("ddim", "uniform", 0.097, 0.193),
        ("euler", "uniform", 0.097, 0.193),
        ("ancestral", "uniform", 0.093, 0.185),
        ("analytic", "uniform", 0.200, 0.200),
        ("dpm_solver_2m", "uniform", 0.100, 0.199),
        ("dpm_solver_2m", "log_snr", 0.204, 0.200),
    ],
)
def test_gaussian_oracle(sampler: str, grid: GridName, at_10: float, at_200: float):
    assert sampled_sd(sampler, LINEAR_VP, 10, grid) == pytest.approx(at_10, abs=6e-4)
    assert sampled_sd(sampler, LINEAR_VP, 200, grid) == pytest.approx(at_200, abs=6e-4)


@pytest.mark.parametrize("name", WITHOUT_SOURCE)
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_analytic_variance_is_right_at_every_number_of_steps(name: str, steps: int):
    """All but the share of spread that the start lacks, a_1^2 sd^2, and the process forgets."""
    path = WITHOUT_SOURCE[name]
    found = sampled_sd("analytic", path, steps)
    assert found == pytest.approx(true_sd(path, 0.0), rel=1e-5)


@pytest.mark.parametrize(("steps", "expected"), [(10, 0.98), (200, 0.56)])
def test_stepping_to_the_knot_before_on_a_short_grid_is_wrong(steps: int, expected: float):
    """MONAI 1.6.1's DDPMScheduler in numpy: the exact denoiser, and the fault that it has."""
    bar, variance = np.cumprod(1 - DDPM_BETAS), 1.0
    for t in range((steps - 1) * (1000 // steps), -1, -(1000 // steps)):
        previous = bar[t - 1] if t > 0 else 1.0
        beta = 1 - bar[t] / previous
        gain = math.sqrt(bar[t]) * DATA_SD**2 / (bar[t] * DATA_SD**2 + 1 - bar[t])
        of_state = math.sqrt(1 - beta) * (1 - previous) / (1 - bar[t])
        slope = math.sqrt(previous) * beta / (1 - bar[t]) * gain + of_state
        added = (1 - previous) / (1 - bar[t]) * beta
        variance = slope**2 * variance + added
    assert math.sqrt(variance) == pytest.approx(expected, abs=0.01)


ORDER_PATHS: dict[str, Path] = {
    "preserving": LINEAR_VP,
    "scaled": VariancePreserving("linear", 0.5),
    "exploding": VarianceExploding(0.01, 50.0),
    "flow": Linear(),
    "bridge": BrownianBridge(),
}
CONVERGING = [n for n, e in SAMPLERS.items() if e.order and n != "analytic"]


@pytest.mark.parametrize("name", ORDER_PATHS)
@pytest.mark.parametrize("sampler", [n for n in CONVERGING if n != "predictor_corrector"])
def test_samplers_converge_at_their_declared_order(sampler: str, name: str):
    """On a grid in log-SNR, at its last time above 0, against the exact flow or marginal there.

    A bridge's grid begins at 0.98: its first step from no signal at all is of a fixed length.
    """
    entry, path = SAMPLERS[sampler], ORDER_PATHS[name]
    if not entry.fits(path):
        return
    t_max = 0.98 if path.uses_source else 1.0
    limit = flow_limit(path, T_MIN, not entry.fresh, t_max)
    errors = [
        abs(sampled_sds(sampler, path, n + 1, "log_snr", t_max)[-2] - limit) for n in (100, 200)
    ]
    slope = math.log2(errors[0] / errors[1])
    # A higher order than declared is no fault: the 3M's error on a linear flow falls faster.
    assert slope > entry.order - 0.15
    assert slope < entry.order + (1.3 if sampler == "dpm_solver_3m" else 0.15)
    assert errors[1] < 0.01


def test_a_finer_grid_to_zero_converges_at_first_order_whatever_the_sampler():
    """The last step to infinite log-SNR is of first order, see ``SamplerEntry.order``."""
    for sampler in ("ddim", "dpm_solver_2m", "heun", "unipc"):
        limit = flow_limit(LINEAR_VP, 0.0, deterministic=True)
        errors = [abs(sampled_sd(sampler, LINEAR_VP, n) - limit) for n in (200, 400)]
        assert 0.9 < math.log2(errors[0] / errors[1]) < 1.25


@pytest.mark.parametrize("name", ["preserving", "exploding", "flow"])
def test_langevin_corrections_shrink_the_error_down_to_their_own_bias(name: str):
    """Corrections alone settle at 1 + r^2 of the variance: V = (1 - 2 r^2 / V)^2 V + 4 r^2 / V."""
    path, goal = ORDER_PATHS[name], true_sd(ORDER_PATHS[name], T_MIN)

    def ratio(steps: int, corrections: int, snr: float) -> float:
        options = {"walk": predictor_corrector, "corrections": corrections, "snr": snr}
        return sampled_sds("", path, steps, "log_snr", **options)[-2] / goal

    plain = sampled_sds("ancestral", path, 41, "log_snr")[-2] / goal
    assert abs(ratio(41, 1, 0.16) - 1) < 0.5 * abs(plain - 1)
    for snr in (0.16, 0.3):
        assert ratio(5, 150, snr) == pytest.approx(math.sqrt(1 + snr**2), rel=1e-3)


def test_a_consistency_model_is_exact_at_every_number_of_steps():
    """Its estimate is the end of the flow; a plain clean predictor loses spread at every jump."""

    def jump(x: Tensor, t: Tensor) -> Denoised:
        a, _, sigma = LINEAR_VP.coefficients(t)
        return Denoised(spread(DATA_SD / (a**2 * DATA_SD**2 + sigma**2).sqrt(), x) * x)

    start = noise_like(torch.zeros(1, 20_000, dtype=torch.float64), 0)
    for steps in (1, 2, 5):
        problem = Problem(
            LINEAR_VP,
            jump,
            start,
            time_grid(LINEAR_VP, steps),
            fresh_noise=lambda k: noise_like(start, k + 1),
        )
        final = last(sample("consistency", problem)).state
        assert float(final.std()) == pytest.approx(DATA_SD, rel=0.02)
    assert sampled_sd("consistency", LINEAR_VP, 200) == pytest.approx(0.134, abs=1e-3)


@pytest.mark.parametrize("name", ["preserving", "exploding", "flow"])
@pytest.mark.parametrize("sampler", [n for n, e in SAMPLERS.items() if n != "analytic"])
def test_modes_keep_their_weights(sampler: str, name: str):
    """Quantiles of the starting noise for deterministic samplers, seeded noise for the others."""
    path, entry = ORDER_PATHS[name], SAMPLERS[sampler]
    ranks = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    start = (math.sqrt(2) * torch.erfinv(2 * ranks - 1))[None]
    problem = Problem(
        path,
        two_modes(path),
        start,
        time_grid(path, 40, "log_snr"),
        fresh_noise=lambda k: noise_like(start, k),
    )
    final = last(sample(sampler, problem)).state
    heavy = float((final > 0).double().mean())
    if sampler == "consistency":
        # Each jump of a plain predictor draws its mode anew from blurred means.
        assert 0.5 < heavy < 0.95
        return
    assert heavy == pytest.approx(0.7, abs=0.04 if entry.fresh else 0.02)
    near = ((final.abs() - 1).abs() < 0.5).double().mean()
    assert float(near) > 0.98


def test_a_deterministic_trajectory_follows_the_exact_flow():
    """On N(0, sd^2) the flow maps x_t to x_s by the ratio of the marginals' sds, at every step."""
    sds = sampled_sds("heun", LINEAR_VP, 200)
    for k in (50, 100, 150):
        assert sds[k - 1] == pytest.approx(true_sd(LINEAR_VP, 1 - k / 200), rel=3e-4)


@pytest.mark.parametrize("name", ["preserving", "exploding", "flow", "bridge"])
@pytest.mark.parametrize("grid", ["uniform", "log_snr"])
def test_euler_and_first_order_solvers_are_ddim(name: str, grid: GridName):
    """One exponential step in lambda, one Euler step in any frame, and one DDIM step agree."""
    path = ORDER_PATHS[name]
    ddim, euler = (sampled_sds(n, path, 6, grid) for n in ("ddim", "euler"))
    assert euler == pytest.approx(ddim, rel=1e-9)
    solver = sampled_sds("", path, 6, grid, walk=dpm_solver, order=1)
    assert solver == pytest.approx(ddim, rel=1e-9)


def test_steps_across_a_flat_end_of_the_schedule_change_nothing():
    """The cosine schedule is bounded near t = 1: two knots there share their log-SNR."""
    path = VariancePreserving("cosine")
    times = torch.tensor([1.0, 0.9995, 0.999, 0.6, 0.3, 0.0], dtype=torch.float64)
    short = times[2:]
    x = noise_like(torch.zeros(2, 3, dtype=torch.float64), 0)
    for name, entry in SAMPLERS.items():
        if entry.fresh:
            continue
        ends = [
            last(sample(name, Problem(path, posterior_mean(path), x, grid))).state
            for grid in (times, short)
        ]
        torch.testing.assert_close(ends[0], ends[1], rtol=1e-9, atol=1e-12)


def test_knots_next_to_no_signal_at_all_are_walked():
    path = VariancePreserving("cosine", zero_terminal_snr=True)
    times = torch.tensor([1.0, 0.9995, 0.999, 0.6, 0.3, 0.0], dtype=torch.float64)
    x = noise_like(torch.zeros(2, 3, dtype=torch.float64), 0)
    for name, entry in SAMPLERS.items():
        if not entry.fresh:
            end = last(sample(name, Problem(path, posterior_mean(path), x, times))).state
            assert bool((end / x > 0.05).all())
            assert bool((end / x < 0.3).all())


def test_a_source_that_stands_for_noise_is_followed_and_not_reset():
    """Euler moves by the network's own velocity (x - clean) / t; DDIM returns to the line."""
    path, source = Linear(source_as_noise=True), torch.full((1, 1), 2.0, dtype=torch.float64)

    def denoise(x: Tensor, t: Tensor) -> Denoised:
        return Denoised(0.5 * x)

    times = torch.tensor([1.0, 0.5, 0.25, 0.0], dtype=torch.float64)
    problem = Problem(path, denoise, torch.zeros_like(source), times, source=source)
    euler = [float(step.state) for step in sample("euler", problem)]
    # x = 2, D = 1: 2 - 0.5 * 1; then D = 0.75: 1.5 - 0.25 * 0.75 / 0.5; then D of that.
    assert euler == pytest.approx([1.5, 1.125, 0.5625], rel=1e-12)
    ddim = [float(step.state) for step in sample("ddim", problem)]
    assert ddim == pytest.approx([0.5 + 1.0, 0.75 * 0.75 + 0.25 * 2, 0.53125], rel=1e-12)
    # Heun: slopes 1 and 0.75 / 0.5 = 1.5 from x = 2, and so on.
    heun = [float(step.state) for step in sample("heun", problem)]
    assert heun[0] == pytest.approx(2 - 0.5 * (1 + 1.5) / 2, rel=1e-12)


def test_learned_variance_replaces_the_fresh_gain_and_only_that():
    x = torch.ones(1, 2, dtype=torch.float64)
    times = torch.tensor([0.5, 0.2, 0.0], dtype=torch.float64)

    def run(raw: float | None) -> Tensor:
        def denoise(x: Tensor, t: Tensor) -> Denoised:
            return Denoised(0.1 * x, None if raw is None else torch.full_like(x, raw))

        problem = Problem(LINEAR_VP, denoise, x, times, fresh_noise=lambda k: torch.ones_like(x))
        return next(iter(reverse_walk(problem, eta=1.0))).state

    (a_t, _, sigma_t), (a_s, _, sigma_s) = gains(LINEAR_VP, 0.5), gains(LINEAR_VP, 0.2)
    beta = sigma_t**2 - (a_t / a_s * sigma_s) ** 2
    assert torch.equal(run(-1.0), run(-1.0))
    torch.testing.assert_close(run(-1.0), run(None))
    difference = math.sqrt(beta) - math.sqrt(beta) * sigma_s / sigma_t
    torch.testing.assert_close(run(1.0) - run(None), torch.full_like(x, difference))


def test_the_start_is_scaled_to_the_paths_sigma():
    table, seen, one = BetaTable([0.36]), [], torch.ones(1, 1)

    def denoise(x: Tensor, t: Tensor) -> Denoised:
        seen.append(x.clone())
        return Denoised(torch.zeros_like(x))

    for name, entry in SAMPLERS.items():
        problem = Problem(
            table,
            denoise,
            one,
            time_grid(table, 1),
            fresh_noise=lambda k: one,
            error_variance=torch.zeros_like,
        )
        list(sample(name, problem))
        assert float(seen[-1]) == pytest.approx(0.6), (name, entry)


def test_orders_are_declared_within_reason():
    assert {n: e.order for n, e in SAMPLERS.items()} == {
        "ddim": 1,
        "ancestral": 1,
        "analytic": 1,
        "dpm_solver_2m": 2,
        "dpm_solver_3m": 3,
        "dpm_solver_sde": 2,
        "unipc": 3,
        "euler": 1,
        "heun": 2,
        "predictor_corrector": 1,
        "consistency": 0,
    }


def test_the_reverse_sde_has_no_third_order():
    problem = Problem(LINEAR_VP, posterior_mean(LINEAR_VP), torch.ones(1, 1), at(1.0))
    with pytest.raises(ValueError, match="order 2"):
        list(dpm_solver(problem, order=3, stochastic=True))
