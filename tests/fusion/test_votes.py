"""Majority votes: by hand, against SimpleITK's label voting, and on any votes."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medseg_diff.fusion import label_votes, majority_labels, majority_mask

MAPS = hnp.arrays(
    np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 10)), elements=st.integers(0, 3)
)


def test_more_than_half_must_mark_a_voxel():
    draws = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0]], bool)
    assert majority_mask(draws).tolist() == [True, False, False, False]
    assert majority_mask(draws[:3]).tolist() == [True, True, True, False]
    assert majority_mask(draws).dtype == bool


def test_overlapping_structures_are_voted_on_each():
    draws = np.random.default_rng(0).random((5, 2, 3, 4)) > 0.4
    found = majority_mask(iter(draws))
    for k in range(2):
        np.testing.assert_array_equal(found[k], majority_mask(draws[:, k]))
    np.testing.assert_array_equal(found, np.median(draws, axis=0) > 0.5)


def test_labels_by_hand():
    draws = np.array([[0, 2, 1, 3], [0, 2, 2, 0], [1, 1, 0, 3], [0, 2, 3, 0]])
    assert label_votes(draws, 4)[:, 1].tolist() == [0, 1, 3, 0]
    # The third voxel is a tie of all four labels, the last one of 3 and the background.
    assert majority_labels(draws, 4).tolist() == [0, 2, 0, 0]


def test_a_tie_goes_to_the_smaller_label():
    assert majority_labels(np.array([[3], [1], [3], [1], [2]]), 4).tolist() == [1]


def test_labels_are_simpleitks_where_it_decides():
    draws = np.random.default_rng(1).integers(0, 4, (5, 12, 13)).astype(np.uint8)
    rule = SimpleITK.LabelVotingImageFilter()
    rule.SetLabelForUndecidedPixels(255)
    wanted = SimpleITK.GetArrayFromImage(
        rule.Execute([SimpleITK.GetImageFromArray(d) for d in draws])
    )
    decided = wanted != 255
    assert decided.mean() > 0.5
    assert not decided.all()
    np.testing.assert_array_equal(majority_labels(draws, 4)[decided], wanted[decided])


@settings(max_examples=40, deadline=None)
@given(MAPS, st.randoms())
def test_order_does_not_matter_and_equal_draws_return_themselves(draws, random):
    order = list(range(len(draws)))
    random.shuffle(order)
    np.testing.assert_array_equal(majority_labels(draws, 4), majority_labels(draws[order], 4))
    np.testing.assert_array_equal(majority_mask(draws > 1), majority_mask(draws[order] > 1))
    np.testing.assert_array_equal(majority_labels([draws[0]] * 3, 4), draws[0])
    np.testing.assert_array_equal(majority_mask([draws[0] > 1] * 2), draws[0] > 1)


@settings(max_examples=40, deadline=None)
@given(MAPS)
def test_one_structure_is_voted_on_alike_as_mask_and_as_label(draws):
    np.testing.assert_array_equal(
        majority_labels(draws > 0, 2).astype(bool), majority_mask(draws > 0)
    )
    votes = label_votes(draws, 4)
    assert (votes.sum(0) == len(draws)).all()


def test_bad_votes_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        majority_mask([])
    with pytest.raises(ValueError, match="at least one"):
        majority_labels([], 2)
    with pytest.raises(ValueError, match="shape"):
        majority_mask([np.ones(3, bool), np.ones(1, bool)])
    with pytest.raises(ValueError, match="shape"):
        majority_labels([np.ones(3, int), np.ones(1, int)], 2)
    with pytest.raises(ValueError, match="boolean"):
        majority_mask([np.ones(3)])
    for wrong in (2, -1):
        with pytest.raises(ValueError, match="labels must lie"):
            majority_labels([np.array([0, wrong])], 2)
