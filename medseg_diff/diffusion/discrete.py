"""Diffusion of categories: a mask is noised by drawing classes anew, not by adding numbers.

    q(x_t | x_0) = Cat(bar_t x_0 + (1 - bar_t) prior),      bar_t = alpha-bar, falling with t

x is one-hot, and the prior a distribution at every voxel: uniform in multinomial diffusion
(Hoogeboom et al. 2021, arXiv 2102.05379) and CCDM (arXiv 2303.08888), of which Bernoulli diffusion
(BerDiff, arXiv 2304.04429) is the case of two categories, or a segmenter's (HiDiff, arXiv
2407.03548). The process does not fit ``paths.py``: its state is no sum of clean and noise.

A step from s up to t is of the same form with bar_t / bar_s, so Bayes' rule gives the posterior
between any two times, and a short grid needs no table of its own:

    q(x_s | x_t, x_0)  is proportional to  q(x_t | x_s) q(x_s | x_0)

Legend: B batch, K categories (always axis 1), * any further axes, T steps of the process.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from medseg_diff.diffusion.grids import GridName, time_grid
from medseg_diff.diffusion.paths import VariancePreserving, spread
from medseg_diff.diffusion.samplers.base import FreshNoise, Step

Draw = Callable[[Tensor, Tensor], Tensor]
WalkName = Literal["ancestral", "ddim"]


class Categorical:
    """The process at T times k / T, k = 1 ... T.

    Args:
        schedule: Gives alpha-bar.
        steps: T.
    """

    def __init__(self, schedule: VariancePreserving, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"a process has at least 1 step, not {steps}")
        self.schedule, self.steps = schedule, steps

    def bar(self, t: Tensor, like: Tensor) -> Tensor:
        """Share of the clean mask at times (B,), shaped to multiply ``like``."""
        return spread(self.schedule.alpha_bar(t), like)

    def times_of(self, u: Tensor) -> Tensor:
        """Numbers (B,) in (0, 1] -> the time k / T at or above each, every k equally often."""
        return (u.double() * self.steps).ceil().clamp(1, self.steps) / self.steps

    def grid(self, steps: int, kind: GridName = "uniform") -> Tensor:
        """Falling times 1 = t_0 > ... > t_steps = 0 among k / T, float64, (steps + 1,).

        Raises:
            ValueError: on more steps than T, or a grid that leaves fewer times.
        """
        if steps > self.steps:
            raise ValueError(f"the process has {self.steps} steps: {steps} are too many")
        times = (time_grid(self.schedule, steps, kind) * self.steps).round() / self.steps
        if not bool((times.diff() < 0).all()):
            raise ValueError(f"{steps} steps on a {kind} grid fall together: take fewer")
        return times

    def marginal(self, clean: Tensor, prior: Tensor, t: Tensor) -> Tensor:
        """q(x_t | x_0), (B, K, *), from one-hot ``clean`` and a prior of the same shape."""
        bar = self.bar(t, clean)
        return bar * clean + (1 - bar) * prior

    def posterior(self, x_t: Tensor, clean: Tensor, prior: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """q(x_s | x_t, x_0), (B, K, *), by Bayes' rule.

        Args:
            x_t: One-hot state, (B, K, *).
            clean: One-hot mask, same shape; all zeros, where it is unknown, count for the prior.
            prior: Same shape.
            t: Times (B,).
            s: Earlier times (B,).
        """
        joint = self._likelihood(x_t, prior, t, s) * self.marginal(clean, prior, s)
        return joint / joint.sum(1, keepdim=True).clamp_min(torch.finfo(joint.dtype).tiny)

    def reverse(self, x_t: Tensor, p: Tensor, prior: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """p(x_s | x_t): the posterior's mean over masks with probabilities ``p``, (B, K, *).

        That is the sum over k of p_k q(x_s | x_t, x_0 = k), and not the posterior of ``p`` put in
        the place of a mask, whose normaliser would be another. CCDM samples so.
        """
        bar_t, bar_s = self.bar(t, p), self.bar(s, p)
        own = (x_t * prior).sum(1, keepdim=True)
        # q(x_t | x_0 = k) for every k at once.
        evidence = bar_t * x_t + (1 - bar_t) * own
        share = p / evidence.clamp_min(torch.finfo(p.dtype).tiny)
        mixed = bar_s * share + (1 - bar_s) * prior * share.sum(1, keepdim=True)
        return self._likelihood(x_t, prior, t, s) * mixed

    def implicit(self, x_t: Tensor, p: Tensor, prior: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """DDIM's step for categories (Song, Meng & Ermon 2021, App. A), least random, (B, K, *).

        The state is kept with probability (1 - bar_s) / (1 - bar_t), else drawn from ``p``; with
        the true mask in place of ``p`` the marginal at s is exact, for any prior.
        """
        bar_t, bar_s = self.bar(t, p), self.bar(s, p)
        kept = (1 - bar_s) / (1 - bar_t)
        return kept * x_t + (1 - kept) * p

    def _likelihood(self, x_t: Tensor, prior: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """q(x_t | x_s) for every x_s."""
        step = self.bar(t, x_t) / self.bar(s, x_t)
        return step * x_t + (1 - step) * (x_t * prior).sum(1, keepdim=True)


def divergence(true: Tensor, estimate: Tensor) -> Tensor:
    """KL(true || estimate) over axis 1 in nats, (B, 1, *); of a sure truth, the cross-entropy."""
    floor = torch.finfo(estimate.dtype).tiny
    terms = torch.special.xlogy(true, true) - true * estimate.clamp_min(floor).log()
    return terms.sum(1, keepdim=True)


def draw_one_hot(probabilities: Tensor, noise: Tensor) -> Tensor:
    """A category a voxel, one-hot (B, K, *): Gumbel-max, its uniforms from standard normals.

    Args:
        probabilities: (B, K, *), up to a factor.
        noise: Standard normal, same shape.
    """
    gumbel = -torch.log(-torch.special.log_ndtr(noise))
    chosen = (probabilities.log() + gumbel).argmax(1, keepdim=True)
    return torch.zeros_like(probabilities).scatter_(1, chosen, 1.0)


def draw_pair(probabilities: Tensor, noise: Tensor) -> Tensor:
    """Absent or present, one-hot (B, 2, *), from one standard normal a voxel, (B, *)."""
    present = (torch.special.ndtr(noise) < probabilities[:, 1]).to(probabilities)
    return torch.stack([1 - present, present], 1)


@dataclass(frozen=True)
class DiscreteProblem:
    """A trajectory to walk.

    Attributes:
        process: The noising process.
        estimate: ``(x_t, t) -> p(x_0 | x_t)``, both (B, K, *), t (B,).
        prior: What the walk starts from, (B, K, *).
        noise: Standard normals of the start, as ``draw`` takes them.
        times: Falling times from 1 to 0, see :meth:`Categorical.grid`.
        draw: ``(probabilities, normals) -> one-hot``.
        fresh_noise: ``index -> standard normal like noise``.
    """

    process: Categorical
    estimate: Callable[[Tensor, Tensor], Tensor]
    prior: Tensor
    noise: Tensor
    times: Tensor
    draw: Draw
    fresh_noise: FreshNoise | None = None


def walk(problem: DiscreteProblem, kind: WalkName = "ancestral") -> Iterator[Step]:
    """Draw a mask step by step, from the prior to an estimate of its probabilities.

    The last step draws nothing: it lands on p(x_0 | x_t), whose largest is the mask.

    Raises:
        ValueError: if more than one step is asked for without fresh noise.
    """
    process, prior = problem.process, problem.prior
    step = process.reverse if kind == "ancestral" else process.implicit
    x = problem.draw(prior, problem.noise)
    for index, (t, s) in enumerate(itertools.pairwise(problem.times)):
        now, then = (time.to(x.device).expand(len(x)) for time in (t, s))
        p = problem.estimate(x, now)
        if float(s) == 0:
            x = p
        elif problem.fresh_noise is None:
            raise ValueError("every step draws a state: give fresh_noise")
        else:
            x = problem.draw(step(x, p, prior, now, then), problem.fresh_noise(index))
        yield Step(index, float(t), float(s), p, x)
