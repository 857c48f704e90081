"""Calibration: bins counted by hand, and plain loops over voxels as the second implementation."""

from __future__ import annotations

import math
from dataclasses import astuple
from itertools import product

import numpy as np
import pytest

from medseg_diff.calibration import (
    CELLS,
    Calibration,
    RegionalCalibration,
    TopLabelCalibration,
    near_foreground,
)


def scored(p, y, bins: int = 5, **keywords):
    pool = Calibration(bins)
    pool.add(np.asarray(p, dtype=float), np.asarray(y, dtype=float), **keywords)
    return pool.score()


def ece_by_loop(p, y, bins: int) -> float:
    groups: dict[int, list[float]] = {}
    for probability, truth in zip(p, y, strict=True):
        b = min(int(probability * bins), bins - 1)
        groups.setdefault(b, []).append(probability - truth)
    return sum(abs(sum(gaps)) for gaps in groups.values()) / len(p)


def adaptive_by_sorting(p, y, bins: int) -> float:
    """Equal-mass ECE of distinct probabilities whose number the bins divide."""
    order = np.argsort(p)
    parts = np.split(np.asarray(p)[order] - np.asarray(y)[order], bins)
    return sum(abs(part.sum()) for part in parts) / len(p)


def random_case(seed: int, size: int = 300):
    """Overconfident on purpose."""
    rng = np.random.default_rng(seed)
    p = rng.random(size)
    return p, (rng.random(size) < 0.2 + 0.5 * p).astype(float)


def test_scores_by_hand():
    # Bins of 0.2: {.1, .15} has truth 0 and 1, {.5} truth 1, {.9, 1} truth 1 and 0.
    p, y = [0.1, 0.15, 0.5, 0.9, 1.0], [0, 1, 1, 1, 0]
    score = scored(p, y)
    assert (score.voxels, score.images, score.bins, score.region) == (5, 1, 5, "whole image")
    assert score.ece == pytest.approx((abs(0.25 - 1) + 0.5 + abs(1.9 - 1)) / 5)
    # One voxel a bin: no gap cancels another.
    assert score.adaptive_ece == pytest.approx((0.1 + 0.85 + 0.5 + 0.1 + 1) / 5)
    assert score.brier == pytest.approx((0.01 + 0.85**2 + 0.25 + 0.01 + 1) / 5)
    truth = [0.9, 0.15, 0.5, 0.9, 1e-7]
    assert score.nll == pytest.approx(-sum(math.log(t) for t in truth) / 5)


def test_diagram_by_hand():
    pool = Calibration(4)
    pool.add(np.array([0.0, 0.2, 0.25, 0.9, 1.0]), np.array([0, 1, 1, 1, 0]))
    diagram = pool.diagram()
    assert diagram.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert diagram.count.tolist() == [2, 1, 0, 2]
    assert diagram.confidence[[0, 1, 3]].tolist() == pytest.approx([0.1, 0.25, 0.95])
    assert diagram.frequency[[0, 1, 3]].tolist() == [0.5, 1, 0.5]
    assert math.isnan(diagram.confidence[2])
    assert math.isnan(diagram.frequency[2])


def test_a_bin_holds_its_lower_edge_and_not_its_upper():
    pool = Calibration(5)
    pool.add(np.array([0.0, 0.1999, 0.2, 0.3999, 0.4, 0.5999, 0.7999]), np.zeros(7))
    assert pool.diagram().count.tolist() == [2, 2, 2, 1, 0]


def test_a_calibrated_forecast_and_a_certain_one():
    p = np.repeat([0.25, 0.75], 400)
    y = np.concatenate([np.arange(400) % 4 == 0, np.arange(400) % 4 != 0])
    calibrated = scored(p, y)
    assert (calibrated.ece, calibrated.adaptive_ece) == pytest.approx((0, 0), abs=1e-12)
    assert calibrated.brier == pytest.approx(0.25 * 0.75)
    wrong = scored(np.ones(10), np.zeros(10))
    assert (wrong.ece, wrong.adaptive_ece, wrong.brier) == (1, 1, 1)
    right = scored([0, 1, 1], [0, 1, 1])
    assert (right.ece, right.adaptive_ece, right.brier, right.nll) == (0, 0, 0, 0)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_against_loops_over_voxels(bins: int):
    for seed in range(5):
        p, y = random_case(seed)
        score = scored(p, y, bins)
        assert score.ece == pytest.approx(ece_by_loop(p, y, bins), abs=1e-12)
        exact = adaptive_by_sorting(p, y, bins)
        assert score.adaptive_ece == pytest.approx(exact, abs=2 / bins / CELLS + 1e-12)
        assert score.brier == pytest.approx(np.mean((p - y) ** 2))


