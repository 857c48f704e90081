"""Unpaired translation between Gaussian domains, whose optimal transport is an affine map."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from medseg_diff.diffusion.grids import time_grid
from medseg_diff.diffusion.paths import Linear, Path, VarianceExploding, VariancePreserving, spread
from medseg_diff.diffusion.samplers import Denoise, Denoised
from medseg_diff.diffusion.transport import inverted, partial_noising, with_recovered_noise
from tests.diffusion.oracle import gains, noise_like, wobbly

TRANSPORTS: dict[str, Path] = {
    "linear": VariancePreserving("linear"),
    "cosine": VariancePreserving("cosine"),
    "scaled": VariancePreserving("linear", 0.5),
    "exploding": VarianceExploding(0.01, 10.0),
    "flow": Linear(),
}
path_of = pytest.mark.parametrize("path", TRANSPORTS.values(), ids=TRANSPORTS.keys())
# Mean and standard deviation of the two domains.
SOURCE, TARGET = (-0.4, 0.2), (0.3, 0.35)


def gaussian(path: Path, domain: tuple[float, float]) -> Denoise:
    """E[clean | x_t] for data N(mean, sd^2)."""
    mean, sd = domain

    def denoise(x: Tensor, t: Tensor) -> Denoised:
        a, _, sigma = path.coefficients(t)
        gain = a * sd**2 / (a**2 * sd**2 + sigma**2)
        return Denoised(mean + spread(gain, x) * (x - spread(a, x) * mean))

    return denoise


def images() -> Tensor:
    return SOURCE[0] + SOURCE[1] * noise_like(torch.zeros(2, 1, 5, 4, dtype=torch.float64), 3)


def marginal_sd(path: Path, domain: tuple[float, float], t: float) -> float:
    a, _, sigma = gains(path, t)
    return math.hypot(a * domain[1], sigma)


def decoded(path: Path, state: Tensor, t: float) -> Tensor:
    """Where the target's exact probability flow takes a state at ``t``."""
    a = gains(path, t)[0]
    return TARGET[0] + TARGET[1] / marginal_sd(path, TARGET, t) * (state - a * TARGET[0])


@path_of
@pytest.mark.parametrize("strength", [0.3, 0.7])
def test_inversion_and_decoding_follow_both_exact_flows(path: Path, strength: float):
    a, x = gains(path, strength)[0], images()
    ratio = marginal_sd(path, SOURCE, strength) / SOURCE[1]
    wanted = decoded(path, a * SOURCE[0] + ratio * (x - SOURCE[0]), strength)
    times = time_grid(path, 500, t_max=strength)
    found = inverted(path, gaussian(path, SOURCE), gaussian(path, TARGET), x, times)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.02)


@pytest.mark.parametrize("name", ["linear", "cosine", "scaled"])
def test_from_full_noise_it_is_the_optimal_transport_map(name: str):
    """Between Gaussians that is m2 + (s2 / s1) (x - m1)."""
    path, x = TRANSPORTS[name], images()
    times = time_grid(path, 1000, t_max=1.0)
    found = inverted(path, gaussian(path, SOURCE), gaussian(path, TARGET), x, times)
    wanted = TARGET[0] + TARGET[1] / SOURCE[1] * (x - SOURCE[0])
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.03)
    # Nothing else would do: neither the image itself nor its shift.
    assert float((x - wanted).abs().mean()) > 0.3
    assert float((x + TARGET[0] - SOURCE[0] - wanted).abs().mean()) > 0.05


@path_of
def test_partial_noising_decodes_the_noised_image(path: Path):
    x, t = images(), 0.5
    noise = noise_like(x, 9)
    a, _, sigma = gains(path, t)
    times = time_grid(path, 400, t_max=t)
    found = partial_noising(path, gaussian(path, TARGET), x, noise, times)
    torch.testing.assert_close(found, decoded(path, a * x + sigma * noise, t), rtol=0, atol=0.02)


def test_partial_noising_walks_by_the_sampler_it_is_told():
    path, x = TRANSPORTS["linear"], images()
    times, seen = time_grid(path, 4, t_max=0.5), list[int]()

    def fresh(index: int) -> Tensor:
        seen.append(index)
        return noise_like(x, 20 + index)

    given = path, gaussian(path, TARGET), x, noise_like(x, 9), times
    walked = partial_noising(*given, "ancestral", fresh)
    assert seen == [0, 1, 2]
    assert float((walked - partial_noising(*given)).abs().max()) > 1e-3


