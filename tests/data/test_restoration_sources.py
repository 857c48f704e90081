"""How a restoration's sources are made: block means brought back, boxes and ellipsoids cut out."""

from __future__ import annotations

import numpy as np
import pytest

from medseg_diff.config import RestorationConfig
from medseg_diff.data.restoration import (
    coarsening,
    degraded,
    random_hole,
    training_source,
    validation_hole,
    validation_source,
    with_hole,
)


def test_coarsening_keeps_constants_and_ramps_between_the_centres():
    matrix = coarsening(13, 4)
    np.testing.assert_allclose(matrix.sum(1), 1)
    ramp = matrix @ np.arange(13.0)
    # Blocks 0-3, 4-7, 8-11, 12: means 1.5, 5.5, 9.5, 12.
    np.testing.assert_allclose(ramp[2:12], np.arange(2.0, 12))
    np.testing.assert_allclose(ramp[[0, 1, 12]], [1.5, 1.5, 12])
    assert np.linalg.matrix_rank(matrix) == 4


def test_a_degraded_image_keeps_its_grid_and_changes_along_the_chosen_axes_alone():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 8, 9, 12)).astype(np.float32)
    made = degraded(image, 4, (2,))
    assert (made.shape, made.dtype) == (image.shape, np.float32)
    column = coarsening(12, 4) @ image[1, 3, 5]
    np.testing.assert_allclose(made[1, 3, 5], column, rtol=1e-5)
    both = degraded(image, 4, (0, 2))
    np.testing.assert_allclose(both, degraded(degraded(image, 4, (0,)), 4, (2,)), atol=1e-6)
    flat = image[..., :1]
    np.testing.assert_array_equal(degraded(flat, 4, (2,)), flat)
    with pytest.raises(ValueError, match="2 or more"):
        degraded(image, 1, (0,))


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 12), (9, 7, 1)])
def test_holes_are_boxes_and_ellipsoids_of_the_asked_sides(shape: tuple[int, ...]):
    rng, shares = np.random.default_rng(0), []
    for _ in range(60):
        hole = random_hole(shape, (0.3, 0.6), rng)
        assert hole.shape == shape
        assert hole.any()
        where = np.argwhere(hole)
        spans = np.ptp(where, axis=0) + 1
        for span, length in zip(spans, shape, strict=True):
            assert span <= max(1, round(0.6 * length))
        shares.append(hole.sum() / spans.prod())
    assert max(shares) == 1
    # An ellipsoid fills pi / 6 of its box, an ellipse pi / 4.
    ideal = np.pi / 4 if len([n for n in shape if n > 1]) == 2 else np.pi / 6
    assert min(shares) == pytest.approx(ideal, abs=0.2)


def test_a_hole_is_zero_in_the_image_and_one_in_its_plane():
    image = np.full((2, 4, 5), 0.7, np.float32)
    hole = np.zeros((4, 5), bool)
    hole[1, 2] = True
    seen = with_hole(image, hole)
    assert seen.shape == (3, 4, 5)
    assert float(seen[:2, 1, 2].max()) == 0
    np.testing.assert_array_equal(seen[2], hole)
    assert (seen[:2][:, ~hole] == np.float32(0.7)).all()


def test_a_validation_hole_lies_in_the_middle_patch_and_is_the_cases_own():
    wanted = RestorationConfig(kind="inpainting")
    first, again, other = (
        validation_hole((40, 40, 5), wanted, name, (16, 16)) for name in ("a", "a", "b")
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    where = np.argwhere(first | other)
    assert where.min(0)[0] >= 12
    assert where.max(0)[0] < 28
    assert set(where[:, 2]) == {2}


def test_validation_takes_the_largest_factor_and_training_any():
    target = np.random.default_rng(0).uniform(-1, 1, (1, 12, 8)).astype(np.float32)
    wanted = RestorationConfig(kind="super_resolution", axes=(0,), factors=(2, 4))
    found = validation_source(target, wanted, "a", (8, 8))
    np.testing.assert_array_equal(found, degraded(target, 4, (0,)))
    drawn = {training_source(target, wanted, np.random.default_rng(k)).tobytes() for k in range(9)}
    assert drawn == {degraded(target, factor, (0,)).tobytes() for factor in (2, 4)}


def test_boxes_reach_every_place():
    """Each corner of the patch is in some hole."""
    rng, seen = np.random.default_rng(1), np.zeros((8, 9), bool)
    for _ in range(300):
        seen |= random_hole((8, 9), (0.2, 0.5), rng)
    assert seen.all()
