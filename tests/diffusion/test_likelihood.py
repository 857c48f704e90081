"""Likelihood of Gaussian data, whose exact denoiser and closed form are known.

Terms of the bound are quadratic in clean and in noise, and signs +-1 have a Gaussian's first two
moments: means over signs are exact expectations, with no random numbers.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from medseg_diff.diffusion.grids import time_grid
from medseg_diff.diffusion.likelihood import bits_per_dimension, log_likelihood
from medseg_diff.diffusion.objectives import step_terms
from medseg_diff.diffusion.parameterisations import learned_variance
from medseg_diff.diffusion.paths import (
    BetaTable,
    BrownianBridge,
    Linear,
    Path,
    VarianceExploding,
    VariancePreserving,
    spread,
    step_variances,
)
from medseg_diff.diffusion.samplers.base import Denoise, Denoised

SD = 0.4
ENTROPY_BITS = math.log2(math.sqrt(2 * math.pi * math.e) * SD)
BETAS = [0.02 + 0.2 * k / 30 for k in range(30)]
PATHS: dict[str, Path] = {
    "linear schedule": VariancePreserving("linear"),
    "cosine scaled": VariancePreserving("cosine", 0.5),
    "exploding": VarianceExploding(0.005, 50),
    "line": Linear(),
    "bridge": BrownianBridge(0.5),
    "no signal at 1": VariancePreserving("linear", zero_terminal_snr=True),
}


def exact(path: Path, source: Tensor | None = None, sd: float = SD) -> Denoise:
    """E[clean | x_t] for clean ~ N(0, sd^2), which learns no variance."""

    def denoise(x_t: Tensor, t: Tensor) -> Denoised:
        a, b, sigma = path.coefficients(t)
        x = x_t if source is None else x_t - spread(b, x_t) * source
        total = (a**2 * sd**2 + sigma**2).clamp_min(1e-300)
        return Denoised(spread(a * sd**2 / total, x_t) * x)

    return denoise


CLEAN = SD * torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64).reshape(4, 1, 1)
SIGNS = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64).reshape(4, 1, 1)
SOURCE = torch.full_like(CLEAN, 0.7)


def expected_bound(path: Path, steps: int) -> float:
    source = SOURCE if path.uses_source else None
    found = bits_per_dimension(
        path,
        exact(path, source),
        CLEAN,
        lambda index: SIGNS,
        time_grid(path, steps, "log_snr"),
        source=source,
    )
    return float(found.total.mean())


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_the_bound_lies_above_the_entropy_and_tends_to_it(path: Path):
    few, many = (expected_bound(path, steps) - ENTROPY_BITS for steps in (80, 160))
    assert few > many > 0
    # First order in the step of log SNR: twice the steps, half the gap, and in the limit none.
    assert abs(2 * many - few) < 0.1 * few


def test_a_table_has_a_bound_over_its_knots():
    path = BetaTable(BETAS)
    grid = torch.arange(30, -1, -1, dtype=torch.float64) / 30
    found = bits_per_dimension(path, exact(path), CLEAN, lambda index: SIGNS, grid)
    assert found.steps.shape == (29, 4)
    assert ENTROPY_BITS < float(found.total.mean()) < ENTROPY_BITS + 0.6


def test_the_terms_of_a_bound_one_by_one():
    path, times = VariancePreserving("linear", 0.8), torch.tensor([0.7, 0.4, 0.1, 0.0]).double()
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(2, 3, 4, generator=generator, dtype=torch.float64) * 2 - 1
    noise = torch.randn(3, 2, 3, 4, generator=generator, dtype=torch.float64)
    found = bits_per_dimension(path, exact(path), clean, lambda k: noise[k], times)
    a, _, sigma = path.coefficients(times[:1])
    prior = Normal(torch.zeros_like(clean), float(sigma))
    drift = torch.distributions.kl_divergence(Normal(float(a) * clean, prior.scale), prior)
    per_dimension = 1 / math.log(2) / 12
    torch.testing.assert_close(found.prior, drift.sum((1, 2)) * per_dimension)
    wanted = []
    for k in range(3):
        t, s = (times[j].expand(2) for j in (k, k + 1))
        x_t = path.noised(clean, noise[k], t)
        lower, upper = step_variances(path, t, s)
        variance = spread(lower if k < 2 else upper, clean).expand_as(clean)
        terms = step_terms(path, clean, exact(path)(x_t, t).clean, variance, x_t, t, s)
        wanted.append(terms.sum((1, 2)) * per_dimension)
    torch.testing.assert_close(found.steps, torch.stack(wanted[:2]))
    torch.testing.assert_close(found.decoder, wanted[2])
    torch.testing.assert_close(found.total, found.prior + sum(wanted))


def test_a_learned_variance_and_bins_are_used():
    path, raw = VariancePreserving("linear"), torch.full_like(CLEAN, 0.3)
    t, s = torch.full((4,), 0.2).double(), torch.zeros(4).double()
    noise = 0.5 * SIGNS

    def denoise(x_t: Tensor, at: Tensor) -> Denoised:
        return Denoised(0.9 * x_t, raw)

    times = torch.tensor([0.2, 0.0]).double()
    found = bits_per_dimension(path, denoise, CLEAN, lambda k: noise, times, bin_width=0.1)
    x_t = path.noised(CLEAN, noise, t)
    variance = learned_variance(path, raw, t, s)
    wanted = step_terms(path, CLEAN, 0.9 * x_t, variance, x_t, t, s, bin_width=0.1)
    torch.testing.assert_close(found.decoder, wanted.flatten() / math.log(2))
    assert found.steps.shape == (0, 4)
    torch.testing.assert_close(found.total, found.prior + found.decoder)


def test_a_bridge_pays_nothing_for_its_prior():
    path = BrownianBridge()
    found = bits_per_dimension(
        path, exact(path, SOURCE), CLEAN, lambda k: SIGNS, time_grid(path, 4), source=SOURCE
    )
    assert found.prior.tolist() == [0, 0, 0, 0]


def test_a_bound_refuses_wrong_times_and_paths():
    rising = torch.tensor([0.0, 0.5, 1.0])
    short = torch.tensor([1.0, 0.5])
    for times in (rising, short, torch.zeros(1)):
        with pytest.raises(ValueError, match="fall"):
            bits_per_dimension(Linear(), exact(Linear()), CLEAN, lambda k: SIGNS, times)
    path = Linear(source_as_noise=True)
    with pytest.raises(ValueError, match="source image"):
        bits_per_dimension(
            path, exact(path), CLEAN, lambda k: SIGNS, time_grid(Linear(), 2), source=SOURCE
        )


COVARIANCE = torch.tensor([[0.30, 0.12], [0.12, 0.20]], dtype=torch.float64)
POINTS = torch.tensor([[0.3, -0.4], [1.0, 0.2]], dtype=torch.float64).reshape(2, 2, 1)
CLOSED_FORM = MultivariateNormal(torch.zeros(2).double(), COVARIANCE).log_prob(POINTS.flatten(1))


def correlated(path: Path) -> Denoise:
    """E[clean | x_t] for clean ~ N(0, COVARIANCE), a full matrix."""

    def denoise(x_t: Tensor, t: Tensor) -> Denoised:
        a, _, sigma = (c[:, None, None] for c in path.coefficients(t))
        total = a**2 * COVARIANCE + sigma**2 * torch.eye(2).double()
        return Denoised(a * COVARIANCE @ torch.linalg.solve(total, x_t))

    return denoise


FLOWS = {name: path for name, path in PATHS.items() if not path.uses_source}


@pytest.mark.parametrize("path", FLOWS.values(), ids=FLOWS.keys())
def test_the_flow_has_the_closed_form(path: Path):
    steps = 60 if isinstance(path, VarianceExploding) else 20
    found = log_likelihood(path, correlated(path), POINTS, steps=steps)
    torch.testing.assert_close(found, CLOSED_FORM, rtol=0, atol=1e-3)
    assert found.dtype == torch.float64


def test_the_flow_converges_at_fourth_order():
    path = Linear()
    gaps = [
        float((log_likelihood(path, correlated(path), POINTS, steps=n) - CLOSED_FORM).abs().max())
        for n in (6, 12, 24)
    ]
    assert gaps[0] / gaps[1] > 12
    assert gaps[1] / gaps[2] > 12


def test_an_early_end_takes_the_prior_there():
    path = VariancePreserving("linear", zero_terminal_snr=True)
    found = log_likelihood(path, correlated(path), POINTS, steps=15, t_max=0.9)
    torch.testing.assert_close(found, CLOSED_FORM, rtol=0, atol=0.02)


def test_a_late_start_blurs_the_data():
    path, t_min = VariancePreserving("linear", 0.5), 0.05
    found = log_likelihood(path, correlated(path), POINTS, steps=15, t_min=t_min)
    a, _, sigma = path.coefficients(torch.tensor([t_min]))
    blurred = COVARIANCE + (sigma / a) ** 2 * torch.eye(2).double()
    wanted = MultivariateNormal(torch.zeros(2).double(), blurred).log_prob(POINTS.flatten(1))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3)


def test_hutchinsons_probe_is_unbiased():
    path = VariancePreserving("linear")
    whole = log_likelihood(path, correlated(path), POINTS, steps=4)
    found = []
    for signs in itertools.product((-1.0, 1.0), repeat=2):
        probe = torch.tensor(signs, dtype=torch.float64).reshape(1, 2, 1).expand(2, 2, 1)
        found.append(log_likelihood(path, correlated(path), POINTS, probe=probe, steps=4))
    assert float((found[0] - found[1]).abs().min()) > 1e-3
    torch.testing.assert_close(torch.stack(found).mean(0), whole)
    # Its square counts: a longer probe has a larger trace.
    longer = log_likelihood(path, correlated(path), POINTS, probe=2 * probe, steps=4)
    nothing = log_likelihood(path, correlated(path), POINTS, probe=0 * probe, steps=4)
    torch.testing.assert_close(longer - nothing, 4 * (found[-1] - nothing))


def test_samples_of_a_batch_do_not_mix():
    path = VariancePreserving("linear")
    both = log_likelihood(path, correlated(path), POINTS, steps=5)
    for i in range(2):
        alone = log_likelihood(path, correlated(path), POINTS[i : i + 1], steps=5)
        torch.testing.assert_close(alone, both[i : i + 1])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_flow_runs_where_gradients_are_off(mode):
    path = VariancePreserving("linear")
    wanted = log_likelihood(path, correlated(path), POINTS, steps=5)
    probed = log_likelihood(path, correlated(path), POINTS, probe=1 + 0 * POINTS, steps=5)
    with mode():
        found = log_likelihood(path, correlated(path), POINTS + 0, steps=5)
        assert not found.requires_grad
        torch.testing.assert_close(found, wanted)
        again = log_likelihood(path, correlated(path), POINTS + 0, probe=1 + 0 * POINTS, steps=5)
        torch.testing.assert_close(again, probed)


def test_the_flow_refuses_what_has_none():
    path = Linear()
    for wrong, message in (
        (BetaTable(BETAS), "table"),
        (BrownianBridge(), "source"),
        (Linear(source_as_noise=True), "source"),
    ):
        with pytest.raises(ValueError, match=message):
            log_likelihood(wrong, correlated(path), POINTS)
    for ends in ({"t_min": 0.0}, {"t_max": 1.5}, {"t_min": 0.6, "t_max": 0.5}):
        with pytest.raises(ValueError, match="t_min"):
            log_likelihood(path, correlated(path), POINTS, **ends)
    with pytest.raises(ValueError, match="probe"):
        log_likelihood(path, correlated(path), torch.zeros(1, 1, 257))
    with pytest.raises(ValueError, match="no_grad"):
        log_likelihood(path, lambda x, t: Denoised(x.detach()), POINTS)


def test_a_flow_without_finite_slopes_is_refused():
    class Steep(VariancePreserving):
        def rates(self, t: Tensor):
            return super().rates(t)._replace(a=torch.full_like(t, -math.inf))

    with pytest.raises(ValueError, match="finite"):
        log_likelihood(Steep(), correlated(Steep()), POINTS)
