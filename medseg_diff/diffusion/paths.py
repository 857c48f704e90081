"""Noising paths: x_t = a_t * clean + b_t * source + sigma_t * noise, t in [0, 1], clean at t = 0.

A path is three coefficients, and nothing else of it is known to samplers. One reverse step serves
every path, sampler and eta.

Legend: B batch, C channels, *S spatial axes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

# Keeps alpha-bar of the cosine schedule away from zero at t = 1, where a noise output could not
# give the clean estimate back. Nichol & Dhariwal (2021) clip beta at 0.999 for the same reason.
MIN_ALPHA_BAR = 1e-5

Schedule = Literal["linear", "cosine", "sigmoid"]


class Coefficients(NamedTuple):
    """The three gains of a path at some times, each of shape (B,), float64."""

    a: Tensor
    b: Tensor
    sigma: Tensor


class Path(ABC):
    """A noising process, known by its coefficients alone.

    Attributes:
        uses_source: True if the state holds a source image (b > 0).
        source_as_noise: True if the source stands in the noise's place: b > 0 and sigma = 0.
        continuous: False where only tabulated times exist.
        earliest: Smallest time above 0 that the path is defined at.
    """

    uses_source = False
    source_as_noise = False
    continuous = True
    earliest = 0.0

    @abstractmethod
    def coefficients(self, t: Tensor) -> Coefficients:
        """Gains of clean, source and noise at times ``t``, shape (B,), each in [0, 1]."""

    def noised(
        self, clean: Tensor, noise: Tensor, t: Tensor, source: Tensor | None = None
    ) -> Tensor:
        """Sample of the marginal at ``t``: the state (B, C, *S) for given noise of that shape."""
        a, b, sigma = (spread(c, clean) for c in self.coefficients(t))
        state = a * clean + sigma * noise
        return state if source is None else state + b * source

    def start(self, noise: Tensor, t: Tensor, source: Tensor | None = None) -> Tensor:
        """State (B, C, *S) that a sampler starts from at ``t``: what is known without clean."""
        _, b, sigma = (spread(c, noise) for c in self.coefficients(t))
        return sigma * noise if source is None else sigma * noise + b * source

    def snap(self, t: Tensor) -> Tensor:
        """Nearest times this path is defined at; the identity for continuous paths."""
        return t

    def input_gain(self, t: Tensor) -> Tensor:
        """Factor (B,) on the state at a network's door; not 1 only where sigma has no bound."""
        return torch.ones_like(t, dtype=torch.float64)

    def log_snr(self, t: Tensor) -> Tensor:
        """Half the log signal-to-noise ratio, lambda = log(a / sigma), (B,); falls with t.

        +inf at sigma = 0 and -inf at a = 0.
        """
        a, _, sigma = self.coefficients(t)
        # A bridge has neither signal nor noise at t = 1; its ratio tends to 0 there.
        return torch.where(a > 0, a.log() - sigma.log(), -torch.inf)

    def time_of(self, log_snr: Tensor) -> Tensor:
        """Inverse of :meth:`log_snr` by bisection in [0, 1], (B,), float64."""
        wanted = log_snr.double()
        low, high = torch.zeros_like(wanted), torch.ones_like(wanted)
        for _ in range(60):
            middle = (low + high) / 2
            later = self.log_snr(middle) > wanted
            low, high = torch.where(later, middle, low), torch.where(later, high, middle)
        return (low + high) / 2

    def rates(self, t: Tensor) -> Coefficients:
        """Time derivatives of the coefficients, (B,), for flows in continuous time."""
        if not self.continuous:
            raise ValueError("a table of betas has no time derivative: use a continuous schedule")
        with torch.enable_grad():
            at = t.detach().double().requires_grad_(True)
            values = self.coefficients(at)
            found = []
            for value in values:
                held = value.requires_grad and bool(value.isfinite().all())
                slope = torch.autograd.grad(value.sum(), at, retain_graph=True)[0] if held else None
                found.append(torch.zeros_like(at) if slope is None else slope)
        return Coefficients(*(rate.detach() for rate in found))


