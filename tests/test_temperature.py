"""Temperature: known temperatures come back, and a search over a fine grid finds no better one."""

from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pytest
from scipy.special import expit, softmax

from medseg_diff.temperature import (
    HIGHEST,
    LOWEST,
    apply_temperature,
    fit_temperature,
)


def regions(seed: int, sharpened: float, size: int = 4000):
    """Regions (2, V): presence drawn from sigmoid(z), stated as sigmoid(sharpened z)."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 2, (2, size))
    return expit(sharpened * z), (rng.random(z.shape) < expit(z)).astype(float)


def classes(seed: int, sharpened: float, size: int = 4000):
    """The same of three exclusive classes."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 2, (3, size))
    edges = softmax(z, axis=0).cumsum(0)
    return softmax(sharpened * z, axis=0), (rng.random(size) > edges[:2]).sum(0)


def nll_of(p, target, exclusive: bool) -> float:
    if exclusive:
        return float(-np.log(p[target, np.arange(p.shape[1])]).mean())
    return float(-np.log(np.where(target > 0, p, 1 - p)).mean())


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("sharpened", [3.0, 0.4])
def test_the_temperature_that_was_put_in_comes_back(exclusive: bool, sharpened: float):
    p, target = (classes if exclusive else regions)(0, sharpened)
    fitted = fit_temperature([p], [target], exclusive=exclusive)
    assert fitted.value == pytest.approx(sharpened, rel=0.05)
    assert (fitted.at_bound, fitted.voxels) == (False, 4000)
    assert fitted.nll_before == pytest.approx(nll_of(p, target, exclusive), rel=1e-4)
    softened = apply_temperature(p, fitted.value, exclusive=exclusive)
    assert fitted.nll_after == pytest.approx(nll_of(softened, target, exclusive), rel=1e-4)
    assert fitted.nll_after < fitted.nll_before


@pytest.mark.parametrize("exclusive", [True, False])
def test_no_other_temperature_is_better(exclusive: bool):
    p, target = (classes if exclusive else regions)(1, 1.7, size=300)
    fitted = fit_temperature([p], [target], exclusive=exclusive)
    grid = np.geomspace(0.2, 8, 400)
    found = [nll_of(apply_temperature(p, t, exclusive=exclusive), target, exclusive) for t in grid]
    assert fitted.nll_after <= min(found) + 1e-9
    assert fitted.value == pytest.approx(grid[int(np.argmin(found))], rel=0.01)


def test_cases_are_pooled_and_only_judged_voxels_count():
    p, target = regions(2, 2.0, size=900)
    parts = [p[:, :600].reshape(2, 20, 30), p[:, 600:].reshape(2, 10, 30)]
    truths = [target[:, :600].reshape(2, 20, 30), target[:, 600:].reshape(2, 10, 30)]
    together = fit_temperature([p], [target], exclusive=False)
    pooled = fit_temperature(parts, truths, exclusive=False)
    assert astuple(pooled) == pytest.approx(astuple(together))
    first = [np.ones((20, 30), dtype=bool), np.zeros((10, 30), dtype=bool)]
    some = fit_temperature(parts, truths, exclusive=False, where=first)
    wanted = fit_temperature([p[:, :600]], [target[:, :600]], exclusive=False)
    assert astuple(some) == pytest.approx(astuple(wanted))
    p, labels = classes(2, 2.0, size=90)
    labels = np.where(np.arange(90) < 60, labels, 255)
    some = fit_temperature([p], [labels], exclusive=True, where=[labels < 255])
    wanted = fit_temperature([p[:, :60]], [labels[:60]], exclusive=True)
    assert astuple(some) == pytest.approx(astuple(wanted))


def test_a_share_of_annotators_is_fitted():
    """One voxel marked by 3 of 4 annotators and stated as .9: sigmoid(logit(.9) / T) = .75."""
    fitted = fit_temperature([np.array([[0.9]])], [np.array([[0.75]])], exclusive=False)
    assert fitted.value == pytest.approx(math.log(9) / math.log(3), rel=1e-4)


