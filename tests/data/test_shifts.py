"""Scanner models against what they must do: formulas, conserved quantities, monotone maps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from medseg_diff.data.frozen_shifts import NO_SHIFT, load_shifts
from medseg_diff.data.shifts import OPERATORS, Shift, slab_matrix
from medseg_diff.errors import UsageError

FROZEN = load_shifts()
EVERY = [FROZEN.get(name, level) for name, spec in FROZEN.shifts.items() for level in spec.levels]
SHAPES = {2: ((1, 24, 31), (1.0, 0.8)), 3: ((2, 14, 17, 12), (1.0, 1.2, 0.9))}
every_shift = pytest.mark.parametrize("shift", EVERY, ids=lambda s: f"{s.name}-{s.level}")
both_dims = pytest.mark.parametrize("dims", [2, 3])


def scan(dims: int) -> tuple[np.ndarray, tuple[float, ...]]:
    shape, spacing = SHAPES[dims]
    grid = np.indices(shape[1:]).sum(0)
    texture = np.random.default_rng(0).normal(0, 3, shape)
    return (100 + 40 * np.sin(grid / 4) + texture).astype(np.float32), spacing


def of(name: str, **values: float) -> Shift:
    (parameter, value), *fixed = values.items()
    return Shift(name, parameter, value, tuple(fixed))


@every_shift
@both_dims
def test_shape_seed_and_identity_at_zero(shift: Shift, dims: int):
    image, spacing = scan(dims)
    before = image.copy()
    once = shift(image, spacing, case="a", seed=3)
    assert once.shape == image.shape
    assert once.dtype == np.float32
    assert np.isfinite(once).all()
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(once, shift(image, spacing, case="a", seed=3))
    assert np.abs(once - image).max() > 0.1
    np.testing.assert_array_equal(replace(shift, value=0.0)(image, spacing, case="a"), image)
    if shift.name not in ("contrast_inversion", "slice_thickness", "ghosting"):
        assert np.abs(once - shift(image, spacing, case="b", seed=3)).max() > 0.1
        assert np.abs(once - shift(image, spacing, case="a", seed=4)).max() > 0.1


def test_inversion_is_monotone_decreasing_and_keeps_the_range():
    ramp = np.linspace(10, 20, 2000, dtype=np.float32).reshape(1, 40, 50)
    turned = of("contrast_inversion", strength=1.0, gamma=2.0)(ramp, (1, 1), case="a").ravel()
    assert (np.diff(turned) <= 0).all()
    inside = slice(20, -20)
    assert (np.diff(turned)[inside] < 0).all()
    assert turned.min() >= 10
    assert turned.max() <= 20
    # u = 1/2 goes to (1/2)^2.
    assert turned[1000] == pytest.approx(10 + 0.25 * 10, abs=0.05)


def test_inversion_leaves_padding_dark():
    image = np.zeros((1, 8, 8), np.float32)
    image[0, 2:6, 2:6] = np.arange(1, 17).reshape(4, 4)
    turned = of("contrast_inversion", strength=1.0)(image, (1, 1), case="a")
    assert (turned[image == 0] == 0).all()
    assert turned[0, 2, 2] > turned[0, 5, 5]


@both_dims
def test_bias_field_is_a_positive_smooth_factor_that_leaves_a_dark_image_dark(dims: int):
    image, spacing = scan(dims)
    factor = of("bias_field", amplitude=0.3)(image, spacing, case="a") / image
    np.testing.assert_allclose(factor[0], factor[-1], rtol=1e-4)
    steps = [np.abs(np.diff(np.log(factor), axis=a)).max() for a in range(1, dims + 1)]
    assert factor.min() > 0
    assert max(steps) < 0.5 * np.ptp(np.log(factor))
    dark = of("bias_field", amplitude=0.3)(np.zeros_like(image), spacing, case="a")
    np.testing.assert_array_equal(dark, 0)


@pytest.mark.parametrize("thickness_mm", [0.5, 1.0, 2.0, 3.0, 5.0, 7.3, 100.0])
@both_dims
def test_slice_thickness_preserves_the_mean(thickness_mm: float, dims: int):
    image, spacing = scan(dims)
    thick = of("slice_thickness", thickness_mm=thickness_mm)(image, spacing, case="a")
    assert thick.mean() == pytest.approx(image.mean(), rel=1e-5)
    if thickness_mm <= spacing[-1]:
        np.testing.assert_allclose(thick, image)


def test_a_slab_holds_the_mean_of_its_voxels():
    line = np.arange(9, dtype=np.float32).reshape(1, 1, 9)
    thick = of("slice_thickness", thickness_mm=6.0)(line, (1, 2), case="a")
    np.testing.assert_allclose(thick[0, 0], [1, 1, 1, 4, 4, 4, 7, 7, 7], rtol=1e-6)
    # 1.5 voxels a slab: the middle voxel of three lies in two of them.
    third = [[2 / 3, 1 / 3, 0], [1 / 3, 1 / 3, 1 / 3], [0, 1 / 3, 2 / 3]]
    np.testing.assert_allclose(slab_matrix(3, 1.0, 1.5), third)


def test_rician_noise_has_the_distributions_mean_and_variance():
    # Half the voxels 0, half 10: the range is 10, so sigma is 2 in the image's units.
    image = np.zeros((1, 400, 400), np.float32)
    image[:, :200] = 10
    noisy = of("rician_noise", sigma=0.2)(image, (1, 1), case="a")
    for part, level in ((noisy[:, :200], 10.0), (noisy[:, 200:], 0.0)):
        expected = stats.rice(level / 2, scale=2)
        assert part.mean() == pytest.approx(expected.mean(), abs=4 * expected.std() / 280)
        assert part.var() == pytest.approx(expected.var(), rel=0.03)


@pytest.mark.parametrize("name", ["motion", "ghosting"])
@pytest.mark.parametrize("level", [7.0, -7.0])
@both_dims
def test_k_space_of_a_constant_image_is_unchanged(name: str, level: float, dims: int):
    shape, spacing = SHAPES[dims]
    image = np.full(shape, level, np.float32)
    shifted = FROZEN.get(name, "strong")(image, spacing, case="a")
    np.testing.assert_allclose(shifted, image, atol=1e-4)


def test_a_ghost_lies_half_the_field_of_view_away():
    image = np.zeros((1, 32, 8), np.float32)
    image[0, 4, 4] = 1
    ghosted = of("ghosting", intensity=1.0, ghosts=2)(image, (1, 1), case="a")[0, :, 4]
    # Every second line lost, the centre kept: half stays, minus half at a distance of 16.
    assert ghosted[4] == pytest.approx(0.5, abs=0.05)
    assert ghosted[20] == pytest.approx(0.5, abs=0.05)
    assert np.delete(ghosted, [4, 20]).max() < 0.05


def test_motion_of_every_line_would_move_the_image():
    """With one part alone outside the centre, energy is kept: a phase ramp loses nothing."""
    rng_image = np.random.default_rng(1).uniform(1, 2, (1, 16, 16)).astype(np.float32)
    moved = of("motion", displacement_mm=2.0)(rng_image, (1, 1), case="a")
    assert (moved**2).sum() == pytest.approx((rng_image**2).sum(), rel=1e-4)
    # Displacement is in mm: the same image on voxels of 100 mm hardly moves.
    coarse = of("motion", displacement_mm=2.0)(rng_image, (100, 100), case="a")
    assert np.abs(coarse - rng_image).max() < 0.1 * np.abs(moved - rng_image).max()


def test_low_field_loses_detail_and_gains_noise():
    flat = np.full((1, 30, 30, 30), 50, np.float32)
    flat[:, 15:] = 150
    shifted = of("low_field", strength=1.0, voxel_mm=3.0, sigma=0.1)(flat, (1, 1, 1), case="a")
    bright = shifted[:, 18:]
    assert bright.std() == pytest.approx(10, rel=0.05)
    fine = np.tile([1.0, 2.0], (1, 30, 30, 15)).astype(np.float32)
    blurred = of("low_field", strength=1.0, voxel_mm=2.0, sigma=1e-6)(fine, (1, 1, 1), case="a")
    np.testing.assert_allclose(blurred, 1.5, atol=1e-3)


def test_bad_images_and_strengths_are_refused():
    image, spacing = scan(2)
    shift = FROZEN.get("motion", "mild")
    with pytest.raises(ValueError, match="0 or more"):
        replace(shift, value=-1.0)(image, spacing, case="a")
    with pytest.raises(ValueError, match="NaN"):
        shift(np.full_like(image, np.nan), spacing, case="a")
    with pytest.raises(ValueError, match="spacings"):
        shift(image, (1.0,), case="a")
    with pytest.raises(ValueError, match="spatial axes"):
        shift(image[0], spacing, case="a")


def test_the_frozen_file_names_every_operator_and_rising_levels():
    assert set(FROZEN.shifts) == set(OPERATORS)
    for name in FROZEN.shifts:
        curve = FROZEN.curve(name)
        assert [s.value for s in curve] == sorted(s.value for s in curve)
        assert curve[0].level == NO_SHIFT
        assert curve[0].value == 0


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("version: 1\nshifts: {fog: {parameter: a, levels: {b: 1}}}", "unknown operator"),
        ("version: 1\nshifts: {motion: {parameter: speed, levels: {b: 1}}}", "no such parameter"),
        ("version: 1\nshifts: {rician_noise: {parameter: sigma, levels: {b: 0}}}", "above 0"),
        ("version: 1\nshifts: {}", "shifts"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, text: str, word: str):
    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=word):
        load_shifts(file)


def test_unknown_names_are_offered_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'motion'"):
        FROZEN.get("motions", "mild")
    with pytest.raises(UsageError, match="Did you mean 'mild'"):
        FROZEN.get("motion", "mid")
    with pytest.raises(UsageError, match="no such file"):
        load_shifts("/nowhere.yaml")