def test_adaptive_bins_hold_the_same_mass_and_split_ties_in_proportion():
    # Three bins of two voxels. The tie at .5 (truths 1, 1, 0, 0) fills the second half of bin 1,
    # bin 2 and the first half of bin 3, each with a frequency of one half.
    p = [0.1, 0.5, 0.5, 0.5, 0.5, 0.9]
    score = scored(p, [1, 1, 1, 0, 0, 1], bins=3)
    assert score.adaptive_ece == pytest.approx((0.9 + 0 + 0.1) / 6)
    reordered = scored(p, [1, 0, 1, 0, 1, 1], bins=3)
    assert reordered.adaptive_ece == pytest.approx(score.adaptive_ece)


def test_scores_keep_their_ranges_and_ece_is_below_the_root_of_brier():
    for seed in range(20):
        p, y = random_case(seed, 40)
        score = scored(p, y)
        assert 0 <= score.ece <= 1
        assert 0 <= score.adaptive_ece <= 1
        # Jensen: a bin's gap squared is at most its mean squared gap.
        assert max(score.ece, score.adaptive_ece) <= math.sqrt(score.brier) + 1e-9
        # One bin has the smallest ECE of all.
        assert score.ece >= scored(p, y, bins=1).ece - 1e-12


def test_images_add_up_and_merge():
    cases = [random_case(seed, 50 + seed) for seed in range(4)]
    together = Calibration(10)
    together.add(*(np.concatenate(parts) for parts in zip(*cases, strict=True)))
    pools = [Calibration(10), Calibration(10)]
    for index, case in enumerate(cases):
        pools[index % 2].add(*case)
    pools[0].merge(pools[1])
    assert pools[0].score().images == 4
    assert astuple(pools[0].score())[3:] == pytest.approx(astuple(together.score())[3:])
    found, wanted = pools[0].diagram(), together.diagram()
    np.testing.assert_allclose(found.confidence, wanted.confidence)
    np.testing.assert_allclose(found.frequency, wanted.frequency)
    assert found.count.sum() == 50 + 51 + 52 + 53
    for other in (Calibration(5), TopLabelCalibration(10), Calibration(10, "elsewhere")):
        with pytest.raises(ValueError, match="cannot add"):
            together.merge(other)


def test_a_share_of_annotators_counts_as_their_votes():
    p = np.array([0.2, 0.6, 0.9, 0.6])
    votes = np.array([[0, 1, 1, 0], [1, 1, 1, 0], [0, 0, 1, 0]])
    shared = scored(p, votes.mean(0))
    single = Calibration(5)
    for vote in votes:
        single.add(p, vote)
    each = single.score()
    for name in ("ece", "adaptive_ece", "brier", "nll"):
        assert getattr(shared, name) == pytest.approx(getattr(each, name))


def test_only_judged_voxels_count():
    p, y = random_case(0, 60)
    where = np.arange(60) % 3 > 0
    y_odd = np.where(where, y, math.nan)
    assert scored(p, y_odd, where=where) == scored(p[where], y[where])


def test_background_alone_is_said():
    assert scored([0.1, 0.3], [0, 0]).background_only
    assert not scored([0.1, 0.3], [0, 1]).background_only
    assert not scored([0.1, 0.6], [0, 0]).background_only
    pool = Calibration()
    assert pool.score().background_only
    pool.add(np.array([0.9]), np.array([0]))
    pool.add(np.array([0.1]), np.array([0]))
    assert not pool.score().background_only
    quiet, loud = Calibration(), Calibration()
    loud.add(np.array([0.9]), np.array([0]))
    quiet.merge(loud)
    assert not quiet.score().background_only


def test_no_voxel_gives_blanks_and_is_counted():
    score = scored([0.2], [1], where=np.array([False]))
    assert (score.images, score.without_voxels, score.voxels) == (1, 1, 0)
    assert all(math.isnan(v) for v in (score.ece, score.adaptive_ece, score.brier, score.nll))


def test_top_label_by_hand():
    p = np.array([[0.6, 0.1, 0.3], [0.3, 0.8, 0.3], [0.1, 0.1, 0.4]])
    pool = TopLabelCalibration(2)
    pool.add(p, np.array([0, 2, 2]))
    score = pool.score()
    # Top labels 0, 1, 2 at .6, .8 (wrong), .4.
    assert score.ece == pytest.approx((abs(0.4 - 1) + abs(1.4 - 1)) / 3)
    brier = [0.16 + 0.09 + 0.01, 0.01 + 0.64 + 0.81, 0.09 + 0.09 + 0.36]
    assert score.brier == pytest.approx(sum(brier) / 3)
    assert score.nll == pytest.approx(-(math.log(0.6) + math.log(0.1) + math.log(0.4)) / 3)
    assert pool.diagram().frequency.tolist() == [1, 0.5]
    assert not score.background_only
    background = TopLabelCalibration()
    background.add(p[:, :1], np.array([0]))
    assert background.score().background_only
    background.add(p[:, :1], np.array([1]))
    assert not background.score().background_only


