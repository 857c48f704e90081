"""Losses by hand, the ignore mask, and independence of how a batch is split."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from medseg_diff.diffusion.objectives import cross_entropy, dice_loss, masked_mean, squared_error


def row(*values: float) -> Tensor:
    """One sample, one channel."""
    return torch.tensor(values, dtype=torch.float64).reshape(1, 1, -1)


def test_dice_by_hand():
    p, truth = row(1, 0.5, 0, 0), row(1, 1, 0, 0)
    assert float(dice_loss(p, truth)) == pytest.approx(1 - (2 * 1.5 + 1) / (1.5 + 2 + 1))
    assert float(dice_loss(p, truth, smooth=0.5)) == pytest.approx(1 - 3.5 / 4)
    assert float(dice_loss(truth, truth)) == pytest.approx(0)
    empty = row(0, 0, 0, 0)
    assert float(dice_loss(empty, empty)) == pytest.approx(0)
    assert float(dice_loss(empty, truth)) == pytest.approx(1 - 1 / 3)


def test_dice_is_averaged_over_samples_and_channels():
    full, empty = torch.ones(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    truth = torch.stack([torch.stack([full, full]), torch.stack([full, full])])
    p = torch.stack([torch.stack([full, full]), torch.stack([full, empty])])
    assert float(dice_loss(p, truth)) == pytest.approx((1 - 1 / 5) / 4)


def test_exclusive_cross_entropy_by_hand():
    logits = torch.tensor([[[0.0], [math.log(3)]]], dtype=torch.float64)
    truth = torch.tensor([[[1.0], [0.0]]], dtype=torch.float64)
    assert float(cross_entropy(logits, truth, exclusive=True)) == pytest.approx(math.log(4))
    flipped = cross_entropy(logits, truth.flip(1), exclusive=True)
    assert float(flipped) == pytest.approx(math.log(4 / 3))


def test_overlapping_cross_entropy_by_hand():
    logits = torch.tensor([[[0.0], [math.log(3)]]], dtype=torch.float64)
    truth = torch.tensor([[[1.0], [1.0]]], dtype=torch.float64)
    expected = (math.log(2) + math.log(4 / 3)) / 2
    assert float(cross_entropy(logits, truth, exclusive=False)) == pytest.approx(expected)


def test_squared_error_by_hand():
    assert float(squared_error(row(1, 2, 3, 4), row(1, 0, 0, 4))) == pytest.approx(13 / 4)


def test_ignored_voxels_do_not_count():
    weight = row(1, 1, 0, 0)
    assert float(squared_error(row(1, 2, 9, 9), row(0, 0, 0, 0), weight)) == pytest.approx(5 / 2)
    p, truth = row(1, 0.5, 1, 1), row(1, 1, 0, 0)
    assert float(dice_loss(p, truth, weight)) == pytest.approx(1 - 4 / 4.5)
    logits = torch.tensor([[[0.0, 50.0], [0.0, 0.0]]], dtype=torch.float64)
    truth2 = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    for exclusive in (True, False):
        found = cross_entropy(logits, truth2, exclusive=exclusive, weight=row(1, 0))
        assert float(found) == pytest.approx(math.log(2))


@pytest.mark.parametrize("loss", ["dice", "exclusive", "overlapping", "squared"])
def test_gradients_are_zero_at_ignored_voxels(loss: str):
    output = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    truth = torch.zeros(2, 3, 5)
    truth[:, 0] = 1
    weight = torch.ones(2, 1, 5)
    weight[:, :, 3:] = 0
    value_of(loss, output, truth, weight).backward()
    assert output.grad is not None
    assert not output.grad[..., 3:].any()
    assert bool((output.grad[..., :3] != 0).any())


def test_a_sample_with_no_truth_gives_zero_not_nan():
    values = torch.ones(2, 3, 4)
    weight = torch.zeros(2, 1, 4)
    weight[1] = 1
    assert float(masked_mean(values, weight)) == pytest.approx(0.5)


def test_masked_mean_of_everything_is_the_mean():
    values = torch.arange(24, dtype=torch.float64).reshape(2, 3, 4)
    ones = torch.ones(2, 1, 4, dtype=torch.float64)
    assert float(masked_mean(values, None)) == pytest.approx(11.5)
    assert float(masked_mean(values, ones)) == pytest.approx(11.5)


def value_of(loss: str, output: Tensor, truth: Tensor, weight: Tensor | None) -> Tensor:
    if loss == "dice":
        return dice_loss(output.sigmoid(), truth, weight)
    if loss == "squared":
        return squared_error(output, truth, weight)
    return cross_entropy(output, truth, exclusive=loss == "exclusive", weight=weight)


@pytest.mark.parametrize("loss", ["dice", "exclusive", "overlapping", "squared"])
@pytest.mark.parametrize("masked", [False, True])
def test_two_half_batches_average_to_the_whole(loss: str, masked: bool):
    generator = torch.Generator().manual_seed(3)
    output = torch.randn(4, 3, 6, 5, generator=generator, dtype=torch.float64)
    truth = (
        torch.nn.functional.one_hot(torch.randint(3, (4, 6, 5), generator=generator), 3)
        .movedim(-1, 1)
        .double()
    )
    weight = (torch.rand(4, 1, 6, 5, generator=generator) > 0.4).double() if masked else None
    if weight is not None:
        weight[0] = 0
        weight[0, 0, 0, 0] = 1
    whole = value_of(loss, output, truth, weight)
    halves = [
        value_of(loss, output[i], truth[i], None if weight is None else weight[i])
        for i in (slice(0, 2), slice(2, 4))
    ]
    torch.testing.assert_close(sum(halves) / 2, whole, rtol=1e-12, atol=1e-12)
