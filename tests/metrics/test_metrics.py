"""Metrics against geometry whose answer is known, and against MONAI's implementation."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg_diff.metrics import masks as metrics


def sphere(shape, centre, radius_mm, spacing):
    """Voxels whose centre lies within ``radius_mm`` of voxel ``centre``."""
    grid = np.indices(shape).astype(float)
    offset = [(g - c) * s for g, c, s in zip(grid, centre, spacing, strict=True)]
    return np.sqrt(sum(o**2 for o in offset)) <= radius_mm


def box(shape, half):
    """Axis-aligned box of ``2 * half + 1`` voxels around the centre of an odd-sized grid."""
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(n // 2 - h, n // 2 + h + 1) for n, h in zip(shape, half, strict=True))] = True
    return mask


@pytest.mark.parametrize(
    ("axis", "spacing"), [(0, (3.0, 0.5, 1.0)), (1, (3.0, 0.5, 1.0)), (2, (0.7, 0.7, 5.0))]
)
def test_shifted_plate_has_one_distance(axis, spacing):
    shape = (12, 13, 14)
    reference, prediction = np.zeros(shape, bool), np.zeros(shape, bool)
    np.moveaxis(reference, axis, 0)[3] = True
    np.moveaxis(prediction, axis, 0)[7] = True
    shift = 4 * spacing[axis]
    score = metrics.score_masks(prediction, reference, spacing, tolerance_mm=shift)
    assert score.outcome == "scored"
    assert score.dice == 0
    assert score.hd95_mm == pytest.approx(shift)
    assert score.assd_mm == pytest.approx(shift)
    assert score.nsd == 1
    assert metrics.score_masks(prediction, reference, spacing, tolerance_mm=shift - 0.01).nsd == 0


def test_single_voxels_are_apart_by_the_anisotropic_norm():
    reference, prediction = np.zeros((9, 9, 9), bool), np.zeros((9, 9, 9), bool)
    reference[1, 1, 1] = prediction[2, 3, 4] = True
    score = metrics.score_masks(prediction, reference, (1.0, 2.0, 0.5))
    assert score.hd95_mm == pytest.approx(math.sqrt(1 + 16 + 2.25))


def test_concentric_boxes_match_the_closed_form():
    shape, spacing = (31, 33, 35), np.array([1.0, 0.6, 2.5])
    inner, outer = np.array([4, 3, 5]), np.array([9, 12, 8])
    small, large = box(shape, inner), box(shape, outer)

    def boundary(half):
        axes = [np.arange(-h, h + 1) for h in half]
        points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
        return points[(np.abs(points) == half).any(1)]

    # From outside, the nearest inner point clamps each coordinate; from inside, the nearest
    # outer face is straight ahead along one axis.
    excess = np.maximum(np.abs(boundary(outer)) - inner, 0) * spacing
    outward = np.linalg.norm(excess, axis=1)
    inward = ((outer - np.abs(boundary(inner))) * spacing).min(1)
    pooled = np.concatenate([outward, inward])

    score = metrics.score_masks(small, large, tuple(spacing), tolerance_mm=6.0)
    assert score.hd95_mm == pytest.approx(
        max(np.percentile(outward, 95), np.percentile(inward, 95))
    )
    assert score.assd_mm == pytest.approx(pooled.mean())
    assert 0 < score.nsd < 1
    assert score.nsd == pytest.approx((pooled <= 6.0).mean())
    volumes = [np.prod(2 * half + 1) for half in (inner, outer)]
    assert score.dice == pytest.approx(2 * volumes[0] / sum(volumes))
    assert score.volume_pred_ml == pytest.approx(volumes[0] * 1.5 / 1000)
    assert score.volume_difference_ml == pytest.approx((volumes[0] - volumes[1]) * 1.5 / 1000)


def test_concentric_spheres_are_a_shell_apart():
    shape, spacing = (61, 61, 41), (0.5, 0.5, 0.8)
    centre = (30, 30, 20)
    small = sphere(shape, centre, 8.0, spacing)
    large = sphere(shape, centre, 12.0, spacing)
    score = metrics.score_masks(small, large, spacing)
    voxel = math.hypot(*spacing)
    assert score.hd95_mm == pytest.approx(4.0, abs=voxel)
    assert score.assd_mm == pytest.approx(4.0, abs=voxel / 2)
    assert score.volume_ref_ml == pytest.approx(4 / 3 * math.pi * 12**3 / 1000, rel=0.01)
    assert score.dice == pytest.approx(2 * 8**3 / (8**3 + 12**3), rel=0.02)


def test_hd95_takes_the_worse_direction():
    reference = np.zeros((40, 40), bool)
    reference[2:12, 2:12] = True
    prediction = reference.copy()
    prediction[30:36, 30:36] = True
    scores = [
        metrics.score_masks(a, b, (1.0, 1.0))
        for a, b in ((prediction, reference), (reference, prediction))
    ]
    forward, backward = metrics.surface_distances(prediction, reference, (1.0, 1.0))
    assert np.percentile(backward, 95) == 0
    assert np.percentile(forward, 95) > 20
    assert scores[0].hd95_mm == scores[1].hd95_mm == pytest.approx(np.percentile(forward, 95))


def test_tolerance_forgives_rounding_but_nothing_visible():
    reference, prediction = np.zeros((9, 5), bool), np.zeros((9, 5), bool)
    reference[2], prediction[5] = True, True
    assert 3 * 0.1 > 0.3  # three voxels of 0.1 mm are 0.3 mm, but not in binary
    assert metrics.score_masks(prediction, reference, (0.1, 1.0), tolerance_mm=0.3).nsd == 1
    assert metrics.score_masks(prediction, reference, (0.10001, 1.0), tolerance_mm=0.3).nsd == 0


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
@pytest.mark.parametrize("shape", [(24, 20), (16, 14, 12)])
def test_agrees_with_monai(shape):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI's imports warn about its own dependencies
        import torch
        from monai.metrics import (
            compute_average_surface_distance,
            compute_hausdorff_distance,
            compute_surface_dice,
        )
    rng = np.random.default_rng(3)
    spacing = [0.7, 1.3, 2.9][: len(shape)]
    for _ in range(5):
        masks = [rng.random(shape) < 0.08 for _ in range(2)]
        masks[0][tuple(slice(0, n // 2) for n in shape)] = True  # touches the border
        masks[1][tuple(slice(2, n // 2 + 2) for n in shape)] = True
        y_pred, y = (torch.as_tensor(m[None, None].astype(np.float32)) for m in masks)
        ours = metrics.score_masks(masks[0], masks[1], spacing, tolerance_mm=1.5)
        hd95 = compute_hausdorff_distance(
            y_pred, y, include_background=True, percentile=95, spacing=spacing
        )
        nsd = compute_surface_dice(
            y_pred, y, class_thresholds=[1.5], include_background=True, spacing=spacing
        )
        assert ours.hd95_mm == pytest.approx(hd95.item(), rel=1e-5)
        assert ours.nsd == pytest.approx(nsd.item(), rel=1e-5)
        # MONAI's symmetric ASSD pools the two directions as well.
        assd = compute_average_surface_distance(
            y_pred, y, include_background=True, symmetric=True, spacing=spacing
        )
        assert ours.assd_mm == pytest.approx(assd.item(), rel=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_invariants(seed):
    rng = np.random.default_rng(seed)
    masks = [rng.random((6, 7, 8)) < 0.2 for _ in range(2)]
    masks[0][0, 0, 0] = masks[1][5, 6, 7] = True
    spacing = (1.0, 2.0, 0.5)
    score = metrics.score_masks(masks[0], masks[1], spacing)
    swapped = metrics.score_masks(masks[1], masks[0], spacing)
    flipped = metrics.score_masks(masks[0][::-1], masks[1][::-1], spacing)
    padded = metrics.score_masks(*(np.pad(m, 3) for m in masks), spacing)
    self = metrics.score_masks(masks[0], masks[0], spacing)
    assert (self.dice, self.nsd, self.hd95_mm, self.assd_mm) == (1, 1, 0, 0)
    assert swapped.volume_difference_ml == -score.volume_difference_ml
    for other in (swapped, flipped):
        assert other.dice == score.dice
        assert other.nsd == pytest.approx(score.nsd)
        assert other.hd95_mm == pytest.approx(score.hd95_mm)
        assert other.assd_mm == pytest.approx(score.assd_mm)
    assert padded.hd95_mm == pytest.approx(score.hd95_mm)
    assert score.assd_mm <= metrics.image_diagonal_mm((6, 7, 8), spacing)


def test_F77_F78_empty_masks_follow_the_table():
    some, empty = np.zeros((10, 20, 30), bool), np.zeros((10, 20, 30), bool)
    some[4:6, 4:6, 4:6] = True
    spacing = (1.0, 0.5, 2.0)
    diagonal = math.sqrt(10**2 + 10**2 + 60**2)

    missed = metrics.score_masks(empty, some, spacing)
    assert (missed.outcome, missed.dice, missed.nsd) == ("missed", 0, 0)
    assert missed.hd95_mm == missed.assd_mm == pytest.approx(diagonal)
    assert missed.volume_difference_ml == pytest.approx(-8 / 1000)

    extra = metrics.score_masks(some, empty, spacing)
    assert (extra.outcome, extra.dice, extra.nsd) == ("false_positive", 0, 0)
    assert math.isnan(extra.hd95_mm)
    assert math.isnan(extra.assd_mm)
    assert extra.volume_difference_ml == pytest.approx(8 / 1000)

    both = metrics.score_masks(empty, empty, spacing)
    assert both.outcome == "both_empty"
    assert (both.volume_ref_ml, both.volume_pred_ml) == (0, 0)
    blanks = (both.dice, both.nsd, both.hd95_mm, both.assd_mm, both.volume_difference_ml)
    assert all(math.isnan(value) for value in blanks)


def test_labels_and_overlapping_regions():
    reference = np.zeros((8, 8), int)
    reference[1:4, 1:4], reference[1:4, 4:7] = 1, 2
    prediction = np.where(reference == 2, 1, reference)  # 2 is called 1
    labels = metrics.structures_of({"background": 0, "a": 1, "b": 2})
    assert labels == {"a": (1,), "b": (2,)}
    scores = metrics.score_case(prediction, reference, (1.0, 1.0), labels)
    assert scores["a"].dice == pytest.approx(2 * 9 / (9 + 18))
    assert scores["b"].outcome == "missed"
    # The miss costs the diagonal of the whole image, not of the cropped box.
    assert scores["b"].hd95_mm == pytest.approx(math.hypot(8, 8))
    regions = metrics.structures_of({"a": 1}, {"whole": [1, 2], "core": [2]})
    scores = metrics.score_case(prediction, reference, (1.0, 1.0), regions)
    assert scores["whole"].dice == 1
    assert scores["core"].outcome == "missed"


def test_ignored_voxels_leave_both_masks():
    reference = np.zeros((10, 10), int)
    reference[2:5, 2:5], reference[7:9, 7:9] = 1, 9
    prediction = np.zeros((10, 10), int)
    prediction[2:5, 2:5], prediction[7:9, 7:9] = 1, 1
    structures = {"a": (1,)}
    ignored = metrics.score_case(prediction, reference, (1, 1), structures, ignore_label=9)["a"]
    assert (ignored.dice, ignored.hd95_mm) == (1, 0)
    assert ignored.volume_pred_ml == pytest.approx(9 / 1000)
    counted = metrics.score_case(prediction, reference, (1, 1), structures)["a"]
    assert counted.dice == pytest.approx(2 * 9 / (9 + 13))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction": np.zeros((3, 4), int)}, "shape"),
        ({"spacing_mm": (1.0,)}, "spacings"),
        ({"spacing_mm": (1.0, 0.0)}, "positive"),
        ({"spacing_mm": (1.0, math.nan)}, "positive"),
        ({"tolerance_mm": -1.0}, "tolerance_mm"),
        ({"ignore_label": 1}, "ignore_label 1"),
    ],
)
def test_refuses_wrong_arguments(change, message):
    good = {
        "prediction": np.zeros((3, 3), int),
        "reference": np.zeros((3, 3), int),
        "spacing_mm": (1.0, 1.0),
        "structures": {"a": (1,)},
    }
    with pytest.raises(ValueError, match=message):
        metrics.score_case(**(good | change))


@pytest.mark.parametrize(
    ("labels", "regions"), [({"background": 0}, None), (None, {"a": []}), (None, {"a": [0, 1]})]
)
def test_refuses_useless_structures(labels, regions):
    with pytest.raises(ValueError, match=r"structure|region"):
        metrics.structures_of(labels, regions)


def test_surface_of_nothing_is_refused():
    with pytest.raises(ValueError, match="hold something"):
        metrics.surface_distances(np.zeros((2, 2), bool), np.ones((2, 2), bool), (1, 1))
