"""Time laws: their distributions exactly, and an importance law that changes no expectation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from medseg_diff.diffusion.time_laws import LAWS, Importance, late, logit_normal, time_law, uniform

# Midpoints of 4000 cells of (0, 1]: sums over them are integrals over u.
MIDPOINTS = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_uniform_times_are_the_numbers_themselves():
    drawn = uniform(torch.tensor([0.25, 1.0]))
    assert drawn.t.tolist() == [0.25, 1.0]
    assert drawn.weight.tolist() == [1, 1]
    assert drawn.t.dtype == torch.float64


@pytest.mark.parametrize(("mean", "sd"), [(0.0, 1.0), (0.8, 0.5), (-1.0, 2.0)])
def test_the_logit_of_a_logit_normal_time_is_normal(mean: float, sd: float):
    t, weight = logit_normal(mean, sd)(MIDPOINTS)
    logits = torch.log(t / (1 - t))
    torch.testing.assert_close(Normal(numbers(mean), sd).cdf(logits), MIDPOINTS)
    assert bool((weight == 1).all())


def test_a_positive_mean_favours_noise():
    assert float(logit_normal(1.0)(MIDPOINTS).t.mean()) > 0.6
    assert float(logit_normal(-1.0)(MIDPOINTS).t.mean()) < 0.4


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_late_times_have_a_power_as_their_distribution(power: float):
    t, weight = late(power)(MIDPOINTS)
    torch.testing.assert_close(t**power, MIDPOINTS)
    # Density power t^(power - 1), so the mean is power / (power + 1).
    assert float(t.mean()) == pytest.approx(power / (power + 1), abs=1e-4)
    assert bool((weight == 1).all())


@pytest.mark.parametrize("name", LAWS)
def test_times_lie_in_the_half_open_interval(name):
    t, weight = time_law(name)(torch.tensor([1e-30, 1e-8, 0.5, 1.0]))
    assert bool(((t > 0) & (t <= 1)).all())
    assert bool((t[1:] > t[:-1]).all())
    assert float(t[-1]) == 1
    assert weight.shape == t.shape


def test_laws_have_names():
    u = numbers(0.3, 0.9)
    assert time_law("uniform")(u).t.tolist() == u.tolist()
    assert time_law("late", 3.0)(u).t.tolist() == late(3.0)(u).t.tolist()
    importance = time_law("importance", bins=7, history=3)
    assert isinstance(importance, Importance)
    assert importance.losses.shape == (7, 3)
    assert time_law("late")(u).t.tolist() == late(2.0)(u).t.tolist()
    assert time_law("logit_normal", 7.0)(u).t.tolist() == logit_normal()(u).t.tolist()


def test_laws_refuse_what_they_cannot_do():
    with pytest.raises(ValueError, match="unknown"):
        time_law("early")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="power"):
        late(0)
    with pytest.raises(ValueError, match="sd"):
        logit_normal(0, 0)
    with pytest.raises(ValueError, match="bins"):
        Importance(0)
    with pytest.raises(ValueError, match="floor"):
        Importance(4, floor=0)


def trained(losses: list[list[float]], floor: float = 0.001) -> Importance:
    """A law whose bins remember these losses, the first bin's first."""
    law = Importance(len(losses), len(losses[0]), floor)
    for cell, history in enumerate(losses):
        middle = torch.full((len(history),), (cell + 0.5) / len(losses))
        law.update(middle, torch.tensor(history))
    return law


def test_importance_is_uniform_until_every_bin_is_full():
    law = Importance(4, 10)
    for cell in range(4):
        assert not law.warm
        drawn = law(MIDPOINTS)
        torch.testing.assert_close(drawn.t, MIDPOINTS)
        assert bool((drawn.weight == 1).all())
        law.update(torch.full((9,), cell / 4 + 0.1), torch.full((9,), 1.0 + cell))
    for cell in range(4):
        assert not law.warm
        law.update(numbers(cell / 4 + 0.1), numbers(1.0 + cell))
    assert law.warm
    assert not torch.allclose(law(MIDPOINTS).t, MIDPOINTS)


