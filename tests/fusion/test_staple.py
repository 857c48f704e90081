"""STAPLE against hand calculation, ITK's filters, plain EM voxel by voxel, and known truth."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medseg_diff.fusion import label_votes, staple_labels, staple_mask, voting_patterns

Rule = Callable[[np.ndarray], np.ndarray]


def posterior(draws: np.ndarray) -> np.ndarray:
    """The rule under test: masks (N, *S) -> probability (*S)."""
    return staple_mask(draws).probability


def squared_mean(draws: np.ndarray) -> np.ndarray:
    """What passes for STAPLE elsewhere: the mean of each mask times their mean."""
    mean = draws.mean(0)
    return (draws * mean).mean(0)


def raters(
    seed: int, draws: int = 5, classes: int = 2, shape: tuple[int, ...] = (12, 13, 9)
) -> tuple[np.ndarray, np.ndarray]:
    """A truth (*S) of nested boxes, and label maps (N, *S) wrong at 5 to 30 % of voxels."""
    rng = np.random.default_rng(seed)
    truth = np.zeros(shape, np.int64)
    for value in range(1, classes):
        truth[tuple(slice(value + 1, n - value) for n in shape)] = value
    wrong = rng.random((draws, *shape)) < rng.uniform(0.05, 0.3, draws).reshape(
        -1, *[1] * len(shape)
    )
    other = (truth + rng.integers(1, classes, (draws, *shape))) % classes
    return truth, np.where(wrong, other, truth)


def itk_binary(draws: np.ndarray) -> tuple[np.ndarray, SimpleITK.STAPLEImageFilter]:
    images = [SimpleITK.GetImageFromArray(d.astype(np.uint8)) for d in draws]
    rule = SimpleITK.STAPLEImageFilter()
    return SimpleITK.GetArrayFromImage(rule.Execute(images)), rule


def itk_labels(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label map with -1 where ITK is undecided, and matrices (N, truth, vote)."""
    images = [SimpleITK.GetImageFromArray(d.astype(np.uint8)) for d in draws]
    rule = SimpleITK.MultiLabelSTAPLEImageFilter()
    rule.SetLabelForUndecidedPixels(255)
    labels = SimpleITK.GetArrayFromImage(rule.Execute(images)).astype(int)
    classes = int(draws.max()) + 1
    found = [
        np.reshape(rule.GetConfusionMatrix(n), (classes + 1, classes)) for n in range(len(draws))
    ]
    return np.where(labels == 255, -1, labels), np.stack(found)[:, :classes].transpose(0, 2, 1)


def without_ties(draws: np.ndarray) -> np.ndarray:
    """Label maps (N, 1, V) of the voxels where one label has the most votes.

    ITK 5.4's start runs into the next row of its matrix at the others.
    """
    votes = label_votes(draws, int(draws.max()) + 1)
    decided = (votes == votes.max(0)).sum(0) == 1
    return draws[:, decided][:, None]


def check_by_hand(rule: Rule) -> None:
    """Two draws whose start is EM's fixed point: see ``test_two_draws_by_hand``."""
    draws = np.array([[1, 1, 0, 0], [1, 0, 0, 0]], bool)
    np.testing.assert_allclose(rule(draws), [1, 0.5, 0, 0], atol=1e-6)


def check_against_itk(rule: Rule) -> None:
    for seed in range(5):
        draws = raters(seed)[1] > 0
        np.testing.assert_allclose(rule(draws), itk_binary(draws)[0], atol=1e-6)


def check_majority_of_equals(rule: Rule) -> None:
    """Five draws wrong equally often and apart: three votes of five are more likely than not."""
    rng = np.random.default_rng(0)
    truth = np.arange(4000) < 2000
    draws = truth ^ (rng.random((5, 4000)) < 0.2)
    found, votes = rule(draws), draws.sum(0)
    assert (found[votes == 3] > 0.5).all()
    assert (found[votes == 2] < 0.5).all()


CHECKS = [check_by_hand, check_against_itk, check_majority_of_equals]


@pytest.mark.parametrize("check", CHECKS)
def test_staple_is_staple(check: Callable[[Rule], None]):
    check(posterior)


@pytest.mark.parametrize("check", CHECKS)
def test_a_squared_mean_is_not(check: Callable[[Rule], None]):
    votes = np.array([[1], [1], [1], [0], [0]], bool)
    assert squared_mean(votes) == pytest.approx(0.36)
    with pytest.raises(AssertionError):
        check(squared_mean)