def test_separable_cases_stop_at_the_bound():
    p = np.array([[0.6, 0.4]])
    sharp = fit_temperature([p], [np.array([[1, 0]])], exclusive=False)
    assert (sharp.value, sharp.at_bound) == (LOWEST, True)
    flat = fit_temperature([p], [np.array([[0, 1]])], exclusive=False)
    assert (flat.value, flat.at_bound) == (HIGHEST, True)
    even = fit_temperature([np.array([[0.5]])], [np.array([[1]])], exclusive=False)
    assert even.nll_after == even.nll_before == pytest.approx(math.log(2))
    assert LOWEST == 0.05


def test_maps_by_hand():
    p = np.array([[0.2], [0.8]])
    # Odds 4 become their square root, 2, and their square, 16.
    np.testing.assert_allclose(apply_temperature(p, 2, exclusive=True), [[1 / 3], [2 / 3]])
    np.testing.assert_allclose(apply_temperature(p, 0.5, exclusive=True), [[1 / 17], [16 / 17]])
    np.testing.assert_allclose(apply_temperature(p, 2, exclusive=False), [[1 / 3], [2 / 3]])
    three = np.array([[0.1, 0.1, 0.8]]).T
    wanted = np.sqrt(three) / np.sqrt(three).sum()
    np.testing.assert_allclose(apply_temperature(three, 2, exclusive=True), wanted)


@pytest.mark.parametrize("exclusive", [True, False])
def test_logits_give_the_same_map(exclusive: bool):
    z = np.random.default_rng(3).normal(0, 2, (3, 4, 5))
    p, wanted = (softmax(z, axis=0), softmax(z / 1.5, axis=0)) if exclusive else (
        expit(z), expit(z / 1.5)
    )  # fmt: skip
    np.testing.assert_allclose(apply_temperature(p, 1.5, exclusive=exclusive), wanted, rtol=1e-9)


@pytest.mark.parametrize("exclusive", [True, False])
def test_maps_keep_their_type_sides_and_sums(exclusive: bool):
    rng = np.random.default_rng(4)
    p = softmax(rng.normal(0, 6, (3, 50)), axis=0).astype(np.float32)
    p[:, 0] = (0, 0, 1)
    same = apply_temperature(p, 1, exclusive=exclusive)
    assert same.dtype == np.float32
    np.testing.assert_allclose(same, p, atol=3e-7)
    for t in (0.3, 4.0):
        changed = apply_temperature(p, t, exclusive=exclusive)
        assert (changed.argmax(0) == p.argmax(0)).all()
        if exclusive:
            np.testing.assert_allclose(changed.sum(0), 1, atol=1e-6)
        else:
            assert ((changed > 0.5) == (p > 0.5)).all()
    assert 0.5 < apply_temperature(p, 10, exclusive=exclusive)[2, 0] < 0.99


def test_bad_arguments_are_refused():
    p, target = np.array([[0.5]]), np.array([[1]])
    for temperature in (0.0, 0.01, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"at least 0\.05"):
            apply_temperature(p, temperature, exclusive=False)
    with pytest.raises(ValueError, match="no voxel"):
        fit_temperature([], [], exclusive=True)
    with pytest.raises(ValueError, match="0 targets for 1"):
        fit_temperature([p], [], exclusive=False)
    with pytest.raises(ValueError, match="0 regions for 1"):
        fit_temperature([p], [target], exclusive=False, where=[])
    with pytest.raises(ValueError, match="does not fit"):
        fit_temperature([p], [target], exclusive=True)
    with pytest.raises(ValueError, match="targets must lie in 0 to 1"):
        fit_temperature([p], [2 * target], exclusive=False)
    with pytest.raises(ValueError, match="probabilities must lie"):
        fit_temperature([3 * p], [target], exclusive=False)
    with pytest.raises(ValueError, match="where must be bool"):
        fit_temperature([p], [target], exclusive=False, where=[np.array([1])])
