"""What a denoiser's raw output means, and every conversion between the meanings.

With x_t = a clean + sigma noise (the path's source already subtracted):

    noise     output is noise
    clean     output is clean
    velocity  output is a noise - sigma clean      (Salimans & Ho 2022, Sec. 4 and App. D)
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from medseg_diff.diffusion.paths import Path, spread

Parameterisation = Literal["noise", "clean", "velocity"]
PARAMETERISATIONS: tuple[Parameterisation, ...] = get_args(Parameterisation)


def target(kind: Parameterisation, path: Path, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """What a perfect network of this kind returns; all tensors (B, C, *S), times (B,)."""
    if kind == "noise":
        return noise
    if kind == "clean":
        return clean
    a, _, sigma = (spread(c, clean) for c in path.coefficients(t))
    return a * noise - sigma * clean


def clean_from(
    kind: Parameterisation, path: Path, output: Tensor, x_t: Tensor, t: Tensor
) -> Tensor:
    """Clean estimate from a raw output at state ``x_t``; all tensors (B, C, *S), times (B,).

    Computed in at least float32: at high noise the division by ``a`` amplifies rounding.
    """
    if kind == "clean":
        return output
    exact = torch.promote_types(x_t.dtype, torch.float32)
    x_t, output = x_t.to(exact), output.to(exact)
    a, _, sigma = (spread(c, x_t) for c in path.coefficients(t))
    if kind == "noise":
        return (x_t - sigma * output) / a
    return (a * x_t - sigma * output) / (a**2 + sigma**2)


def noise_from(path: Path, clean: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """Noise implied by a clean estimate; times must have sigma > 0."""
    a, _, sigma = (spread(c, x_t) for c in path.coefficients(t))
    return (x_t - a * clean) / sigma
