"""One domain's image to another's, by denoisers that were trained apart: unpaired translation.

Every walk begins at a clean state and ends at one. How far it goes up in between (``times``, a
sampler's grid that falls from the strength to 0) decides how much of the image it may change.

Legend: B batch, C channels, *S spatial axes.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from medseg_diff.diffusion.paths import Path, reverse_step
from medseg_diff.diffusion.samplers import Denoise, FreshNoise, Problem, invert, last, sample


def partial_noising(
    path: Path,
    target: Denoise,
    clean: Tensor,
    noise: Tensor,
    times: Tensor,
    sampler: str = "ddim",
    fresh_noise: FreshNoise | None = None,
) -> Tensor:
    """Noise an image to the first time and denoise it under the target (SDEdit).

    Meng et al. 2022, arXiv 2108.01073, Alg. 1 for any path and sampler.

    Args:
        path: A path that ends in noise.
        target: Denoiser of the target domain.
        clean: Image of the source domain, (B, C, *S).
        noise: Standard normal, same shape.
        times: Falling times that end at 0.
        sampler: How the way back is walked.
        fresh_noise: For samplers that add noise.

    Returns:
        Image of the target domain, same shape.
    """
    first = times[:1].to(clean.device).expand(len(clean))
    return _decoded(path, target, path.noised(clean, noise, first), times, sampler, fresh_noise)


def inverted(path: Path, source: Denoise, target: Denoise, clean: Tensor, times: Tensor) -> Tensor:
    """Up the source's probability flow, down the target's, both by DDIM's steps.

    Su et al. 2023, arXiv 2203.08382 (dual diffusion implicit bridges). Deterministic; exact in the
    limit of many steps.

    Args:
        path: A path that ends in noise, both denoisers' own.
        source: Denoiser of the source domain.
        target: Denoiser of the target domain.
        clean: Image of the source domain, (B, C, *S).
        times: Falling times that end at 0.

    Returns:
        Image of the target domain, same shape.
    """
    # A state at t = 0 is the clean one under the path's own gain.
    state = last(invert(path, source, _gain_of_clean(path) * clean, times)).state
    return _decoded(path, target, state, times, "ddim")


def with_recovered_noise(
    path: Path,
    source: Denoise,
    target: Denoise,
    clean: Tensor,
    noise: Tensor,
    times: Tensor,
    fresh_noise: FreshNoise,
) -> Tensor:
    """CycleDiffusion: the source's ancestral steps end in the image; the target takes their noise.

    Wu & De la Torre 2023, arXiv 2210.05559, Alg. 1 (DPM-Encoder). The source walks down
    q(x_s | x_t, clean), which ends in ``clean``. What each of its steps adds to the mean that its
    denoiser would have gone to is that step's noise, and the target's step adds the same. Both
    walks go side by side, so no noise is kept.

    The last step has no noise of its own; there the residual of the source's last estimate is
    handed over, as if it were one. So the same denoiser on both sides returns ``clean`` exactly.

    Args:
        path: A path that ends in noise, both denoisers' own.
        source: Denoiser of the source domain.
        target: Denoiser of the target domain.
        clean: Image of the source domain, (B, C, *S).
        noise: Standard normal, same shape: the walk's start.
        times: Falling times that end at 0.
        fresh_noise: Standard normal of each step.

    Returns:
        Image of the target domain, same shape.
    """
    times = times.to(clean.device)
    x = y = path.noised(clean, noise, times[:1].expand(len(clean)))
    for index, pair in enumerate(itertools.pairwise(times)):
        t, s = (time.expand(len(clean)) for time in pair)
        moved = reverse_step(path, x, clean, t, s, noise=fresh_noise(index), eta=1.0)
        added = moved - _mean(path, x, source(x, t).clean, t, s)
        y = _mean(path, y, target(y, t).clean, t, s) + added
        x = moved
    return y / _gain_of_clean(path)


def _gain_of_clean(path: Path) -> float:
    """The path's a at t = 0: below 1 where its input is scaled."""
    return float(path.coefficients(torch.zeros(1, dtype=torch.float64)).a)


def _mean(path: Path, x_t: Tensor, clean: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Where an ancestral step goes before it adds noise."""
    return reverse_step(path, x_t, clean, t, s, noise=torch.zeros_like(x_t), eta=1.0)


def _decoded(
    path: Path,
    target: Denoise,
    state: Tensor,
    times: Tensor,
    sampler: str,
    fresh_noise: FreshNoise | None = None,
) -> Tensor:
    """The sampler's last clean estimate from a state at the first time."""
    sigma = path.coefficients(times[:1]).sigma.to(state)
    # A sampler starts from sigma * noise: as such the state has a noise of its own.
    problem = Problem(path, target, state / sigma, times, fresh_noise)
    return last(sample(sampler, problem)).clean
