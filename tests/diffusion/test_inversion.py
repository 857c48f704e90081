"""DDIM inversion: there and back again."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from medseg_diff.diffusion.grids import time_grid
from medseg_diff.diffusion.paths import Linear, Path, VarianceExploding, VariancePreserving
from medseg_diff.diffusion.samplers import Problem, invert, last, sample
from tests.diffusion.oracle import (
    DATA_SD,
    LINEAR_VP,
    PATHS,
    gains,
    noise_like,
    posterior_mean,
    true_sd,
    two_modes,
    wobbly,
)

INVERTIBLE: dict[str, Path] = {
    "preserving": LINEAR_VP,
    "scaled": VariancePreserving("linear", 0.5),
    "zero_snr": VariancePreserving("linear", zero_terminal_snr=True),
    "exploding": VarianceExploding(0.01, 10.0),
    "flow": Linear(),
}
path_of = pytest.mark.parametrize("path", INVERTIBLE.values(), ids=INVERTIBLE.keys())


def there_and_back(path: Path, steps: int) -> float:
    """Distance from a clean image to what DDIM makes of its inversion, on the same grid."""
    clean = gains(path, 0.0)[0] * noise_like(torch.zeros(1, 2, 5, 5).double(), 0).tanh()
    times = time_grid(path, steps, t_max=0.9)
    found = last(invert(path, two_modes(path, 0.5), clean, times)).state
    own = found / path.coefficients(times[:1]).sigma
    returned = last(sample("ddim", Problem(path, two_modes(path, 0.5), own, times))).state
    return float((returned - clean).abs().mean())


@path_of
def test_inversion_and_ddim_return_to_first_order(path: Path):
    coarse, fine = there_and_back(path, 150), there_and_back(path, 300)
    assert fine < 0.05
    assert math.log2(coarse / fine) == pytest.approx(1, abs=0.35)


@path_of
def test_inversion_of_gaussian_data_follows_the_exact_flow(path: Path):
    """The flow stretches a clean state by the ratio of the marginals' standard deviations."""
    times = time_grid(path, 400, "quadratic")
    one = torch.ones(1, 1, dtype=torch.float64)
    final = last(invert(path, posterior_mean(path), gains(path, 0.0)[0] * DATA_SD * one, times))
    assert float(final.state) == pytest.approx(true_sd(path, 1.0), rel=0.1)


def test_a_step_names_both_of_its_times():
    clean = torch.zeros(2, 1, 3, dtype=torch.float64)
    seen: list[float] = []

    def denoise(x: Tensor, t: Tensor):
        seen.append(float(t[0]))
        return wobbly(x, t)

    steps = list(invert(LINEAR_VP, denoise, clean, time_grid(LINEAR_VP, 4)))
    assert [(s.index, s.t, s.s) for s in steps] == [
        (0, 0.0, 0.25),
        (1, 0.25, 0.5),
        (2, 0.5, 0.75),
        (3, 0.75, 1.0),
    ]
    assert seen == [0.25, 0.5, 0.75, 1.0]
    assert steps[0].state.shape == clean.shape


@path_of
def test_the_network_is_shown_the_state_that_the_last_step_left(path: Path):
    clean = noise_like(torch.zeros(1, 1, 3, dtype=torch.float64), 4)
    shown: list[Tensor] = []

    def denoise(x: Tensor, t: Tensor):
        shown.append(x)
        return wobbly(x, t)

    states = [step.state for step in invert(path, denoise, clean, time_grid(path, 4))]
    for x, state in zip(shown, [clean, *states], strict=False):
        torch.testing.assert_close(x, state, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["bridge", "flow_of_source"])
def test_paths_with_a_source_cannot_be_inverted(name: str):
    clean = torch.zeros(1, 1, 3)
    with pytest.raises(ValueError, match="source image"):
        next(invert(PATHS[name], wobbly, clean, time_grid(PATHS[name], 4)))
