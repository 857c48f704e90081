"""STAPLE: the hidden truth and each draw's performance, estimated together by EM.

Warfield, Zou & Wells (2004), "Simultaneous truth and performance level estimation (STAPLE)", TMI
23:903; several labels after Rohlfing, Russakoff & Maurer (2004), TMI 23:983. Draws d_n are taken
to be independent given the truth T, with prior f_c = P(T = c) and confusion matrices
theta_n[c, d] = P(d_n = d | T = c):

    E:  W_c = f_c prod_n theta_n[c, d_n] / sum over classes of the same
    M:  theta_n[c, d] = sum over voxels where d_n = d of W_c / sum over all voxels of W_c

Voxels on which the draws vote alike have the same W, so EM runs on the P patterns of votes that
occur, weighted by how often they do: its cost grows with P N K^2, not with the volume.

The prior is the share of votes in the whole array, so the answer depends on how much background
is in it: fuse the same field of view wherever answers are compared.

Legend: N draws, K classes, P patterns, *S spatial axes. Axes of ``theta`` are (N, truth, vote).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Votes = NDArray[np.bool_] | NDArray[np.integer[Any]]
Float64 = NDArray[np.float64]

# Stands for log 0. Its exponential is exactly 0, yet where every class is ruled out by some draw
# the fewest contradictions win, where log 0 would give 0 / 0.
_LOG_ZERO = -1e4


@dataclass(frozen=True)
class VotingPatterns:
    """The combinations of votes that occur.

    Attributes:
        rows: Votes of the N draws in each pattern, (P, N), in lexicographic order.
        counts: Voxels with each pattern, (P,).
        index: Pattern of each voxel, (*S), in 0 ... P - 1.
    """

    rows: NDArray[np.int32]
    counts: NDArray[np.int64]
    index: NDArray[np.int64]


@dataclass(frozen=True)
class Staple:
    """STAPLE of one structure.

    Attributes:
        probability: Posterior P(T = 1), (*S), float32 in [0, 1].
        sensitivity: P(d_n = 1 | T = 1), (N,); 1 where no voxel is left to T = 1.
        specificity: P(d_n = 0 | T = 0), (N,); 1 where no voxel is left to T = 0.
        prior: P(T = 1) before any vote.
        iterations: Updates of the rates.
        converged: Whether the last update changed none of them by more than the tolerance.
    """

    probability: NDArray[np.float32]
    sensitivity: Float64
    specificity: Float64
    prior: float
    iterations: int
    converged: bool


@dataclass(frozen=True)
class LabelStaple:
    """STAPLE of exclusive labels.

    Attributes:
        probability: Posterior P(T = c), (K, *S), float32 in [0, 1].
        confusion: P(d_n = d | T = c), (N, K, K), axes (draw, truth, vote), rows adding up to 1;
            the identity's row where no voxel is left to T = c.
        prior: P(T = c) before any vote, (K,).
        iterations: Updates of the confusion matrices.
        converged: Whether the last update changed no entry by more than the tolerance.
    """

    probability: NDArray[np.float32]
    confusion: Float64
    prior: Float64
    iterations: int
    converged: bool

    @property
    def labels(self) -> NDArray[np.integer[Any]]:
        """Most probable label, (*S); of equal ones the smallest."""
        result: NDArray[np.integer[Any]] = self.probability.argmax(0)
        return result


def staple_mask(
    draws: Iterable[Votes],
    *,
    prior: float | None = None,
    tolerance: float = 1e-7,
    max_iterations: int = 1000,
) -> Staple:
    """Fuse N masks of one structure.

    EM starts from the share of votes as the posterior and stops as ITK's STAPLEImageFilter does,
    so that the two agree. Masks that are all equal return themselves.

    Args:
        draws: N masks (*S), boolean or 0 and 1; taken one after another, none is kept.
        prior: P(T = 1) in [0, 1]; None takes the draws' mean foreground share.
        tolerance: Largest change of a sensitivity or specificity that counts as none.
        max_iterations: Updates after which to stop anyway, at least 1.

    Raises:
        ValueError: if there is no draw, shapes differ, or a value is out of range.
    """
    patterns = voting_patterns(draws, 2)
    em = _Expectation(patterns, 2)
    if prior is None:
        prior = float((patterns.counts * em.shares[:, 1]).sum() / patterns.counts.sum())
    f = _checked_prior([1 - prior, prior], 2)
    start = _normalised(em.mass(em.shares))
    theta, iterations, converged = em.run(f, start, tolerance, max_iterations)
    posterior = em.posterior(f, theta).astype(np.float32)
    theta = _filled(theta)
    probability = posterior[:, 1][patterns.index]
    return Staple(probability, theta[:, 1, 1], theta[:, 0, 0], float(f[1]), iterations, converged)


def staple_labels(
    draws: Iterable[Votes],
    classes: int,
    *,
    prior: Sequence[float] | None = None,
    tolerance: float = 1e-5,
    max_iterations: int = 1000,
) -> LabelStaple:
    """Fuse N label maps by one confusion matrix per draw.

    Start and stop are those of ITK's MultiLabelSTAPLEImageFilter: the start is P(T = c | d_n = d),
    counted where one label has more votes than any other and T is taken to be that label. Voxels
    whose votes were cast only where votes tie have no start: ITK leaves them undecided, here they
    begin with the prior. Up to ITK 5.4 that filter counts a voxel whose votes tie as a vote for
    the next label (its matrix has no column for ties), so the two agree to the last digits where
    no votes tie, and otherwise start apart.

    Args:
        draws: N label maps (*S), values in 0 ... ``classes`` - 1.
        classes: K, the background included.
        prior: P(T = c), (K,), adding up to 1; None takes the labels' shares among all draws.
        tolerance: Largest change of an entry of a confusion matrix that counts as none.
        max_iterations: Updates after which to stop anyway, at least 1.

    Raises:
        ValueError: if there is no draw, shapes differ, or a value is out of range.
    """
    patterns = voting_patterns(draws, classes)
    em = _Expectation(patterns, classes)
    if prior is None:
        prior = list(patterns.counts @ em.shares / patterns.counts.sum())
    f = _checked_prior(prior, classes)
    theta, iterations, converged = em.run(f, _voted_start(em), tolerance, max_iterations)
    posterior = em.posterior(f, theta).astype(np.float32)
    probability = np.moveaxis(posterior[patterns.index], -1, 0)
    return LabelStaple(np.ascontiguousarray(probability), _filled(theta), f, iterations, converged)


def voting_patterns(draws: Iterable[Votes], classes: int) -> VotingPatterns:
    """Find the patterns of votes, draw by draw; memory holds one index per voxel, not N.

    Raises:
        ValueError: if there is no draw, none has a voxel, shapes differ, or a value is not in
            0 ... ``classes`` - 1.
    """
    index: NDArray[np.int64] | None = None
    shape: tuple[int, ...] = ()
    rows, counts = np.zeros((1, 0), np.int32), np.zeros(1, np.int64)
    for draw in draws:
        if index is None:
            shape, index = draw.shape, np.zeros(draw.size, np.int64)
        _check_draw(draw, shape, classes)
        # Pattern and vote make one number; those that occur, counted, are the new patterns.
        index *= classes
        index += draw.ravel().astype(np.int64)
        counts = np.bincount(index, minlength=len(rows) * classes)
        found = np.flatnonzero(counts)
        rows = np.column_stack([rows[found // classes], found % classes]).astype(np.int32)
        number = np.zeros(len(counts), np.int64)
        number[found] = np.arange(len(found))
        counts, index = counts[found], number[index]
    if index is None:
        raise ValueError("at least one draw is needed")
    return VotingPatterns(rows, counts, index.reshape(shape))


class _Expectation:
    """EM on voting patterns."""

    def __init__(self, patterns: VotingPatterns, classes: int) -> None:
        self.counts = patterns.counts.astype(np.float64)
        #: Whether draw n of pattern p votes d, (K, P, N), as 0 and 1.
        self.votes = np.stack([patterns.rows == d for d in range(classes)]).astype(np.float64)
        #: Share of each class among a pattern's votes, (P, K).
        self.shares: Float64 = self.votes.mean(-1).T

    def posterior(self, prior: Float64, theta: Float64) -> Float64:
        """E step: W, (P, K)."""
        logs = _log(theta).transpose(2, 0, 1)
        evidence = _log(prior) + (self.votes @ logs).sum(0)
        powers = np.exp(evidence - evidence.max(1, keepdims=True))
        result: Float64 = powers / powers.sum(1, keepdims=True)
        return result

    def mass(self, posterior: Float64) -> Float64:
        """Voxels of each truth that each draw votes each way, (N, truth, vote)."""
        weights = self.counts[:, None] * posterior
        result: Float64 = (self.votes.transpose(0, 2, 1) @ weights).transpose(1, 2, 0)
        return result

    def run(
        self, prior: Float64, theta: Float64, tolerance: float, max_iterations: int
    ) -> tuple[Float64, int, bool]:
        """Alternate both steps from ``theta``; the last one, updates made, whether it settled."""
        if max_iterations < 1:
            raise ValueError(f"max_iterations must be at least 1, not {max_iterations}")
        for iteration in range(1, max_iterations + 1):
            before, theta = theta, _normalised(self.mass(self.posterior(prior, theta)))
            if np.abs(theta - before).max() <= tolerance:
                return theta, iteration, True
        return theta, max_iterations, False


def _voted_start(em: _Expectation) -> Float64:
    """P(T = c | d_n = d), (N, c, d), with the vote's winner for T: see the caller."""
    most = em.shares == em.shares.max(1, keepdims=True)
    mass = em.mass(most * (most.sum(1, keepdims=True) == 1))
    total = mass.sum(1, keepdims=True)
    result: Float64 = mass / np.where(total > 0, total, 1)
    return result


