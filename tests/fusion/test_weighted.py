"""Certainty-weighted mean: the formula by hand and on all draws at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg_diff.fusion import (
    CertaintyWeightedMean,
    certainty,
    certainty_weighted_mean,
    channel_entropy,
    mean_probability,
    predictive_entropy,
)


def some(draws: int = 6, exclusive: bool = True, seed: int = 0) -> np.ndarray:
    """Probabilities (N, 3, 40)."""
    rng = np.random.default_rng(seed)
    if exclusive:
        return rng.dirichlet([0.4] * 3, (draws, 40)).transpose(0, 2, 1).astype(np.float32)
    return rng.beta(0.5, 0.5, (draws, 3, 40)).astype(np.float32)


def entropy(p: np.ndarray) -> np.ndarray:
    """Binary, in bits."""
    p = p.astype(np.float64)
    return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))


def test_a_sure_draw_outweighs_a_doubtful_one():
    """Probability 1 weighs 1, 1/2 weighs nothing, 1/4 weighs 1 - 0.8112781."""
    draws = np.array([[[1.0, 0.5, 1.0]], [[0.5, 0.5, 0.25]]], np.float32)
    found = certainty_weighted_mean(draws, exclusive=False)
    weight = 1 - 0.8112781
    assert found[0].tolist() == pytest.approx(
        [1, 0.5, (1 + 0.25 * weight) / (1 + weight)], abs=1e-5
    )
    assert mean_probability(draws)[0].tolist() == [0.75, 0.5, 0.625]


def test_classes_share_a_weight_and_regions_do_not():
    for exclusive in (True, False):
        draws = some(exclusive=exclusive)
        if exclusive:
            weights = 1 + (draws * np.log(np.maximum(draws, 1e-30))).sum(1, keepdims=True) / np.log(
                3
            )
        else:
            weights = 1 - entropy(draws.clip(1e-7, 1 - 1e-7))
        wanted = (weights * draws).sum(0) / weights.sum(0)
        found = certainty_weighted_mean(draws, exclusive=exclusive)
        np.testing.assert_allclose(found, wanted, atol=2e-5)
        assert found.dtype == np.float32
    assert certainty(some()[0], exclusive=True).shape == (1, 40)
    assert certainty(some()[0], exclusive=False).shape == (3, 40)


def test_channel_entropy_is_that_of_each_region():
    p = some(exclusive=False)[0].clip(0.01, 0.99)
    found = channel_entropy(p)
    np.testing.assert_allclose(found, entropy(p), atol=1e-5)
    np.testing.assert_array_equal(found.max(0), predictive_entropy(p, exclusive=False))
    assert channel_entropy(np.array([[0, 0.5, 1]], np.float32)).tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("exclusive", [True, False])
def test_equal_draws_return_themselves(exclusive: bool):
    one = some(exclusive=exclusive)[0]
    one[:, 0] = 1 / 3 if exclusive else 0.5
    np.testing.assert_allclose(
        certainty_weighted_mean([one] * 5, exclusive=exclusive), one, atol=1e-5
    )
    np.testing.assert_allclose(mean_probability([one] * 5), one, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.booleans(), st.randoms())
def test_order_does_not_matter_and_the_answer_lies_among_the_draws(seed, exclusive, random):
    draws = some(4, exclusive, seed)
    order = list(range(4))
    random.shuffle(order)
    found = certainty_weighted_mean(draws, exclusive=exclusive)
    other = certainty_weighted_mean(draws[order], exclusive=exclusive)
    np.testing.assert_allclose(found, other, atol=1e-5)
    assert (found >= draws.min(0) - 1e-5).all()
    assert (found <= draws.max(0) + 1e-5).all()
    if exclusive:
        np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)
    np.testing.assert_allclose(mean_probability(draws), draws.mean(0), atol=1e-6)


def test_nothing_of_the_caller_is_kept_and_memory_is_flat():
    rule, values = CertaintyWeightedMean(exclusive=False), np.full((1, 2), 0.9, np.float32)
    rule.add(values)
    values[:] = 0.1
    assert rule.probability()[0].tolist() == pytest.approx([0.9, 0.9])
    for _ in range(5):
        rule.add(values)
    assert sum(isinstance(v, np.ndarray) for v in vars(rule).values()) == 2


def test_misuse_is_refused():
    rule = CertaintyWeightedMean(exclusive=True)
    with pytest.raises(ValueError, match="no draw"):
        rule.probability()
    rule.add(some()[0])
    with pytest.raises(ValueError, match="shape"):
        rule.add(some()[0, :, :1])
    with pytest.raises(ValueError, match="at least one"):
        mean_probability([])
