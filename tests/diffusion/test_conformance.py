"""What every sampler must do on every path, grid, shape and type that fit together."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from medseg_diff.diffusion.grids import GRIDS, GridName, time_grid
from medseg_diff.diffusion.paths import Path
from medseg_diff.diffusion.samplers import SAMPLERS, Denoised, Problem, Step, sample
from medseg_diff.diffusion.samplers.base import Knot
from medseg_diff.diffusion.samplers.langevin import predictor_corrector
from medseg_diff.diffusion.samplers.multistep import integral
from tests.diffusion.oracle import PATHS, noise_like, posterior_mean, wobbly

STEPS = 4
FITTING = [
    pytest.param(sampler, path, grid, id=f"{sampler}-{path}-{grid}")
    for sampler, entry in SAMPLERS.items()
    for path in PATHS
    for grid in GRIDS
    if entry.fits(PATHS[path])
    and not (PATHS[path].source_as_noise and grid in ("karras", "log_snr"))
]
SHAPES = [((2, 2, 5, 7), torch.float32), ((2, 1, 3, 5, 4), torch.float64)]


class Walk:
    """One trajectory and what it asked for."""

    def __init__(self, sampler: str, path: Path, grid: GridName, shape, dtype) -> None:
        self.asked: list[int] = []
        self.called: list[float] = []
        self.clean = noise_like(torch.zeros(shape, dtype=dtype), 3).tanh()
        self.times = time_grid(path, STEPS, grid)
        self.noise = noise_like(self.clean, 1)
        self.problem = Problem(
            path,
            self.denoise,
            self.noise,
            self.times,
            fresh_noise=self.fresh,
            source=noise_like(self.clean, 2) if path.uses_source else None,
            error_variance=torch.zeros_like,
        )
        self.steps: list[Step] = list(sample(sampler, self.problem))

    def denoise(self, x: Tensor, t: Tensor) -> Denoised:
        """A perfect network that knows the answer, if its input is well-formed."""
        assert x.shape == self.clean.shape
        assert x.dtype == self.clean.dtype
        assert t.shape == (len(x),)
        assert bool(x.isfinite().all())
        assert float(t[0]) > 0
        self.called.append(float(t[0]))
        return Denoised(self.clean)

    def fresh(self, index: int) -> Tensor:
        self.asked.append(index)
        return noise_like(self.clean, 100 + index)


@pytest.mark.parametrize(("sampler", "name", "grid"), FITTING)
def test_conformance(sampler: str, name: str, grid: GridName):
    entry, path = SAMPLERS[sampler], PATHS[name]
    for shape, dtype in SHAPES:
        walk = Walk(sampler, path, grid, shape, dtype)
        steps, times = walk.steps, walk.times.tolist()
        assert [step.index for step in steps] == list(range(STEPS))
        assert [step.t for step in steps] == times[:-1]
        assert [step.s for step in steps] == times[1:]
        for step in steps:
            for tensor in (step.clean, step.state):
                assert tensor.shape == shape
                assert tensor.dtype == dtype
                assert bool(tensor.isfinite().all())
            assert torch.equal(step.clean, walk.clean)
        assert STEPS <= len(walk.called) <= entry.calls * STEPS
        assert walk.called[0] == times[0]
        assert set(walk.called) == set(times[:-1])
        assert len(walk.asked) == len(set(walk.asked))
        assert bool(walk.asked) == entry.fresh
        assert all(index >= 0 for index in walk.asked)
        a_0 = float(path.coefficients(walk.times[-1:]).a)
        tolerance = 2e-5 if dtype == torch.float32 else 1e-12
        torch.testing.assert_close(
            steps[-1].state, a_0 * walk.clean, rtol=tolerance, atol=tolerance
        )
        again = Walk(sampler, path, grid, shape, dtype)
        assert all(
            torch.equal(one.state, other.state)
            for one, other in zip(steps, again.steps, strict=True)
        )


@pytest.mark.parametrize("sampler", [n for n, e in SAMPLERS.items() if not e.fresh])
@pytest.mark.parametrize("name", PATHS)
def test_with_the_true_clean_state_deterministic_walks_stay_on_the_path(sampler: str, name: str):
    """Every state is the marginal's own, of the noise that the walk began with."""
    path = PATHS[name]
    if not SAMPLERS[sampler].fits(path):
        return
    walk = Walk(sampler, path, "uniform", (1, 2, 3, 3), torch.float64)
    first = walk.problem.at(walk.times[0])
    if float(path.coefficients(first).a[0]) > 0.01:
        return  # a start without its share of clean is not on the path
    for step in walk.steps:
        t = torch.tensor([step.s], dtype=torch.float64)
        expected = path.noised(walk.clean, walk.noise, t, walk.problem.source)
        slack = 0.02 if float(path.coefficients(first).a[0]) > 0 else 1e-12
        torch.testing.assert_close(step.state, expected, rtol=0, atol=slack)


def test_fresh_noise_of_predictor_and_corrector_is_numbered_apart():
    walk = Walk("predictor_corrector", PATHS["linear"], "uniform", (1, 1, 2, 2), torch.float64)
    assert walk.asked == [0, 4, 1, 5, 2, 6]
    for sampler in ("ancestral", "dpm_solver_sde", "consistency"):
        walk = Walk(sampler, PATHS["linear"], "uniform", (1, 1, 2, 2), torch.float64)
        assert walk.asked == [0, 1, 2]


