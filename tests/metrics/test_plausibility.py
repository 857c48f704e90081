"""Plausibility of sampled masks: hand-made cases, brute force over pairs and matchings."""

from __future__ import annotations

import math
from dataclasses import astuple
from itertools import permutations, product

import numpy as np
import pytest
from scipy.optimize import linprog

from medseg_diff.metrics import plausibility
from medseg_diff.metrics.plausibility import score_samples, score_structures


def masks(*rows: str) -> np.ndarray:
    return np.array([[c == "1" for c in row] for row in rows])


def stacks(seed: int, n: int, r: int, shape=(4, 5), density=0.4):
    """Random stacks; about one mask in four is empty."""
    rng = np.random.default_rng(seed)
    found = rng.random((n + r, *shape)) < density
    found[rng.random(n + r) < 0.25] = False
    return found[:n], found[n:]


def iou(a: np.ndarray, b: np.ndarray) -> float:
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0


def dice(a: np.ndarray, b: np.ndarray) -> float:
    total = a.sum() + b.sum()
    return float(2 * (a & b).sum() / total) if total else 1.0


def assert_same(found, wanted) -> None:
    """Equal, NaN being NaN."""
    np.testing.assert_equal(astuple(found), astuple(wanted))


def mean_distance(first, second, *, leave_out_equal: bool = False) -> float:
    pairs = product(range(len(first)), range(len(second)))
    kept = [1 - iou(first[i], second[j]) for i, j in pairs if not (leave_out_equal and i == j)]
    return sum(kept) / len(kept)


@pytest.mark.parametrize(("n", "r"), [(1, 1), (4, 4), (5, 3)])
def test_all_equal_is_perfect(n: int, r: int):
    one = np.random.default_rng(0).random((3, 4, 5)) < 0.5
    score = score_samples(np.stack([one] * n), np.stack([one] * r))
    assert (score.samples, score.references, score.all_empty) == (n, r, False)
    assert score.ged2 == 0
    assert score.hm_iou == 1
    assert score.best_dice_references == score.best_dice_samples == 1
    if n > 1 and r > 1:
        assert (score.ged2_unbiased, score.sample_diversity, score.reference_diversity) == (0, 0, 0)
    assert math.isnan(score.diversity_ratio)


def test_one_sample_and_one_reference_by_hand():
    score = score_samples(masks("1110"), masks("0111"))
    assert score.ged2 == pytest.approx(2 * (1 - 2 / 4))
    assert score.hm_iou == pytest.approx(0.5)
    assert score.best_dice_references == score.best_dice_samples == pytest.approx(4 / 6)
    blank = (score.ged2_unbiased, score.sample_diversity, score.reference_diversity)
    assert all(math.isnan(value) for value in blank)


def test_two_samples_and_two_references_by_hand():
    # d(S, S') = 1, d(Y, Y') = 1/2; d(S, Y) rows: (0, 1/2) and (1, 1).
    score = score_samples(masks("1100", "0011"), masks("1100", "1000"))
    cross = (0 + 0.5 + 1 + 1) / 4
    assert score.ged2 == pytest.approx(2 * cross - 1 / 2 - 0.5 / 2)
    assert score.ged2_unbiased == pytest.approx(2 * cross - 1 - 0.5)
    assert score.hm_iou == pytest.approx((1 + 0) / 2)
    assert score.best_dice_references == pytest.approx((1 + 2 / 3) / 2)
    assert score.best_dice_samples == pytest.approx((1 + 0) / 2)
    assert (score.sample_diversity, score.reference_diversity) == pytest.approx((1, 0.5))
    assert score.diversity_ratio == pytest.approx(2)


def test_disjoint_masks_are_as_far_as_can_be():
    score = score_samples(masks("1000", "1000"), masks("0001"))
    assert (score.ged2, score.hm_iou, score.best_dice_references) == (2, 0, 0)


