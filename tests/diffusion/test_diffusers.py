"""A second implementation: diffusers' schedulers, on grids that both have.

With "trailing" spacing their timesteps are T k / n - 1, which are this package's knots T k / n
("timestep i" is knot i + 1); their clean end is "alpha to one" or a final sigma of zero. They keep
their tables in float32, hence the tolerance. Their third-order DPM-Solver++ gives the parabola's
second difference half its weight and so is not compared: see ``test_recursions.py``.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medseg_diff.diffusion.grids import time_grid
from medseg_diff.diffusion.paths import BetaTable
from medseg_diff.diffusion.samplers import Problem, Step, invert, sample
from medseg_diff.diffusion.samplers.posterior import reverse_walk
from medseg_diff.diffusion.samplers.unipc import unipc
from tests.diffusion.oracle import DDPM_BETAS, noise_like, wobbly

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")

TABLE = BetaTable(DDPM_BETAS.tolist())
BASE = {
    "num_train_timesteps": 1000,
    "trained_betas": DDPM_BETAS,
    "timestep_spacing": "trailing",
}
CLEAN = {**BASE, "prediction_type": "sample"}
shape_of = pytest.mark.parametrize("shape", [(1, 2, 8, 8), (1, 2, 4, 4, 4)])
steps_of = pytest.mark.parametrize("steps", [4, 20])


def problem(shape: tuple[int, ...], steps: int) -> Problem:
    start = noise_like(torch.zeros(shape, dtype=torch.float64), 1)
    return Problem(
        TABLE, wobbly, start, time_grid(TABLE, steps), fresh_noise=lambda k: noise_like(start, k)
    )


def estimate(x: Tensor, timestep: Tensor) -> Tensor:
    return wobbly(x, torch.full((len(x),), (int(timestep) + 1) / 1000, dtype=torch.float64)).clean


def compare(ours: list[Step], scheduler, start: Tensor, count: int | None = None, **options):
    """Step both, ``count`` times or to the end; ``options`` holds functions of the step's index."""
    scheduler.set_timesteps(len(ours))
    x = start
    for k, timestep in enumerate(scheduler.timesteps[:count]):
        assert ours[k].t == pytest.approx((int(timestep) + 1) / 1000)
        extra = {name: value(k) for name, value in options.items()}
        x = scheduler.step(estimate(x, timestep), timestep, x, **extra).prev_sample
        torch.testing.assert_close(ours[k].state, x.double(), rtol=3e-4, atol=3e-4)


@shape_of
@steps_of
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim(shape, steps: int, eta: float):
    asked = problem(shape, steps)
    scheduler = diffusers.DDIMScheduler(**CLEAN, clip_sample=False, set_alpha_to_one=True)
    compare(
        list(reverse_walk(asked, eta=eta)),
        scheduler,
        asked.start(),
        eta=lambda k: 0.0 if k == steps - 1 else eta,
        variance_noise=lambda k: noise_like(asked.noise, k),
    )


@shape_of
@steps_of
def test_ddpm(shape, steps: int):
    asked = problem(shape, steps)
    scheduler = diffusers.DDPMScheduler(**CLEAN, clip_sample=False, variance_type="fixed_small")
    compare(
        list(sample("ancestral", asked)),
        scheduler,
        asked.start(),
        generator=lambda k: torch.Generator().manual_seed(k),
    )


@shape_of
@steps_of
@pytest.mark.parametrize("scale", ["bh1", "bh2"])
def test_unipc(shape, steps: int, scale: str):
    asked = problem(shape, steps)
    scheduler = diffusers.UniPCMultistepScheduler(
        **CLEAN, solver_order=2, solver_type=scale, predict_x0=True, final_sigmas_type="zero"
    )
    # Their bh1 multiplies an infinite h by no correction in the last step, and returns nan.
    compare(list(unipc(asked, scale=scale)), scheduler, asked.start(), steps - (scale == "bh1"))


@shape_of
@steps_of
@pytest.mark.parametrize("sampler", ["dpm_solver_2m", "dpm_solver_sde"])
def test_dpm_solver(shape, steps: int, sampler: str):
    asked = problem(shape, steps)
    stochastic = sampler == "dpm_solver_sde"
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **CLEAN,
        solver_order=2,
        algorithm_type="sde-dpmsolver++" if stochastic else "dpmsolver++",
        final_sigmas_type="zero",
    )
    options = {"variance_noise": lambda k: noise_like(asked.noise, k)} if stochastic else {}
    compare(list(sample(sampler, asked)), scheduler, asked.start(), **options)


@shape_of
@steps_of
@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_euler_and_heun(shape, steps: int, sampler: str):
    """They keep the state as x / a, and ask for noise."""
    asked = problem(shape, steps)
    ours = list(sample(sampler, asked))
    name = "EulerDiscreteScheduler" if sampler == "euler" else "HeunDiscreteScheduler"
    scheduler = getattr(diffusers, name)(**BASE, prediction_type="epsilon")
    scheduler.set_timesteps(steps)
    a = TABLE.coefficients(asked.times).a
    y, calls = asked.start() / a[0], 1 if sampler == "euler" else 2
    for k, timestep in enumerate(scheduler.timesteps):
        # Heun's calls alternate between a step's start and its end.
        sigma = ((1 - a**2).sqrt() / a)[(k + 1) // calls if calls == 2 else k]
        scale = (1 + sigma**2).rsqrt()
        clean = estimate(scale * y, timestep)
        y = scheduler.step((y - clean) / sigma, timestep, y).prev_sample
        if k % calls == calls - 1 or k == len(scheduler.timesteps) - 1:
            step = ours[k // calls]
            done = step.state / a[k // calls + 1]
            torch.testing.assert_close(done, y.double(), rtol=3e-4, atol=3e-4)
    assert len(scheduler.timesteps) == calls * steps - (calls - 1)


@shape_of
@steps_of
def test_ddim_inversion(shape, steps: int):
    clean = noise_like(torch.zeros(shape, dtype=torch.float64), 1).tanh()
    ours = list(invert(TABLE, wobbly, clean, time_grid(TABLE, steps)))
    scheduler = diffusers.DDIMInverseScheduler(
        **BASE, prediction_type="epsilon", clip_sample=False, set_alpha_to_one=True
    )
    scheduler.set_timesteps(steps)
    x = clean
    for k, timestep in enumerate(scheduler.timesteps):
        later = torch.full((1,), (int(timestep) + 1) / 1000, dtype=torch.float64)
        assert ours[k].s == pytest.approx(float(later))
        a, _, sigma = (float(c) for c in TABLE.coefficients(later))
        noise = (x - a * wobbly(x, later).clean) / sigma
        x = scheduler.step(noise, timestep, x).prev_sample
        torch.testing.assert_close(ours[k].state, x.double(), rtol=3e-4, atol=3e-4)
