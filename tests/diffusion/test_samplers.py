"""Samplers on Gaussian data, where the exact denoiser and the exact flow are known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from medseg_diff.diffusion.paths import BetaTable, Path, VariancePreserving
from medseg_diff.diffusion.samplers import ETA, SAMPLERS, sample, time_grid

DATA_SD = 0.2
LINEAR = VariancePreserving("linear")


def posterior_mean(path: Path, sd: float = DATA_SD):
    """E[x_0 | x_t] for data N(0, sd^2): the denoiser that a perfect network would be."""

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        a, _, sigma = path.coefficients(t)
        gain = a * sd**2 / (a**2 * sd**2 + sigma**2)
        return gain.reshape(-1, *([1] * (x.ndim - 1))).to(x) * x

    return denoise


def last(path: Path, denoise, start: Tensor, times: Tensor, **options) -> Tensor:
    *_, final = sample(path, denoise, start, times, **options)
    return final.state


def sampled_sd(path: Path, steps: int, eta: float) -> float:
    """Exact standard deviation of what the sampler returns, without random numbers.

    The trajectory is linear in its start and in every fresh noise: row 0 probes the start, row
    k + 1 the noise of step k, and the squared responses add up to the variance.
    """
    start = torch.zeros(steps + 1, 1, 1, dtype=torch.float64)
    start[0] = 1

    def fresh(index: int) -> Tensor:
        noise = torch.zeros_like(start)
        noise[index + 1] = 1
        return noise

    grid = time_grid(steps)
    final = last(path, posterior_mean(path), start, grid, eta=eta, fresh_noise=fresh)
    return float(final.square().sum().sqrt())


def closed_form_sd(steps: int, eta: float) -> float:
    """The same by a recursion of its own, in numpy, for the linear variance-preserving path."""
    times = [1 - k / steps for k in range(steps + 1)]
    bar = [math.exp(-(0.1 * t + 19.9 * t * t / 2)) for t in times]
    variance = 1 - bar[0]
    for now, then in itertools.pairwise(bar):
        gain = math.sqrt(now) * DATA_SD**2 / (now * DATA_SD**2 + 1 - now)
        # DDIM's sigma (Song, Meng & Ermon 2021, Eq. 16).
        added = eta**2 * (1 - then) / (1 - now) * (1 - now / then)
        implied = (1 - math.sqrt(now) * gain) / math.sqrt(1 - now)
        slope = math.sqrt(then) * gain + math.sqrt(max(1 - then - added, 0)) * implied
        variance = slope**2 * variance + added
    return math.sqrt(variance)


@pytest.mark.parametrize(
    ("sampler", "steps", "expected"),
    [
        ("ddim", 10, 0.097),
        ("ddim", 200, 0.193),
        ("ancestral", 10, 0.093),
        ("ancestral", 200, 0.185),
    ],
)
def test_gaussian_oracle(sampler, steps: int, expected: float):
    found = sampled_sd(LINEAR, steps, ETA[sampler])
    assert found == pytest.approx(closed_form_sd(steps, ETA[sampler]), abs=1e-6)
    assert found == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_short_grids_follow_the_recursion_too(steps: int, eta: float):
    assert sampled_sd(LINEAR, steps, eta) == pytest.approx(closed_form_sd(steps, eta), abs=1e-9)


@pytest.mark.parametrize(
    "path", [LINEAR, VariancePreserving("cosine"), VariancePreserving("linear", 0.5)]
)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samplers_converge_at_first_order(path: Path, eta: float):
    limit = flow_limit(path, eta)
    coarse, fine = (abs(sampled_sd(path, n, eta) - limit) for n in (300, 600))
    assert math.log2(coarse / fine) == pytest.approx(1, abs=0.15 if eta == 0 else 0.3)
    assert fine < 0.01


def flow_limit(path: Path, eta: float) -> float:
    """Exact end of infinitely many steps from N(0, sigma_1^2) instead of N(0, a^2 sd^2 + sigma^2).

    A state at t = 0 is the clean one times the input scale.

    The probability flow only rescales; the stochastic process forgets its start but for a share
    that is negligible here.
    """
    a, _, sigma = path.coefficients(torch.tensor([1.0, 0.0], dtype=torch.float64))
    full = math.sqrt(float(a[0]) ** 2 * DATA_SD**2 + float(sigma[0]) ** 2)
    end = DATA_SD * float(a[1])
    return end * float(sigma[0]) / full if eta == 0 else end


def test_a_deterministic_trajectory_follows_the_exact_flow():
    """On N(0, sd^2) the flow maps x_t to x_s by the ratio of the marginals' sds, at every step."""
    start = torch.ones(1, 1, dtype=torch.float64)
    steps = list(sample(LINEAR, posterior_mean(LINEAR), start, time_grid(2000)))
    for step in (steps[499], steps[999], steps[1499]):
        a, _, sigma = LINEAR.coefficients(torch.tensor([step.s], dtype=torch.float64))
        sd = math.sqrt(float(a) ** 2 * DATA_SD**2 + float(sigma) ** 2)
        assert float(step.state) == pytest.approx(sd, rel=3e-3)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_last_step_lands_on_the_clean_estimate(eta: float):
    clean = torch.full((2, 3, 4), 0.25, dtype=torch.float64)
    start = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    seen = []

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        seen.append((float(t[0]), len(t)))
        return clean

    asked = []

    def fresh(index: int) -> Tensor:
        asked.append(index)
        return torch.ones_like(start)

    steps = list(sample(LINEAR, denoise, start, time_grid(4), eta=eta, fresh_noise=fresh))
    torch.testing.assert_close(steps[-1].state, clean, rtol=0, atol=1e-15)
    assert [s.index for s in steps] == [0, 1, 2, 3]
    assert [(s.t, s.s) for s in steps] == [(1.0, 0.75), (0.75, 0.5), (0.5, 0.25), (0.25, 0.0)]
    assert seen == [(t, 2) for t in (1.0, 0.75, 0.5, 0.25)]
    assert asked == ([] if eta == 0 else [0, 1, 2])