class VariancePreserving(Path):
    """DDPM's process: a = scale * sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar).

    Args:
        schedule: ``"linear"`` is the continuous limit of DDPM's betas 1e-4 ... 0.02 over 1000
            steps, alpha_bar = exp(-(0.1 t + 9.95 t^2)) (Song et al. 2021, Eq. 33);
            ``"cosine"`` is Nichol & Dhariwal (2021), Eq. 17; ``"sigmoid"`` is Jabri et al.
            (2022) with start -3, end 3 and tau 1, as in Chen (2023), Alg. 1.
        input_scale: Gain on the clean state in (0, 1]. Below 1 the same time carries less
            signal, a harder schedule that suits masks, whose one-hot states survive noise.
        zero_terminal_snr: Shift and stretch sqrt(alpha_bar) so that no signal is left at t = 1
            (Lin et al. 2024, Alg. 1). A noise output then cannot give clean at t = 1.
    """

    def __init__(
        self,
        schedule: Schedule = "linear",
        input_scale: float = 1.0,
        zero_terminal_snr: bool = False,
    ) -> None:
        if schedule not in get_args(Schedule):
            raise ValueError(f"schedule must be one of {get_args(Schedule)}, not {schedule!r}")
        if not 0 < input_scale <= 1:
            raise ValueError(f"input_scale must lie in (0, 1], not {input_scale}")
        self.schedule = schedule
        self.input_scale = input_scale
        self.zero_terminal_snr = zero_terminal_snr

    def alpha_bar(self, t: Tensor) -> Tensor:
        """Share of signal variance at ``t``, float64, 1 at t = 0."""
        return self._root(t).square()

    def _root(self, t: Tensor) -> Tensor:
        """sqrt(alpha_bar), which unlike its square has a slope where no signal is left."""
        t = t.double()
        if not self.zero_terminal_snr:
            return self._schedule(t).clamp(MIN_ALPHA_BAR, 1.0).sqrt()
        start, end = self._schedule(t.new_tensor([0.0, 1.0])).sqrt()
        root = (self._schedule(t).sqrt() - end) * start / (start - end)
        # Exactly 0 at t = 1, whatever rounding left, with its slope.
        return torch.where(t < 1, root.clamp_min(0), root - root.detach())

    def _schedule(self, t: Tensor) -> Tensor:
        """alpha_bar as published, before its end is bounded."""
        if self.schedule == "linear":
            return torch.exp(-(0.1 * t + 0.5 * 19.9 * t**2))
        if self.schedule == "sigmoid":
            low, high = 1 / (1 + math.exp(3)), 1 / (1 + math.exp(-3))
            return ((high - torch.sigmoid(6 * t - 3)) / (high - low)).clamp_min(0)
        offset = 0.008
        angle = (t + offset) / (1 + offset) * (math.pi / 2)
        start = math.cos(offset / (1 + offset) * (math.pi / 2)) ** 2
        return torch.cos(angle) ** 2 / start

    def coefficients(self, t: Tensor) -> Coefficients:
        """See :meth:`Path.coefficients`."""
        root = self._root(t)
        return Coefficients(
            a=self.input_scale * root,
            b=torch.zeros_like(root),
            sigma=(1 - root.square()).clamp_min(0).sqrt(),
        )


class BetaTable(VariancePreserving):
    """A variance-preserving process given as T betas.

    It has T + 1 knots: knot 0 is clean and knot k has passed k betas, so time t = k / T and a
    published "timestep i in 0 ... T-1" is knot i + 1 here. Times off a knot are refused; use
    :meth:`Path.snap` on a grid first.

    Args:
        betas: T values in (0, 1).
        input_scale: See :class:`VariancePreserving`.
    """

    continuous = False

    def __init__(self, betas: Sequence[float], input_scale: float = 1.0) -> None:
        super().__init__("linear", input_scale)
        table = torch.as_tensor(betas, dtype=torch.float64)
        if table.ndim != 1 or len(table) == 0 or not bool(((table > 0) & (table < 1)).all()):
            raise ValueError("betas must be a non-empty 1-D sequence of values in (0, 1)")
        self.knots = torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - table, 0)])
        self.earliest = 1 / self.steps

    @property
    def steps(self) -> int:
        """Number of betas, T."""
        return len(self.knots) - 1

    def snap(self, t: Tensor) -> Tensor:
        """Nearest knots k / T."""
        return (t.double() * self.steps).round() / self.steps

    def time_of(self, log_snr: Tensor) -> Tensor:
        """Knots whose log signal-to-noise ratio is nearest, (B,), float64; 0 for +inf."""
        wanted = log_snr.double()
        knots = torch.arange(1, self.steps + 1, device=wanted.device).double() / self.steps
        ratios = self.log_snr(knots)
        nearest = (ratios - wanted.clamp_min(ratios[-1])[:, None]).abs().argmin(-1)
        return torch.where(wanted == torch.inf, 0.0, knots[nearest])

    def _root(self, t: Tensor) -> Tensor:
        """Root of the cumulative product of 1 - beta at knot t * T."""
        position = t.double() * self.steps
        index = position.round()
        if bool(((position - index).abs() > 1e-6).any()):
            raise ValueError("a beta table is only defined at t = k / T; snap the times first")
        return self.knots.to(t.device)[index.long()].sqrt()