def test_two_empty_masks_are_equal_and_one_is_not():
    nothing = score_samples(masks("0000", "0000"), masks("0000"))
    assert (nothing.all_empty, nothing.ged2, nothing.hm_iou) == (True, 0, 1)
    assert nothing.best_dice_references == nothing.best_dice_samples == 1
    half = score_samples(masks("0000", "1000"), masks("0000"))
    assert half.all_empty is False
    assert score_samples(masks("0000"), masks("1000")).all_empty is False
    assert half.ged2 == pytest.approx(2 * 0.5 - 0.5)
    assert half.hm_iou == pytest.approx(0.5)
    assert half.best_dice_references == 1
    assert half.best_dice_samples == pytest.approx(0.5)


@pytest.mark.parametrize(("n", "r"), [(2, 2), (4, 4), (5, 3), (7, 2)])
def test_against_brute_force_over_pairs(n: int, r: int):
    for seed in range(8):
        s, y = stacks(seed, n, r)
        score = score_samples(s, y)
        cross = mean_distance(s, y)
        v = 2 * cross - mean_distance(s, s) - mean_distance(y, y)
        apart = [mean_distance(m, m, leave_out_equal=True) for m in (s, y)]
        assert score.ged2 == pytest.approx(v, abs=1e-12)
        assert score.ged2_unbiased == pytest.approx(2 * cross - sum(apart), abs=1e-12)
        assert [score.sample_diversity, score.reference_diversity] == pytest.approx(apart)
        best = [max(dice(a, b) for a in s) for b in y]
        assert score.best_dice_references == pytest.approx(sum(best) / r)
        best = [max(dice(a, b) for b in y) for a in s]
        assert score.best_dice_samples == pytest.approx(sum(best) / n)


@pytest.mark.parametrize(("n", "r"), [(1, 3), (2, 3), (3, 2), (4, 2), (3, 3)])
def test_matching_is_the_best_of_all_permutations(n: int, r: int):
    common = math.lcm(n, r)
    for seed in range(3):
        s, y = stacks(seed, n, r)
        table = [[iou(s[i % n], y[j % r]) for j in range(common)] for i in range(common)]
        sums = (sum(table[i][j] for i, j in enumerate(p)) for p in permutations(range(common)))
        assert score_samples(s, y).hm_iou == pytest.approx(max(sums) / common)


@pytest.mark.parametrize(("n", "r"), [(16, 4), (50, 4), (10, 3)])
def test_matching_is_optimal_transport_between_equal_weights(n: int, r: int):
    """A second implementation: the linear programme with 1/N and 1/R as marginals."""
    s, y = stacks(n, n, r)
    table = np.array([[iou(a, b) for b in y] for a in s])
    rows = np.kron(np.eye(n), np.ones(r))
    columns = np.kron(np.ones(n), np.eye(r))
    best = linprog(-table.ravel(), A_eq=np.vstack([rows, columns]), b_eq=[1 / n] * n + [1 / r] * r)
    assert score_samples(s, y).hm_iou == pytest.approx(-best.fun)


def test_order_and_repetition_of_masks_change_nothing():
    s, y = stacks(3, 6, 4)
    score, shuffled = score_samples(s, y), score_samples(s[::-1], y[[2, 0, 3, 1]])
    twice = score_samples(np.repeat(s, 2, axis=0), np.repeat(y, 3, axis=0))
    for name in ("ged2", "hm_iou", "best_dice_references", "best_dice_samples"):
        assert getattr(shuffled, name) == pytest.approx(getattr(score, name))
        assert getattr(twice, name) == pytest.approx(getattr(score, name))
    assert twice.ged2_unbiased > score.ged2_unbiased


def test_scores_keep_their_ranges_and_swap_with_their_arguments():
    for seed in range(40):
        s, y = stacks(seed, 2 + seed % 5, 1 + seed % 4, shape=(6,))
        score, swapped = score_samples(s, y), score_samples(y, s)
        assert 0 <= score.ged2 <= 2
        assert score.hm_iou <= min(score.best_dice_references, score.best_dice_samples) + 1e-12
        assert swapped.ged2 == pytest.approx(score.ged2, abs=1e-12)
        assert swapped.hm_iou == pytest.approx(score.hm_iou)
        assert swapped.best_dice_samples == pytest.approx(score.best_dice_references)