def test_the_start_is_scaled_to_the_paths_sigma():
    table = BetaTable([0.36])
    first = []

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        first.append(x.clone())
        return torch.zeros_like(x)

    list(sample(table, denoise, torch.ones(1, 1), time_grid(1)))
    assert float(first[0]) == pytest.approx(0.6)


def test_time_grids():
    assert time_grid(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert time_grid(4, "quadratic").tolist() == [1.0, 0.5625, 0.25, 0.0625, 0.0]
    assert time_grid(2, "uniform", 0.5).tolist() == [0.5, 0.25, 0.0]
    assert time_grid(1).dtype == torch.float64
    with pytest.raises(ValueError, match="at least 1 step"):
        time_grid(0)
    for t_max in (0.0, 1.5):
        with pytest.raises(ValueError, match="t_max"):
            time_grid(2, "uniform", t_max)


def test_names_and_etas():
    assert SAMPLERS == ("ddim", "ancestral")
    assert ETA == {"ddim": 0.0, "ancestral": 1.0}


def test_more_steps_than_a_table_has_are_refused():
    table, start = BetaTable([0.1, 0.2, 0.3]), torch.ones(1, 1)
    with pytest.raises(ValueError, match="distinct times"):
        list(sample(table, lambda x, t: x, start, time_grid(4)))
    assert len(list(sample(table, lambda x, t: x, start, time_grid(3)))) == 3


def test_ancestral_without_noise_is_refused():
    with pytest.raises(ValueError, match="noise"):
        list(sample(LINEAR, lambda x, t: x, torch.ones(1, 1), time_grid(2), eta=1.0))


# A second implementation: diffusers. With "trailing" spacing its timesteps are T k / n - 1, which
# are this package's knots T k / n; its clean end is "alpha to one".
BETAS = np.linspace(1e-4, 0.02, 1000)
COMMON = {
    "num_train_timesteps": 1000,
    "trained_betas": BETAS,
    "clip_sample": False,
    "prediction_type": "sample",
    "timestep_spacing": "trailing",
}


def wobbly(x: Tensor, t: Tensor) -> Tensor:
    """A denoiser that depends on state and time and is not linear."""
    return torch.tanh(0.7 * x + t.to(x).reshape(-1, *([1] * (x.ndim - 1))))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("steps", [1, 4, 20])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_agrees_with_diffusers_ddim(steps: int, eta: float):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(**COMMON, set_alpha_to_one=True)
    scheduler.set_timesteps(steps)
    table = BetaTable(BETAS.tolist())
    noises = torch.randn(steps, 2, 1, 3, generator=torch.Generator().manual_seed(0)).double()
    start = torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(1)).double()
    ours = list(
        sample(table, wobbly, start, time_grid(steps), eta=eta, fresh_noise=lambda k: noises[k])
    )
    x = start * table.coefficients(torch.ones(1)).sigma
    for k, timestep in enumerate(scheduler.timesteps):
        assert ours[k].t == pytest.approx((int(timestep) + 1) / 1000)
        estimate = wobbly(x, torch.full((2,), (int(timestep) + 1) / 1000))
        final = k == steps - 1
        x = scheduler.step(
            estimate, timestep, x, eta=0.0 if final else eta, variance_noise=noises[k]
        ).prev_sample
        # diffusers keeps its table in float32.
        torch.testing.assert_close(ours[k].state, x.double(), rtol=2e-4, atol=2e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("steps", [4, 20])
def test_agrees_with_diffusers_ddpm(steps: int):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(**COMMON, variance_type="fixed_small")
    scheduler.set_timesteps(steps)
    table = BetaTable(BETAS.tolist())
    start = torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(1)).double()

    def fresh(k: int) -> Tensor:
        generator = torch.Generator().manual_seed(100 + k)
        return torch.randn(2, 1, 3, generator=generator, dtype=torch.float64)

    ours = list(sample(table, wobbly, start, time_grid(steps), eta=1.0, fresh_noise=fresh))
    x = start * table.coefficients(torch.ones(1)).sigma
    for k, timestep in enumerate(scheduler.timesteps[:-1]):
        estimate = wobbly(x, torch.full((2,), (int(timestep) + 1) / 1000))
        generator = torch.Generator().manual_seed(100 + k)
        x = scheduler.step(estimate, timestep, x, generator=generator).prev_sample
        torch.testing.assert_close(ours[k].state, x.double(), rtol=2e-4, atol=2e-4)