class VarianceExploding(Path):
    """Score matching's process: a = 1, sigma = low * (high / low)^t (Song et al. 2021, Eq. 30).

    At t = 0 sigma is 0: a grid ends in a clean knot below its smallest noise.

    Args:
        sigma_min: Smallest noise, in the codec's units.
        sigma_max: Largest; well above the distance between two clean states.
    """

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0) -> None:
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"0 < sigma_min < sigma_max is needed, not {sigma_min}, {sigma_max}")
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def coefficients(self, t: Tensor) -> Coefficients:
        """See :meth:`Path.coefficients`."""
        t = t.double()
        sigma = self.sigma_min * (self.sigma_max / self.sigma_min) ** t
        zero = torch.zeros_like(t)
        return Coefficients(torch.ones_like(t), zero, torch.where(t > 0, sigma, zero))

    def input_gain(self, t: Tensor) -> Tensor:
        """1 / sqrt(1 + sigma^2): unit variance for clean states of unit variance."""
        return (1 + self.coefficients(t).sigma.square()).rsqrt()


class Linear(Path):
    """Rectified flow's straight line: a = 1 - t, sigma = t (Liu et al. 2023, Eq. 1).

    Args:
        source_as_noise: The line ends in the source image instead of noise. Only eta = 0 is then
            defined, and there is no score, no signal-to-noise grid and no likelihood.
    """

    def __init__(self, source_as_noise: bool = False) -> None:
        self.uses_source = self.source_as_noise = source_as_noise

    def coefficients(self, t: Tensor) -> Coefficients:
        """See :meth:`Path.coefficients`; the source's gain is t where it stands for noise."""
        t = t.double()
        zero = torch.zeros_like(t)
        return (
            Coefficients(1 - t, t, zero) if self.source_as_noise else Coefficients(1 - t, zero, t)
        )


class BrownianBridge(Path):
    """Bridge from clean to source: a = 1 - t, b = t, sigma = sqrt(2 s (t - t^2)).

    BBDM (Li et al. 2023, arXiv 2205.07680), Eq. 4; s is their maximum variance scale.
    """

    uses_source = True

    def __init__(self, variance_scale: float = 1.0) -> None:
        if variance_scale <= 0:
            raise ValueError(f"variance_scale must be above 0, not {variance_scale}")
        self.variance_scale = variance_scale

    def coefficients(self, t: Tensor) -> Coefficients:
        """See :meth:`Path.coefficients`."""
        t = t.double()
        return Coefficients(1 - t, t, (2 * self.variance_scale * (t - t**2)).clamp_min(0).sqrt())


def spread(coefficient: Tensor, like: Tensor) -> Tensor:
    """Per-sample gains (B,) as (B, 1, ...) in the dtype and on the device of ``like``."""
    return coefficient.to(like).reshape(-1, *([1] * (like.ndim - 1)))


class StepGains(NamedTuple):
    """Gains of one reverse step, each (B,), float64: see :func:`reverse_step`."""

    kept: Tensor
    fresh: Tensor


