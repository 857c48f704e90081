"""Every meaning of an output says the same thing: round trips in float64, and values by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from medseg_diff.diffusion.parameterisations import (
    PARAMETERISATIONS,
    Parameterisation,
    check,
    clean_from,
    learned_variance,
    noise_from,
    target,
)
from medseg_diff.diffusion.paths import BetaTable, Path, VariancePreserving, step_variances
from tests.diffusion.oracle import DDPM_BETAS, PATHS, at

PATHS_HERE = {**PATHS, "short_table": BetaTable([0.1] * 20)}
T = torch.tensor([1.0, 0.75, 0.5, 0.05], dtype=torch.float64)


def allowed(kind: Parameterisation, path: Path, t_max: float) -> bool:
    try:
        check(kind, path, t_max)
    except ValueError:
        return False
    return True


PAIRS = [
    pytest.param(kind, name, 1.0 if allowed(kind, path, 1.0) else 0.95, id=f"{kind}-{name}")
    for kind in PARAMETERISATIONS
    for name, path in PATHS_HERE.items()
    if allowed(kind, path, 0.95)
]
pair_of = pytest.mark.parametrize(("kind", "name", "t_max"), PAIRS)


def draw(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((len(T), 2, 3, 5), generator=generator, dtype=torch.float64)


def test_there_are_six_kinds_and_an_unknown_one_is_refused():
    assert PARAMETERISATIONS == (
        "noise",
        "clean",
        "velocity",
        "flow_velocity",
        "score",
        "residual",
    )
    with pytest.raises(ValueError, match="unknown output"):
        check("epsilon", PATHS["linear"])  # type: ignore[arg-type]


@pair_of
def test_a_perfect_output_gives_clean_and_noise_back(kind, name: str, t_max: float):
    path, t = PATHS_HERE[name], T * t_max
    clean, noise, source = draw(0).tanh(), draw(1), draw(2)
    known = source if path.uses_source else None
    x_t = path.noised(clean, noise, t, known)
    output = target(kind, path, clean, noise, t, known)
    estimate = clean_from(kind, path, output, x_t, t, known)
    torch.testing.assert_close(estimate, clean, rtol=1e-8, atol=1e-8)
    inside = path.coefficients(t).sigma > 0
    if bool(inside.any()):
        found = noise_from(path, clean, x_t, t, known)
        torch.testing.assert_close(found[inside], noise[inside], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("kind", "name", "t_max"), [p for p in PAIRS if p.values[1] != "flow_of_source"]
)
def test_any_output_survives_the_round_trip(kind, name: str, t_max: float):
    """An imperfect output too: output -> clean and noise -> target is the same output."""
    path, t = PATHS_HERE[name], T * t_max
    if path.uses_source:
        t = T * 0.95  # a bridge's end holds no noise
    output, x_t, source = draw(0), 1.3 * draw(1) + 0.2, draw(2)
    known = source if path.uses_source else None
    clean = clean_from(kind, path, output, x_t, t, known)
    noise = noise_from(path, clean, x_t, t, known)
    torch.testing.assert_close(
        target(kind, path, clean, noise, t, known), output, rtol=1e-7, atol=1e-7
    )


def test_targets_by_hand():
    """Beta 0.36 gives a = 0.8 and sigma = 0.6."""
    path, one = BetaTable([0.36]), at(1.0)
    clean = torch.full((1, 1), 0.5, dtype=torch.float64)
    noise = torch.full((1, 1), 2.0, dtype=torch.float64)

    def value(kind: Parameterisation, path: Path = path, t=one, source=None) -> float:
        return float(target(kind, path, clean, noise, t, source))

    assert float(path.noised(clean, noise, one)) == pytest.approx(0.8 * 0.5 + 0.6 * 2)
    assert value("velocity") == pytest.approx(0.8 * 2 - 0.6 * 0.5)
    assert value("noise") == 2.0
    assert value("score") == -2.0
    assert value("clean") == 0.5
    assert value("residual") == pytest.approx(0.8 * 0.5 + 0.6 * 2 - 0.5)
    assert value("velocity", BetaTable([0.36], 0.5)) == pytest.approx(0.4 * 2 - 0.6 * 0.5)
    assert value("flow_velocity", PATHS["flow"], at(0.3)) == 1.5
    source = torch.full((1, 1), -1.0, dtype=torch.float64)
    assert value("flow_velocity", PATHS["flow_of_source"], at(0.3), source) == -1.5
    # BBDM's target: t (source - clean) + sigma noise.
    expected = 0.3 * (-1 - 0.5) + math.sqrt(2 * 0.21) * 2
    assert value("residual", PATHS["bridge"], at(0.3), source) == pytest.approx(expected)


def test_flow_velocity_is_the_paths_time_derivative():
    rates = PATHS["flow"].rates(at(0.4))
    clean, noise = draw(0)[:1], draw(1)[:1]
    expected = float(rates.a) * clean + float(rates.sigma) * noise
    torch.testing.assert_close(
        target("flow_velocity", PATHS["flow"], clean, noise, at(0.4)), expected
    )


def test_score_is_sigma_times_the_gradient_of_the_log_density():
    path, t = PATHS["linear"], at(0.4)
    clean, noise = draw(0)[:1], draw(1)[:1]
    x = path.noised(clean, noise, t).requires_grad_(True)
    a, _, sigma = (float(c) for c in path.coefficients(t))
    (-((x - a * clean) ** 2).sum() / (2 * sigma**2)).backward()
    torch.testing.assert_close(target("score", path, clean, noise, t), sigma * x.grad)


@pytest.mark.parametrize(
    ("kind", "name", "t_max", "match"),
    [
        ("flow_velocity", "linear", 1.0, "linear path"),
        ("flow_velocity", "bridge", 1.0, "linear path"),
        ("noise", "flow", 1.0, "no signal"),
        ("score", "flow", 1.0, "no signal"),
        ("noise", "linear_zero_snr", 1.0, "no signal"),
        ("score", "cosine_zero_snr", 1.0, "no signal"),
        ("noise", "bridge", 1.0, "no signal"),
        ("velocity", "bridge", 1.0, "no signal"),
        ("noise", "flow_of_source", 0.5, "source image"),
        ("score", "flow_of_source", 0.5, "source image"),
        ("velocity", "flow_of_source", 0.5, "source image"),
    ],
)
def test_meanings_that_cannot_give_clean_are_refused(kind, name: str, t_max: float, match: str):
    with pytest.raises(ValueError, match=match):
        check(kind, PATHS[name], t_max)


@pytest.mark.parametrize(
    ("kind", "name", "t_max"),
    [
        ("noise", "linear", 1.0),
        ("noise", "cosine", 1.0),
        ("noise", "exploding", 1.0),
        ("noise", "table", 0.9004),
        ("noise", "flow", 0.99),
        ("noise", "linear_zero_snr", 0.99),
        ("velocity", "linear_zero_snr", 1.0),
        ("velocity", "bridge", 0.99),
        ("clean", "bridge", 1.0),
        ("residual", "bridge", 1.0),
        ("residual", "flow_of_source", 1.0),
        ("flow_velocity", "flow_of_source", 1.0),
        ("flow_velocity", "flow", 1.0),
    ],
)
def test_others_are_allowed(kind, name: str, t_max: float):
    check(kind, PATHS[name], t_max)


@pytest.mark.parametrize("kind", ["noise", "clean", "velocity", "score", "residual"])
def test_half_precision_outputs_are_converted_in_float32(kind):
    """At t = 1 the linear path divides by a = 0.0066: half precision would be off by more."""
    path, t = VariancePreserving("linear"), torch.full((len(T),), 0.9)
    clean, noise = draw(0).tanh().float(), draw(1).float()
    x_t = path.noised(clean, noise, t).half()
    output = target(kind, path, clean, noise, t).half()
    found = clean_from(kind, path, output, x_t, t)
    if kind != "clean":
        assert found.dtype == torch.float32
    exact = clean_from(kind, path, output.double(), x_t.double(), t)
    assert float((found.double() - exact).abs().max()) < 1e-4


def variance(path: Path, raw: float, t: float, s: float) -> float:
    output = torch.full((1, 1, 1), raw, dtype=torch.float64)
    return float(learned_variance(path, output, at(t), at(s)))


def test_learned_variance_is_improved_ddpms():
    """Nichol & Dhariwal (2021), Eq. 15, with their code's clipped posterior at the first step."""
    path, bar = PATHS["table"], np.cumprod(1 - DDPM_BETAS)
    posterior = DDPM_BETAS[1:] * (1 - bar[:-1]) / (1 - bar[1:])
    clipped = np.concatenate([posterior[:1], posterior])
    for timestep in (0, 1, 500, 999):
        t, s = (timestep + 1) / 1000, timestep / 1000
        low, high = math.log(clipped[timestep]), math.log(DDPM_BETAS[timestep])
        for raw in (-1.0, -0.2, 0.0, 1.0, 1.4):
            share = (raw + 1) / 2
            expected = math.exp(share * high + (1 - share) * low)
            assert variance(path, raw, t, s) == pytest.approx(expected, rel=1e-6)


