"""Losses on probabilities and states, and their weights over time.

Every loss is a mean over samples, so that a batch split over processes gives the same value as the
whole batch in one. Weights of samples, (B,), multiply before that mean: a time law's importance, or
:func:`snr_weight`, :func:`noise_weight`. Improved DDPM's hybrid objective is a squared error plus
0.001 times :func:`variational_bound`; the sum is the model's.

Legend: B batch, C channels, K classes or regions, *S spatial axes.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from medseg_diff.diffusion.parameterisations import Parameterisation, learned_variance
from medseg_diff.diffusion.paths import Path, reverse_step, spread, step_variances


def sample_means(values: Tensor, weight: Tensor | None = None) -> Tensor:
    """Each sample's mean over its counted voxels, (B,).

    Args:
        values: (B, C, *S).
        weight: (B, 1, *S) with 0 at ignored voxels, or None to count all.
    """
    axes = tuple(range(1, values.ndim))
    if weight is None:
        return values.mean(axes)
    counted = weight.sum(axes).clamp_min(1) * values.shape[1]
    return (values * weight).sum(axes) / counted


def masked_mean(values: Tensor, weight: Tensor | None, samples: Tensor | None = None) -> Tensor:
    """Mean over samples of each sample's mean over its counted voxels.

    Args:
        values: (B, C, *S).
        weight: (B, 1, *S) with 0 at ignored voxels, or None to count all.
        samples: Weights of the samples, (B,); they are not normalised.
    """
    return _over_samples(sample_means(values, weight), samples)


def _over_samples(losses: Tensor, samples: Tensor | None) -> Tensor:
    return losses.mean() if samples is None else (losses * samples.to(losses)).mean()


def dice_loss(
    probabilities: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    smooth: float = 1.0,
    samples: Tensor | None = None,
) -> Tensor:
    """1 - soft Dice, per sample and channel, then averaged (Milletari et al. 2016).

    ``smooth`` counts voxels; it keeps a channel that is empty in both at Dice 1.
    """
    if weight is not None:
        probabilities, target = probabilities * weight, target * weight
    axes = tuple(range(2, target.ndim))
    overlap = (probabilities * target).sum(axes)
    size = probabilities.sum(axes) + target.sum(axes)
    return _over_samples((1 - (2 * overlap + smooth) / (size + smooth)).mean(1), samples)


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    exclusive: bool,
    weight: Tensor | None = None,
    samples: Tensor | None = None,
) -> Tensor:
    """Cross-entropy with one-hot (``exclusive``) or overlapping targets, (B, K, *S)."""
    if exclusive:
        per_voxel = -(target * functional.log_softmax(logits, 1)).sum(1, keepdim=True)
    else:
        per_voxel = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return masked_mean(per_voxel, weight, samples)


def focal(
    logits: Tensor,
    target: Tensor,
    *,
    exclusive: bool,
    gamma: float = 2.0,
    weight: Tensor | None = None,
    samples: Tensor | None = None,
) -> Tensor:
    """Focal loss, -(1 - p)^gamma log p of the true class (Lin et al. 2017, Eq. 4), mean.

    Args:
        logits: (B, K, *S).
        target: One-hot (``exclusive``: softmax) or overlapping (a sigmoid each), same shape.
        exclusive: Which of the two.
        gamma: 0 is cross-entropy; above it, voxels that are already right count less.
        weight: (B, 1, *S) with 0 at ignored voxels.
        samples: Weights of the samples, (B,).
    """
    if gamma < 0:
        raise ValueError(f"gamma of the focal loss must not be negative, not {gamma}")
    if exclusive:
        log_p = functional.log_softmax(logits, 1)
        # Away from 0, where a power below 1 has no finite slope.
        miss = -torch.expm1(log_p).clamp_max(-torch.finfo(log_p.dtype).tiny)
        per_voxel = -(target * miss**gamma * log_p).sum(1, keepdim=True)
        return masked_mean(per_voxel, weight, samples)
    log_p, log_q = functional.logsigmoid(logits), functional.logsigmoid(-logits)
    present = target * torch.exp(gamma * log_q) * log_p
    absent = (1 - target) * torch.exp(gamma * log_p) * log_q
    return masked_mean(-(present + absent), weight, samples)


def squared_error(
    output: Tensor, target: Tensor, weight: Tensor | None = None, samples: Tensor | None = None
) -> Tensor:
    """Mean squared error, (B, C, *S), its samples weighted by ``samples`` (B,)."""
    return masked_mean(torch.square(output - target), weight, samples)


def absolute_error(
    output: Tensor, target: Tensor, weight: Tensor | None = None, samples: Tensor | None = None
) -> Tensor:
    """Mean absolute error, (B, C, *S), its samples weighted by ``samples`` (B,)."""
    return masked_mean((output - target).abs(), weight, samples)


def snr_weight(path: Path, t: Tensor, kind: Parameterisation, gamma: float = 5.0) -> Tensor:
    """Min-SNR-gamma weights of squared errors, (B,), float64 (Hang et al. 2023).

    With SNR = a^2 / sigma^2, an error of clean counts min(SNR, gamma) times. An error of another
    output is one of clean up to its gain, which gives, on a path of unit variance,

        noise, score      min(SNR, gamma) / SNR
        clean, residual   min(SNR, gamma)
        velocity          min(SNR, gamma) / (SNR + 1)

    The first three are the paper's. ``flow_velocity`` has gain sigma = t, and velocity's gain off
    unit variance is sigma / (a^2 + sigma^2); both follow from the same rule.

    Raises:
        ValueError: on a path without noise of its own, or gamma not above 0.
    """
    if gamma <= 0:
        raise ValueError(f"gamma of min-SNR must be above 0, not {gamma}")
    ends = path.snap(torch.tensor([0.5, 1.0], dtype=torch.float64))
    if not bool((path.coefficients(ends).sigma > 0).any()):
        raise ValueError("min-SNR weights need noise: this path ends in the source image alone")
    a, _, sigma = path.coefficients(t)
    snr = a**2 / sigma**2
    if kind in ("noise", "score"):
        return (gamma / snr).clamp_max(1)
    capped = snr.clamp_max(gamma)
    if kind == "velocity":
        return capped * (sigma / (a**2 + sigma**2)) ** 2
    if kind == "flow_velocity":
        return capped * sigma**2
    return capped


def noise_weight(path: Path, t: Tensor, kind: Parameterisation) -> Tensor:
    """Weights (B,), float64, under which a squared error of an output is one of the noise.

    With them any output is trained by DDPM's L_simple (Ho et al. 2020, Eq. 14): an error of noise
    is an error of clean times a / sigma, and an error of clean is one of the output up to its gain.

        noise, score      1
        clean, residual   (a / sigma)^2
        velocity          (a / (a^2 + sigma^2))^2, which is a^2 on a path of unit variance
        flow_velocity     a^2

    Raises:
        ValueError: on a path without noise of its own.
    """
    if path.source_as_noise:
        raise ValueError("an error of the noise needs noise: this path ends in the source image")
    a, _, sigma = path.coefficients(t)
    if kind in ("noise", "score"):
        return torch.ones_like(a)
    if kind == "velocity":
        return (a / (a**2 + sigma**2)) ** 2
    if kind == "flow_velocity":
        return a**2
    return (a / sigma) ** 2


def gaussian_kl(mean: Tensor, variance: Tensor, other_mean: Tensor, other: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(other_mean, other)), elementwise, in nats."""
    ratio = variance / other
    return (ratio - 1 - ratio.log() + (mean - other_mean).square() / other) / 2