def test_unbiased_ged_does_not_depend_on_the_number_of_samples():
    """Samples and references of one law: the V-statistic is inflated at small N, this is not."""
    rng = np.random.default_rng(0)
    pool = rng.random((6, 12)) < 0.5
    found = {n: [] for n in (2, 8)}
    for n, values in found.items():
        for _ in range(600):
            score = score_samples(pool[rng.integers(6, size=n)], pool[rng.integers(6, size=4)])
            values.append((score.ged2_unbiased, score.ged2))
    unbiased = {n: np.mean(values, axis=0) for n, values in found.items()}
    assert unbiased[2][0] == pytest.approx(0, abs=0.03)
    assert unbiased[8][0] == pytest.approx(0, abs=0.03)
    assert unbiased[2][1] > unbiased[8][1] + 0.1


def test_counts_of_slabs_add_up_and_large_images_are_counted_in_blocks(monkeypatch):
    s, y = stacks(5, 4, 3, shape=(12, 9))
    whole = plausibility.overlaps(s, y)
    assert whole[0, 5] == (s[0] & y[1]).sum()
    slabs = plausibility.overlaps(s[:, :5], y[:, :5]) + plausibility.overlaps(s[:, 5:], y[:, 5:])
    np.testing.assert_array_equal(slabs, whole)
    assert_same(plausibility.score_overlaps(slabs, samples=4), score_samples(s, y))
    monkeypatch.setattr(plausibility, "_BLOCK", 7)
    np.testing.assert_array_equal(plausibility.overlaps(s, y), whole)
    with pytest.raises(ValueError, match="got 7 and 0"):
        plausibility.score_overlaps(whole, samples=7)


STRUCTURES = {"one": (1,), "any": (1, 2), "gone": (7,)}


def test_structures_of_label_maps():
    s = np.array([[0, 1, 2, 2], [0, 1, 1, 2]])
    y = np.array([[0, 1, 2, 0]])
    scores = score_structures(s, y, STRUCTURES)
    assert list(scores) == ["one", "any", "gone"]
    assert_same(scores["one"], score_samples(s == 1, y == 1))
    assert_same(scores["any"], score_samples(s > 0, y > 0))
    assert scores["gone"].all_empty
    mean = plausibility.mean_over_structures(scores)
    assert mean.all_empty is False
    for name in ("ged2", "hm_iou", "sample_diversity"):
        by_hand = (getattr(scores["one"], name) + getattr(scores["any"], name)) / 2
        assert getattr(mean, name) == pytest.approx(by_hand)
    assert math.isnan(mean.reference_diversity)
    assert (mean.samples, mean.references) == (2, 1)


def test_mean_of_structures_leaves_out_blanks_but_not_everything():
    agreed = score_samples(masks("11", "10"), masks("11", "11"))
    split = score_samples(masks("11", "10"), masks("11", "10"))
    mean = plausibility.mean_over_structures({"a": agreed, "b": split})
    assert math.isnan(agreed.diversity_ratio)
    assert mean.diversity_ratio == split.diversity_ratio == 1
    empty = score_samples(masks("00"), masks("00"))
    assert plausibility.mean_over_structures({"a": empty}).all_empty
    with pytest.raises(ValueError, match="no structure"):
        plausibility.mean_over_structures({})


def test_voxels_an_annotator_did_not_judge_count_for_nobody():
    s = np.array([[1, 1, 1, 0], [1, 0, 1, 0]])
    y = np.array([[1, 9, 0, 0], [1, 1, 9, 1]])
    found = score_structures(s, y, {"one": (1,)}, ignore_label=9)["one"]
    assert_same(found, score_samples(s[:, [0, 3]] == 1, y[:, [0, 3]] == 1))
    nothing = score_structures(s, np.full_like(y, 9), {"one": (1,)}, ignore_label=9)["one"]
    assert nothing.all_empty
    with pytest.raises(ValueError, match="ignore_label 1"):
        score_structures(s, y, {"one": (1,)}, ignore_label=1)


def test_bad_stacks_are_refused():
    with pytest.raises(ValueError, match="differ in grid"):
        score_samples(masks("10"), masks("100"))
    with pytest.raises(ValueError, match="got 0 and 1"):
        score_samples(np.zeros((0, 2), dtype=bool), masks("10"))
    with pytest.raises(ValueError, match="references must be bool"):
        score_samples(masks("10"), np.array([[0, 2]]))
