"""Clean-up by shape, on masks drawn by hand."""

from __future__ import annotations

import numpy as np
import pytest

from medseg_diff.inference.morphology import ShapeRule, clean_by_rules, clean_labels


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


def rings() -> np.ndarray:
    """Ring of 2 around a ring of 1, a gap between, a hole in the middle, a speck of each."""
    labels = np.zeros((15, 15), np.int16)
    labels[2:13, 2:13] = 2
    labels[4:11, 4:11] = 0
    labels[5:10, 5:10] = 1
    labels[6:9, 6:9] = 0
    labels[0, 0] = 1
    labels[14, 13:15] = 2
    return labels


def test_rules_by_default_change_nothing():
    labels = rings()
    cleaned = clean_by_rules(labels, {1: ShapeRule(), 2: ShapeRule()}, (1, 1))
    np.testing.assert_array_equal(cleaned, labels)
    cleaned[0, 0] = 2
    assert labels[0, 0] == 1


def test_each_structure_has_its_rule():
    labels = rings()
    cleaned = clean_by_rules(labels, {1: ShapeRule(keep_largest=True)}, (1, 1))
    wanted = labels.copy()
    wanted[0, 0] = 0
    np.testing.assert_array_equal(cleaned, wanted)


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_nested_holes_go_to_the_inner_structure_whatever_the_order(order):
    cleaned = clean_by_rules(rings(), {v: ShapeRule(fill_holes=True) for v in order}, (1, 1))
    assert (cleaned[5:10, 5:10] == 1).all()
    assert (cleaned[4, 4:11] == 2).all()
    assert cleaned[0, 0] == 1
    tight = rings()
    tight[4:11, 4:11][tight[4:11, 4:11] == 0] = 2
    tight[6:9, 6:9] = 0
    swapped = np.array([0, 2, 1])[tight]
    for labels, inner in ((tight, 1), (swapped, 2)):
        filled = clean_by_rules(labels, {v: ShapeRule(fill_holes=True) for v in order}, (1, 1))
        assert (filled[6:9, 6:9] == inner).all()
    only = clean_by_rules(rings(), {2: ShapeRule(fill_holes=True)}, (1, 1))
    assert (only[6:9, 6:9] == 2).all()
    assert only[5, 5] == 1


def test_minimum_volume_is_in_cubic_millimetres():
    labels = np.zeros((9, 9, 9), np.int16)
    labels[:2, :2, :2] = 3
    labels[5, 5, 5:8] = 3
    keep = {"above": 0.3 - 1e-6, "equal": 0.3, "below": 0.3 + 1e-6}
    spacing = (0.5, 0.5, 0.4)  # 0.1 mm^3 a voxel
    for name, volume in keep.items():
        rule = ShapeRule(min_volume_mm3=volume)
        cleaned = clean_by_rules(labels, {3: rule}, spacing)
        assert int((cleaned == 3).sum()) == (8 if name == "below" else 11), name
    assert not clean_by_rules(labels, {3: ShapeRule(min_volume_mm3=0.9)}, spacing).any()


def test_a_component_of_just_the_minimum_volume_stays():
    """The volume of a voxel is 0.1 * 0.7 = 0.06999999999999999 on a computer."""
    labels = np.zeros((9, 9, 9), np.int16)
    labels[2:5, 4, 4] = 1
    for spacing, volume in (((1, 1, 1), 3.0), ((0.1, 0.7, 1.0), 0.21)):
        cleaned = clean_by_rules(labels, {1: ShapeRule(min_volume_mm3=volume)}, spacing)
        np.testing.assert_array_equal(cleaned, labels)


def test_another_structure_inside_does_not_count_towards_the_volume():
    labels = np.zeros((9, 9), np.int16)
    labels[2:7, 2:7] = 1
    labels[3:6, 3:6] = 2
    rule = ShapeRule(fill_holes=True, min_volume_mm3=20)
    cleaned = clean_by_rules(labels, {1: rule}, (1, 1))
    assert not (cleaned == 1).any()
    assert int((cleaned == 2).sum()) == 9


def test_holes_count_towards_the_volume_and_the_size():
    labels = np.zeros((12, 12, 1), np.int16)
    labels[1:6, 1:6] = 1
    labels[2:5, 2:5] = 0
    labels[8:12, 7:12] = 1  # 20 voxels against a ring of 16 that fills to 25
    rule = ShapeRule(fill_holes=True, min_volume_mm3=22, keep_largest=True)
    cleaned = clean_by_rules(labels, {1: rule}, (1, 1, 1))
    assert (cleaned[1:6, 1:6] == 1).all()
    assert int(cleaned.sum()) == 25
    assert cleaned.shape == labels.shape
    assert cleaned.dtype == labels.dtype


def test_a_hole_that_holds_another_structure_is_not_overgrown():
    labels = cube()
    labels[5, 5, 5] = 2
    labels[6, 6, 6] = 0
    cleaned = clean_by_rules(labels, {1: ShapeRule(fill_holes=True)}, (1, 1, 1))
    assert cleaned[5, 5, 5] == 2
    assert cleaned[6, 6, 6] == 1


def test_misused_rules_are_refused():
    with pytest.raises(ValueError, match="spacing"):
        clean_by_rules(cube(), {1: ShapeRule()}, (1, 1))
    with pytest.raises(ValueError, match="spacing"):
        clean_by_rules(cube(), {1: ShapeRule()}, (1, 0, 1))
    with pytest.raises(ValueError, match="background"):
        clean_by_rules(cube(), {0: ShapeRule()}, (1, 1, 1))
    for volume in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="min_volume_mm3"):
            ShapeRule(min_volume_mm3=volume)
    empty = np.zeros((5, 5), np.int16)
    rule = ShapeRule(fill_holes=True, min_volume_mm3=2, keep_largest=True)
    assert not clean_by_rules(empty, {1: rule}, (1, 1)).any()
