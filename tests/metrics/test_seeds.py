"""Several seeds on the same cases: by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medseg_diff.metrics import seeds, statistics


def test_a_case_stays_one_case():
    values = [[0.8, 0.4, math.nan, 0.6], [0.6, math.nan, math.nan, 0.8]]
    assert seeds.pool_seeds(values)[[0, 1, 3]].tolist() == pytest.approx([0.7, 0.4, 0.7])
    assert math.isnan(seeds.pool_seeds(values)[2])
    found = seeds.over_seeds(values)
    assert (found.seeds, found.cases, found.incomplete) == (2, 3, 1)
    assert found.mean == pytest.approx(0.6)
    assert found.sd_cases == pytest.approx(math.sqrt(0.03))
    assert found.seed_means == pytest.approx((0.6, 0.7))
    assert found.sd_seeds == pytest.approx(0.1 / math.sqrt(2))


def test_more_seeds_make_no_more_cases():
    values = np.random.default_rng(0).random(20)
    patients = ["a", "b", "c", "d"] * 5
    tiled = seeds.over_seeds(np.tile(values, (5, 1)), patients=patients)
    assert tiled.sd_seeds == pytest.approx(0)
    low_high = statistics.bootstrap_interval(values, patients=patients)
    assert (tiled.low, tiled.high) == pytest.approx(low_high)
    assert low_high != statistics.bootstrap_interval(values)


def test_one_seed_and_an_empty_seed():
    one = seeds.over_seeds([[0.5, 0.7]])
    assert math.isnan(one.sd_seeds)
    assert one.mean == pytest.approx(0.6)
    blank = seeds.over_seeds([[0.5, 0.7], [math.nan, math.nan]])
    assert math.isnan(blank.seed_means[1])
    assert (blank.cases, blank.incomplete) == (2, 2)


@pytest.mark.parametrize("bad", [[0.5, 0.7], np.zeros((0, 3)), np.zeros((1, 2, 3))])
def test_other_shapes_are_refused(bad):
    with pytest.raises(ValueError, match="seeds, cases"):
        seeds.pool_seeds(bad)