def test_importance_follows_the_root_mean_square():
    law = trained([[0, 2], [1, 1]], floor=0.1)
    p = [0.9 * x / (1 + math.sqrt(2)) + 0.05 for x in (math.sqrt(2), 1)]
    assert law.probabilities().tolist() == pytest.approx(p)
    drawn = law(MIDPOINTS)
    first = drawn.t <= 0.5
    assert float(first.double().mean()) == pytest.approx(p[0], abs=1 / 4000)
    assert drawn.weight[first].tolist() == pytest.approx([1 / (2 * p[0])] * int(first.sum()))
    assert drawn.weight[~first].tolist() == pytest.approx([1 / (2 * p[1])] * int((~first).sum()))


PROFILE = [40.0, 6.0, 0.5, 3.0, 0.01]


def test_importance_is_unbiased_over_its_bins():
    law = trained([[x] for x in PROFILE])
    edges = law.probabilities().cumsum(0)
    p = law.probabilities()
    drawn = law(edges - p / 2)
    assert drawn.t.tolist() == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    assert float((p * drawn.weight * numbers(*PROFILE)).sum()) == pytest.approx(sum(PROFILE) / 5)
    # And that is the point: the weighted loss is nearly the same in every bin.
    weighted = drawn.weight * numbers(*PROFILE)
    assert float(weighted[:4].max() / weighted[:4].min()) < 1.05


def test_importance_is_unbiased_within_its_bins():
    law = trained([[x] for x in PROFILE])
    # Midpoints of 1000 cells within each bin's share of u.
    p = law.probabilities()
    inner = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    starts = p.cumsum(0) - p
    u = (starts[:, None] + p[:, None] * inner).flatten()
    drawn = law(u)
    share = (p[:, None] / 1000).expand(-1, 1000).flatten()
    torch.testing.assert_close((share * drawn.weight).sum(), numbers(1)[0])
    for power in (1, 2):
        mean = float((share * drawn.weight * drawn.t**power).sum())
        assert mean == pytest.approx(1 / (power + 1), abs=1e-6)


def test_importance_keeps_to_the_interval():
    law = trained([[x] for x in PROFILE])
    t = law(numbers(1e-12, 0.5, 1.0)).t
    assert bool((t > 0).all())
    assert float(t[-1]) == 1
    assert bool((law(MIDPOINTS).t.diff() > 0).all())
    torch.testing.assert_close(law(MIDPOINTS).t, law(MIDPOINTS).t, rtol=0, atol=0)


def test_the_oldest_loss_goes_first():
    law = trained([[5, 7], [1, 1]])
    law.update(numbers(0.2), numbers(11))
    assert sorted(law.losses[0].tolist()) == [7, 11]
    law.update(numbers(0.2, 0.2), numbers(13, 17))
    assert sorted(law.losses[0].tolist()) == [13, 17]
    assert law.losses[1].tolist() == [1, 1]


def test_a_loss_goes_to_the_bin_of_its_time():
    law = Importance(4, 1)
    law.update(numbers(1e-9, 0.25, 0.26, 1.0), numbers(1, 2, 3, 4))
    assert law.counts.tolist() == [2, 1, 0, 1]
    assert law.losses.flatten().tolist() == [2, 3, 0, 4]


def test_losses_of_zero_fall_back_to_uniform():
    assert trained([[0], [0]]).probabilities().tolist() == [0.5, 0.5]


def test_importance_resumes_from_its_state():
    law, twin = trained([[5, 7], [1, 2], [0.1, 0.3]]), Importance(3, 2)
    state = law.state()
    twin.load(state)
    law.update(numbers(0.1, 0.9), numbers(3, 4))
    assert twin.probabilities().tolist() != law.probabilities().tolist()
    twin.update(numbers(0.1, 0.9), numbers(3, 4))
    assert twin.probabilities().tolist() == law.probabilities().tolist()
    assert twin.counts.tolist() == law.counts.tolist() == [3, 2, 3]
    assert state["counts"].tolist() == [2, 2, 2], "a kept state does not move"
    with pytest.raises(ValueError, match="same numbers"):
        Importance(4, 2).load(state)


def test_a_loss_that_is_not_finite_is_refused():
    law = Importance(2, 1)
    with pytest.raises(ValueError, match="finite"):
        law.update(numbers(0.2, 0.7), numbers(1, math.nan))
    assert law.counts.tolist() == [0, 0]