def test_fresh_noise_of_several_corrections_never_repeats():
    walk = Walk("ddim", PATHS["linear"], "uniform", (1, 1, 2, 2), torch.float64)
    list(predictor_corrector(walk.problem, corrections=2))
    assert walk.asked == [0, 4, 5, 1, 6, 7, 2, 8, 9]


def states(sampler: str, path: Path, denoise, noise: Tensor, source: Tensor | None) -> list[Tensor]:
    """Every state of a walk whose fresh noise is cut like ``noise`` from one field per index."""
    fields = [noise_like(torch.zeros(2, 2, 3, 3, dtype=torch.float64), 50 + i) for i in range(20)]
    first = 0 if torch.equal(noise[0], batch_of_two()[0]) else 1
    problem = Problem(
        path,
        denoise,
        noise,
        time_grid(path, STEPS, "uniform"),
        fresh_noise=lambda index: fields[index][first : first + len(noise)],
        source=source,
        error_variance=torch.zeros_like,
    )
    return [step.state for step in sample(sampler, problem)]


def batch_of_two() -> Tensor:
    """Two starts, the second much longer than the first."""
    noise = noise_like(torch.zeros(2, 2, 3, 3, dtype=torch.float64), 1)
    noise[1] *= 3
    return noise


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sample_does_not_depend_on_its_batch(sampler: str):
    noise = batch_of_two()
    both = states(sampler, PATHS["linear"], wobbly, noise, None)
    for index in (0, 1):
        alone = states(sampler, PATHS["linear"], wobbly, noise[index : index + 1], None)
        for together, single in zip(both, alone, strict=True):
            torch.testing.assert_close(together[index : index + 1], single, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sampler", [n for n, e in SAMPLERS.items() if e.fits(PATHS["bridge"])])
def test_a_source_only_moves_the_walk_by_its_share(sampler: str):
    """The denoiser sees x - b source alone, so states less that share know no source."""
    path, noise = PATHS["bridge"], batch_of_two()
    source, nothing = 2 + noise_like(noise, 9), torch.zeros_like(noise)
    moved = states(sampler, path, posterior_mean(path, source), noise, source)
    still = states(sampler, path, posterior_mean(path, nothing), noise, nothing)
    for s, one, other in zip(time_grid(path, STEPS, "uniform")[1:], moved, still, strict=True):
        b = float(path.coefficients(s[None]).b)
        torch.testing.assert_close(one - b * source, other, rtol=1e-10, atol=1e-10)


def test_ends_of_a_path_have_an_infinite_log_snr():
    assert Knot(1.0, 0.0, 0.0).log_snr == math.inf
    assert Knot(0.0, 0.0, 1.0).log_snr == Knot(0.0, 1.0, 0.0).log_snr == -math.inf
    assert Knot(3.0, 0.0, 2.0).log_snr == pytest.approx(math.log(1.5))


@pytest.mark.parametrize("h", [0.0, -0.3])
def test_a_step_that_gains_no_signal_falls_back_to_first_order(h: float):
    """A clamped path has plateaus of lambda, where finite differences would divide by zero."""
    past = [(0.0, torch.tensor([1.0])), (1.0, torch.tensor([3.0]))]
    assert float(integral(past, h)) == pytest.approx(3 * (1 - math.exp(-h)))


def problem(name: str) -> Problem:
    return Walk("ddim", PATHS[name], "uniform", (1, 1, 2, 2), torch.float64).problem


def test_an_unknown_sampler_is_refused():
    with pytest.raises(ValueError, match="unknown sampler 'plms'"):
        sample("plms", problem("linear"))


def test_paths_with_a_source_refuse_unfit_samplers():
    able = {
        name: {sampler for sampler, entry in SAMPLERS.items() if entry.fits(PATHS[name])}
        for name in ("linear", "bridge", "flow_of_source")
    }
    assert able["linear"] == set(SAMPLERS)
    assert able["bridge"] == set(SAMPLERS) - {"analytic", "predictor_corrector"}
    assert able["flow_of_source"] == {"ddim", "euler", "heun"}
    for name in ("bridge", "flow_of_source"):
        for sampler in set(SAMPLERS) - able[name]:
            with pytest.raises(ValueError, match="ends in a source image: use ddim"):
                sample(sampler, problem(name))


def test_missing_parts_of_a_problem_are_refused():
    bridge = dataclasses.replace(problem("bridge"), source=None)
    with pytest.raises(ValueError, match="give source"):
        sample("ddim", bridge)
    bare = dataclasses.replace(problem("linear"), fresh_noise=None, error_variance=None)
    for sampler, entry in SAMPLERS.items():
        if entry.fresh:
            with pytest.raises(ValueError, match=r"error of the clean|fresh_noise"):
                list(sample(sampler, bare))
        else:
            list(sample(sampler, bare))


@pytest.mark.parametrize("times", [[1.0], [1.0, 0.5], [0.5, 0.5, 0.0], [0.2, 0.6, 0.0]])
def test_times_that_do_not_fall_to_zero_are_refused(times: list[float]):
    grid = torch.tensor(times, dtype=torch.float64)
    with pytest.raises(ValueError, match="fall strictly"):
        sample("ddim", dataclasses.replace(problem("linear"), times=grid))
