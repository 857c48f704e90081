"""Noise, clean and velocity say the same thing: round trips in float64, and values by hand."""

from __future__ import annotations

import math

import pytest
import torch

from medseg_diff.diffusion.parameterisations import (
    PARAMETERISATIONS,
    clean_from,
    noise_from,
    target,
)
from medseg_diff.diffusion.paths import BetaTable, Path, VariancePreserving

PATHS: dict[str, Path] = {
    "linear": VariancePreserving("linear"),
    "scaled": VariancePreserving("linear", 0.4),
    "cosine": VariancePreserving("cosine", 0.7),
    "table": BetaTable([0.1] * 20),
}
path_of = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
T = torch.tensor([1.0, 0.75, 0.5, 0.05], dtype=torch.float64)


def draw() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (len(T), 2, 3, 5)
    return (
        torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1,
        torch.randn(shape, generator=generator, dtype=torch.float64),
    )


def test_there_are_three_kinds():
    assert PARAMETERISATIONS == ("noise", "clean", "velocity")


@path_of
@pytest.mark.parametrize("kind", PARAMETERISATIONS)
def test_a_perfect_output_gives_clean_and_noise_back(kind, path: Path):
    clean, noise = draw()
    x_t = path.noised(clean, noise, T)
    estimate = clean_from(kind, path, target(kind, path, clean, noise, T), x_t, T)
    torch.testing.assert_close(estimate, clean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(noise_from(path, estimate, x_t, T), noise, rtol=1e-9, atol=1e-9)


@path_of
@pytest.mark.parametrize("kind", PARAMETERISATIONS)
def test_any_output_survives_the_round_trip(kind, path: Path):
    """An imperfect output too: output -> clean and noise -> target is the same output."""
    output, other = draw()
    x_t = 1.3 * other + 0.2
    clean = clean_from(kind, path, output, x_t, T)
    noise = noise_from(path, clean, x_t, T)
    torch.testing.assert_close(target(kind, path, clean, noise, T), output, rtol=1e-7, atol=1e-7)


def test_targets_by_hand():
    """Beta 0.36 gives a = 0.8 and sigma = 0.6."""
    path = BetaTable([0.36])
    one = torch.ones(1, dtype=torch.float64)
    clean, noise = torch.full((1, 1), 0.5), torch.full((1, 1), 2.0)
    clean, noise = clean.double(), noise.double()
    assert float(path.noised(clean, noise, one)) == pytest.approx(0.8 * 0.5 + 0.6 * 2)
    assert float(target("velocity", path, clean, noise, one)) == pytest.approx(0.8 * 2 - 0.6 * 0.5)
    assert float(target("noise", path, clean, noise, one)) == 2.0
    assert float(target("clean", path, clean, noise, one)) == 0.5
    scaled = BetaTable([0.36], 0.5)
    expected = 0.4 * 2 - 0.6 * 0.5
    assert float(target("velocity", scaled, clean, noise, one)) == pytest.approx(expected)


@pytest.mark.parametrize("kind", PARAMETERISATIONS)
def test_half_precision_outputs_are_converted_in_float32(kind):
    """At t = 1 the linear path divides by a = 0.0066: half precision would be off by more."""
    path = VariancePreserving("linear")
    clean, noise = (x.float() for x in draw())
    t = torch.full((len(clean),), 0.9)
    x_t = path.noised(clean, noise, t)
    found = clean_from(kind, path, target(kind, path, clean, noise, t).half(), x_t.half(), t)
    if kind != "clean":
        assert found.dtype == torch.float32
    exact = clean_from(
        kind, path, target(kind, path, clean, noise, t).half().double(), x_t.half().double(), t
    )
    assert math.isclose(float((found.double() - exact).abs().max()), 0, abs_tol=1e-4)
