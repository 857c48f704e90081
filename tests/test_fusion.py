"""Fusion: answers known by hand."""

from __future__ import annotations

import numpy as np
import pytest

from medseg_diff.fusion import PairwiseDice, RunningMoments, predictive_entropy


def test_running_moments_are_numpys():
    draws = np.random.default_rng(0).normal(5, 2, (17, 3, 4)).astype(np.float32)
    moments = RunningMoments()
    for draw in draws:
        moments.add(draw)
    assert moments.count == 17
    np.testing.assert_allclose(moments.mean, draws.mean(0), rtol=1e-5)
    np.testing.assert_allclose(moments.variance, draws.var(0), rtol=1e-4)


def test_moments_by_hand():
    moments = RunningMoments()
    for value in (1.0, 3.0):
        moments.add(np.array([value], np.float32))
    assert moments.mean is not None
    assert moments.mean.tolist() == [2.0]
    assert moments.variance.tolist() == [1.0]


def test_the_order_of_draws_does_not_matter():
    draws = np.random.default_rng(1).random((9, 50)).astype(np.float32)
    forwards, backwards = RunningMoments(), RunningMoments()
    for draw in draws:
        forwards.add(draw)
    for draw in draws[::-1]:
        backwards.add(draw)
    np.testing.assert_allclose(forwards.mean, backwards.mean, atol=1e-6)
    np.testing.assert_allclose(forwards.variance, backwards.variance, atol=1e-6)


def test_a_large_offset_does_not_drown_the_variance():
    moments = RunningMoments()
    for value in (1000.0, 1000.5, 1001.0):
        moments.add(np.array([value], np.float32))
    assert float(moments.variance[0]) == pytest.approx(1 / 6, rel=1e-3)


def test_one_draw_has_no_variance_and_none_has_no_answer():
    moments = RunningMoments()
    with pytest.raises(ValueError, match="no array"):
        _ = moments.variance
    values = np.array([0.3], np.float32)
    moments.add(values)
    assert moments.variance.tolist() == [0.0]
    values[0] = 9
    assert moments.mean is not None
    assert float(moments.mean[0]) == pytest.approx(0.3)


def test_entropy_of_classes():
    p = np.array([[1, 1 / 3, 0.5, 0.25], [0, 1 / 3, 0.5, 0.75], [0, 1 / 3, 0, 0]], np.float32)
    found = predictive_entropy(p, exclusive=True)
    quarter = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75)) / np.log(3)
    assert found.tolist() == pytest.approx([0, 1, np.log(2) / np.log(3), quarter], abs=1e-6)
    assert found.dtype == np.float32


def test_entropy_of_regions_is_that_of_the_most_doubtful():
    p = np.array([[1.0, 0.5, 0.9], [0.0, 0.0, 0.25]], np.float32)
    quarter = -(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))
    assert predictive_entropy(p, exclusive=False).tolist() == pytest.approx(
        [0, 1, quarter], abs=1e-6
    )


@pytest.mark.parametrize("exclusive", [True, False])
def test_entropy_is_bounded(exclusive: bool):
    p = np.random.default_rng(2).dirichlet([0.2] * 4, 500).T.astype(np.float32)
    found = predictive_entropy(p, exclusive=exclusive)
    assert found.shape == (500,)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    assert float(found.max()) > 0.5


def masks_of(*draws: list[int]) -> np.ndarray:
    """(1, V, N) from one list of voxels per draw."""
    return np.array(draws, bool).T[None]


def test_pairwise_dice_by_hand():
    spread = PairwiseDice(3, 1)
    spread.add(masks_of([1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 1]))
    assert spread.mean() == pytest.approx([(2 / 3 + 0 + 0) / 3])


def test_pairwise_dice_of_equal_draws_is_one():
    spread = PairwiseDice(4, 2)
    spread.add(np.repeat(np.array([[1, 0, 1], [0, 0, 0]], bool)[..., None], 4, axis=-1))
    assert spread.mean() == [1.0, 1.0]


def test_pairwise_dice_gathers_slabs_and_forgets_order():
    masks = np.random.default_rng(3).random((2, 40, 5)) > 0.5
    whole, slabs, shuffled = (PairwiseDice(5, 2) for _ in range(3))
    whole.add(masks)
    slabs.add(masks[:, :13])
    slabs.add(masks[:, 13:])
    shuffled.add(masks[..., [3, 1, 4, 0, 2]])
    assert slabs.mean() == pytest.approx(whole.mean())
    assert shuffled.mean() == pytest.approx(whole.mean())
    a, b = masks[1, :, 0], masks[1, :, 1]
    only = PairwiseDice(2, 1)
    only.add(masks[1:, :, :2])
    assert only.mean() == pytest.approx([2 * (a & b).sum() / (a.sum() + b.sum())])


def test_pairwise_dice_of_one_draw_is_unknown():
    spread = PairwiseDice(1, 2)
    spread.add(np.ones((2, 3, 1), bool))
    assert np.isnan(spread.mean()).all()
    assert len(spread.mean()) == 2


def test_an_empty_draw_against_a_full_one_is_zero():
    spread = PairwiseDice(2, 1)
    spread.add(masks_of([0, 0], [1, 1]))
    assert spread.mean() == [0.0]
