"""Diffusion of categories against enumeration: chains of matrices, Bayes' rule, exact denoisers.

Everything is small enough to be summed over: K classes, T steps, one voxel.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from medseg_diff.diffusion.discrete import (
    Categorical,
    DiscreteProblem,
    divergence,
    draw_one_hot,
    draw_pair,
    walk,
)
from medseg_diff.diffusion.paths import VariancePreserving

T = 6
SCHEDULES = ("cosine", "linear")
PRIORS = {2: [[0.5, 0.5], [0.9, 0.1]], 3: [[1 / 3] * 3, [0.2, 0.7, 0.1]]}
PAIRS = [*itertools.combinations(range(T + 1), 2)]
CASES = [(k, prior, schedule) for k in PRIORS for prior in PRIORS[k] for schedule in SCHEDULES]
of_case = pytest.mark.parametrize(("k", "prior", "schedule"), CASES)


def process(schedule: str) -> Categorical:
    return Categorical(VariancePreserving(schedule), T)


def bars(schedule: str) -> Tensor:
    return VariancePreserving(schedule).alpha_bar(torch.arange(T + 1) / T)


def transitions(prior: Tensor, schedule: str) -> list[Tensor]:
    """Matrices [from, to] of the single steps 1 ... T, written down voxel by voxel."""
    found, bar = [], bars(schedule)
    for index in range(1, T + 1):
        kept = bar[index] / bar[index - 1]
        found.append(kept * torch.eye(len(prior)) + (1 - kept) * prior.expand(len(prior), -1))
    return found


def chain(steps: list[Tensor], start: int, end: int) -> Tensor:
    """q(x_end | x_start) as a matrix, by multiplication."""
    whole = torch.eye(len(steps[0]), dtype=torch.float64)
    for index in range(start, end):
        whole = whole @ steps[index].double()
    return whole


def one_hot(k: int) -> Tensor:
    """Every class once, (K, K, 1), float64."""
    return torch.eye(k, dtype=torch.float64)[..., None]


def at(step: int, batch: int) -> Tensor:
    return torch.full((batch,), step / T, dtype=torch.float64)


@of_case
def test_marginals_are_those_of_the_chain(k: int, prior: list[float], schedule: str) -> None:
    pi = torch.tensor(prior, dtype=torch.float64)
    steps, clean = transitions(pi, schedule), one_hot(k)
    for t in range(1, T + 1):
        found = process(schedule).marginal(clean, pi[None, :, None].expand_as(clean), at(t, k))
        torch.testing.assert_close(found[..., 0], chain(steps, 0, t), rtol=0, atol=1e-6)


@of_case
def test_the_posterior_is_bayes_rule_on_the_chain(
    k: int, prior: list[float], schedule: str
) -> None:
    """q(x_s | x_t, x_0) for every x_0, x_t and s < t, from products of single steps."""
    pi = torch.tensor(prior, dtype=torch.float64)
    steps = transitions(pi, schedule)
    for s, t in PAIRS:
        up, before = chain(steps, s, t), chain(steps, 0, s)
        for x_0, x_t in itertools.product(range(k), range(k)):
            joint = before[x_0] * up[:, x_t]
            found = process(schedule).posterior(
                one_hot(k)[x_t][None], one_hot(k)[x_0][None], pi[None, :, None], at(t, 1), at(s, 1)
            )
            torch.testing.assert_close(found[0, :, 0], joint / joint.sum(), rtol=0, atol=1e-6)


@of_case
def test_the_reverse_step_is_the_mean_of_posteriors(
    k: int, prior: list[float], schedule: str
) -> None:
    """Summed over all masks; the posterior of the mean mask is another distribution."""
    pi = torch.tensor(prior, dtype=torch.float64)[None, :, None]
    own, p = process(schedule), torch.tensor([0.6, 0.3, 0.1][:k], dtype=torch.float64)
    p = (p / p.sum())[None, :, None]
    for t, s in ((T, 2), (3, 1), (4, 3), (3, 0), (1, 0)):
        for x_t in one_hot(k):
            wanted = sum(
                p[0, c, 0] * own.posterior(x_t[None], one_hot(k)[c][None], pi, at(t, 1), at(s, 1))
                for c in range(k)
            )
            found = own.reverse(x_t[None], p, pi, at(t, 1), at(s, 1))
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
            torch.testing.assert_close(found.sum(1), torch.ones(1, 1).double())
            if (t, s) == (3, 1):
                plugged = own.posterior(x_t[None], p, pi, at(t, 1), at(s, 1))
                assert float((plugged - found).abs().max()) > 1e-3


@of_case
def test_ddims_step_keeps_the_marginals(k: int, prior: list[float], schedule: str) -> None:
    pi, own, clean = torch.tensor(prior).double(), process(schedule), one_hot(k)
    full = pi[None, :, None].expand_as(clean)
    for s, t in PAIRS:
        reached = own.marginal(clean, full, at(t, k))[..., 0]
        for x_0 in range(k):
            truth = clean[x_0][None].expand_as(clean)
            moved = own.implicit(clean, truth, full, at(t, k), at(s, k))[..., 0]
            wanted = own.marginal(clean[x_0][None], pi[None, :, None], at(s, 1))[0, :, 0]
            torch.testing.assert_close(reached[x_0] @ moved, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("grid", [(6, 5, 4, 3, 2, 1, 0), (6, 3, 0), (6, 5, 1, 0)])
@of_case
def test_an_exact_denoiser_gives_the_data_back_on_any_grid(
    k: int, prior: list[float], schedule: str, grid: tuple[int, ...]
) -> None:
    """Without a random number: the distribution over states is carried through the walk."""
    pi, own, clean = torch.tensor(prior).double(), process(schedule), one_hot(k)
    full = pi[None, :, None].expand_as(clean)
    data = torch.tensor([0.1, 0.65, 0.25][:k], dtype=torch.float64)
    data = data / data.sum()
    start = own.marginal(clean, full, at(T, k))[..., 0]
    states = data @ start
    for t, s in itertools.pairwise(grid):
        evidence = own.marginal(clean, full, at(t, k))[..., 0]
        p = (data[:, None] * evidence / (data @ evidence)).T[..., None]
        states = states @ own.reverse(clean, p, full, at(t, k), at(s, k))[..., 0]
    torch.testing.assert_close(states, data, rtol=0, atol=1e-6)


def test_the_divergence_is_zero_for_the_truth_and_cross_entropy_for_a_sure_one() -> None:
    p = torch.tensor([[0.2, 0.5, 0.3]]).double()[..., None]
    assert float(divergence(p, p)) == pytest.approx(0, abs=1e-12)
    sure = one_hot(3)[1][None]
    assert float(divergence(sure, p)) == pytest.approx(-float(p[0, 1, 0].log()))
    other = torch.tensor([[0.6, 0.1, 0.3]]).double()[..., None]
    wanted = torch.distributions.kl_divergence(
        torch.distributions.Categorical(p[0, :, 0]), torch.distributions.Categorical(other[0, :, 0])
    )
    assert float(divergence(p, other)) == pytest.approx(float(wanted))


def test_draws_have_the_frequencies_of_their_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 3, 200_000, generator=generator)
    p = torch.tensor([0.05, 0.7, 0.25])[None, :, None].expand_as(noise)
    drawn = draw_one_hot(p, noise)
    assert torch.equal(drawn.sum(1), torch.ones(1, 200_000))
    # Four standard errors of a frequency: 0.0045 at most.
    torch.testing.assert_close(drawn.mean(2)[0], p[0, :, 0], rtol=0, atol=0.0045)
    pair = draw_pair(torch.stack([1 - p[:, 1], p[:, 1]], 1), noise[:, 0])
    assert float(pair[:, 1].mean()) == pytest.approx(0.7, abs=0.0045)
    assert torch.equal(pair.sum(1), torch.ones(1, 200_000))


def test_extreme_noise_still_draws() -> None:
    noise = torch.tensor([9.0, -9.0, 0.0])[None, :, None]
    drawn = draw_one_hot(torch.full_like(noise, 1 / 3), noise)
    assert drawn[0, :, 0].tolist() == [1, 0, 0]


def test_times_and_grids_lie_on_the_steps() -> None:
    own = process("cosine")
    u = torch.linspace(1e-6, 1, 6001, dtype=torch.float64)
    counts = torch.bincount((own.times_of(u) * T).round().long(), minlength=T + 1)
    assert int(counts[0]) == 0
    assert int(counts[1:].max() - counts[1:].min()) <= 2
    assert (own.grid(3) * T).tolist() == [6, 4, 2, 0]
    with pytest.raises(ValueError, match="7 are too many"):
        own.grid(7)
    with pytest.raises(ValueError, match="fall together"):
        own.grid(6, "quadratic")
    with pytest.raises(ValueError, match="at least 1 step"):
        Categorical(VariancePreserving(), 0)


def walked(kind: str, steps: int, fresh: bool = True) -> list[Tensor]:
    noise = torch.randn(1, 3, 50, generator=torch.Generator().manual_seed(5))
    prior = torch.full((1, 3, 50), 1 / 3)
    problem = DiscreteProblem(
        process("cosine"),
        lambda x, t: 0.8 * x + 0.2 / 3,
        prior,
        noise,
        process("cosine").grid(steps),
        draw_one_hot,
        (lambda k: noise.roll(k + 1, 2)) if fresh else None,
    )
    return [step.state for step in walk(problem, kind)]


@pytest.mark.parametrize("kind", ["ancestral", "ddim"])
def test_a_walk_holds_classes_until_its_last_estimate(kind: str) -> None:
    states = walked(kind, 4)
    assert all(torch.equal(s.sum(1), torch.ones(1, 50)) for s in states[:-1])
    assert all(set(s.unique().tolist()) == {0.0, 1.0} for s in states[:-1])
    assert float(states[-1].max()) == pytest.approx(0.8 + 0.2 / 3)
    assert len(walked(kind, 1, fresh=False)) == 1
    with pytest.raises(ValueError, match="give fresh_noise"):
        walked(kind, 2, fresh=False)


@pytest.mark.parametrize("kind", ["ancestral", "ddim"])
def test_a_walk_starts_from_the_prior_and_takes_its_own_steps(kind: str) -> None:
    """What the denoiser is handed, against the same draws by hand."""
    own, noise = (
        process("cosine"),
        torch.randn(1, 3, 50, generator=torch.Generator().manual_seed(5)),
    )
    prior = torch.tensor([0.6, 0.3, 0.1])[None, :, None].expand_as(noise)
    seen: list[Tensor] = []

    def estimate(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x)
        return 0.8 * x + 0.2 / 3

    fresh = noise.flip(2)
    problem = DiscreteProblem(
        own, estimate, prior, noise, own.grid(3), draw_one_hot, lambda k: fresh
    )
    list(walk(problem, kind))
    assert torch.equal(seen[0], draw_one_hot(prior, noise))
    step = {"ancestral": own.reverse, "ddim": own.implicit}[kind]
    p, times = 0.8 * seen[0] + 0.2 / 3, own.grid(3)
    probabilities = step(seen[0], p, prior, times[:1], times[1:2])
    assert torch.equal(seen[1], draw_one_hot(probabilities, fresh))
    assert not torch.equal(seen[1], seen[0])
