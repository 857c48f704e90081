"""What every sampler must do on every path, grid, shape and type that fit together."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from medseg_diff.diffusion.grids import GRIDS, GridName, time_grid
from medseg_diff.diffusion.paths import Path
from medseg_diff.diffusion.samplers import SAMPLERS, Denoised, Problem, Step, sample
from tests.diffusion.oracle import PATHS, noise_like

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
