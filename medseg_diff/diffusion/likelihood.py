"""Likelihood of data under a denoiser: a bound by the process's steps, and the exact value of its
probability flow.

Both take as prior what a sampler starts from: sigma_1 noise, plus b_1 source where a path has one.

Legend: B batch, C channels, *S spatial axes, D = C x prod(S) dimensions, N steps.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from medseg_diff.diffusion.objectives import gaussian_nll, sample_means, step_terms
from medseg_diff.diffusion.parameterisations import learned_variance
from medseg_diff.diffusion.paths import Path, spread, step_variances
from medseg_diff.diffusion.samplers.base import Denoise, Denoised, FreshNoise

# Above this number of dimensions the exact trace takes too many passes: use a probe.
MOST_TRACED = 256


class Bound(NamedTuple):
    """Terms of a variational bound on the negative log likelihood, in bits per dimension.

    Attributes:
        prior: KL of the noisiest state from what a sampler starts with, (B,).
        steps: KL of each reverse step but the last, noisiest first, (N - 1, B).
        decoder: Negative log likelihood of clean given the last state, (B,).
    """

    prior: Tensor
    steps: Tensor
    decoder: Tensor

    @property
    def total(self) -> Tensor:
        """The bound, (B,)."""
        return self.prior + self.steps.sum(0) + self.decoder


def bits_per_dimension(
    path: Path,
    denoise: Denoise,
    clean: Tensor,
    noise: FreshNoise,
    times: Tensor,
    *,
    source: Tensor | None = None,
    bin_width: float | None = None,
) -> Bound:
    """Variational bound over a grid of times (Ho et al. 2020, Eq. 5), one noise draw a step.

    The variance of a step is the network's own where it learns one; else the posterior's, and at
    the last step, where that is 0, the forward transition's. The gap that a perfect denoiser leaves
    is of second order in each step of log SNR: refine a ``log_snr`` grid to close it, for grids
    even in t keep their steep steps near t = 0.

    Args:
        path: The noising process.
        denoise: ``(x_t, t) -> Denoised``.
        clean: (B, C, *S), in [-1, 1].
        noise: ``index of the step -> standard normal like clean``.
        times: Falling times that end at 0, (N + 1,), see :mod:`medseg_diff.diffusion.grids`.
        source: The path's source, like clean.
        bin_width: See :func:`medseg_diff.diffusion.objectives.discretised_nll`; None bounds the
            density of clean, whose logarithm has either sign.

    Raises:
        ValueError: if times do not fall to 0, or the path has no noise of its own.
    """
    if len(times) < 2 or float(times[-1]) != 0 or not bool((times[1:] < times[:-1]).all()):
        raise ValueError("times must fall and end at 0: make them with time_grid")
    _check_noise(path)
    terms = []
    for index, (t, s) in enumerate(itertools.pairwise(times.to(clean.device))):
        now, then = t.expand(len(clean)), s.expand(len(clean))
        x_t = path.noised(clean, noise(index), now, source)
        answer = denoise(x_t, now)
        variance = _step_variance(path, answer, now, then)
        term = step_terms(
            path, clean, answer.clean, variance, x_t, now, then, source=source, bin_width=bin_width
        )
        terms.append(_bits(sample_means(term)))
    prior = _bits(sample_means(_prior_kl(path, clean, times[0].to(clean.device))))
    steps = torch.stack(terms[:-1]) if len(terms) > 1 else prior.new_zeros(0, len(clean))
    return Bound(prior, steps, terms[-1])


def _bits(nats: Tensor) -> Tensor:
    return nats / math.log(2)


def _check_noise(path: Path) -> None:
    ends = path.snap(torch.tensor([0.5, 1.0], dtype=torch.float64))
    if not bool((path.coefficients(ends).sigma > 0).any()):
        raise ValueError("this path's noise is the source image: it has no likelihood")


def _step_variance(path: Path, answer: Denoised, t: Tensor, s: Tensor) -> Tensor:
    if answer.variance is not None:
        return learned_variance(path, answer.variance, t, s)
    lower, upper = step_variances(path, t, s)
    return spread(torch.where(s > 0, lower, upper), answer.clean).expand_as(answer.clean)


def _prior_kl(path: Path, clean: Tensor, t: Tensor) -> Tensor:
    """KL(q(x_t | clean) || N(b source, sigma^2)), elementwise, (B, C, *S), in nats.

    The variances are equal and the means a clean apart; 0 where a is 0, as at a bridge's end.
    """
    a, _, sigma = path.coefficients(t.expand(len(clean)))
    ratio = torch.where(a > 0, a / sigma.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    return (spread(ratio, clean) * clean).square() / 2


@dataclass(frozen=True)
class _Flow:
    """The probability flow and its divergence along it."""

    path: Path
    denoise: Denoise
    probe: Tensor | None

    def __call__(self, tau: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Slope of x in tau, (B, C, *S), and its divergence, (B,), at t = tau^2.

        With n = (x - a clean) / sigma the flow is a' clean + sigma' n: Song et al. (2021), Eq. 13,
        free of the quotient a' / a that has no value where the signal ends.
        """
        t = (tau**2).expand(len(x))
        a, _, sigma = self.path.coefficients(t)
        slope_a, _, slope_sigma = self.path.rates(t)
        of_noise = slope_sigma / sigma
        # a' clean + sigma' (x - a clean) / sigma, as gains of clean and of x.
        of_clean = slope_a - of_noise * a
        state = x.detach().clone().requires_grad_(True)
        clean = self.denoise(state, t).clean
        trace = self._trace(clean, state)
        flow = spread(of_clean, x) * clean.detach() + spread(of_noise, x) * x
        divergence = of_clean * trace + of_noise * x[0].numel()
        return 2 * tau * flow, 2 * tau * divergence

    def _trace(self, clean: Tensor, state: Tensor) -> Tensor:
        """Trace of d clean / d state of each sample, (B,), float64, exact or by the probe."""
        if not clean.requires_grad:
            raise ValueError("denoise gives no gradient in x_t: leave out its no_grad")
        if self.probe is not None:
            return _directional(clean, state, self.probe).double().flatten(1).sum(1)
        found = torch.zeros(len(state), dtype=torch.float64, device=state.device)
        for index in range(state[0].numel()):
            unit = torch.zeros_like(state)
            unit.flatten(1)[:, index] = 1
            found += _directional(clean, state, unit).double().flatten(1).sum(1)
        return found