def gaussian_nll(values: Tensor, mean: Tensor, sd: Tensor) -> Tensor:
    """-log N(values; mean, sd^2), elementwise, in nats: of a density, so it may be negative."""
    return ((values - mean) / sd).square() / 2 + sd.log() + math.log(2 * math.pi) / 2


def discretised_nll(values: Tensor, mean: Tensor, sd: Tensor, bin_width: float) -> Tensor:
    """-log of a Gaussian's mass in the bin around each value, elementwise, in nats.

    Ho et al. (2020), Eq. 13: values lie on a lattice in [-1, 1], and the outermost bins reach to
    infinity. Images of 8 bits have ``bin_width`` 2 / 255, masks in {-1, 1} have 2.
    """
    low = (values - bin_width / 2 - mean) / sd
    high = (values + bin_width / 2 - mean) / sd
    low = torch.where(values < -1 + bin_width / 2, torch.full_like(low, -math.inf), low)
    high = torch.where(values > 1 - bin_width / 2, torch.full_like(high, math.inf), high)
    # The mirrored interval has the same mass, and the left tail keeps its digits.
    right = low + high > 0
    low, high = torch.where(right, -high, low), torch.where(right, -low, high)
    log_low, log_high = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    gap = (log_high - log_low).clamp_min(torch.finfo(sd.dtype).tiny)
    return -(log_high + torch.log(-torch.expm1(-gap)))


