"""What every sampler gets, and what it yields.

A sampler is a generator: it takes one :class:`Problem` and yields one :class:`Step` a move.

Legend: B batch, C channels, *S spatial axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from medseg_diff.diffusion.paths import Path


class Denoised(NamedTuple):
    """A network's answer at one state.

    Attributes:
        clean: Estimate of the clean state, (B, C, *S).
        variance: Raw learned variance in about [-1, 1], same shape, or None: see
            :func:`medseg_diff.diffusion.parameterisations.learned_variance`.
    """

    clean: Tensor
    variance: Tensor | None = None


Denoise = Callable[[Tensor, Tensor], Denoised]
FreshNoise = Callable[[int], Tensor]
ErrorVariance = Callable[[Tensor], Tensor]


class Knot(NamedTuple):
    """Gains of a path at one time of a grid, as numbers: a whole batch shares its times.

    Where the source stands for the noise, sigma is its gain and b is 0.
    """

    a: float
    b: float
    sigma: float

    @property
    def log_snr(self) -> float:
        """The ratio log(a / sigma), +inf where no noise and -inf where no signal is left."""
        if self.a <= 0:
            return -math.inf
        return math.inf if self.sigma <= 0 else math.log(self.a / self.sigma)


@dataclass(frozen=True)
class Problem:
    """A trajectory to walk.

    Attributes:
        path: The noising process.
        denoise: ``(x_t, t) -> Denoised`` with x_t (B, C, *S) and t (B,).
        noise: Starting noise, standard normal, (B, C, *S).
        times: Falling times that end at 0, float64, see :func:`medseg_diff.diffusion.grids`.
        fresh_noise: ``index -> standard normal like noise``, another field for every index.
        source: The path's source image, like noise; only paths that use one.
        error_variance: ``times (B,) -> mean squared error of the clean estimate (B,)``, for
            samplers with analytic variance.
    """

    path: Path
    denoise: Denoise
    noise: Tensor
    times: Tensor
    fresh_noise: FreshNoise | None = None
    source: Tensor | None = None
    error_variance: ErrorVariance | None = None

    def start(self) -> Tensor:
        """State at the first time."""
        return self.path.start(self.noise, self.at(self.times[0]), self.source)

    def knots(self) -> list[Knot]:
        """The path's gains at every time of the grid."""
        a, b, sigma = self.path.coefficients(self.times)
        if self.path.source_as_noise:
            b, sigma = torch.zeros_like(b), b
        return [Knot(*gains) for gains in zip(a.tolist(), b.tolist(), sigma.tolist(), strict=True)]

    def with_source(self, state: Tensor, knot: Knot) -> Tensor:
        """The path's state, from one that the source's share was taken from."""
        return state if self.source is None or knot.b == 0 else state + knot.b * self.source

    def at(self, time: Tensor) -> Tensor:
        """One time for every sample of the batch, (B,), on its device."""
        return time.to(self.noise.device).expand(len(self.noise))

    def fresh(self, index: int) -> Tensor:
        """Fresh noise of a step.

        Raises:
            ValueError: if the sampler adds noise and none was given.
        """
        if self.fresh_noise is None:
            raise ValueError("this sampler adds fresh noise at every step: give fresh_noise")
        return self.fresh_noise(index)


@dataclass(frozen=True)
class Step:
    """One step of a trajectory.

    Attributes:
        index: 0 for the noisiest step.
        t: Time the estimate was made at.
        s: Time of ``state``.
        clean: The network's estimate of the clean state, (B, C, *S).
        state: State at ``s``, same shape.
    """

    index: int
    t: float
    s: float
    clean: Tensor
    state: Tensor


Sampler = Callable[[Problem], Iterator[Step]]


def last(steps: Iterator[Step]) -> Step:
    """The final step of a trajectory."""
    final: Step | None = None
    for step in steps:
        final = step
    if final is None:
        raise ValueError("a trajectory has at least one step")
    return final
