"""What a denoiser's raw output means, and every conversion between the meanings.

With x = x_t - b source = a clean + sigma noise:

    noise          output is noise
    clean          output is clean
    velocity       output is a noise - sigma clean    (Salimans & Ho 2022, Sec. 4 and App. D)
    flow_velocity  output is the time derivative of x_t on the linear path, noise - clean
                   (Liu et al. 2023), or source - clean where the source stands for noise
    score          output is sigma times the score of the marginal, -noise: the weight under which
                   Song & Ermon (2019, Sec. 4.2) regress it
    residual       output is x_t - clean              (BBDM, Li et al. 2023)

Learned variance (Nichol & Dhariwal 2021, Eq. 15) stands beside any of them.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from medseg_diff.diffusion.paths import Linear, Path, spread, step_variances

Parameterisation = Literal["noise", "clean", "velocity", "flow_velocity", "score", "residual"]
PARAMETERISATIONS: tuple[Parameterisation, ...] = get_args(Parameterisation)

# Below this gain of clean, dividing by it returns rounding errors of float32.
SMALLEST_GAIN = 1e-4


def check(kind: Parameterisation, path: Path, t_max: float = 1.0) -> None:
    """Refuse a meaning that cannot give clean at the noisiest time.

    Raises:
        ValueError: noise or score where no signal is left at ``t_max``; velocity where neither
            signal nor noise is (a bridge's end); either where the path has no noise of its own;
            flow velocity off the linear path.
    """
    if kind not in PARAMETERISATIONS:
        raise ValueError(f"unknown output {kind!r}: choose from {', '.join(PARAMETERISATIONS)}")
    if kind == "flow_velocity" and not isinstance(path, Linear):
        raise ValueError("flow velocity is defined on the linear path: use velocity, or that path")
    if kind not in ("noise", "score", "velocity"):
        return
    if path.source_as_noise:
        raise ValueError(f"output {kind!r} needs noise, and this path's noise is the source image")
    a, _, sigma = path.coefficients(path.snap(torch.tensor([t_max], dtype=torch.float64)))
    if float(torch.hypot(a, sigma) if kind == "velocity" else a) < SMALLEST_GAIN:
        raise ValueError(
            f"output {kind!r} cannot give clean at t = {t_max:g}, where no signal is left: use "
            "clean, velocity, flow_velocity or residual, or stop the grid before t = 1"
        )


def target(
    kind: Parameterisation,
    path: Path,
    clean: Tensor,
    noise: Tensor,
    t: Tensor,
    source: Tensor | None = None,
) -> Tensor:
    """What a perfect network of this kind returns; all tensors (B, C, *S), times (B,)."""
    if kind == "noise":
        return noise
    if kind == "score":
        return -noise
    if kind == "clean":
        return clean
    if kind == "flow_velocity":
        return (source if path.uses_source and source is not None else noise) - clean
    if kind == "residual":
        return path.noised(clean, noise, t, source) - clean
    a, _, sigma = (spread(c, clean) for c in path.coefficients(t))
    return a * noise - sigma * clean


def clean_from(
    kind: Parameterisation,
    path: Path,
    output: Tensor,
    x_t: Tensor,
    t: Tensor,
    source: Tensor | None = None,
) -> Tensor:
    """Clean estimate from a raw output at state ``x_t``; all tensors (B, C, *S), times (B,).

    Computed in at least float32: at high noise the division by ``a`` amplifies rounding.
    """
    if kind == "clean":
        return output
    exact = torch.promote_types(x_t.dtype, torch.float32)
    x_t, output = x_t.to(exact), output.to(exact)
    if kind == "residual":
        return x_t - output
    if kind == "flow_velocity":
        return x_t - spread(t, x_t) * output
    a, b, sigma = (spread(c, x_t) for c in path.coefficients(t))
    x = x_t if source is None else x_t - b * source
    if kind == "noise":
        return (x - sigma * output) / a
    if kind == "score":
        return (x + sigma * output) / a
    return (a * x - sigma * output) / (a**2 + sigma**2)


def noise_from(
    path: Path, clean: Tensor, x_t: Tensor, t: Tensor, source: Tensor | None = None
) -> Tensor:
    """Noise implied by a clean estimate; times must have sigma > 0."""
    a, b, sigma = (spread(c, x_t) for c in path.coefficients(t))
    x = x_t if source is None else x_t - b * source
    return (x - a * clean) / sigma


def learned_variance(path: Path, output: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Variance of a reverse step ``t`` -> ``s`` from a raw output in about [-1, 1], (B, C, *S).

    Interpolates the step's lower and upper variance in log space: -1 is the lower, +1 the upper.
    A step to s = 0 has no lower variance and so no logarithm of it. Improved DDPM's code puts the
    second step's there (beta-tilde_2 for beta-tilde_1); on any path that is the lower variance of
    the step of the same length that ends at ``t``, from 2 t, which on a table is the same number.
    """
    lower, upper = step_variances(path, t, s)
    lower = torch.where(s > 0, lower, torch.minimum(_stand_in(path, t), upper))
    tiny = torch.finfo(torch.float64).tiny
    share = (output + 1) / 2
    high, low = (spread(v.clamp_min(tiny).log(), output) for v in (upper, lower))
    return torch.exp(share * high + (1 - share) * low)


def _stand_in(path: Path, t: Tensor) -> Tensor:
    """Lower variance of the step 2 t -> t, or t -> t / 2 where the path ends before 2 t."""
    short = t <= 0.5
    start = path.snap(torch.where(short, 2 * t, t))
    # A table of one beta has no knot between: its only variance is the upper.
    end = path.snap(torch.where(short, t, t / 2))
    lower, upper = step_variances(path, start, end)
    return torch.where(end > 0, lower, upper)
