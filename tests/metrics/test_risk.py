"""Risk and doubt: curves by hand, and every order of tied cases as the second implementation."""

from __future__ import annotations

import math
from dataclasses import astuple
from itertools import pairwise, permutations

import numpy as np
import pytest
from scipy import stats

from medseg_diff.metrics.risk import dice_risk, risk_coverage, score_doubt, spearman


def curve_by_orders(risk, doubt) -> np.ndarray:
    """Mean curve over all orders that sort the doubt."""
    curves = []
    for order in permutations(range(len(risk))):
        if all(doubt[a] <= doubt[b] for a, b in pairwise(order)):
            taken = np.array([risk[i] for i in order])
            curves.append(np.cumsum(taken) / np.arange(1, len(risk) + 1))
    return np.mean(curves, axis=0)


def test_curve_by_hand():
    # In the order of doubt the risks are .1, .5, .0.
    curve = risk_coverage([0.5, 0.1, 0.0], [2.0, 1.0, 3.0])
    assert curve.coverage == pytest.approx([1 / 3, 2 / 3, 1])
    assert curve.risk == pytest.approx([0.1, 0.3, 0.2])
    assert curve.optimum == pytest.approx([0, 0.05, 0.2])
    assert curve.aurc == pytest.approx(0.2)
    assert curve.e_aurc == pytest.approx(0.2 - 0.25 / 3)


def test_ties_are_the_mean_of_all_their_orders():
    rng = np.random.default_rng(0)
    for _ in range(12):
        risk = rng.integers(0, 4, 6) / 4
        doubt = rng.integers(0, 3, 6)
        curve = risk_coverage(risk, doubt)
        np.testing.assert_allclose(curve.risk, curve_by_orders(risk, doubt), atol=1e-12)
        np.testing.assert_allclose(curve.optimum, np.cumsum(np.sort(risk)) / np.arange(1, 7))


def test_the_order_of_cases_changes_nothing():
    rng = np.random.default_rng(1)
    risk, doubt = rng.random(40), rng.integers(0, 5, 40)
    shuffled = rng.permutation(40)
    first, second = risk_coverage(risk, doubt), risk_coverage(risk[shuffled], doubt[shuffled])
    np.testing.assert_array_equal(first.risk, second.risk)
    assert (first.aurc, first.e_aurc) == (second.aurc, second.e_aurc)


def test_perfect_useless_and_inverted_doubt():
    risk = np.random.default_rng(2).random(30)
    perfect = risk_coverage(risk, 10 * risk - 3)
    useless = risk_coverage(risk, np.zeros(30))
    inverted = risk_coverage(risk, -risk)
    assert perfect.e_aurc == 0
    assert perfect.risk == pytest.approx(perfect.optimum)
    assert useless.aurc == pytest.approx(risk.mean())
    assert useless.risk == pytest.approx(np.full(30, risk.mean()))
    assert perfect.aurc < useless.aurc < inverted.aurc
    assert inverted.risk[-1] == pytest.approx(risk.mean())
    assert risk_coverage(np.full(3, 0.1), [3, 1, 2]).e_aurc == 0


def test_only_the_ranks_of_doubt_count():
    rng = np.random.default_rng(3)
    risk, doubt = rng.random(25), rng.normal(size=25)
    plain = risk_coverage(risk, doubt)
    assert risk_coverage(risk, np.exp(doubt)).aurc == plain.aurc
    doubt[np.argmax(doubt)] = math.inf
    assert risk_coverage(risk, doubt).aurc == plain.aurc
    assert spearman(risk, doubt) == spearman(risk, stats.rankdata(doubt))
    for seed in range(20):
        risk = np.random.default_rng(seed).random(9)
        curve = risk_coverage(risk, rng.integers(0, 4, 9))
        assert curve.e_aurc >= 0
        assert curve.risk[-1] == pytest.approx(risk.mean())


def test_spearman_is_scipys():
    rng = np.random.default_rng(4)
    for _ in range(10):
        a, b = rng.integers(0, 6, 15), rng.integers(0, 6, 15)
        assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    # Distinct ranks: 1 - 6 sum d^2 / (n (n^2 - 1)).
    assert spearman([1, 2, 3, 4], [10, 30, 20, 40]) == pytest.approx(1 - 6 * 2 / (4 * 15))


def test_spearman_that_does_not_exist_is_blank():
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))
    assert math.isnan(spearman([1, 2, 3], [0, 0, 0]))
    assert math.isnan(spearman([1.0, math.nan], [1.0, 2.0]))
    assert math.isnan(spearman([], []))
    assert spearman([1, math.nan, 2], [4, 5, 6]) == pytest.approx(1)


def test_blank_cases_are_left_out_and_counted():
    risk = np.array([0.5, math.nan, 0.1, 0.2, 0.7, 0.3])
    doubt = np.array([2.0, 1.0, 1.0, math.nan, 4.0, 0.5])
    kept = [0, 2, 4, 5]
    score = score_doubt(risk, doubt)
    assert (score.n, score.left_out) == (4, 2)
    assert score.mean_risk == pytest.approx(0.4)
    assert astuple(score)[2:] == astuple(score_doubt(risk[kept], doubt[kept]))[2:]
    assert score.aurc == pytest.approx(np.mean([0.3, 0.2, 0.3, 0.4]))
    assert score.spearman == pytest.approx(stats.spearmanr(risk[kept], doubt[kept]).statistic)


def test_no_case_gives_blanks():
    score = score_doubt([math.nan], [1.0])
    assert (score.n, score.left_out) == (0, 1)
    assert all(math.isnan(value) for value in astuple(score)[2:])
    assert risk_coverage([], []).risk.size == 0
    one = risk_coverage([0.3], [9.0])
    assert (one.aurc, one.e_aurc, one.coverage.tolist()) == (0.3, 0, [1])


def test_interval_of_spearman_is_scipys_bca():
    rng = np.random.default_rng(5)
    doubt = rng.normal(size=40)
    risk = doubt + rng.normal(size=40)
    score = score_doubt(risk, doubt)
    other = stats.bootstrap(
        (risk, doubt),
        lambda a, b: stats.spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        n_resamples=500,
        rng=np.random.default_rng(8),
    ).confidence_interval
    assert score.low == pytest.approx(other.low, abs=0.06)
    assert score.high == pytest.approx(other.high, abs=0.06)
    assert score.low < score.spearman < score.high


def test_interval_resamples_patients():
    rng = np.random.default_rng(6)
    doubt = rng.normal(size=12)
    risk = doubt + rng.normal(size=12)
    patients = [f"p{i:02d}" for i in range(12)]
    alone = score_doubt(risk, doubt, patients=patients)
    copied = score_doubt(np.tile(risk, 4), np.tile(doubt, 4), patients=patients * 4)
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high))
    as_cases = score_doubt(np.tile(risk, 4), np.tile(doubt, 4))
    assert as_cases.high - as_cases.low < 0.7 * (alone.high - alone.low)
    assert score_doubt(risk, doubt, seed=1).low != alone.low


def test_dice_risk():
    assert dice_risk([1, 0.25]).tolist() == [0, 0.75]
    assert math.isnan(dice_risk([math.nan])[0])
    for bad in (1.01, -0.01):
        with pytest.raises(ValueError, match="Dice"):
            dice_risk([bad])
    with pytest.raises(ValueError, match="one value of each per case"):
        risk_coverage([1, 2], [1])
    with pytest.raises(ValueError, match="one value of each per case"):
        score_doubt([1, 2], [1])