def test_two_draws_by_hand():
    """Votes 11, 10, 00, 00: W starts as (1, 1/2, 0, 0), f = 3/8.

    Sensitivities (1 + 1/2) / (3/2) = 1 and 1 / (3/2) = 2/3; specificities 2 / (5/2) = 4/5 and 1.
    At the second voxel 3/8 * 1 * 1/3 equals 5/8 * 1/5 * 1, so W is 1/2 again.
    """
    found = staple_mask(np.array([[1, 1, 0, 0], [1, 0, 0, 0]], bool))
    assert found.prior == 0.375
    assert found.sensitivity.tolist() == pytest.approx([1, 2 / 3])
    assert found.specificity.tolist() == pytest.approx([0.8, 1])
    assert found.probability.tolist() == pytest.approx([1, 0.5, 0, 0])
    assert found.probability.dtype == np.float32
    assert (found.iterations, found.converged) == (1, True)


@pytest.mark.parametrize("draws", [2, 3, 9])
def test_rates_and_iterations_are_itks(draws: int):
    masks = raters(draws, draws)[1] > 0
    found = staple_mask(masks)
    wanted, itk = itk_binary(masks)
    np.testing.assert_allclose(found.probability, wanted, atol=1e-6)
    np.testing.assert_allclose(found.sensitivity, itk.GetSensitivity(), atol=1e-9)
    np.testing.assert_allclose(found.specificity, itk.GetSpecificity(), atol=1e-9)
    assert found.iterations == itk.GetElapsedIterations() > 1
    assert found.converged


@pytest.mark.parametrize(("draws", "classes"), [(3, 3), (5, 4), (8, 2)])
def test_several_labels_are_itks(draws: int, classes: int):
    maps = without_ties(raters(10 + draws, draws, classes)[1])
    found = staple_labels(maps, classes)
    labels, confusion = itk_labels(maps)
    assert (labels >= 0).all()
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_allclose(found.confusion, confusion, atol=1e-12)
    np.testing.assert_allclose(found.confusion.sum(2), 1)
    np.testing.assert_allclose(found.probability.sum(0), 1, atol=1e-6)
    share = [(maps == c).mean() for c in range(classes)]
    np.testing.assert_allclose(found.prior, share)
    assert found.converged


def test_a_minority_label_stays_lost_as_in_itk():
    """A label that never wins a vote has no start; it must not come back from rounding."""
    maps = raters(3, 4, 3)[1] % 2
    maps[0, :2] = 2
    maps = without_ties(maps)
    assert (maps == 2).any()
    found = staple_labels(maps, 3)
    labels, confusion = itk_labels(maps)
    np.testing.assert_array_equal(found.labels[labels >= 0], labels[labels >= 0])
    np.testing.assert_allclose(found.confusion[:, :2], confusion[:, :2], atol=1e-12)
    assert (confusion[:, 2] == 0).all()
    np.testing.assert_array_equal(found.confusion[:, 2], np.tile([0, 0, 1], (4, 1)))