def step_terms(
    path: Path,
    clean: Tensor,
    estimate: Tensor,
    variance: Tensor,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    *,
    source: Tensor | None = None,
    bin_width: float | None = None,
) -> Tensor:
    """Terms of the variational bound of one reverse step, elementwise, (B, C, *S), in nats.

    For s > 0 the KL divergence between q(x_s | x_t, clean) and N(mean, variance), the mean being
    that of the posterior with ``estimate`` for clean. For s = 0 the negative log likelihood of
    clean under N(estimate, variance / a_0^2): its density, or its mass in bins of ``bin_width``.
    """
    lower, _ = step_variances(path, t, s)
    zeros = torch.zeros_like(clean)

    def mean(of: Tensor) -> Tensor:
        return reverse_step(
            path, x_t, of, t, s, source=source, noise=zeros, eta=1.0, pinned_noise=zeros
        )

    ending = spread(s <= 0, clean) > 0
    # At s = 0 the posterior is a point: any variance there keeps the unused branch finite.
    own = spread(torch.where(s > 0, lower, torch.ones_like(lower)), clean)
    divergence = gaussian_kl(mean(clean), own, mean(estimate), variance)
    sd = variance.sqrt() / spread(path.coefficients(s).a, clean)
    sd = torch.where(ending, sd, torch.ones_like(sd))
    if bin_width is None:
        decoded = gaussian_nll(clean, estimate, sd)
    else:
        decoded = discretised_nll(clean, estimate, sd, bin_width)
    return torch.where(ending, decoded, divergence)


def variational_bound(
    path: Path,
    clean: Tensor,
    estimate: Tensor,
    variance: Tensor,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    *,
    source: Tensor | None = None,
    bin_width: float | None = None,
    weight: Tensor | None = None,
    unit: Literal["bits", "nats"] = "bits",
) -> Tensor:
    """L_vlb of a step ``t`` -> ``s`` with learned variance, per sample and dimension, (B,).

    Nichol & Dhariwal (2021), Sec. 3.1: the bound trains the variance alone, so the clean estimate
    is detached here. Times the number of steps, its mean over steps bounds the likelihood.

    Args:
        path: The noising process.
        clean: True clean state, (B, C, *S), in [-1, 1].
        estimate: The network's, same shape; no gradient flows into it.
        variance: Raw learned variance in about [-1, 1], same shape, see
            :func:`medseg_diff.diffusion.parameterisations.learned_variance`.
        x_t: State at ``t``, same shape.
        t: Times (B,) in (0, 1].
        s: Times (B,) in [0, t); at 0 the decoder's term stands, see :func:`step_terms`.
        source: The path's source, same shape.
        bin_width: Of the decoder's bins: 2 / 255 is the paper's. None takes the Gaussian's
            density, which suits states that lie on no lattice, such as a latent.
        weight: (B, 1, *S) with 0 at ignored voxels.
        unit: Of the answer.
    """
    learned = learned_variance(path, variance, t, s)
    terms = step_terms(
        path, clean, estimate.detach(), learned, x_t, t, s, source=source, bin_width=bin_width
    )
    return sample_means(terms, weight) / (math.log(2) if unit == "bits" else 1.0)
