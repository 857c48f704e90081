"""Few-step sampling of a consistency model: jump to clean, re-noise, jump again."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from medseg_diff.diffusion.samplers.base import Problem, Step


def consistency(problem: Problem) -> Iterator[Step]:
    """Multistep consistency sampling (Song et al. 2023, Alg. 1), on any path.

    It is exact at every number of steps for a consistency model, whose estimate is the end of the
    flow. With a plain clean predictor it does not converge to the data's spread: every jump
    returns the posterior mean and loses some.

    Args:
        problem: What to walk; fresh noise is asked for every step but the last.
    """
    x = problem.start()
    for index, (t, s) in enumerate(itertools.pairwise(problem.times)):
        clean = problem.denoise(x, problem.at(t)).clean
        noise = problem.fresh(index) if float(s) > 0 else clean.new_zeros(clean.shape)
        x = problem.path.noised(clean, noise, problem.at(s), problem.source)
        yield Step(index, float(t), float(s), clean, x)
