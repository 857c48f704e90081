"""Statistics against hand calculation, closed forms and simulation."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from medseg_diff.metrics import statistics


def test_summary_of_a_small_sample_by_hand():
    summary = statistics.summarise([1.0, math.nan, 2.0, 6.0])
    assert (summary.n, summary.mean, summary.median) == (3, 3.0, 2.0)
    assert summary.sd == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert 1.0 <= summary.low < 3.0 < summary.high <= 6.0


def test_degenerate_samples_give_blanks_not_warnings():
    one = statistics.summarise([0.7])
    assert (one.n, one.mean, one.median) == (1, 0.7, 0.7)
    assert all(math.isnan(value) for value in (one.sd, one.low, one.high))
    equal = statistics.summarise([0.3] * 5)
    assert (equal.sd, equal.low, equal.high) == (pytest.approx(0, abs=1e-12), 0.3, 0.3)
    none = statistics.summarise([math.nan])
    assert none.n == 0
    assert math.isnan(none.mean)
    two = statistics.summarise([0.0, 1.0])
    assert (two.low, two.high) == (0.0, 1.0)
    mostly = statistics.summarise([0.0] * 9 + [1.0])
    assert 0 <= mostly.low < mostly.mean < mostly.high <= 1


def test_interval_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for sample in rng.normal(5.0, 2.0, size=(200, 25)):
        low, high = statistics.bootstrap_interval(sample, resamples=500)
        hits += low <= 5.0 <= high
    assert 0.88 <= hits / 200 <= 0.98


def test_interval_is_bias_corrected_and_accelerated():
    """On skewed data BCa shifts towards the tail; a second scipy call gives the same ends."""
    sample = np.random.default_rng(1).exponential(size=60)
    low, high = statistics.bootstrap_interval(sample)
    assert high - sample.mean() > sample.mean() - low
    other = stats.bootstrap(
        (sample,), np.mean, n_resamples=2000, method="BCa", rng=np.random.default_rng(9)
    ).confidence_interval
    assert low == pytest.approx(other.low, abs=0.03)
    assert high == pytest.approx(other.high, abs=0.03)


def test_interval_is_seeded():
    sample = np.random.default_rng(2).random(20)
    first = statistics.bootstrap_interval(sample, seed=4)
    assert statistics.bootstrap_interval(sample, seed=4) == first
    assert statistics.bootstrap_interval(sample, seed=5) != first


def test_copies_of_a_patient_add_no_certainty():
    values = np.random.default_rng(3).random(15)
    patients = [f"p{i:02d}" for i in range(15)]
    alone = statistics.bootstrap_interval(values, patients=patients)
    copied = statistics.bootstrap_interval(np.tile(values, 8), patients=patients * 8)
    assert copied == pytest.approx(alone)
    as_cases = statistics.bootstrap_interval(np.tile(values, 8))
    assert as_cases[1] - as_cases[0] < 0.6 * (alone[1] - alone[0])


def test_one_patient_has_no_interval_however_many_scans():
    low, high = statistics.bootstrap_interval([0.1, 0.5, 0.9], patients=["p", "p", "p"])
    assert math.isnan(low)
    assert math.isnan(high)
    with pytest.raises(ValueError, match="2 patients for 3 values"):
        statistics.bootstrap_interval([0.1, 0.5, 0.9], patients=["p", "q"])


def test_wilcoxon_equals_enumeration_of_signs():
    differences = np.array([0.5, -1.5, 2.5, 3.5, -0.25, 4.5, 6.0])
    ranks = stats.rankdata(np.abs(differences))
    observed = ranks[differences > 0].sum()
    sums = np.array([np.dot(ranks, signs) for signs in product([0, 1], repeat=7)])
    centre = ranks.sum() / 2
    exact = np.mean(np.abs(sums - centre) >= abs(observed - centre))
    assert statistics.wilcoxon_p(differences) == pytest.approx(exact)
    with_zeros = [0.0, *differences, 0.0, math.nan]
    assert statistics.wilcoxon_p(with_zeros) == pytest.approx(exact)


@pytest.mark.parametrize("n", [1, 2, 4, 6])
def test_smallest_p_is_reached_when_all_agree(n):
    assert statistics.wilcoxon_p(np.arange(1.0, n + 1)) == pytest.approx(statistics.smallest_p(n))
    assert statistics.smallest_p(4) == 0.125
    assert statistics.wilcoxon_p(np.zeros(n)) == 1


def test_cases_needed_has_the_power_it_promises():
    assert statistics.cases_needed(0.01, 0.05) == 199
    for difference, sd, power in [(0.01, 0.05, 0.8), (0.3, 1.0, 0.9), (0.5, 1.0, 0.8)]:
        n = statistics.cases_needed(difference, sd, power=power)
        shift = difference / sd * math.sqrt(n)
        critical = stats.t.ppf(0.975, n - 1)
        assert stats.nct.sf(critical, n - 1, shift) == pytest.approx(power, abs=0.01)


def test_holm_by_hand():
    # Sorted: .01*4, .02*3, .03*2 (raised to .06), .2*1.
    assert statistics.holm([0.03, 0.01, 0.2, 0.02]) == pytest.approx([0.06, 0.04, 0.2, 0.06])
    assert statistics.holm([0.6, 0.7]) == [1.0, 1.0]
    assert statistics.holm([]) == []
    adjusted = statistics.holm([0.01, math.nan, 0.04])
    assert adjusted[::2] == pytest.approx([0.02, 0.04])
    assert math.isnan(adjusted[1])


def test_comparison_is_paired():
    rng = np.random.default_rng(5)
    difficulty = rng.normal(0, 10, 30)
    shift = rng.normal(1.0, 0.2, 30)
    result = statistics.compare(difficulty + shift, difficulty)
    assert result.n == result.units == 30
    assert result.difference == pytest.approx(shift.mean())
    assert result.effect_size == pytest.approx(shift.mean() / shift.std(ddof=1))
    assert 0.85 < result.low < result.difference < result.high < 1.1
    assert result.p < 1e-6
    reverse = statistics.compare(difficulty, difficulty + shift)
    assert (reverse.difference, reverse.p) == (pytest.approx(-result.difference), result.p)


def test_comparison_leaves_out_half_pairs_and_counts_patients():
    a = [1.0, 2.0, math.nan, 4.0, 6.0]
    b = [0.0, 1.0, 1.0, math.nan, 3.0]
    result = statistics.compare(a, b, patients=["x", "x", "y", "z", "w"])
    assert (result.n, result.units) == (3, 2)
    assert result.difference == pytest.approx((1 + 1 + 3) / 3)
    assert result.p == statistics.smallest_p(2)
    with pytest.raises(ValueError, match="differ in length"):
        statistics.compare([1.0], [1.0, 2.0])


def verdict_of(a, b, **keywords):
    result = statistics.compare(a, b)
    p_adjusted = keywords.pop("p_adjusted", result.p)
    return statistics.verdict("A", "B", result, p_adjusted=p_adjusted, **keywords)


def test_verdict_names_the_better_side():
    low = np.linspace(0.1, 0.3, 20)
    high = low + np.linspace(0.4, 0.6, 20)
    assert verdict_of(high, low).startswith("A is better than B (mean difference +0.5")
    assert verdict_of(low, high).startswith("A is worse than B (mean difference -0.5")
    assert verdict_of(low, high, higher_is_better=False).startswith("A is better than B")
    assert verdict_of(high, low, higher_is_better=False).startswith("A is worse than B")
    assert "n = 20" in verdict_of(high, low, unit=" mm")
    assert "0.5 mm [" in verdict_of(high, low, unit=" mm")


def test_verdict_claims_nothing_without_evidence():
    rng = np.random.default_rng(6)
    a, b = rng.random(20), rng.random(20)
    assert verdict_of(a, b).startswith("No evidence of a difference between A and B")
    assert "too small" not in verdict_of(a, b)
    clear = np.linspace(0.4, 0.6, 20)
    assert verdict_of(clear, 0 * clear, p_adjusted=0.2).startswith("No evidence")
    # A small p whose interval holds zero is no claim either.
    torn = statistics.Comparison(20, 20, 0.1, -0.1, 0.3, 0.2, 0.01)
    assert statistics.verdict("A", "B", torn, p_adjusted=0.01).startswith("No evidence")


def test_verdict_says_when_n_is_too_small():
    sentence = verdict_of([0.9, 0.8, 0.7, 0.95], [0.1, 0.2, 0.3, 0.4])
    assert sentence.startswith("No evidence of a difference")
    assert "n = 4 is too small for any evidence: the smallest p it can give is 0.125" in sentence
    assert verdict_of([math.nan], [1.0]) == "No case could be compared between A and B."


def test_case_means_average_over_structures_and_leave_out_blanks():
    blank = dict.fromkeys(statistics.METRICS, math.nan)
    table = pd.DataFrame(
        [
            {"case": "b", "structure": "x", **blank, "dice": 0.2, "hd95_mm": 4.0},
            {"case": "b", "structure": "y", **blank, "dice": 0.6},
            {"case": "a", "structure": "x", **blank, "dice": 1.0},
        ]
    )
    means = statistics.case_means(table)
    assert list(means.index) == ["a", "b"]
    assert list(means["dice"]) == pytest.approx([1.0, 0.4])
    assert means.loc["b", "hd95_mm"] == 4.0
    assert math.isnan(means.loc["a", "nsd"])


def test_summary_resamples_patients():
    values = np.random.default_rng(3).random(12)
    patients = ["p", "q", "r"] * 4
    summary = statistics.summarise(values, patients=patients)
    assert (summary.low, summary.high) == statistics.bootstrap_interval(values, patients=patients)
    assert (summary.low, summary.high) != statistics.bootstrap_interval(values)


def test_wilcoxon_with_ties_is_exact_too():
    differences = np.array([0.5, 0.5, -0.5, 1.0, 1.0, 2.0])
    ranks = stats.rankdata(np.abs(differences))
    observed, centre = ranks[differences > 0].sum(), ranks.sum() / 2
    sums = np.array([np.dot(ranks, signs) for signs in product([0, 1], repeat=6)])
    exact = np.mean(np.abs(sums - centre) >= abs(observed - centre))
    assert statistics.wilcoxon_p(differences) == pytest.approx(exact)


def test_bca_of_any_statistic_is_scipys_for_the_mean():
    sample = np.random.default_rng(1).exponential(size=60)
    low, high = statistics.bca_interval(np.mean, sample)
    assert (low, high) == pytest.approx(statistics.bootstrap_interval(sample), abs=0.03)
    assert high - sample.mean() > 1.15 * (sample.mean() - low)
    wide = statistics.bca_interval(np.mean, sample, confidence=0.99)
    assert wide[0] < low < high < wide[1]
    again = statistics.bca_interval(np.mean, sample)
    assert again == (low, high)
    assert statistics.bca_interval(np.mean, sample, seed=1) != again


def test_bca_ends_by_hand():
    """Of 0 ... 100, observed 60: z0 = Phi^-1(60.5 / 101).

    Left-out values 0, 0, 3 have the mean 1: sum d^3 = 1 + 1 - 8, sum d^2 = 6, a = -1 / 6^1.5.
    """
    z0, a = stats.norm.ppf(60.5 / 101), -1 / 6**1.5
    wanted = [
        100 * stats.norm.cdf(z0 + (z0 + z) / (1 - a * (z0 + z))) for z in stats.norm.ppf([0.1, 0.9])
    ]
    drawn = np.random.default_rng(0).permutation(np.append(np.arange(101.0), math.nan))
    found = statistics._bca_ends(
        observed=60.0, drawn=drawn, without_one=np.array([0.0, 0.0, 3.0, math.nan]), confidence=0.8
    )
    assert found == pytest.approx(wanted)


def test_bca_draws_patients_with_their_cases_and_drops_blank_cases():
    a = np.array([1.0, 2.0, math.nan, 4.0, 5.0, 6.0, math.inf])
    b = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, math.nan])
    patients = ["x", "x", "x", "y", "y", "z", "w"]
    seen = []

    def spy(first, second):
        assert (first == second).all()
        seen.append(tuple(first))
        return float(first.mean())

    low, high = statistics.bca_interval(spy, a, b, patients=patients, resamples=50)
    assert seen[0] == (1, 2, 4, 5, 6)
    assert set(seen[-3:]) == {(4, 5, 6), (1, 2, 6), (1, 2, 4, 5)}
    assert all(row.count(1.0) == row.count(2.0) for row in seen)
    assert low < high
    with pytest.raises(ValueError, match="2 patients for 7 values"):
        statistics.bca_interval(spy, a, b, patients=["x", "y"])


def test_bca_of_what_does_not_exist_is_blank():
    def never(sample):
        return math.nan

    assert all(math.isnan(v) for v in statistics.bca_interval(never, [1.0, 2.0, 3.0]))
    assert all(math.isnan(v) for v in statistics.bca_interval(np.mean, [1.0, 2.0]))
    assert statistics.bca_interval(np.mean, [0.3, 0.3, 0.3]) == pytest.approx((0.3, 0.3))


@pytest.mark.parametrize(("blank", "known"), [(10, False), (9, True)])
def test_bca_takes_more_than_half_of_the_resamples(blank: int, known: bool):
    drawn = np.append(np.arange(20.0 - blank), np.full(blank, math.nan))
    ends = statistics._bca_ends(
        observed=5.0, drawn=drawn, without_one=np.array([4.0, 5.0, 6.0]), confidence=0.95
    )
    assert [math.isfinite(end) for end in ends] == [known, known]


def test_a_claim_from_fewer_than_three_seeds_says_so():
    clear = np.linspace(0.4, 0.6, 20)
    assert "Training seeds: 2; the claim takes 3 or more." in verdict_of(clear, 0 * clear, seeds=2)
    assert "seeds" not in verdict_of(clear, 0 * clear, seeds=3)
    assert "seeds" not in verdict_of(clear, 0 * clear)
    assert "seeds" not in verdict_of(clear, clear, seeds=1)
