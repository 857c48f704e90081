"""Time laws: how training times are drawn.

A training step is a function of its number, so a law draws nothing: it maps the uniform numbers
that come with a batch to times, and to the weights that keep a loss's expectation.

Legend: B batch, N bins, H history.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

LawName = Literal["uniform", "logit_normal", "late", "importance"]
LAWS: tuple[LawName, ...] = get_args(LawName)


class Drawn(NamedTuple):
    """Times and the weights of their samples, each (B,), float64.

    Attributes:
        t: In (0, 1], noise at 1.
        weight: 1 where the law is the objective's own; elsewhere 1 over the law's density, so
            that weighted means have the expectation of uniform times.
    """

    t: Tensor
    weight: Tensor


TimeLaw = Callable[[Tensor], Drawn]


def uniform(u: Tensor) -> Drawn:
    """Every time equally often: ``u`` (B,) in (0, 1] itself."""
    t = u.double()
    return Drawn(t, torch.ones_like(t))


def logit_normal(mean: float = 0.0, sd: float = 1.0) -> TimeLaw:
    """Times whose logit is normal: sigmoid(mean + sd Phi^-1(u)) (Esser et al. 2024, Sec. 3.1).

    A positive ``mean`` favours noise (t = 1), a negative one data.
    """
    if sd <= 0:
        raise ValueError(f"sd of the logit-normal law must be above 0, not {sd}")

    def law(u: Tensor) -> Drawn:
        t = torch.sigmoid(mean + sd * torch.special.ndtri(u.double()))
        # Within rounding of 0 a state holds no noise that a network could be asked for.
        t = t.clamp_min(torch.finfo(torch.float32).tiny)
        return Drawn(t, torch.ones_like(t))

    return law


def late(power: float = 2.0) -> TimeLaw:
    """Times u^(1 / power), of density power t^(power - 1): above 1 it favours noisy times.

    Masks survive much noise, so that little is left to learn at early times.
    """
    if power <= 0:
        raise ValueError(f"power of the late law must be above 0, not {power}")

    def law(u: Tensor) -> Drawn:
        t = u.double() ** (1 / power)
        return Drawn(t, torch.ones_like(t))

    return law


def time_law(name: LawName, shape: float = 2.0, bins: int = 100, history: int = 10) -> TimeLaw:
    """The law of this name.

    Args:
        name: One of :data:`LAWS`.
        shape: Power of ``"late"``; no other law reads it.
        bins: Of :class:`Importance`, which alone reads this and ``history``.
        history: See there.

    Raises:
        ValueError: on an unknown name.
    """
    if name == "uniform":
        return uniform
    if name == "logit_normal":
        return logit_normal()
    if name == "late":
        return late(shape)
    if name == "importance":
        return Importance(bins, history)
    raise ValueError(f"unknown time law {name!r}: choose from {', '.join(LAWS)}")


class Importance:
    """Times in proportion to the root mean square of their losses, over N bins of equal width.

    Nichol & Dhariwal (2021), "Reducing Gradient Noise": p_t is proportional to sqrt(E[L_t^2]),
    with the mean over the last values of each, and sampling is uniform until every bin has them.
    The weight 1 / (N p) keeps the expectation, so this serves the variational bound, whose terms
    differ by orders of magnitude. Its choice depends on :meth:`update` alone, never on a generator.

    Args:
        bins: N, cells of (0, 1].
        history: H, losses that each bin remembers.
        floor: Share of uniform sampling that stays, so that no bin starves.
    """

    def __init__(self, bins: int = 100, history: int = 10, floor: float = 0.001) -> None:
        if bins < 1 or history < 1:
            raise ValueError(f"bins and history must be at least 1, not {bins} and {history}")
        if not 0 < floor <= 1:
            raise ValueError(f"floor must lie in (0, 1], not {floor}")
        self.floor = floor
        self.losses = torch.zeros(bins, history, dtype=torch.float64)
        self.counts = torch.zeros(bins, dtype=torch.int64)

    @property
    def warm(self) -> bool:
        """Whether every bin has a full history."""
        return bool((self.counts >= self.losses.shape[1]).all())

    def probabilities(self) -> Tensor:
        """Probability of each bin, (N,), float64."""
        bins = len(self.losses)
        even = torch.full((bins,), 1 / bins, dtype=torch.float64)
        size = self.losses.square().mean(1).sqrt()
        if not self.warm or float(size.sum()) == 0:
            return even
        return (1 - self.floor) * size / size.sum() + self.floor * even

    def __call__(self, u: Tensor) -> Drawn:
        """Times and weights of uniform numbers (B,) in (0, 1]."""
        p = self.probabilities().to(u.device)
        last = len(p) - 1
        edges = p.cumsum(0)
        # Free of rounding at the end, so that u = 1 is t = 1.
        edges = edges / edges[-1]
        at = torch.searchsorted(edges, u.double()).clamp_max(last)
        # What u leaves over inside its bin is uniform again and places the time there.
        inside = (1 - (edges[at] - u.double()) / p[at]).clamp(0, 1)
        t = ((at + inside) / len(p)).clamp_min(torch.finfo(torch.float32).tiny)
        return Drawn(t, 1 / (len(p) * p[at]))

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Remember the unweighted losses (B,) at times ``t`` (B,), the oldest of a bin going.

        Processes that train together must all see the losses of all.

        Raises:
            ValueError: if a loss is not finite: it would poison every later draw.
        """
        if not bool(torch.isfinite(losses).all()):
            raise ValueError("a loss is not finite: leave that batch out of the history")
        bins, history = self.losses.shape
        cells = ((t.detach().double() * bins).ceil().long().cpu() - 1).clamp(0, bins - 1)
        for cell, loss in zip(cells, losses.detach().double().cpu(), strict=True):
            self.losses[cell, self.counts[cell] % history] = loss
            self.counts[cell] += 1

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: ``losses`` (N, H) and ``counts`` (N,)."""
        return {"losses": self.losses.clone(), "counts": self.counts.clone()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up a kept state.

        Raises:
            ValueError: if it has another number of bins or another history.
        """
        if state["losses"].shape != self.losses.shape:
            raise ValueError(
                f"this law has bins x history {tuple(self.losses.shape)}, the state has "
                f"{tuple(state['losses'].shape)}: build it with the same numbers"
            )
        self.losses = state["losses"].double().clone()
        self.counts = state["counts"].long().clone()