def test_learned_variance_of_a_respaced_table_is_improved_ddpms():
    """Their respacing makes a new table of every 100th knot; its second posterior stands in."""
    path, bar = PATHS["table"], np.cumprod(1 - DDPM_BETAS)[99::100]
    second = (1 - bar[0]) / (1 - bar[1]) * (1 - bar[1] / bar[0])
    assert variance(path, -1.0, 0.1, 0.0) == pytest.approx(second, rel=1e-9)
    assert variance(path, 1.0, 0.1, 0.0) == pytest.approx(1 - bar[0], rel=1e-9)


@pytest.mark.parametrize("name", PATHS_HERE)
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.5), (0.3, 0.1), (0.1, 0.0), (0.8, 0.0), (1.0, 0.0)])
def test_learned_variance_is_finite_between_its_bounds_on_every_path(name: str, t, s):
    path = PATHS_HERE[name]
    lower, upper = (float(v) for v in step_variances(path, at(t), at(s)))
    found = [variance(path, raw, t, s) for raw in (-1.0, 0.0, 1.0)]
    assert all(math.isfinite(v) for v in found)
    assert found[2] == pytest.approx(upper, rel=1e-9, abs=1e-300)
    if lower > 0:
        assert found[0] == pytest.approx(lower, rel=1e-9)
    elif upper > 0:
        assert 0 < found[0] <= upper * (1 + 1e-12)
    assert found[1] ** 2 == pytest.approx(found[0] * found[2], rel=1e-6, abs=1e-300)


def test_a_table_of_one_beta_has_only_its_upper_variance():
    for raw in (-1.0, 1.0):
        assert variance(BetaTable([0.36]), raw, 1.0, 0.0) == pytest.approx(0.36)


def test_learned_variance_keeps_the_outputs_shape_and_type():
    output = torch.zeros(2, 3, 4, 5)
    found = learned_variance(PATHS["linear"], output, torch.tensor([1.0, 0.3]), torch.zeros(2))
    assert found.shape == output.shape
    assert found.dtype == torch.float32
    assert float(found[0, 0, 0, 0]) != float(found[1, 0, 0, 0])