def test_two_classes_are_one_structure():
    """Brier counts both classes; NLL is the same; so is ECE where p is at least one half."""
    rng = np.random.default_rng(1)
    p = 0.5 + rng.random(200) / 2
    y = (rng.random(200) < p).astype(int)
    pool = TopLabelCalibration(10)
    pool.add(np.stack([1 - p, p]), y)
    found, wanted = pool.score(), scored(p, y, bins=10)
    assert found.brier == pytest.approx(2 * wanted.brier)
    assert (found.nll, found.ece) == pytest.approx((wanted.nll, wanted.ece))


def test_near_foreground_is_a_ball_in_mm():
    foreground = np.zeros((7, 9, 11), dtype=bool)
    foreground[0, 4, 5] = foreground[5, 8, 0] = True
    spacing, margin = (2.0, 1.0, 0.5), 2.0
    near = near_foreground(foreground, spacing, margin)
    for voxel in product(*map(range, foreground.shape)):
        steps = (np.argwhere(foreground) - voxel) * spacing
        assert near[voxel] == (np.sqrt((steps**2).sum(1)).min() <= margin)
    assert near_foreground(foreground, spacing, 0).sum() == 2
    assert not near_foreground(np.zeros((3, 3), dtype=bool), (1, 1), 5).any()


def test_a_distance_equal_to_the_margin_is_inside():
    row = np.zeros((1, 12), dtype=bool)
    row[0, 0] = True
    assert near_foreground(row, (1, 0.1), 0.3).sum() == 4
    assert near_foreground(row, (1, 0.7), 4.9).sum() == 8


def test_regions_are_named_and_background_does_not_flatter_the_near_one():
    p, y = np.full((20, 20), 0.001), np.zeros((20, 20))
    y[8:12, 8:12], p[8:12, 8:12], p[2, 2] = 1, 0.7, 0.6
    pool = RegionalCalibration(margin_mm=2, bins=10)
    pool.add(p, y, (1, 2))
    whole, near = pool.scores()
    assert (whole.region, near.region) == ("whole image", "within 2 mm of the foreground")
    assert whole.voxels == 400
    # The block grows to 8 by 4 and, through its columns, 4 by 6; the lone voxel to a cross of 7.
    assert near.voxels == 8 * 4 + 4 * 6 - 16 + 7
    assert near.ece > 3 * whole.ece
    direct = Calibration(10)
    direct.add(p, y, near_foreground((y > 0) | (p > 0.5), (1, 2), 2))
    assert direct.score().ece == near.ece


def test_regions_of_classes_leave_out_the_unjudged():
    p = np.zeros((3, 9))
    p[0] = 1
    p[:, 0] = (0.2, 0.5, 0.3)
    target = np.zeros(9, dtype=np.int16)
    target[8] = 255
    pool = RegionalCalibration(margin_mm=1, exclusive=True)
    pool.add(p, target, (1.0,), where=target != 255)
    whole, near = pool.scores()
    assert (whole.voxels, near.voxels) == (8, 2)
    assert near.brier == pytest.approx((0.64 + 0.25 + 0.09) / 2)
    target[1] = 255
    pool.near = TopLabelCalibration()
    pool.add(p, target, (1.0,), where=target != 255)
    assert pool.scores()[1].voxels == 1
    pool.add(p[:, 2:8], target[2:8], (1.0,))
    assert pool.scores()[1].without_voxels == 1


def test_the_default_region_is_five_mm():
    assert RegionalCalibration().near.region == "within 5 mm of the foreground"
    row = np.zeros(20, dtype=bool)
    row[0] = True
    assert near_foreground(row, (1,)).sum() == 6


BAD = [
    ([0.1, 0.2], [0], {}, "differ"),
    ([0.1], [2], {}, "target must lie"),
    ([1.1], [1], {}, "probability must lie"),
    ([math.nan], [1], {}, "probability must lie"),
    ([0.1], [0], {"where": np.array([1])}, "where must be bool"),
]


@pytest.mark.parametrize(("p", "y", "keywords", "words"), BAD)
def test_bad_arrays_are_refused(p, y, keywords, words):
    with pytest.raises(ValueError, match=words):
        scored(p, y, **keywords)


def test_bad_classes_and_regions_are_refused():
    pool = TopLabelCalibration()
    with pytest.raises(ValueError, match="sum to 1"):
        pool.add(np.array([[0.5], [0.4]]), np.array([0]))
    with pytest.raises(ValueError, match="classes must lie in 0 to 1"):
        pool.add(np.array([[0.5], [0.5]]), np.array([2]))
    with pytest.raises(ValueError, match="does not fit"):
        pool.add(np.array([0.5, 0.5]), np.array([0, 1]))
    with pytest.raises(ValueError, match="bins"):
        Calibration(0)
    with pytest.raises(ValueError, match="need 1 spacings"):
        near_foreground(np.array([True]), (1, 1))
    with pytest.raises(ValueError, match="positive"):
        near_foreground(np.array([True]), (0,))
    with pytest.raises(ValueError, match="margin_mm"):
        near_foreground(np.array([True]), (1,), -1)