def _normalised(mass: Float64) -> Float64:
    """Rates (N, truth, vote) from masses; zeros for a truth that has none."""
    total = mass.sum(2, keepdims=True)
    result: Float64 = mass / np.where(total > 0, total, 1)
    return result


def _filled(theta: Float64) -> Float64:
    """Rates with the identity's row for a truth that has no mass: nothing speaks against a draw."""
    empty = theta.sum(2, keepdims=True) == 0
    result: Float64 = np.where(empty, np.eye(theta.shape[1]), theta)
    return result


def _log(values: Float64) -> Float64:
    result: Float64 = np.full(values.shape, _LOG_ZERO)
    np.log(values, out=result, where=values > 0)
    return result


def _checked_prior(prior: Sequence[float], classes: int) -> Float64:
    f = np.asarray(prior, np.float64)
    if f.shape != (classes,) or not ((f >= 0) & (f <= 1)).all() or abs(f.sum() - 1) > 1e-6:
        raise ValueError(f"the prior must be {classes} numbers in [0, 1] adding up to 1, not {f}")
    return f


def _check_draw(draw: Votes, shape: tuple[int, ...], classes: int) -> None:
    if draw.shape != shape:
        raise ValueError(f"all draws must have the shape {shape}, not {draw.shape}")
    if draw.size == 0:
        raise ValueError(f"a draw must have voxels, not the shape {shape}")
    if draw.dtype != np.bool_ and not np.issubdtype(draw.dtype, np.integer):
        raise ValueError(f"a draw must hold labels or be boolean, not {draw.dtype}")
    if not 0 <= int(draw.min()) <= int(draw.max()) < classes:
        found = f"{draw.min()} ... {draw.max()}"
        raise ValueError(f"votes must lie in 0 ... {classes - 1}, not {found}")
