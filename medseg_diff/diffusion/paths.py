"""Noising paths: x_t = a_t * clean + b_t * source + sigma_t * noise, t in [0, 1], clean at t = 0.

A path is three coefficients. One reverse step serves every path, sampler and eta.

Legend: B batch, C channels, *S spatial axes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

# Keeps alpha-bar of the cosine schedule away from zero at t = 1, where a noise output could not
# give the clean estimate back. Nichol & Dhariwal (2021) clip beta at 0.999 for the same reason.
MIN_ALPHA_BAR = 1e-5


class Coefficients(NamedTuple):
    """The three gains of a path at some times, each of shape (B,), float64."""

    a: Tensor
    b: Tensor
    sigma: Tensor


class Path(ABC):
    """A noising process, known by its coefficients alone."""

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

    def snap(self, t: Tensor) -> Tensor:
        """Nearest times this path is defined at; the identity for continuous paths."""
        return t


class VariancePreserving(Path):
    """DDPM's process: a = scale * sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar).

    Args:
        schedule: ``"linear"`` is the continuous limit of DDPM's betas 1e-4 ... 0.02 over 1000
            steps, alpha_bar = exp(-(0.1 t + 9.95 t^2)) (Song et al. 2021, Eq. 33);
            ``"cosine"`` is Nichol & Dhariwal (2021), Eq. 17.
        input_scale: Gain on the clean state in (0, 1]. Below 1 the same time carries less
            signal, a harder schedule that suits masks, whose one-hot states survive noise.
    """

    def __init__(
        self, schedule: Literal["linear", "cosine"] = "linear", input_scale: float = 1.0
    ) -> None:
        if schedule not in ("linear", "cosine"):
            raise ValueError(f"schedule must be 'linear' or 'cosine', not {schedule!r}")
        if not 0 < input_scale <= 1:
            raise ValueError(f"input_scale must lie in (0, 1], not {input_scale}")
        self.schedule = schedule
        self.input_scale = input_scale

    def alpha_bar(self, t: Tensor) -> Tensor:
        """Share of signal variance at ``t``, float64, 1 at t = 0."""
        t = t.double()
        if self.schedule == "linear":
            return torch.exp(-(0.1 * t + 0.5 * 19.9 * t**2))
        offset = 0.008
        angle = (t + offset) / (1 + offset) * (math.pi / 2)
        start = math.cos(offset / (1 + offset) * (math.pi / 2)) ** 2
        return (torch.cos(angle) ** 2 / start).clamp(MIN_ALPHA_BAR, 1.0)

    def coefficients(self, t: Tensor) -> Coefficients:
        """See :meth:`Path.coefficients`."""
        alpha_bar = self.alpha_bar(t)
        return Coefficients(
            a=self.input_scale * alpha_bar.sqrt(),
            b=torch.zeros_like(alpha_bar),
            sigma=(1 - alpha_bar).clamp_min(0).sqrt(),
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

    def __init__(self, betas: Sequence[float], input_scale: float = 1.0) -> None:
        super().__init__("linear", input_scale)
        table = torch.as_tensor(betas, dtype=torch.float64)
        if table.ndim != 1 or len(table) == 0 or not bool(((table > 0) & (table < 1)).all()):
            raise ValueError("betas must be a non-empty 1-D sequence of values in (0, 1)")
        self.knots = torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - table, 0)])

    @property
    def steps(self) -> int:
        """Number of betas, T."""
        return len(self.knots) - 1

    def snap(self, t: Tensor) -> Tensor:
        """Nearest knots k / T."""
        return (t.double() * self.steps).round() / self.steps

    def alpha_bar(self, t: Tensor) -> Tensor:
        """Cumulative product of 1 - beta at knot t * T."""
        position = t.double() * self.steps
        index = position.round()
        if bool(((position - index).abs() > 1e-6).any()):
            raise ValueError("a beta table is only defined at t = k / T; snap the times first")
        return self.knots.to(t.device)[index.long()]


def spread(coefficient: Tensor, like: Tensor) -> Tensor:
    """Per-sample gains (B,) as (B, 1, ...) in the dtype and on the device of ``like``."""
    return coefficient.to(like).reshape(-1, *([1] * (like.ndim - 1)))


class StepGains(NamedTuple):
    """Gains of one reverse step, each (B,), float64: see :func:`reverse_step`."""

    kept: Tensor
    fresh: Tensor


def step_gains(path: Path, t: Tensor, s: Tensor, eta: float) -> StepGains:
    """Gains of the kept and the fresh noise when stepping from ``t`` to ``s`` < ``t``."""
    a_t, _, sigma_t = path.coefficients(t)
    a_s, _, sigma_s = path.coefficients(s)
    # A bridge has sigma_t = 0 at t = 1; its first posterior step is then wholly fresh noise.
    ratio = torch.where(sigma_t > 0, sigma_s / sigma_t.clamp_min(1e-300), torch.ones_like(sigma_t))
    bridged = sigma_t**2 - (a_t / a_s) ** 2 * sigma_s**2
    v = eta**2 * torch.where(sigma_t > 0, bridged.clamp_min(0) * ratio**2, sigma_s**2)
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

    Returns:
        State at ``s``, same shape, dtype and device as ``x_t``.

    Raises:
        ValueError: if ``eta > 0`` and no ``noise`` is given, or ``s`` is not before ``t``.
    """
    if eta > 0 and noise is None:
        raise ValueError("eta > 0 adds fresh noise: give noise of the state's shape")
    if not bool((s < t).all()):
        raise ValueError("a reverse step goes back in time: every s must be below its t")
    a_t, b_t, sigma_t = (spread(c, x_t) for c in path.coefficients(t))
    a_s, b_s, _ = (spread(c, x_t) for c in path.coefficients(s))
    kept, fresh = (spread(c, x_t) for c in step_gains(path, t, s, eta))
    implied = x_t - a_t * clean
    state = a_s * clean
    if source is not None:
        implied = implied - b_t * source
        state = state + b_s * source
    tiny = torch.finfo(x_t.dtype).tiny
    state = state + kept * implied / sigma_t.clamp_min(tiny)
    return state if noise is None else state + fresh * noise
