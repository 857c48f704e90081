"""Samplers: generators of named steps from noise to a clean state.

``SAMPLERS`` names them for configurations and the command line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from medseg_diff.diffusion.paths import Path
from medseg_diff.diffusion.samplers.analytic import ErrorTable, estimate_error_variance
from medseg_diff.diffusion.samplers.base import (
    Denoise,
    Denoised,
    ErrorVariance,
    FreshNoise,
    Problem,
    Sampler,
    Step,
    last,
)
from medseg_diff.diffusion.samplers.consistency import consistency
from medseg_diff.diffusion.samplers.inversion import invert
from medseg_diff.diffusion.samplers.langevin import predictor_corrector
from medseg_diff.diffusion.samplers.multistep import dpm_solver
from medseg_diff.diffusion.samplers.ode import flow
from medseg_diff.diffusion.samplers.posterior import reverse_walk
from medseg_diff.diffusion.samplers.unipc import unipc

__all__ = [
    "SAMPLERS",
    "Denoise",
    "Denoised",
    "ErrorTable",
    "ErrorVariance",
    "FreshNoise",
    "Problem",
    "Sampler",
    "SamplerEntry",
    "Step",
    "check_fit",
    "estimate_error_variance",
    "invert",
    "last",
    "sample",
]


@dataclass(frozen=True)
class SamplerEntry:
    """A sampler and what it asks for.

    Attributes:
        walk: The generator.
        order: Declared order of convergence in the step size, on smooth problems and a grid in
            log(a / sigma), up to its last time above 0; the step from there to 0 is of first
            order for all. 0 means that more steps do not help a plain clean predictor.
        fresh: True if it adds noise at every step.
        calls: Network calls a step (the last may save some).
        source: True if it can walk a path that ends in a source image.
        in_snr: True if it lives in log(a / sigma), which a path without noise lacks.
    """

    walk: Sampler
    order: int
    fresh: bool = False
    calls: int = 1
    source: bool = False
    in_snr: bool = False

    def fits(self, path: Path) -> bool:
        """Whether it can walk this path."""
        if path.source_as_noise:
            return self.source and not self.fresh and not self.in_snr
        return self.source or not path.uses_source


def _solver(order: int, stochastic: bool = False) -> SamplerEntry:
    walk = partial(dpm_solver, order=order, stochastic=stochastic)
    return SamplerEntry(walk, order=order, fresh=stochastic, source=True, in_snr=True)


SAMPLERS: dict[str, SamplerEntry] = {
    "ddim": SamplerEntry(partial(reverse_walk, eta=0.0), order=1, source=True),
    "ancestral": SamplerEntry(partial(reverse_walk, eta=1.0), order=1, fresh=True, source=True),
    "analytic": SamplerEntry(partial(reverse_walk, eta=1.0, analytic=True), order=1, fresh=True),
    "dpm_solver_2m": _solver(2),
    "dpm_solver_3m": _solver(3),
    "dpm_solver_sde": _solver(2, stochastic=True),
    "unipc": SamplerEntry(unipc, order=3, source=True, in_snr=True),
    "euler": SamplerEntry(flow, order=1, source=True),
    "heun": SamplerEntry(partial(flow, heun=True), order=2, calls=2, source=True),
    "predictor_corrector": SamplerEntry(predictor_corrector, order=1, fresh=True, calls=2),
    "consistency": SamplerEntry(consistency, order=0, fresh=True, source=True),
}


def check_fit(name: str, path: Path) -> None:
    """Refuse a sampler that does not exist or cannot walk a path.

    Raises:
        ValueError: naming those that can.
    """
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}: choose from {', '.join(SAMPLERS)}")
    if not SAMPLERS[name].fits(path):
        able = ", ".join(other for other, entry in SAMPLERS.items() if entry.fits(path))
        raise ValueError(f"{name!r} cannot walk a path that ends in a source image: use {able}")


def sample(name: str, problem: Problem) -> Iterator[Step]:
    """Walk ``problem`` by the sampler of this name, checking that they fit.

    Raises:
        ValueError: on an unknown name, a sampler that the path does not allow, a missing source,
            or times that do not fall to 0.
    """
    path, times = problem.path, problem.times
    check_fit(name, path)
    if path.uses_source and problem.source is None:
        raise ValueError("this path ends in a source image: give source of the state's shape")
    if len(times) < 2 or float(times[-1]) != 0 or not bool((times.diff() < 0).all()):
        raise ValueError("times must fall strictly and end in 0: make them with time_grid")
    return SAMPLERS[name].walk(problem)