def naive(draws: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Warfield's equations on all voxels (N, V), without patterns or logarithms."""
    w, f = draws.mean(0), draws.mean()
    for _ in range(steps):
        p = (draws * w).sum(1) / w.sum()
        q = (~draws * (1 - w)).sum(1) / (1 - w).sum()
        a = f * np.where(draws, p[:, None], 1 - p[:, None]).prod(0)
        b = (1 - f) * np.where(draws, 1 - q[:, None], q[:, None]).prod(0)
        w = a / (a + b)
    return w, p, q


def naive_labels(
    draws: np.ndarray, classes: int, steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rohlfing's equations and ITK's start on all voxels: first theta, last theta, W (K, V)."""
    votes = np.stack([(draws == c).sum(0) for c in range(classes)])
    decided = (votes == votes.max(0)).sum(0) == 1
    hot = np.eye(classes)[draws]
    winner = np.eye(classes)[votes.argmax(0)] * decided[:, None]
    theta = np.einsum("nvd,vc->ncd", hot, winner)
    theta = first = theta / theta.sum(1, keepdims=True)
    f = votes.sum(1) / draws.size
    for step in range(steps + 1):
        w = f * np.prod([theta[n][:, d].T for n, d in enumerate(draws)], axis=0)
        w = w / w.sum(1, keepdims=True)
        if step < steps:
            theta = np.einsum("nvd,vc->ncd", hot, w)
            theta = theta / theta.sum(2, keepdims=True)
    return first, theta, w.T


def test_patterns_change_nothing_for_labels():
    draws = raters(21, 5, 4)[1].reshape(5, -1)
    found = staple_labels(draws, 4, tolerance=0, max_iterations=3)
    first, theta, w = naive_labels(draws, 4, 3)
    assert np.abs(theta - first).max() > 0.01
    np.testing.assert_allclose(found.confusion, theta, atol=1e-12)
    np.testing.assert_allclose(found.probability, w, atol=1e-6)


def test_patterns_change_nothing():
    draws = (raters(20, 6)[1] > 0).reshape(6, -1)
    found = staple_mask(draws, tolerance=0, max_iterations=7)
    w, p, q = naive(draws, 8)
    assert (found.iterations, found.converged) == (7, False)
    np.testing.assert_allclose(found.probability, w, atol=1e-6)
    np.testing.assert_allclose(found.sensitivity, p)
    np.testing.assert_allclose(found.specificity, q)


def test_known_rates_are_found_again():
    rng = np.random.default_rng(5)
    truth = rng.random(60_000) < 0.3
    p, q = np.array([0.95, 0.8, 0.7, 0.9]), np.array([0.85, 0.97, 0.9, 0.75])
    chance = np.where(truth, p[:, None], 1 - q[:, None])
    draws = rng.random(chance.shape) < chance
    found = staple_mask(draws, prior=0.3)
    np.testing.assert_allclose(found.sensitivity, p, atol=0.02)
    np.testing.assert_allclose(found.specificity, q, atol=0.02)
    p, q = p[:, None], q[:, None]
    ours = 0.3 * np.where(draws, p, 1 - p).prod(0)
    theirs = 0.7 * np.where(draws, 1 - q, q).prod(0)
    np.testing.assert_allclose(found.probability, ours / (ours + theirs), atol=0.05)


def test_a_good_draw_outvotes_two_bad_ones():
    rng = np.random.default_rng(6)
    truth = rng.random(20_000) < 0.5
    wrong = rng.random((3, 20_000)) < np.array([[0.02], [0.3], [0.3]])
    draws = truth ^ wrong
    found = staple_mask(draws, prior=0.5).probability > 0.5
    np.testing.assert_array_equal(found, draws[0])
    majority = draws.sum(0) >= 2
    assert (found == truth).mean() > (majority == truth).mean() + 0.05


def log_likelihood(draws: np.ndarray, found) -> float:
    """Of the votes, the truth summed out."""
    p, q, f = found.sensitivity[:, None], found.specificity[:, None], found.prior
    a = np.where(draws, p, 1 - p).prod(0) * f
    b = np.where(draws, 1 - q, q).prod(0) * (1 - f)
    return float(np.log(a + b).sum())


def test_no_iteration_makes_the_votes_less_likely():
    draws = (raters(30, 5)[1] > 0).reshape(5, -1)
    course = [
        log_likelihood(draws, staple_mask(draws, tolerance=0, max_iterations=i))
        for i in range(1, 15)
    ]
    assert np.diff(course).min() > -1e-9
    assert course[-1] > course[0]


def test_the_prior_can_be_given():
    draws = raters(40, 4)[1] > 0
    low, high = (staple_mask(draws, prior=f, max_iterations=1) for f in (0.01, 0.9))
    assert (low.prior, high.prior) == (0.01, 0.9)
    assert low.probability.mean() < high.probability.mean()
    told = staple_labels(raters(40, 4, 3)[1], 3, prior=[0.2, 0.3, 0.5])
    assert told.prior.tolist() == [0.2, 0.3, 0.5]
    none = staple_mask(draws, prior=0.0)
    assert not none.probability.any()


@pytest.mark.parametrize("draws", [1, 4])
@pytest.mark.parametrize("kind", ["some", "empty", "full"])
def test_equal_masks_return_themselves(draws: int, kind: str):
    mask = {
        "some": raters(50)[0] > 0,
        "empty": np.zeros((3, 4), bool),
        "full": np.ones((3, 4), bool),
    }
    found = staple_mask([mask[kind]] * draws)
    np.testing.assert_array_equal(found.probability, mask[kind])
    assert found.sensitivity.tolist() == found.specificity.tolist() == [1.0] * draws
    assert found.converged


@pytest.mark.parametrize("draws", [1, 3])
def test_equal_label_maps_return_themselves(draws: int):
    truth, _ = raters(51, classes=4)
    found = staple_labels([truth] * draws, 6)
    np.testing.assert_array_equal(found.labels, truth)
    np.testing.assert_array_equal(found.probability, np.arange(6).reshape(-1, 1, 1, 1) == truth)
    np.testing.assert_array_equal(found.confusion, np.tile(np.eye(6), (draws, 1, 1)))


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(
        np.int64, st.tuples(st.integers(1, 5), st.integers(1, 12)), elements=st.integers(0, 2)
    ),
    st.randoms(),
)
def test_any_votes_give_probabilities_and_order_does_not_matter(draws, random):
    order = list(range(len(draws)))
    random.shuffle(order)
    found, other = (staple_labels(d, 3, max_iterations=5) for d in (draws, draws[order]))
    np.testing.assert_allclose(found.probability, other.probability, atol=1e-5)
    np.testing.assert_allclose(found.confusion[order], other.confusion, atol=1e-6)
    np.testing.assert_allclose(found.probability.sum(0), 1, atol=1e-5)
    np.testing.assert_allclose(found.confusion.sum(2), 1)
    found, other = (staple_mask(d > 0, max_iterations=5) for d in (draws, draws[order]))
    np.testing.assert_allclose(found.probability, other.probability, atol=1e-5)
    np.testing.assert_allclose(found.sensitivity[order], other.sensitivity, atol=1e-6)
    for values in (found.probability, found.sensitivity, found.specificity):
        assert ((values >= 0) & (values <= 1 + 1e-12)).all()


def test_draws_that_contradict_each_other_everywhere_stay_undecided():
    """ITK has no start here, because no vote wins; the prior starts instead."""
    maps = np.array([[1, 1, 2, 2], [2, 2, 1, 1]])
    found = staple_labels(maps, 3)
    np.testing.assert_allclose(found.probability[:, 0], [0, 0.5, 0.5], atol=1e-6)
    assert np.isfinite(found.confusion).all()


def test_a_vote_cast_only_in_ties_starts_from_the_prior():
    """The last voxel's votes, 2 and 3, occur nowhere else; ITK leaves it undecided."""
    found = staple_labels(np.array([[0, 0, 1, 1, 2], [0, 0, 1, 1, 3]]), 4)
    np.testing.assert_allclose(found.probability[:, 4], [0, 0, 0.5, 0.5], atol=1e-6)
    assert found.labels.tolist() == [0, 0, 1, 1, 2]


def test_a_thousand_draws_do_not_underflow():
    """The product of 1200 rates near 1/2 is 0 in double precision under either truth."""
    draws = np.random.default_rng(8).random((1200, 50)) < 0.5
    found = staple_mask(draws, max_iterations=2)
    assert np.isfinite(found.probability).all()
    assert np.isfinite(found.sensitivity).all()


def test_three_good_draws_among_many_coin_flips_are_found():
    rng = np.random.default_rng(7)
    truth = np.arange(3000) % 3 == 0
    draws = truth ^ (rng.random((200, 3000)) < 0.5)
    draws[:3] = truth
    draws[0, 5] ^= True
    found = staple_mask(draws)
    assert np.isfinite(found.probability).all()
    np.testing.assert_array_equal(found.probability > 0.5, truth)


def test_fifty_draws_of_a_large_volume_are_a_few_rows():
    mask = np.zeros((64, 64, 64), bool)
    mask[20:40, 20:40, 20:40] = True
    draws = [np.roll(mask, n % 3, axis=0) for n in range(50)]
    assert len(voting_patterns(draws, 2).rows) == 6
    assert staple_mask(draws).converged


@pytest.mark.parametrize(
    ("draws", "message"),
    [
        ([], "at least one draw"),
        ([np.zeros(3, bool), np.zeros(4, bool)], "shape"),
        ([np.zeros((2, 3), bool), np.zeros((3, 2), bool)], "shape"),
        ([np.full(3, 2)], "votes must lie"),
        ([np.full(3, -1)], "votes must lie"),
        ([np.zeros(3)], "boolean"),
        ([np.zeros((0, 2), bool)], "voxels"),
    ],
)
def test_bad_votes_are_refused(draws, message: str):
    with pytest.raises(ValueError, match=message):
        staple_mask(draws)


def test_bad_settings_are_refused():
    maps = [np.array([0, 1])]
    for prior in ([0.5, 0.6], [1.0], [-0.5, 1.5]):
        with pytest.raises(ValueError, match="prior"):
            staple_labels(maps, 2, prior=prior)
    with pytest.raises(ValueError, match="prior"):
        staple_mask(maps, prior=float("nan"))
    with pytest.raises(ValueError, match="max_iterations"):
        staple_mask(maps, max_iterations=0)
