"""The measured error of a clean estimate, and its table over time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medseg_diff.diffusion.grids import time_grid
from medseg_diff.diffusion.paths import BrownianBridge
from medseg_diff.diffusion.samplers import (
    Denoised,
    ErrorTable,
    Problem,
    estimate_error_variance,
    last,
    sample,
)
from tests.diffusion.oracle import (
    DATA_SD,
    LINEAR_VP,
    PATHS,
    noise_like,
    posterior_mean,
    posterior_variance,
)

TIMES = torch.tensor([0.1, 0.4, 1.0], dtype=torch.float64)


def batches(count: int, size: int = 8, source: bool = False) -> list[tuple[Tensor, ...]]:
    field = torch.zeros(size, 1, 50, 50, dtype=torch.float64)
    return [
        (
            DATA_SD * noise_like(field, 3 * k),
            noise_like(field, 3 * k + 1),
            *([noise_like(field, 3 * k + 2)] if source else []),
        )
        for k in range(count)
    ]


@pytest.mark.parametrize("name", ["linear", "exploding", "flow"])
def test_the_exact_denoisers_error_is_the_posterior_variance(name: str):
    path = PATHS[name]
    found = estimate_error_variance(path, posterior_mean(path), batches(3), TIMES)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, posterior_variance(path)(TIMES), rtol=0.02, atol=1e-9)


def test_a_source_reaches_the_state():
    """A denoiser that takes the source away sees what it would see without one.

    The bridge is narrow, so that a source in the wrong place is not lost in its noise.
    """
    path, times = BrownianBridge(0.01), torch.tensor([0.3, 0.7], dtype=torch.float64)
    data = batches(2, source=True)
    sources = iter([source for *_, source in data for _ in times])

    def denoise(x: Tensor, t: Tensor) -> Denoised:
        return posterior_mean(path, next(sources))(x, t)

    found = estimate_error_variance(path, denoise, data, times)
    torch.testing.assert_close(found, posterior_variance(path)(times), rtol=0.03, atol=0)


def test_the_mean_is_over_samples_and_elements_by_hand():
    """Estimates of 0: the error is clean squared, 1 for one sample and 4 for two others."""
    one, four = torch.ones(1, 1, 2, 3), torch.full((2, 1, 2, 3), 2.0)
    data = [(one, torch.zeros_like(one)), (four, torch.zeros_like(four))]
    zero = lambda x, t: Denoised(torch.zeros_like(x))  # noqa: E731
    found = estimate_error_variance(LINEAR_VP, zero, iter(data), TIMES)
    assert found.tolist() == pytest.approx([3.0] * 3)
    with pytest.raises(ValueError, match="at least one batch"):
        estimate_error_variance(LINEAR_VP, zero, [], TIMES)


def test_estimates_carry_no_gradient():
    weight = torch.ones(1, requires_grad=True)
    found = estimate_error_variance(
        LINEAR_VP, lambda x, t: Denoised(weight * x), batches(1), TIMES[:1]
    )
    assert not found.requires_grad


def test_a_table_is_linear_between_its_times_and_constant_beyond():
    table = ErrorTable(torch.tensor([0.2, 0.4, 0.8]), torch.tensor([1.0, 3.0, 2.0]))
    asked = torch.tensor([0.0, 0.2, 0.25, 0.4, 0.5, 0.8, 1.0])
    expected = [1.0, 1.0, 1.5, 3.0, 2.75, 2.0, 2.0]
    assert table(asked).tolist() == pytest.approx(expected, rel=1e-6)
    assert table(asked).dtype == torch.float64
    single = ErrorTable(torch.tensor([0.5]), torch.tensor([7.0]))
    assert single(torch.tensor([0.1, 0.9])).tolist() == [7.0, 7.0]


@pytest.mark.parametrize(
    ("times", "values", "match"),
    [
        ([0.1, 0.2], [1.0], "as many times"),
        ([], [], "at least one"),
        ([[0.1]], [[1.0]], "as many times"),
        ([0.2, 0.1], [1.0, 1.0], "rise strictly"),
        ([0.1, 0.1], [1.0, 1.0], "rise strictly"),
        ([0.1, 0.2], [1.0, -1.0], "0 or more"),
        ([0.1, 0.2], [1.0, float("nan")], "0 or more"),
    ],
)
def test_impossible_tables_are_refused(times: list, values: list, match: str):
    with pytest.raises(ValueError, match=match):
        ErrorTable(torch.tensor(times), torch.tensor(values))


def test_measured_variance_gives_the_datas_spread_in_one_step_and_in_five():
    start = noise_like(torch.zeros(1, 40_000, dtype=torch.float64), 7)
    for steps in (1, 5):
        times = time_grid(LINEAR_VP, steps)
        knots = times[:-1].flip(0)
        errors = estimate_error_variance(LINEAR_VP, posterior_mean(LINEAR_VP), batches(3), knots)
        problem = Problem(
            LINEAR_VP,
            posterior_mean(LINEAR_VP),
            start,
            times,
            fresh_noise=lambda k: noise_like(start, 10 + k),
            error_variance=ErrorTable(knots, errors),
        )
        assert float(last(sample("analytic", problem)).state.std()) == pytest.approx(
            DATA_SD, rel=0.02
        )
