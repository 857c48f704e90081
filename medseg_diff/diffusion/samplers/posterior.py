"""Samplers made of the path's own reverse step: DDIM, ancestral, and their variances.

One loop serves them all: the step knows both of its ends, so a short grid needs no respaced table.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from medseg_diff.diffusion.parameterisations import learned_variance
from medseg_diff.diffusion.paths import reverse_step, spread, step_gains
from medseg_diff.diffusion.samplers.base import Denoised, Problem, Step


def reverse_walk(problem: Problem, *, eta: float = 0.0, analytic: bool = False) -> Iterator[Step]:
    """Reverse steps of one ``eta`` along the grid.

    Args:
        problem: What to walk; a learned variance in its answers replaces that of ``eta`` > 0.
        eta: 0 is DDIM (Song, Meng & Ermon 2021), 1 ancestral sampling (DDPM, Ho et al. 2020; BBDM
            and NCSN on their paths). A rectified flow with the source as noise allows only 0.
        analytic: Take the optimal variance from the clean estimate's own error (Bao et al. 2022,
            Analytic-DPM); needs ``problem.error_variance``.
    """
    x = problem.start()
    for index, (t, s) in enumerate(itertools.pairwise(problem.times)):
        answer = problem.denoise(x, problem.at(t))
        x = ancestral_step(problem, index, x, answer, eta=eta, analytic=analytic)
        yield Step(index, float(t), float(s), answer.clean, x)


def ancestral_step(
    problem: Problem,
    index: int,
    x: Tensor,
    answer: Denoised,
    *,
    eta: float = 1.0,
    analytic: bool = False,
) -> Tensor:
    """State after step ``index``, from the state before it and the network's answer there."""
    t, s = (problem.at(time) for time in problem.times[index : index + 2])
    # The last step lands on the clean estimate: no noise is left to refresh. Analytic variance
    # alone knows by how much that estimate misses the data's own spread.
    moving = eta if float(problem.times[index + 1]) > 0 else 0.0
    gain = None
    if analytic:
        gain = _analytic_gain(problem, t, s, moving, x)
    elif moving > 0:
        gain = _learned_gain(problem, answer, t, s)
    return reverse_step(
        problem.path,
        x,
        answer.clean,
        t,
        s,
        source=problem.source,
        noise=problem.fresh(index) if moving > 0 or analytic else None,
        eta=moving,
        fresh_gain=gain,
        pinned_noise=problem.noise,
    )


def _learned_gain(problem: Problem, answer: Denoised, t: Tensor, s: Tensor) -> Tensor | None:
    if answer.variance is None:
        return None
    return learned_variance(problem.path, answer.variance, t, s).sqrt()


def _analytic_gain(problem: Problem, t: Tensor, s: Tensor, eta: float, like: Tensor) -> Tensor:
    """Standard deviation sqrt(v + k^2 E), with k the step's gain of clean and E its error.

    The reverse step's mean moves by k per unit of clean, so the error of clean given x_t, which
    the mean alone leaves out, adds k^2 times its variance (Bao et al. 2022, Theorem 1, written
    for any path).
    """
    if problem.error_variance is None:
        raise ValueError("analytic variance needs the error of the clean estimate: estimate it")
    a_t, _, sigma_t = problem.path.coefficients(t)
    a_s = problem.path.coefficients(s).a
    kept, fresh = step_gains(problem.path, t, s, eta)
    tiny = torch.finfo(torch.float64).tiny
    k = a_s - torch.where(sigma_t > 0, kept * a_t / sigma_t.clamp_min(tiny), 0.0)
    return spread((fresh**2 + k**2 * problem.error_variance(t).to(k)).sqrt(), like)
