"""UniPC: a predictor and a corrector that share one call a step (Zhao et al. 2023).

The call at a predicted state serves twice: it corrects that state, and it is the estimate that the
next step predicts from. Variables as in :mod:`medseg_diff.diffusion.samplers.multistep`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Literal

from torch import Tensor

from medseg_diff.diffusion.samplers.base import Problem, Step
from medseg_diff.diffusion.samplers.multistep import Past, remember

Scale = Literal["bh1", "bh2"]


def unipc(problem: Problem, *, scale: Scale = "bh2") -> Iterator[Step]:
    """UniPC of order 2 in clean prediction; a step's state is corrected when the next begins.

    Args:
        problem: What to walk.
        scale: B(h) of the paper: h (``"bh1"``) or exp(h) - 1 (``"bh2"``), for h < 0 here.
    """
    knots = problem.knots()
    y, x = problem.noise, problem.start()
    before, past = y, list[tuple[float, Tensor]]()
    for index, (t, s) in enumerate(itertools.pairwise(problem.times)):
        now, then = knots[index], knots[index + 1]
        clean = problem.denoise(x, problem.at(t)).clean
        h = now.log_snr - past[-1][0] if past else math.inf
        if 0 < h < math.inf:
            y = before + now.a / now.sigma * corrected(past, clean, h, scale)
        past = remember(past, now.log_snr, clean, order=2)
        if then.sigma > 0:
            before, h = y, then.log_snr - now.log_snr
            y = before + then.a / then.sigma * predicted(past, h, scale)
            x = problem.with_source(then.sigma * y, then)
        else:
            x = problem.with_source(then.a * clean, then)
        yield Step(index, float(t), float(s), clean, x)


def predicted(past: Past, h: float, scale: Scale) -> Tensor:
    """UniP's integral of exp(lambda) D over a step of length ``h``, per exp(lambda) at its end."""
    at, latest = past[-1]
    first = -math.expm1(-h) * latest
    if len(past) == 1 or not 0 < h < math.inf:
        return first
    older, value = past[0]
    return first + _b(h, scale) / 2 * (value - latest) * h / (older - at)


def corrected(past: Past, arrived: Tensor, h: float, scale: Scale) -> Tensor:
    """UniC's integral, which also knows the estimate ``arrived`` at the step's end."""
    at, latest = past[-1]
    b = _b(h, scale)
    # Moments of the step's exponential weight, phi_2 and phi_3 of the paper at -h, over B(h).
    phi_2 = 1 + math.expm1(-h) / h
    first = -math.expm1(-h) * latest
    if len(past) == 1:
        return first + b / 2 * (arrived - latest)
    older, value = past[0]
    r = (older - at) / h
    phi_3 = 2 * (0.5 - phi_2 / h)
    # Weights w of the differences D(r h) / r and D(h) with sum w = phi_2 and sum w r = phi_3.
    of_older = (phi_2 - phi_3) / (1 - r)
    of_arrived = phi_2 - of_older
    return first + of_older * (value - latest) / r + of_arrived * (arrived - latest)


def _b(h: float, scale: Scale) -> float:
    return h if scale == "bh1" else -math.expm1(-h)
