"""Grids: the falling times that a sampler visits.

uniform and quadratic lie in t; log_snr and karras lie in lambda = log(a / sigma) and in sigma / a,
and come back through the path's inverse.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from medseg_diff.diffusion.paths import Path

GridName = Literal["uniform", "quadratic", "karras", "log_snr"]
GRIDS: tuple[GridName, ...] = get_args(GridName)

# Last time above 0 of the grids that live in lambda, which is infinite at t = 0.
T_MIN = 1e-3
RHO = 7.0


def time_grid(path: Path, steps: int, kind: GridName = "uniform", t_max: float = 1.0) -> Tensor:
    """Falling times t_max = t_0 > ... > t_steps = 0, float64, shape (steps + 1,).

    Args:
        path: The noising process; a table's grid is snapped to its knots.
        steps: Network calls of a one-call sampler.
        kind: ``"quadratic"`` spends its knots near t = 0 (Song, Meng & Ermon 2021, App. D.2);
            ``"log_snr"`` spaces log(a / sigma) evenly (Lu et al. 2022, Sec. 4); ``"karras"`` spaces
            (sigma / a)^(1 / 7) evenly (Karras et al. 2022, Eq. 5).
        t_max: Noisiest time, below 1 where no signal is left at 1.

    Raises:
        ValueError: on fewer than one step, on a table with fewer knots than steps, or on a grid
            in signal-to-noise where the path has none.
    """
    if steps < 1:
        raise ValueError(f"a sampler needs at least 1 step, not {steps}")
    if not 0 < t_max <= 1:
        raise ValueError(f"t_max must lie in (0, 1], not {t_max}")
    if kind in ("uniform", "quadratic"):
        u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        times = t_max * (u**2 if kind == "quadratic" else u)
    else:
        times = _in_log_snr(path, steps, kind, t_max)
    times = path.snap(times)
    if not bool((times[1:] < times[:-1]).all()):
        raise ValueError(f"{steps} steps need as many distinct times; the path has fewer")
    return times


def _in_log_snr(path: Path, steps: int, kind: GridName, t_max: float) -> Tensor:
    """Times of a grid in lambda, from ``t_max`` to the path's earliest time, then 0."""
    ends = torch.tensor([t_max, max(path.earliest, T_MIN)], dtype=torch.float64)
    ends = path.snap(ends).clamp_min(path.earliest)
    first, last = path.log_snr(ends)
    if not bool(torch.isfinite(first)):
        # No signal at t_max: space the grid from where a little is left, but begin at t_max.
        first = path.log_snr(path.snap(ends[:1] * (1 - T_MIN)))[0]
    if not bool(torch.isfinite(torch.stack([first, last])).all()):
        raise ValueError(f"a grid in signal-to-noise ({kind}) needs a path with noise of its own")
    u = torch.linspace(0, 1, steps, dtype=torch.float64)
    if kind == "log_snr":
        inside = first + u * (last - first)
    else:
        high, low = torch.exp(-first / RHO), torch.exp(-last / RHO)
        inside = -RHO * torch.log(high + u * (low - high))
    times = path.time_of(inside)
    times[0] = ends[0]
    return torch.cat([times, times.new_zeros(1)])