@path_of
def test_partial_noising_starts_from_the_noised_image_at_the_first_time(path: Path):
    x, shown = images(), list[tuple[float, Tensor]]()
    target = gaussian(path, TARGET)

    def watched(state: Tensor, t: Tensor) -> Denoised:
        shown.append((float(t[0]), state))
        return target(state, t)

    partial_noising(path, watched, x, noise_like(x, 9), time_grid(path, 4, t_max=0.6))
    a, _, sigma = gains(path, 0.6)
    assert shown[0][0] == pytest.approx(0.6)
    torch.testing.assert_close(shown[0][1], a * x + sigma * noise_like(x, 9))


def recovered(path: Path, source: Denoise, target: Denoise, x: Tensor, times: Tensor) -> Tensor:
    return with_recovered_noise(
        path, source, target, x, noise_like(x, 9), times, lambda index: noise_like(x, 20 + index)
    )


@path_of
@pytest.mark.parametrize("strength", [0.2, 0.95])
def test_recovered_noise_under_the_same_denoiser_returns_the_image(path: Path, strength: float):
    """Exactly and in any number of steps, whatever the denoiser."""
    x = images()
    found = recovered(path, wobbly, wobbly, x, time_grid(path, 3, t_max=strength))
    torch.testing.assert_close(found, x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["linear", "cosine", "scaled"])
@pytest.mark.parametrize("steps", [4, 50])
def test_recovered_noise_shifts_one_gaussian_to_another(name: str, steps: int):
    """With equal spreads the difference of the walks is a_t (m2 - m1) from the first step on."""
    path, x = TRANSPORTS[name], images()
    target = (TARGET[0], SOURCE[1])
    times = time_grid(path, steps, t_max=1.0)
    found = recovered(path, gaussian(path, SOURCE), gaussian(path, target), x, times)
    torch.testing.assert_close(found, x + TARGET[0] - SOURCE[0], rtol=0, atol=0.01)


def test_recovered_noise_keeps_the_image_where_little_is_noised():
    """The shift that is made is the share that the noise hides: none at strength 0."""
    path, x = TRANSPORTS["linear"], images()
    target = (TARGET[0], SOURCE[1])
    moved = []
    for strength in (0.001, 0.1, 0.4, 1.0):
        times = time_grid(path, 20, t_max=strength)
        found = recovered(path, gaussian(path, SOURCE), gaussian(path, target), x, times)
        moved.append(float((found - x).mean()))
    assert moved == sorted(moved)
    assert moved[0] == pytest.approx(0, abs=0.01)


@path_of
def test_a_step_is_the_posterior_of_ddpm_and_its_noise_is_handed_over(path: Path):
    """Both walks' second states by hand: x from q(x_s | x_t, clean), y by the same noise."""
    x, (t, s) = images(), (0.6, 0.3)
    times = torch.tensor([t, s, 0.0], dtype=torch.float64)
    walks: dict[str, list[Tensor]] = {"source": [], "target": []}

    def watched(name: str, domain: tuple[float, float]) -> Denoise:
        inner = gaussian(path, domain)

        def denoise(state: Tensor, time: Tensor) -> Denoised:
            walks[name].append(state)
            return inner(state, time)

        return denoise

    recovered(path, watched("source", SOURCE), watched("target", TARGET), x, times)
    (a_t, _, sigma_t), (a_s, _, sigma_s) = gains(path, t), gains(path, s)
    v = (sigma_t**2 - (a_t / a_s) ** 2 * sigma_s**2) * sigma_s**2 / sigma_t**2
    kept = math.sqrt(sigma_s**2 - v)
    moved = a_s * x + kept * noise_like(x, 9) + math.sqrt(v) * noise_like(x, 20)
    torch.testing.assert_close(walks["source"][1], moved)
    first, at = walks["source"][0], torch.full((2,), t, dtype=torch.float64)
    apart = gaussian(path, TARGET)(first, at).clean - gaussian(path, SOURCE)(first, at).clean
    torch.testing.assert_close(walks["target"][1], moved + (a_s - kept * a_t / sigma_t) * apart)


def test_each_denoiser_sees_its_own_walk():
    """The source walks down to the image itself; its states are seen at its own times."""
    path, x = TRANSPORTS["linear"], images()
    times, seen = time_grid(path, 3, t_max=0.6), list[tuple[float, Tensor]]()
    source = gaussian(path, SOURCE)

    def watched(state: Tensor, t: Tensor) -> Denoised:
        seen.append((float(t[0]), state))
        return source(state, t)

    recovered(path, watched, gaussian(path, TARGET), x, times)
    assert [t for t, _ in seen] == pytest.approx(times[:-1].tolist())
    a, _, sigma = gains(path, 0.6)
    torch.testing.assert_close(seen[0][1], a * x + sigma * noise_like(x, 9))
    # Later states still belong to the image: their mean gain is a, what is left is noise.
    for t, state in seen:
        a, _, sigma = gains(path, t)
        rest = (state - a * x) / sigma
        assert abs(float(rest.mean())) < 0.6
        assert 0.5 < float(rest.std()) < 1.6
