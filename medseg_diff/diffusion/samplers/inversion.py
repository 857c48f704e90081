"""DDIM inversion: a clean image to the noise that a deterministic sampler returns it from."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from torch import Tensor

from medseg_diff.diffusion.paths import Path
from medseg_diff.diffusion.samplers.base import Denoise, Problem, Step
from medseg_diff.diffusion.samplers.ode import frame


def invert(path: Path, denoise: Denoise, clean: Tensor, times: Tensor) -> Iterator[Step]:
    """Euler steps of the probability flow from clean to noise (Song, Meng & Ermon 2021, Sec. 4.3).

    The state of the earlier time is shown to the network at the later one, where it can still tell
    noise from signal: at t = 0 nothing is left to tell. DDIM on the same grid returns to ``clean``
    up to an error that falls with the number of steps.

    Args:
        path: A path without source: the end of one that has a source forgets the clean state.
        denoise: As for a sampler.
        clean: State at t = 0, (B, C, *S).
        times: A sampler's grid, falling to 0; it is walked upwards.

    Yields:
        Steps with ``t`` the earlier and ``s`` the later time.
    """
    if path.uses_source:
        raise ValueError("a path that ends in a source image cannot be inverted to noise")
    problem = Problem(path, denoise, clean, times.flip(0))
    frames = [frame(path, knot) for knot in problem.knots()]
    gain = frames[0].c
    x, y = clean, clean / gain
    for index, (t, s) in enumerate(itertools.pairwise(problem.times)):
        (_, now), (scale, later) = frames[index : index + 2]
        estimate = denoise(x, problem.at(s)).clean
        # The slope (y - D) / u at the later time, of the earlier state.
        y = y + (later - now) * (x / scale - estimate) / later
        x = scale * y
        yield Step(index, float(t), float(s), estimate, x)
