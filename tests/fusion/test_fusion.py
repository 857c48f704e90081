"""Fusion: answers known by hand."""

from __future__ import annotations

import numpy as np
import pytest

from medseg_diff.fusion import (
    PairwiseDice,
    RunningMoments,
    StepSum,
    StepUncertainty,
    predictive_entropy,
)


def test_running_moments_are_numpys():
    draws = np.random.default_rng(0).normal(5, 2, (17, 3, 4)).astype(np.float32)
    moments = RunningMoments()
    for draw in draws:
        moments.add(draw)
    assert moments.count == 17
    np.testing.assert_allclose(moments.mean, draws.mean(0), rtol=1e-5)
    np.testing.assert_allclose(moments.variance, draws.var(0), rtol=1e-4)


def test_moments_by_hand():
    moments = RunningMoments()
    for value in (1.0, 3.0):
        moments.add(np.array([value], np.float32))
    assert moments.mean is not None
    assert moments.mean.tolist() == [2.0]
    assert moments.variance.tolist() == [1.0]


def test_the_order_of_draws_does_not_matter():
    draws = np.random.default_rng(1).random((9, 50)).astype(np.float32)
    forwards, backwards = RunningMoments(), RunningMoments()
    for draw in draws:
        forwards.add(draw)
    for draw in draws[::-1]:
        backwards.add(draw)
    np.testing.assert_allclose(forwards.mean, backwards.mean, atol=1e-6)
    np.testing.assert_allclose(forwards.variance, backwards.variance, atol=1e-6)


def test_a_large_offset_does_not_drown_the_variance():
    moments = RunningMoments()
    for value in (1000.0, 1000.5, 1001.0):
        moments.add(np.array([value], np.float32))
    assert float(moments.variance[0]) == pytest.approx(1 / 6, rel=1e-3)


def test_one_draw_has_no_variance_and_none_has_no_answer():
    moments = RunningMoments()
    with pytest.raises(ValueError, match="no array"):
        _ = moments.variance
    values = np.array([0.3], np.float32)
    moments.add(values)
    assert moments.variance.tolist() == [0.0]
    values[0] = 9
    assert moments.mean is not None
    assert float(moments.mean[0]) == pytest.approx(0.3)


def test_entropy_of_classes():
    p = np.array([[1, 1 / 3, 0.5, 0.25], [0, 1 / 3, 0.5, 0.75], [0, 1 / 3, 0, 0]], np.float32)
    found = predictive_entropy(p, exclusive=True)
    quarter = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75)) / np.log(3)
    assert found.tolist() == pytest.approx([0, 1, np.log(2) / np.log(3), quarter], abs=1e-6)
    assert found.dtype == np.float32


def test_entropy_of_regions_is_that_of_the_most_doubtful():
    p = np.array([[1.0, 0.5, 0.9], [0.0, 0.0, 0.25]], np.float32)
    quarter = -(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))
    assert predictive_entropy(p, exclusive=False).tolist() == pytest.approx(
        [0, 1, quarter], abs=1e-6
    )


@pytest.mark.parametrize("exclusive", [True, False])
def test_entropy_is_bounded(exclusive: bool):
    p = np.random.default_rng(2).dirichlet([0.2] * 4, 500).T.astype(np.float32)
    found = predictive_entropy(p, exclusive=exclusive)
    assert found.shape == (500,)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    assert float(found.max()) > 0.5


def masks_of(*draws: list[int]) -> np.ndarray:
    """(1, V, N) from one list of voxels per draw."""
    return np.array(draws, bool).T[None]


def test_pairwise_dice_by_hand():
    spread = PairwiseDice(3, 1)
    spread.add(masks_of([1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 1]))
    assert spread.mean() == pytest.approx([(2 / 3 + 0 + 0) / 3])


def test_pairwise_dice_of_equal_draws_is_one():
    spread = PairwiseDice(4, 2)
    spread.add(np.repeat(np.array([[1, 0, 1], [0, 0, 0]], bool)[..., None], 4, axis=-1))
    assert spread.mean() == [1.0, 1.0]


