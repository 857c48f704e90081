"""Clean-up by shape, on masks drawn by hand."""

from __future__ import annotations

import numpy as np
import pytest

from medseg_diff.morphology import clean_labels


def cube(side: int = 12) -> np.ndarray:
    labels = np.zeros((side, side, side), np.int16)
    labels[3:9, 3:9, 3:9] = 1
    return labels


def test_none_changes_nothing():
    labels = cube()
    assert clean_labels(labels, [1], "none") is labels


def test_morphology_removes_specks_and_fills_holes():
    labels = cube()
    labels[0, 0, 0] = 1
    labels[5, 5, 5] = 0
    cleaned = clean_labels(labels, [1], "morphology")
    assert cleaned[0, 0, 0] == 0
    assert cleaned[5, 5, 5] == 1
    # Opening with a cross rounds edges off; the faces stay.
    assert cleaned[3, 5, 5] == cleaned[8, 5, 5] == 1
    assert cleaned.dtype == labels.dtype


def test_a_structure_that_opening_would_erase_stays():
    labels = np.zeros((9, 9), np.int16)
    labels[4, 2:7] = 2
    np.testing.assert_array_equal(clean_labels(labels, [2], "morphology"), labels)


def test_no_structure_grows_over_another():
    labels = cube()
    labels[5, 5, 5] = 2
    cleaned = clean_labels(labels, [1], "morphology")
    assert cleaned[5, 5, 5] == 2


def test_the_border_of_the_scan_erodes_nothing():
    labels = np.zeros((8, 8), np.int16)
    labels[:4] = 1
    np.testing.assert_array_equal(clean_labels(labels, [1], "morphology"), labels)


@pytest.mark.parametrize("shape", [(10, 10), (10, 10, 1), (10, 10, 10)])
def test_largest_keeps_one_component(shape):
    labels = np.zeros(shape, np.int16)
    labels[1:3, 1:3] = 1
    labels[5:9, 5:9] = 1
    cleaned = clean_labels(labels, [1], "largest")
    assert not cleaned[1:3, 1:3].any()
    assert cleaned[5:9, 5:9].all()
    assert cleaned.shape == shape


@pytest.mark.parametrize("how", ["morphology", "largest"])
def test_an_empty_mask_stays_empty(how):
    labels = np.zeros((6, 6, 6), np.int16)
    assert not clean_labels(labels, [1], how).any()
