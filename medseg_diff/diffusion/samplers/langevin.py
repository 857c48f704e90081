"""Predictor-corrector sampling: a reverse step, then Langevin steps that repair its marginal."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from torch import Tensor

from medseg_diff.diffusion.parameterisations import noise_from
from medseg_diff.diffusion.samplers.base import Problem, Step
from medseg_diff.diffusion.samplers.posterior import ancestral_step


def predictor_corrector(
    problem: Problem, *, snr: float = 0.16, corrections: int = 1
) -> Iterator[Step]:
    """Ancestral predictor and annealed Langevin corrector (Song et al. 2021, Alg. 4 and 5).

    Fresh noise of step i has index i for the predictor and N + i * corrections + j for its
    correction j, with N the number of steps.

    Args:
        problem: What to walk.
        snr: The corrector's signal-to-noise ratio r, their 0.16.
        corrections: Langevin steps after each predictor step but the last; each is one more call.
    """
    x, steps = problem.start(), len(problem.times) - 1
    for index, (t, s) in enumerate(itertools.pairwise(problem.times)):
        answer = problem.denoise(x, problem.at(t))
        x = ancestral_step(problem, index, x, answer)
        for j in range(corrections if float(s) > 0 else 0):
            fresh = problem.fresh(steps + index * corrections + j)
            x = langevin_step(problem, x, s, fresh, snr)
        yield Step(index, float(t), float(s), answer.clean, x)


def langevin_step(problem: Problem, x: Tensor, s: Tensor, fresh: Tensor, snr: float) -> Tensor:
    """One step x + e score + sqrt(2 e) z with e = 2 (r |z| / |score|)^2, at one time ``s``.

    Norms are per sample, so that an answer does not depend on its batch. Their further factor
    alpha on the variance-preserving process, 1 - beta, tends to 1 with finer grids and is left
    out: it would tie the corrector to the grid.
    """
    then = problem.at(s)
    clean = problem.denoise(x, then).clean
    sigma = float(problem.path.coefficients(s[None]).sigma)
    score = -noise_from(problem.path, clean, x, then, problem.source) / sigma
    axes = tuple(range(1, x.ndim))
    ratio = fresh.square().sum(axes, keepdim=True) / score.square().sum(axes, keepdim=True)
    size = 2 * snr**2 * ratio
    return x + size * score + (2 * size).sqrt() * fresh
