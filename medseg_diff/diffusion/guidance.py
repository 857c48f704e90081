"""Guidance: wrappers that steer a denoiser's clean estimate, each Denoise -> Denoise.

Legend: B batch, C channels, *S spatial axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from medseg_diff.diffusion.parameterisations import SMALLEST_GAIN
from medseg_diff.diffusion.paths import Path, spread
from medseg_diff.diffusion.samplers.base import Denoise, Denoised

LogProbability = Callable[[Tensor, Tensor], Tensor]


def classifier_free(conditional: Denoise, unconditional: Denoise, scale: float) -> Denoise:
    """Step from the unconditional estimate through the conditional one (Ho & Salimans 2022).

        clean = unconditional + scale (conditional - unconditional)

    Their Eq. 6 combines noise estimates with scale = 1 + w. Noise is affine in clean on one state,
    and the weights sum to 1, so both combinations are the same.

    Args:
        conditional: Denoiser that sees the condition; a learned variance is taken from it.
        unconditional: The same without; left alone at ``scale`` 1.
        scale: 0 is unconditional, 1 conditional, above 1 exaggerates the condition.
    """
    _check_scale(scale)
    if scale == 1:
        return conditional

    def denoise(x_t: Tensor, t: Tensor) -> Denoised:
        answer = conditional(x_t, t)
        return _exaggerated(answer, unconditional(x_t, t).clean, scale)

    return denoise


def classifier_free_batched(denoise_both: Denoise, scale: float) -> Denoise:
    """:func:`classifier_free` in one call of twice the batch.

    Args:
        denoise_both: Denoiser whose context holds 2 B samples: B with the condition, then the
            same B without.
        scale: See :func:`classifier_free`.
    """
    _check_scale(scale)

    def denoise(x_t: Tensor, t: Tensor) -> Denoised:
        both = denoise_both(torch.cat([x_t, x_t]), torch.cat([t, t]))
        clean, unconditional = both.clean.chunk(2)
        variance = None if both.variance is None else both.variance.chunk(2)[0]
        return _exaggerated(Denoised(clean, variance), unconditional, scale)

    return denoise


def _check_scale(scale: float) -> None:
    if scale < 0:
        raise ValueError(f"the guidance scale must not be negative, not {scale}")


def _exaggerated(conditional: Denoised, unconditional: Tensor, scale: float) -> Denoised:
    clean = unconditional + scale * (conditional.clean - unconditional)
    return Denoised(clean, conditional.variance)


def classifier(
    denoise: Denoise, log_probability: LogProbability, path: Path, scale: float = 1.0
) -> Denoise:
    """Shift the estimate up a classifier's gradient (Dhariwal & Nichol 2021, Alg. 2).

        clean = denoise(x_t, t) + scale sigma^2 / a  grad_x log p(y | x_t)

    Their shift of noise by -scale sigma grad, said of clean. At scale 1, with the exact denoiser
    and classifier, it is the conditional posterior mean.

    The gradient leaves ``torch.no_grad`` and ``torch.inference_mode`` by itself. Tensors that the
    classifier holds must then be ordinary ones: none made inside inference mode.

    Args:
        denoise: Unconditional denoiser.
        log_probability: ``(x_t, t) -> log p(y | x_t)`` of the wanted y, (B,), of noisy states;
            differentiable in ``x_t``, each sample by itself.
        path: The noising process.
        scale: 0 is no guidance.

    Raises:
        ValueError: in a call, where no signal is left (a = 0), or no gradient reaches the state.
    """
    _check_scale(scale)

    def guided(x_t: Tensor, t: Tensor) -> Denoised:
        a, _, sigma = path.coefficients(t)
        if bool((a < SMALLEST_GAIN).any()):
            raise ValueError("classifier guidance needs signal: start the grid below this t_max")
        answer = denoise(x_t, t)
        with torch.inference_mode(False), torch.enable_grad():
            # A clone made here is an ordinary tensor, whatever mode x_t was made in.
            state = x_t.detach().clone().requires_grad_(True)
            logits = log_probability(state, t.clone())
            if not logits.requires_grad:
                raise ValueError("log_probability has no gradient in x_t: leave out its no_grad")
            (gradient,) = torch.autograd.grad(logits.sum(), state)
        shift = spread(scale * sigma**2 / a, x_t) * gradient
        return Denoised(answer.clean + shift, answer.variance)

    return guided


def clip_static(denoise: Denoise, low: float = -1.0, high: float = 1.0) -> Denoise:
    """Keep the estimate in [low, high] (Saharia et al. 2022, Imagen, Sec. 2.3)."""
    if not low < high:
        raise ValueError(f"low must lie below high, not {low} and {high}")

    def clipped(x_t: Tensor, t: Tensor) -> Denoised:
        answer = denoise(x_t, t)
        return Denoised(answer.clean.clamp(low, high), answer.variance)

    return clipped


def clip_dynamic(denoise: Denoise, percentile: float = 0.995) -> Denoise:
    """Clip each sample to [-s, s] and divide by s (Saharia et al. 2022, Imagen, Sec. 2.3).

    s is the sample's percentile of absolute values, at least 1, so that estimates inside [-1, 1]
    stay as they are and saturated ones come back in.

    Args:
        denoise: Denoiser of states in [-1, 1].
        percentile: In (0, 1], by nearest rank: 1 is the largest value.
    """
    if not 0 < percentile <= 1:
        raise ValueError(f"percentile must lie in (0, 1], not {percentile}")

    def clipped(x_t: Tensor, t: Tensor) -> Denoised:
        answer = denoise(x_t, t)
        size = answer.clean.abs().flatten(1)
        # kthvalue, for torch.quantile refuses volumes of more than 2^24 values.
        rank = max(1, math.ceil(percentile * size.shape[1] - 1e-9))
        bound = spread(size.kthvalue(rank, dim=1).values.clamp_min(1), answer.clean)
        return Denoised(answer.clean.clamp(-bound, bound) / bound, answer.variance)

    return clipped
