"""DPM-Solver++: multistep exponential integrators of the clean estimate in lambda.

With y = (x - b source) / sigma, m = a / sigma = exp(lambda) and D the clean estimate, the
probability flow is dy = D dm on every path; y starts as the noise itself, also where a path begins
without signal or, as a bridge does, without noise. Lu et al. 2022b (arXiv 2211.01095).

A step from or to an infinite lambda takes the first-order limit, which lands on D at the end.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from torch import Tensor

from medseg_diff.diffusion.samplers.base import Problem, Step

# (lambda, clean estimate) of past steps, latest last.
Past = list[tuple[float, Tensor]]


def dpm_solver(problem: Problem, *, order: int = 2, stochastic: bool = False) -> Iterator[Step]:
    """DPM-Solver++ with one call a step: 2M and 3M, or 2M for the reverse SDE.

    Args:
        problem: What to walk.
        order: 2 is Lu et al. 2022b, Alg. 2; 3 is the third-order multistep of their code.
        stochastic: Integrate the reverse SDE (SDE-DPM-Solver++ 2M) with fresh noise a step.
    """
    if stochastic and order != 2:
        raise ValueError("the reverse SDE is integrated by order 2 only")
    knots = problem.knots()
    y, x = problem.noise, problem.start()
    past: Past = []
    for index, (t, s) in enumerate(itertools.pairwise(problem.times)):
        now, then = knots[index], knots[index + 1]
        clean = problem.denoise(x, problem.at(t)).clean
        past = remember(past, now.log_snr, clean, order)
        if then.sigma > 0:
            h = then.log_snr - now.log_snr
            # The SDE's share of clean grows by exp(-2 h): kept noise and fresh noise both fade.
            decay = math.exp(-h) if stochastic else 1.0
            y = decay * y + then.a / then.sigma * integral(past, h, stochastic)
            if stochastic:
                y = y + math.sqrt(-math.expm1(-2 * h)) * problem.fresh(index)
            x = problem.with_source(then.sigma * y, then)
        else:
            x = problem.with_source(then.a * clean, then)
        yield Step(index, float(t), float(s), clean, x)


def remember(past: Past, log_snr: float, clean: Tensor, order: int) -> Past:
    """The last estimates, at most ``order``, that a polynomial in lambda can pass through."""
    usable = [(at, value) for at, value in past if -math.inf < at < log_snr]
    return [*usable, (log_snr, clean)][-order:]


def integral(past: Past, h: float, stochastic: bool = False) -> Tensor:
    """Integral of exp(lambda) D over a step of length ``h``, per exp(lambda) at its end."""
    (at, latest), *older = past[::-1]
    first = -math.expm1(-2 * h if stochastic else -h)
    if not older or not 0 < h < math.inf:
        return first * latest
    r0 = (at - older[0][0]) / h
    slope = (latest - older[0][1]) / r0
    if len(older) == 1:
        return first * (latest + slope / 2)
    r1 = (older[0][0] - older[1][0]) / h
    earlier = (older[0][1] - older[1][1]) / r1
    bend = (slope - earlier) / (r0 + r1)
    slope = slope + r0 * bend
    return first * latest + (1 - first / h) * slope + (1 - 2 / h + 2 * first / h**2) * bend
