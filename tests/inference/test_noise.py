"""Noise fields: one value per voxel, channel, draw, step, case and seed, however it is cut."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from medseg_diff.inference.noise import CUBE, SLICE, NoiseField

BASE = NoiseField(seed=0, case="case", draw=0, step=0, channels=2)


def test_windows_agree_where_they_overlap():
    whole = BASE.window((0, 0, 0), (70, 40, 36))
    assert whole.shape == (2, 70, 40, 36)
    assert whole.dtype == np.float32
    for start, size in [
        ((3, 1, 2), (40, 30, 33)),
        ((32, 0, 31), (32, 32, 3)),
        ((69, 39, 35), (1, 1, 1)),
    ]:
        place = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
        assert np.array_equal(BASE.window(start, size), whole[:, *place])


def test_slices_of_flat_tiles_agree_too():
    flat = NoiseField(0, "case", 0, 0, 1, SLICE)
    whole = flat.window((0, 0, 0), (70, 65, 3))
    assert np.array_equal(flat.window((5, 60, 2), (64, 5, 1)), whole[:, 5:69, 60:65, 2:3])
    assert not np.array_equal(whole[..., 0], whole[..., 1])


@pytest.mark.parametrize(
    "other",
    [
        NoiseField(1, "case", 0, 0, 2),
        NoiseField(0, "other", 0, 0, 2),
        NoiseField(0, "case", 1, 0, 2),
        NoiseField(0, "case", 0, 1, 2),
    ],
    ids=["seed", "case", "draw", "step"],
)
def test_fields_differ(other: NoiseField):
    a, b = BASE.window((0, 0, 0), (32, 32, 32)), other.window((0, 0, 0), (32, 32, 32))
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.02
    assert not np.isclose(a, b, rtol=0, atol=1e-6).mean() > 0.001


def test_tiles_and_channels_are_independent():
    """Counters name tiles, so neighbours must not be shifted copies of one stream."""
    tiles = [
        BASE.window([32 * k for k in index], CUBE) for index in itertools.product((0, 1), repeat=3)
    ]
    streams = [tile[c].ravel() for tile in tiles for c in range(2)]
    correlation = np.corrcoef(streams) - np.eye(len(streams))
    assert np.abs(correlation).max() < 0.03
    shared = [len(np.intersect1d(a, b)) for a, b in itertools.combinations(streams, 2)]
    assert max(shared) < 0.02 * streams[0].size


def test_neighbouring_voxels_are_independent():
    field = BASE.window((0, 0, 0), (32, 32, 32))[0]
    for axis in range(3):
        a, b = np.delete(field, 0, axis), np.delete(field, -1, axis)
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.025


def test_values_are_standard_normal():
    field = BASE.window((0, 0, 0), (64, 32, 32)).astype(np.float64)
    n = field.size
    assert abs(field.mean()) < 4 / np.sqrt(n)
    assert abs(field.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs((field**3).mean()) < 4 * np.sqrt(15 / n)
    assert abs((field**4).mean() - 3) < 4 * np.sqrt(96 / n)


def test_the_stream_is_pinned():
    """A change here changes every answer of every released model: bump the version and say so."""
    found = NoiseField(7, "pinned", 2, 1, 2).window((31, 0, 5), (2, 1, 2))
    golden = [0.855921, 0.583400, -1.807443, -0.156031, 0.223781, -0.583723, 0.961020, 0.167311]
    assert found.ravel().tolist() == pytest.approx(golden, abs=1e-6)
