"""Euler and Heun along the probability flow, in one formula for every path.

With c = a + w sigma, y = (x - b source) / c and u = sigma / c, the flow is dy/du = (y - D) / u,
D the clean estimate. At w = 0 these are the variables of Karras et al. 2022 (x / a against
sigma / a); at w = 1 the straight line of a rectified flow (Liu et al. 2023), whose velocity is
noise - clean. The first has no value where a = 0, so paths that end there take the second; on a
bridge it is regular even at t = 1, where y is the pinned noise.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch

from medseg_diff.diffusion.paths import Path
from medseg_diff.diffusion.samplers.base import Knot, Problem, Step


class Frame(NamedTuple):
    """Scale c and clock u of one knot."""

    c: float
    u: float


def frame(path: Path, knot: Knot) -> Frame:
    """Variables that a path's flow is regular in."""
    fades = float(path.coefficients(torch.ones(1, dtype=torch.float64)).a) == 0
    c = knot.a + knot.sigma if fades else knot.a
    # A bridge's end: sigma goes to 0 slower than a, so u tends to 1.
    return Frame(c, knot.sigma / c if c > 0 else 1.0)


def flow(problem: Problem, *, heun: bool = False) -> Iterator[Step]:
    """Euler's or Heun's method (Karras et al. 2022, Alg. 1, no churn) along the grid.

    Euler is DDIM on every path, but where the source stands for the noise: there it follows the
    state's own velocity, and does not return to the line that ends in the source.

    Args:
        problem: What to walk.
        heun: Correct each step with the slope at its end; the last step, to no noise, is Euler's.
    """
    knots = problem.knots()
    frames = [frame(problem.path, knot) for knot in knots]
    x, end = problem.start(), problem.noise
    if problem.path.source_as_noise and problem.source is not None:
        end = problem.source
    y = frames[0].u * end
    for index, (t, s) in enumerate(itertools.pairwise(problem.times)):
        (_, now), (scale, then) = frames[index : index + 2]
        clean = problem.denoise(x, problem.at(t)).clean
        arrived = clean + then / now * (y - clean)
        if heun and then > 0:
            x = problem.with_source(scale * arrived, knots[index + 1])
            slope = (y - clean) / now
            later = (arrived - problem.denoise(x, problem.at(s)).clean) / then
            arrived = y + (then - now) * (slope + later) / 2
        y = arrived
        x = problem.with_source(scale * y, knots[index + 1])
        yield Step(index, float(t), float(s), clean, x)