def step_variances(path: Path, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """The process's own variance of a reverse step ``t`` -> ``s``, lower and upper, (B,) float64.

    Lower is the posterior's given clean, q(x_s | x_t, clean); upper is the forward transition's,
    sigma_t^2 - (a_t / a_s)^2 sigma_s^2 (DDPM's beta-tilde and beta). Improved DDPM interpolates.
    """
    a_t, _, sigma_t = path.coefficients(t)
    a_s, _, sigma_s = path.coefficients(s)
    # A bridge has sigma_t = 0 at t = 1; its first posterior step is then wholly fresh noise.
    ratio = torch.where(sigma_t > 0, sigma_s / sigma_t.clamp_min(1e-300), torch.ones_like(sigma_t))
    upper = (sigma_t**2 - (a_t / a_s) ** 2 * sigma_s**2).clamp_min(0)
    pinned = sigma_t <= 0
    lower = torch.where(pinned, sigma_s**2, upper * ratio**2)
    return lower, torch.where(pinned, sigma_s**2, upper)


def step_gains(path: Path, t: Tensor, s: Tensor, eta: float) -> StepGains:
    """Gains of the kept and the fresh noise when stepping from ``t`` to ``s`` < ``t``."""
    sigma_s = path.coefficients(s).sigma
    v = eta**2 * step_variances(path, t, s)[0]
    return StepGains(kept=(sigma_s**2 - v).clamp_min(0).sqrt(), fresh=v.sqrt())


def reverse_step(
    path: Path,
    x_t: Tensor,
    clean: Tensor,
    t: Tensor,
    s: Tensor,
    *,
    source: Tensor | None = None,
    noise: Tensor | None = None,
    eta: float = 0.0,
    fresh_gain: Tensor | None = None,
    pinned_noise: Tensor | None = None,
) -> Tensor:
    """Move a batch from time ``t`` back to the earlier time ``s`` on its path.

    The mean keeps the noise implied by ``x_t`` and ``clean``; ``eta`` trades a share of it for
    fresh noise so that the marginal at ``s`` stays exact:

        x_s = a_s clean + b_s source + sqrt(sigma_s^2 - v) n_t + sqrt(v) noise
        n_t = (x_t - a_t clean - b_t source) / sigma_t
        v   = eta^2 (sigma_t^2 - (a_t / a_s)^2 sigma_s^2) sigma_s^2 / sigma_t^2

    On the variance-preserving path this is Song, Meng & Ermon (2021), Eq. 12 and 16.

    Args:
        path: The noising process.
        x_t: Current state, (B, C, *S), in the codec's units.
        clean: Estimate of the clean target, same shape.
        t: Current times, (B,), each in (0, 1].
        s: Times to move to, (B,), each in [0, t).
        source: The path's source at t = 1, same shape; only paths with b need it.
        noise: Standard normal, same shape; needed when ``eta > 0``.
        eta: 0 is deterministic (DDIM), 1 the process's own posterior (DDPM).
        fresh_gain: Gain of ``noise`` instead of sqrt(v), broadcastable to the state: a learned
            or analytic standard deviation. The kept noise stays that of ``eta``, because an upper
            variance may exceed sigma_s^2.
        pinned_noise: n_t, same shape, where sigma_t is 0 and the state holds none: a bridge at
            t = 1. Needed there when ``eta < 1``.

    Returns:
        State at ``s``, same shape, dtype and device as ``x_t``.

    Raises:
        ValueError: if ``eta > 0`` and no ``noise`` is given, ``s`` is not before ``t``, or a
            source or a pinned noise is missing.
    """
    if eta > 0 and noise is None:
        raise ValueError("eta > 0 adds fresh noise: give noise of the state's shape")
    if not bool((s < t).all()):
        raise ValueError("a reverse step goes back in time: every s must be below its t")
    if path.uses_source and source is None:
        raise ValueError("this path ends in a source image: give source of the state's shape")
    a_t, b_t, sigma_t = (spread(c, x_t) for c in path.coefficients(t))
    a_s, b_s, _ = (spread(c, x_t) for c in path.coefficients(s))
    kept, fresh = (spread(c, x_t) for c in step_gains(path, t, s, eta))
    implied = x_t - a_t * clean
    state = a_s * clean
    if source is not None:
        implied = implied - b_t * source
        state = state + b_s * source
    implied = implied / sigma_t.clamp_min(torch.finfo(x_t.dtype).tiny)
    pinned = sigma_t <= 0
    if pinned_noise is None and bool((pinned & (kept > 0)).any()):
        raise ValueError("the state holds no noise where sigma is 0: give pinned_noise")
    implied = torch.where(pinned, 0 * x_t if pinned_noise is None else pinned_noise, implied)
    state = state + kept * implied
    if noise is None:
        return state
    return state + (fresh if fresh_gain is None else fresh_gain) * noise
