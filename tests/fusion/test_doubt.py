"""Doubt: entropies by hand, boundaries that move by a known way, volumes of known size."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt

from medseg_diff.fusion import (
    Doubt,
    boundary_doubt_mm,
    interval_of_volumes,
    majority_mask,
    volume_interval_ml,
)


def gathered(draws: np.ndarray, exclusive: bool) -> Doubt:
    doubt = Doubt(exclusive=exclusive)
    for draw in draws:
        doubt.add(draw)
    return doubt


def some(exclusive: bool, seed: int = 0, draws: int = 6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if exclusive:
        return rng.dirichlet([0.4] * 3, (draws, 40)).transpose(0, 2, 1).astype(np.float32)
    return rng.beta(0.5, 0.5, (draws, 3, 40)).astype(np.float32)


def test_contradiction_and_doubt_of_each_by_hand():
    """Two classes: sure draws that contradict, doubtful draws that agree, sure ones that agree."""
    draws = np.array([[[1, 0.5, 0], [0, 0.5, 1]], [[0, 0.5, 0], [1, 0.5, 1]]], np.float32)
    maps = gathered(draws, exclusive=True).maps()
    assert maps.predictive.tolist() == pytest.approx([1, 1, 0], abs=1e-6)
    assert maps.expected.tolist() == pytest.approx([0, 1, 0], abs=1e-6)
    assert maps.mutual.tolist() == pytest.approx([1, 0, 0], abs=1e-6)
    assert maps.variance.tolist() == pytest.approx([0.25, 0, 0])


def test_a_mixed_voxel_by_hand():
    """Draws 1 and 1/2: mean 3/4 of entropy 0.8112781, single entropies 0 and 1."""
    draws = np.array([[[1.0], [0.0]], [[0.5], [0.5]]], np.float32)
    maps = gathered(draws, exclusive=True).maps()
    assert float(maps.predictive[0]) == pytest.approx(0.8112781, abs=1e-5)
    assert float(maps.expected[0]) == pytest.approx(0.5, abs=1e-5)
    assert float(maps.mutual[0]) == pytest.approx(0.3112781, abs=1e-5)
    assert float(maps.variance[0]) == pytest.approx(0.0625)


def test_of_regions_the_most_doubtful_one_is_shown():
    """Region 0 is contradicted (predictive 1), region 1 doubted by each a little less."""
    draws = np.array([[[1.0], [0.75]], [[0.0], [0.75]]], np.float32)
    maps = gathered(draws, exclusive=False).maps()
    found = [float(m[0]) for m in (maps.predictive, maps.expected, maps.mutual, maps.variance)]
    assert found == pytest.approx([1, 0, 1, 0.125], abs=1e-6)


def test_mutual_information_is_the_mean_divergence_from_the_mean():
    draws = some(exclusive=True).astype(np.float64)
    mean = draws.mean(0)
    divergence = (draws * np.log(np.maximum(draws, 1e-30) / mean)).sum(1).mean(0) / np.log(3)
    maps = gathered(some(exclusive=True), exclusive=True).maps()
    np.testing.assert_allclose(maps.mutual, divergence, atol=1e-5)
    np.testing.assert_allclose(maps.variance, draws.var(0).mean(0), atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.booleans(), st.integers(1, 5))
def test_doubt_adds_up_is_bounded_and_forgets_order(seed, exclusive, count):
    draws = some(exclusive, seed, count)
    doubt = gathered(draws, exclusive)
    maps, other = doubt.maps(), gathered(draws[::-1], exclusive).maps()
    np.testing.assert_allclose(maps.predictive, maps.expected + maps.mutual, atol=1e-6)
    for name in ("predictive", "expected", "mutual", "variance"):
        values = getattr(maps, name)
        assert values.shape == (40,)
        assert values.dtype == np.float32
        assert float(values.min()) >= 0
        assert float(values.max()) <= 1
        np.testing.assert_allclose(values, getattr(other, name), atol=1e-4)
    if count == 1:
        assert float(maps.mutual.max()) == pytest.approx(0, abs=1e-6)


def test_memory_is_flat_and_an_empty_stream_has_no_answer():
    kept = []
    for count in (2, 9):
        doubt = gathered(some(True, draws=count), exclusive=True)
        parts = [*vars(doubt._probabilities).values(), *vars(doubt._entropies).values()]
        kept.append(sum(v.nbytes for v in parts if isinstance(v, np.ndarray)))
    assert kept[0] == kept[1] > 0
    with pytest.raises(ValueError, match="no draw"):
        Doubt(exclusive=True).maps()


def slabs(*stops: int, length: int = 30) -> np.ndarray:
    """Masks (N, length, 6) that fill the first axis up to a different row each."""
    rows = np.arange(length)[:, None] < np.array(stops)[:, None, None]
    return np.repeat(rows, 6, axis=2)


def test_a_flat_boundary_that_moves_by_hand():
    """Edges at 8, 10 and 12 rows of 2 mm: distances -4, 0 and 4 mm, sd sqrt(32 / 3)."""
    assert boundary_doubt_mm(slabs(8, 10, 12), (2.0, 5.0)) == pytest.approx(
        np.sqrt(32 / 3), rel=1e-6
    )
    # One voxel further is one voxel further, on either side of the boundary.
    assert boundary_doubt_mm(slabs(10, 10, 11), (2.0, 5.0)) == pytest.approx(
        np.sqrt(8 / 9), rel=1e-6
    )
    assert boundary_doubt_mm(slabs(10, 10, 9), (2.0, 5.0)) == pytest.approx(
        np.sqrt(8 / 9), rel=1e-6
    )


def test_boundary_doubt_uses_each_axis_spacing():
    masks = slabs(8, 10, 12)
    turned = masks.transpose(0, 2, 1)
    assert boundary_doubt_mm(turned, (5.0, 2.0)) == pytest.approx(
        boundary_doubt_mm(masks, (2.0, 5.0))
    )
    assert boundary_doubt_mm(turned[..., None], (5.0, 2.0, 9.0)) == pytest.approx(
        boundary_doubt_mm(masks, (2.0, 5.0))
    )


def blobs(seed: int, draws: int = 5) -> np.ndarray:
    """Balls (N, 20, 22, 18) with moving centres and radii, away from the border."""
    rng = np.random.default_rng(seed)
    grid = np.indices((20, 22, 18)).reshape(3, 1, -1).astype(float)
    centre = np.array([10.0, 11, 9])[:, None] + rng.normal(0, 1, (3, draws))
    square = ((grid - centre[:, :, None]) ** 2).sum(0)
    return (square < rng.uniform(3, 6, (draws, 1)) ** 2).reshape(draws, 20, 22, 18)


def contour(mask: np.ndarray) -> np.ndarray:
    """Boundary voxels by face neighbours, ITK's."""
    image = SimpleITK.BinaryContour(SimpleITK.GetImageFromArray(mask.astype(np.uint8)), False)
    return SimpleITK.GetArrayFromImage(image).astype(bool)


