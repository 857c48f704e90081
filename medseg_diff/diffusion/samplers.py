"""Samplers: a grid of times, a loop of reverse steps, one generator for all of them.

DDIM is ``eta = 0`` and ancestral sampling (DDPM) is ``eta = 1`` of the same step, on any grid:
the step knows both of its ends, so a short grid needs no respaced beta table.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from medseg_diff.diffusion.paths import Path, reverse_step

SamplerName = Literal["ddim", "ancestral"]
GridName = Literal["uniform", "quadratic"]
SAMPLERS: tuple[SamplerName, ...] = get_args(SamplerName)
ETA: dict[SamplerName, float] = {"ddim": 0.0, "ancestral": 1.0}

Denoise = Callable[[Tensor, Tensor], Tensor]
FreshNoise = Callable[[int], Tensor]


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


def time_grid(steps: int, kind: GridName = "uniform", t_max: float = 1.0) -> Tensor:
    """Falling times t_max = t_0 > ... > t_steps = 0, float64, shape (steps + 1,).

    ``"quadratic"`` spends its knots near t = 0 (Song, Meng & Ermon 2021, App. D.2).
    """
    if steps < 1:
        raise ValueError(f"a sampler needs at least 1 step, not {steps}")
    if not 0 < t_max <= 1:
        raise ValueError(f"t_max must lie in (0, 1], not {t_max}")
    u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return t_max * (u**2 if kind == "quadratic" else u)


def sample(
    path: Path,
    denoise: Denoise,
    start: Tensor,
    times: Tensor,
    *,
    eta: float = 0.0,
    fresh_noise: FreshNoise | None = None,
) -> Iterator[Step]:
    """Walk from noise to a clean state, yielding every step.

    Args:
        path: The noising process.
        denoise: ``(x_t, t) -> clean estimate`` with x_t (B, C, *S) and t (B,).
        start: Standard normal, (B, C, *S); scaled here to the path's sigma at ``times[0]``.
        times: Falling times that end at 0, see :func:`time_grid`.
        eta: Share of fresh noise, 0 (DDIM) to 1 (ancestral).
        fresh_noise: ``step index -> standard normal like start``; needed when ``eta > 0``.
    """
    times = path.snap(times).to(start.device)
    if not bool((times[1:] < times[:-1]).all()):
        raise ValueError(f"{len(times) - 1} steps need as many distinct times; the path has fewer")
    x = start * path.coefficients(times[:1]).sigma.to(start)
    batch = len(start)
    for index, (t, s) in enumerate(itertools.pairwise(times)):
        clean = denoise(x, t.expand(batch))
        # The last step lands on the clean estimate: no noise is left to refresh.
        refresh = eta if float(s) > 0 else 0.0
        noise = fresh_noise(index) if refresh > 0 and fresh_noise is not None else None
        x = reverse_step(path, x, clean, t.expand(batch), s.expand(batch), noise=noise, eta=refresh)
        yield Step(index, float(t), float(s), clean, x)