def _directional(clean: Tensor, state: Tensor, probe: Tensor) -> Tensor:
    """Product probe * (J^T probe), J = d clean / d state: its sum has the trace as its mean."""
    (gradient,) = torch.autograd.grad(clean, state, probe.to(clean), retain_graph=True)
    return probe * gradient


def log_likelihood(
    path: Path,
    denoise: Denoise,
    clean: Tensor,
    *,
    probe: Tensor | None = None,
    steps: int = 200,
    t_min: float = 1e-5,
    t_max: float = 1.0,
) -> Tensor:
    """Log likelihood of clean under the probability flow, (B,), float64, in nats.

    Song et al. (2021), Sec. 4.3 and App. D.2: the state flows from ``t_min`` to ``t_max``, where
    its density is the prior's, and gathers the divergence on the way. Fourth-order Runge-Kutta in
    sqrt(t), in which noise of every path starts smoothly. The density is that of the state at
    ``t_min`` in clean's own units: data blurred by that little noise. Bits per dimension are
    ``-value / (D log 2)``.

    Args:
        path: Continuous, without source, its coefficients smooth at ``t_max``.
        denoise: ``(x_t, t) -> Denoised``, differentiable in ``x_t``, each sample by itself.
        clean: (B, C, *S); float64 for more than about four digits.
        probe: Rademacher or standard normal like clean: Hutchinson's estimate of the trace,
            unbiased over probes. None takes the exact trace, in D passes.
        steps: Runge-Kutta steps, four network calls each.
        t_min: First time, above 0.
        t_max: Last time; below 1 where the path's signal ends with an infinite slope.

    Raises:
        ValueError: on a table, a path with a source, times where the flow is not finite, or an
            exact trace in too many dimensions.
    """
    # Gradients are taken below even where the caller infers.
    with torch.inference_mode(False), torch.enable_grad():
        _check_flow(path, clean, probe, t_min, t_max)
        flow = _Flow(path, denoise, None if probe is None else probe.detach().clone())
        knots = torch.linspace(
            math.sqrt(t_min), math.sqrt(t_max), steps + 1, dtype=torch.float64, device=clean.device
        )
        ends = path.coefficients(knots[[0, -1]] ** 2)
        x = float(ends.a[0]) * clean.detach().clone()
        total = torch.full((len(x),), x[0].numel() * math.log(float(ends.a[0]))).to(knots)
        for now, then in itertools.pairwise(knots):
            x, gathered = _runge_kutta(flow, now, then, x)
            total = total + gathered
    prior = gaussian_nll(x, torch.zeros_like(x), ends.sigma[1].to(x))
    return total - prior.double().flatten(1).sum(1)


def _runge_kutta(flow: _Flow, now: Tensor, then: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The state after one classical step, and the divergence gathered over it."""
    h = then - now
    step, middle = h.to(x), now + h / 2
    k1, d1 = flow(now, x)
    k2, d2 = flow(middle, x + step / 2 * k1)
    k3, d3 = flow(middle, x + step / 2 * k2)
    k4, d4 = flow(then, x + step * k3)
    return x + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4), h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)


def _check_flow(
    path: Path, clean: Tensor, probe: Tensor | None, t_min: float, t_max: float
) -> None:
    if not path.continuous:
        raise ValueError("a table of betas has no flow: use the continuous schedule")
    if path.uses_source:
        raise ValueError("a path with a source has no likelihood of its own: use another path")
    if not 0 < t_min < t_max <= 1:
        raise ValueError(f"0 < t_min < t_max <= 1 is needed, not {t_min} and {t_max}")
    rates = path.rates(torch.tensor([t_min, t_max], dtype=torch.float64))
    if not bool(torch.isfinite(torch.stack(rates)).all()):
        raise ValueError(f"the flow is not finite at t_max = {t_max:g}: stop before it")
    if probe is None and clean[0].numel() > MOST_TRACED:
        raise ValueError(
            f"an exact trace in {clean[0].numel()} dimensions takes as many passes: give a probe"
        )