def test_boundary_doubt_is_that_of_whole_distance_maps():
    masks, spacing = blobs(0), (1.0, 0.7, 2.5)
    maps = [
        np.where(m, -1, 1) * distance_transform_edt(~contour(m), sampling=spacing) for m in masks
    ]
    wanted = np.std(maps, axis=0)[contour(majority_mask(masks))].mean()
    assert wanted > 0.3
    assert boundary_doubt_mm(masks, spacing) == pytest.approx(wanted, rel=1e-5)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(5)))
def test_boundary_doubt_forgets_order_and_scales_with_spacing(seed, order):
    masks = blobs(seed)
    found = boundary_doubt_mm(masks, (1, 1, 2))
    assert boundary_doubt_mm(masks[order], (1, 1, 2)) == pytest.approx(found, rel=1e-5)
    assert boundary_doubt_mm(masks, (3, 3, 6)) == pytest.approx(3 * found, rel=1e-5)
    assert boundary_doubt_mm([masks[0]] * 4, (1, 1, 2)) == 0


def test_a_draw_without_the_structure_lies_a_diagonal_away():
    masks = slabs(10, 10, 0)
    far = np.hypot(30 * 2.0, 6 * 5.0)
    wanted = np.std([0, 0, far])
    assert boundary_doubt_mm(masks, (2.0, 5.0)) == pytest.approx(wanted, rel=1e-6)
    full = slabs(10, 10, 30)
    assert boundary_doubt_mm(full, (2.0, 5.0)) == pytest.approx(wanted, rel=1e-6)
    # Outside the empty mask, so on the other side of the boundary than an edge 4 mm further on.
    wanted = np.std([0, 0, 0, -4, far])
    assert boundary_doubt_mm(slabs(10, 10, 10, 12, 0), (2.0, 5.0)) == pytest.approx(wanted)


@pytest.mark.parametrize("stop", [0, 30])
def test_a_mean_without_boundary_has_no_number(stop: int):
    assert np.isnan(boundary_doubt_mm(slabs(stop, stop, 10), (1, 1)))


def test_volumes_by_hand():
    """1, 2, 3, 4 and 9 rows of 6 pixels of 2 x 5 mm: 60 mm^3 a row at 1 mm thickness.

    The percentiles lie a tenth of the way from the first to the second and from the last back.
    """
    found = volume_interval_ml(slabs(9, 2, 3, 4, 1), (2.0, 5.0))
    assert (found.mean_ml, found.low_ml, found.high_ml) == pytest.approx((0.228, 0.066, 0.51))
    cube = volume_interval_ml(iter(np.ones((2, 10, 10, 10), bool)), (1, 1, 1))
    assert (cube.mean_ml, cube.low_ml, cube.high_ml) == pytest.approx((1, 1, 1))
    none = volume_interval_ml(np.zeros((1, 4, 4), bool), (1, 1))
    assert (none.mean_ml, none.low_ml, none.high_ml) == (0, 0, 0)


def test_volumes_known_already_give_the_same():
    masks = blobs(3)
    counts = masks.reshape(5, -1).sum(1)
    assert interval_of_volumes(counts * 1.75 / 1000) == volume_interval_ml(masks, (1, 0.7, 2.5))


def test_misuse_is_refused():
    masks = slabs(3, 4)
    for spacing in ((1.0,), (1.0, 0.0), (1.0, float("nan"))):
        with pytest.raises(ValueError, match="spacing"):
            boundary_doubt_mm(masks, spacing)
        with pytest.raises(ValueError, match="spacing"):
            volume_interval_ml(masks, spacing)
    with pytest.raises(ValueError, match="at least one"):
        volume_interval_ml([], (1, 1))
    with pytest.raises(ValueError, match="at least one"):
        boundary_doubt_mm([], (1, 1))
