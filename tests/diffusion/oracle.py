"""Gaussian data, whose exact denoiser, flow and posterior are known, and the paths to try it on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medseg_diff.diffusion.grids import GridName, time_grid
from medseg_diff.diffusion.paths import (
    BetaTable,
    BrownianBridge,
    Linear,
    Path,
    VarianceExploding,
    VariancePreserving,
    spread,
)
from medseg_diff.diffusion.samplers import Denoise, Denoised, Problem, Step, sample

DATA_SD = 0.2
DDPM_BETAS = np.linspace(1e-4, 0.02, 1000)
LINEAR_VP = VariancePreserving("linear")
WITHOUT_SOURCE: dict[str, Path] = {
    "linear": LINEAR_VP,
    "linear_scaled": VariancePreserving("linear", 0.5),
    "cosine": VariancePreserving("cosine"),
    "cosine_scaled": VariancePreserving("cosine", 0.3),
    "sigmoid": VariancePreserving("sigmoid"),
    "linear_zero_snr": VariancePreserving("linear", zero_terminal_snr=True),
    "cosine_zero_snr": VariancePreserving("cosine", 0.6, zero_terminal_snr=True),
    "table": BetaTable(DDPM_BETAS.tolist()),
    "table_scaled": BetaTable(DDPM_BETAS.tolist(), 0.5),
    "exploding": VarianceExploding(0.01, 50.0),
    "flow": Linear(),
}
PATHS: dict[str, Path] = {
    **WITHOUT_SOURCE,
    "bridge": BrownianBridge(),
    "bridge_wide": BrownianBridge(2.5),
    "flow_of_source": Linear(source_as_noise=True),
}


def at(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def gains(path: Path, t: float) -> tuple[float, float, float]:
    a, b, sigma = path.coefficients(at(t))
    return float(a), float(b), float(sigma)


def posterior_mean(path: Path, source: Tensor | None = None, sd: float = DATA_SD) -> Denoise:
    """E[x_0 | x_t] for data N(0, sd^2): the denoiser that a perfect network would be."""

    def denoise(x: Tensor, t: Tensor) -> Denoised:
        a, b, sigma = path.coefficients(t)
        own = x if source is None else x - spread(b, x) * source
        # A bridge's end says nothing of clean, whose mean is 0.
        gain = a * sd**2 / (a**2 * sd**2 + sigma**2).clamp_min(1e-300)
        return Denoised(spread(gain, x) * own)

    return denoise


def posterior_variance(path: Path, sd: float = DATA_SD):
    """Var[x_0 | x_t] for the same data, at times (B,)."""

    def error(t: Tensor) -> Tensor:
        a, _, sigma = path.coefficients(t)
        return sd**2 * sigma**2 / (a**2 * sd**2 + sigma**2)

    return error


def sampled_sds(
    name: str,
    path: Path,
    steps: int,
    grid: GridName = "uniform",
    t_max: float = 1.0,
    walk: Callable[..., Iterator[Step]] | None = None,
    **options: Any,
) -> list[float]:
    """Exact standard deviations of a sampler's states, step by step, without random numbers.

    One sample has an axis of its own for the start and for every fresh noise. All are orthogonal
    and equally long, as independent Gaussian fields are in the limit of many voxels; the walk is
    linear, so a state's squared length is the variance of any of its voxels.
    """
    axes = (1 + options.get("corrections", 1)) * steps + 1
    source = torch.zeros(1, axes, dtype=torch.float64) if path.uses_source else None

    def axis(index: int) -> Tensor:
        row = torch.zeros(1, axes, dtype=torch.float64)
        row[0, index] = 1
        return row

    problem = Problem(
        path,
        posterior_mean(path, source),
        axis(0),
        time_grid(path, steps, grid, t_max),
        fresh_noise=lambda index: axis(index + 1),
        source=source,
        error_variance=posterior_variance(path),
    )
    taken = sample(name, problem) if walk is None else walk(problem, **options)
    return [float(step.state.square().sum().sqrt()) for step in taken]


def sampled_sd(name: str, path: Path, steps: int, grid: GridName = "uniform") -> float:
    """What the sampler returns in the end."""
    return sampled_sds(name, path, steps, grid)[-1]


def true_sd(path: Path, t: float) -> float:
    """Standard deviation of the marginal at ``t``, apart from the source."""
    a, _, sigma = gains(path, t)
    return math.hypot(a * DATA_SD, sigma)


def flow_limit(path: Path, t: float, deterministic: bool, t_max: float = 1.0) -> float:
    """Where infinitely many steps end at ``t``, from a start of noise without its signal.

    The probability flow only rescales, so it keeps the share of spread that the start lacks; the
    stochastic process forgets its start but for a share that is negligible here.
    """
    whole = true_sd(path, t_max)
    kept = gains(path, t_max)[2] / whole if deterministic and whole > 0 else 1.0
    return true_sd(path, t) * kept


def two_modes(path: Path, sd: float = 0.1) -> Denoise:
    """Exact denoiser of data 0.3 N(-1, sd^2) + 0.7 N(1, sd^2)."""

    def denoise(x: Tensor, t: Tensor) -> Denoised:
        a, _, sigma = (spread(c, x) for c in path.coefficients(t))
        variance = a**2 * sd**2 + sigma**2
        modes = ((-1.0, 0.3), (1.0, 0.7))
        weights = [math.log(w) - (x - a * m) ** 2 / (2 * variance) for m, w in modes]
        means = [m + a * sd**2 / variance * (x - a * m) for m, _ in modes]
        return Denoised((torch.stack(weights).softmax(0) * torch.stack(means)).sum(0))

    return denoise


def wobbly(x: Tensor, t: Tensor) -> Denoised:
    """A denoiser that depends on state and time and is not linear."""
    return Denoised(torch.tanh(0.7 * x + spread(t, x)))


def noise_like(x: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
