"""Grids: the times a sampler visits."""

from __future__ import annotations

import math

import pytest
import torch

from medseg_diff.diffusion.grids import GRIDS, T_MIN, time_grid
from medseg_diff.diffusion.paths import BetaTable
from tests.diffusion.oracle import LINEAR_VP, PATHS, at


def test_uniform_and_quadratic_by_hand():
    assert GRIDS == ("uniform", "quadratic", "karras", "log_snr")
    assert time_grid(LINEAR_VP, 4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert time_grid(LINEAR_VP, 4, "quadratic").tolist() == [1.0, 0.5625, 0.25, 0.0625, 0.0]
    assert time_grid(LINEAR_VP, 2, "uniform", 0.5).tolist() == [0.5, 0.25, 0.0]
    assert time_grid(LINEAR_VP, 2, "quadratic", 0.8).tolist() == [0.8, 0.2, 0.0]


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("t_max", [1.0, 0.9])
def test_every_grid_falls_from_t_max_to_zero(name: str, kind, steps: int, t_max: float):
    path = PATHS[name]
    if path.source_as_noise and kind in ("karras", "log_snr"):
        with pytest.raises(ValueError, match="noise of its own"):
            time_grid(path, steps, kind, t_max)
        return
    times = time_grid(path, steps, kind, t_max)
    assert times.shape == (steps + 1,)
    assert times.dtype == torch.float64
    assert float(times[0]) == t_max
    assert float(times[-1]) == 0
    assert bool((times.diff() < 0).all())
    torch.testing.assert_close(path.snap(times), times, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["linear", "linear_scaled", "exploding", "flow", "bridge"])
@pytest.mark.parametrize("t_max", [0.99, 0.7])
def test_log_snr_grid_is_even_in_lambda(name: str, t_max: float):
    path = PATHS[name]
    times = time_grid(path, 9, "log_snr", t_max)
    found = path.log_snr(times[:-1])
    steps = found.diff()
    torch.testing.assert_close(steps, steps[:1].expand(8), rtol=1e-6, atol=0)
    assert float(times[-2]) == pytest.approx(T_MIN, rel=1e-6)
    assert float(times[0]) == t_max


@pytest.mark.parametrize("name", ["linear", "exploding", "flow"])
def test_karras_grid_is_karras_formula(name: str):
    """Karras et al. (2022), Eq. 5, in sigma / a, for 6 steps and rho = 7."""
    path, t_max = PATHS[name], 0.98

    def sigma_of(t: float) -> float:
        a, _, sigma = (float(c) for c in path.coefficients(at(t)))
        return sigma / a

    high, low = sigma_of(t_max) ** (1 / 7), sigma_of(T_MIN) ** (1 / 7)
    times = time_grid(path, 6, "karras", t_max)
    for i in range(6):
        expected = (high + i / 5 * (low - high)) ** 7
        assert sigma_of(float(times[i])) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["flow", "linear_zero_snr", "bridge"])
@pytest.mark.parametrize("kind", ["log_snr", "karras"])
def test_a_grid_in_snr_begins_at_one_where_no_signal_is_left(name: str, kind):
    """From there it jumps to the grid that would begin where a thousandth of the time is over."""
    path = PATHS[name]
    times = time_grid(path, 5, kind)
    inner = time_grid(path, 5, kind, 1 - T_MIN)
    assert float(times[0]) == 1.0
    torch.testing.assert_close(times[1:], inner[1:], rtol=1e-9, atol=0)
    assert math.isfinite(float(path.log_snr(times[1:2])))


def test_tables_snap_to_knots_and_refuse_more_steps_than_they_have():
    table = BetaTable([0.1, 0.2, 0.3, 0.2, 0.1, 0.1, 0.1])
    for kind in GRIDS:
        knots = time_grid(table, 3, kind) * 7
        torch.testing.assert_close(knots, knots.round(), rtol=0, atol=1e-12)
        assert knots[0] == 7
    assert (time_grid(table, 7) * 7).round().tolist() == [7, 6, 5, 4, 3, 2, 1, 0]
    assert (time_grid(table, 2, "uniform", 0.8) * 7).round().tolist() == [6, 3, 0]
    assert (time_grid(table, 3, "log_snr") * 7).round()[-2] == 1
    with pytest.raises(ValueError, match="distinct times"):
        time_grid(table, 8)


def test_impossible_grids_are_refused():
    with pytest.raises(ValueError, match="at least 1 step"):
        time_grid(LINEAR_VP, 0)
    for t_max in (0.0, 1.5):
        with pytest.raises(ValueError, match="t_max"):
            time_grid(LINEAR_VP, 2, "uniform", t_max)