def test_pairwise_dice_gathers_slabs_and_forgets_order():
    masks = np.random.default_rng(3).random((2, 40, 5)) > 0.5
    whole, slabs, shuffled = (PairwiseDice(5, 2) for _ in range(3))
    whole.add(masks)
    slabs.add(masks[:, :13])
    slabs.add(masks[:, 13:])
    shuffled.add(masks[..., [3, 1, 4, 0, 2]])
    assert slabs.mean() == pytest.approx(whole.mean())
    assert shuffled.mean() == pytest.approx(whole.mean())
    a, b = masks[1, :, 0], masks[1, :, 1]
    only = PairwiseDice(2, 1)
    only.add(masks[1:, :, :2])
    assert only.mean() == pytest.approx([2 * (a & b).sum() / (a.sum() + b.sum())])


def test_pairwise_dice_of_one_draw_is_unknown():
    spread = PairwiseDice(1, 2)
    spread.add(np.ones((2, 3, 1), bool))
    assert np.isnan(spread.mean()).all()
    assert len(spread.mean()) == 2


def test_an_empty_draw_against_a_full_one_is_zero():
    spread = PairwiseDice(2, 1)
    spread.add(masks_of([0, 0], [1, 1]))
    assert spread.mean() == [0.0]


def runs(draws: int = 4, steps: int = 10, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, I, K, V) and clean estimates, clipped logits as in the released code."""
    logits = np.random.default_rng(4).normal(0, 1.5, (draws, steps, classes, 30))
    return logits, logits.clip(-1, 1)


def fused(rule, clean: np.ndarray, logits: np.ndarray | None = None):
    """Fill a rule draw by draw."""
    for n, draw in enumerate(clean):
        for i, step in enumerate(draw):
            rule.add(i, step, None if logits is None else logits[n, i])
    return rule


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def direct_code(logits: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """The released formula on all draws and steps at once, in float64."""
    p = np.maximum(sigmoid(logits.mean(0)), 1e-3)
    u = -p * np.log(p)
    steps = len(p)
    i = np.arange(1, steps + 1).reshape(-1, 1, 1) / steps
    return (np.exp(sigmoid(i) * (1 - u)) * clean.clip(-1, 1).sum(0)).sum(0)


def direct_paper(clean: np.ndarray) -> np.ndarray:
    p = (clean.clip(-1, 1).mean(0) + 1) / 2
    u = -p * np.log(np.maximum(p, 1e-300))
    i = np.arange(1, len(p) + 1).reshape(-1, 1, 1) / len(p)
    w = np.exp(sigmoid(i) * (1 - u))
    return (w * p).sum(0) / w.sum(0)


@pytest.mark.parametrize(("draws", "steps"), [(4, 10), (1, 3), (2, 1)])
def test_suf_of_the_code_is_the_formula_on_all_at_once(draws: int, steps: int):
    logits, clean = runs(draws, steps)
    logits[0, 0, 0, :5] -= 40  # below the floor
    rule = fused(StepUncertainty("code"), clean, logits)
    wanted = direct_code(logits, clean)
    np.testing.assert_allclose(rule.evidence(), wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(rule.probability(exclusive=False), sigmoid(wanted), atol=1e-5)
    assert ((rule.probability(exclusive=False) > 0.5) == (wanted > 0)).all()
    powers = np.exp(wanted)
    np.testing.assert_allclose(rule.probability(exclusive=True), powers / powers.sum(0), atol=1e-4)
    assert rule.evidence().dtype == rule.probability(exclusive=True).dtype == np.float32


@pytest.mark.parametrize(("draws", "steps"), [(4, 10), (1, 3), (2, 1)])
def test_suf_of_the_paper_is_a_weighted_mean(draws: int, steps: int):
    _, clean = runs(draws, steps)
    clean[:, :, 0, 0] = -1  # p log p at 0
    rule = fused(StepUncertainty("paper"), clean)
    wanted = direct_paper(clean)
    np.testing.assert_allclose(rule.evidence(), wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(rule.probability(exclusive=False), wanted, rtol=1e-5, atol=1e-6)
    shared = rule.probability(exclusive=True)
    np.testing.assert_allclose(shared, wanted / wanted.sum(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(shared.sum(0), 1, rtol=1e-6)
    assert shared.dtype == np.float32


def test_suf_weights_by_hand():
    rule = StepUncertainty("code")
    one = np.ones((1, 1), np.float32)
    for step in range(10):
        rule.add(step, one, 0 * one)
    doubt = -0.5 * np.log(0.5)
    weights = [float(w[0, 0]) for w in rule.weights()]
    assert weights == pytest.approx([np.exp(sigmoid(i / 10) * (1 - doubt)) for i in range(1, 11)])
    assert float(rule.evidence()[0, 0]) == pytest.approx(sum(weights), rel=1e-6)


def test_suf_takes_log_odds_from_clean_where_it_has_no_logits():
    logits, _ = runs()
    clean = 2 * sigmoid(logits) - 1
    told = fused(StepUncertainty("code"), clean, logits)
    alone = fused(StepUncertainty("code"), clean)
    np.testing.assert_allclose(alone.evidence(), told.evidence(), rtol=1e-4)
    certain = StepUncertainty("code")
    certain.add(0, np.array([[1.0, -1.0]], np.float32))
    assert np.isfinite(certain.evidence()).all()
    assert float(certain.weights()[0][0, 0]) == pytest.approx(np.exp(sigmoid(1.0)), rel=1e-3)


@pytest.mark.parametrize("variant", ["code", "paper"])
def test_suf_forgets_the_order_of_draws_and_its_memory_is_flat(variant):
    logits, clean = runs(6, 4)
    rule = fused(StepUncertainty(variant), clean, logits)
    other = fused(StepUncertainty(variant), clean[::-1], logits[::-1])
    np.testing.assert_allclose(rule.evidence(), other.evidence(), rtol=1e-5, atol=1e-5)
    kept = [a for v in vars(rule).values() if isinstance(v, list) for a in v]
    arrays = [a for a in kept if isinstance(a, np.ndarray)]
    assert len(arrays) == (8 if variant == "code" else 4)


@pytest.mark.parametrize("variant", ["code", "paper"])
def test_suf_clips_what_it_takes(variant):
    logits, clean = runs(2, 3)
    wide = fused(StepUncertainty(variant), logits, logits)
    narrow = fused(StepUncertainty(variant), clean, logits)
    assert np.abs(logits).max() > 2
    np.testing.assert_array_equal(wide.evidence(), narrow.evidence())


def test_suf_does_not_keep_the_callers_arrays():
    rule, values = StepUncertainty("code"), np.full((1, 2), 0.5, np.float32)
    rule.add(0, values, values)
    before = rule.evidence().copy()
    values[:] = -1
    assert (rule.evidence() == before).all()


def test_suf_asks_for_whole_draws():
    one = np.ones((1, 1), np.float32)
    rule = StepUncertainty()
    with pytest.raises(ValueError, match="no step"):
        rule.evidence()
    with pytest.raises(ValueError, match="comes next"):
        rule.add(1, one)
    rule.add(0, one)
    rule.add(1, one)
    rule.add(0, one)
    with pytest.raises(ValueError, match="not finished"):
        rule.evidence()
    with pytest.raises(ValueError, match="variant"):
        StepUncertainty("both")  # type: ignore[arg-type]


def test_step_sum_is_the_plain_sum():
    _, clean = runs(2, 10)
    rule = fused(StepSum(), 3 * clean)
    wanted = (3 * clean).clip(-1, 1).sum((0, 1))
    np.testing.assert_allclose(rule.evidence(), wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(rule.probability(exclusive=False), sigmoid(wanted), atol=1e-5)
    powers = np.exp(wanted)
    np.testing.assert_allclose(rule.probability(exclusive=True), powers / powers.sum(0), atol=1e-5)
    with pytest.raises(ValueError, match="no step"):
        StepSum().evidence()
