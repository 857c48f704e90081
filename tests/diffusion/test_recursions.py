"""Every sampler on Gaussian data equals its own finite-step recursion, written again in numpy.

The recursions are written as the papers have them, in x, with gains of their own; the package
walks other variables. States are rows of gains on the start and on every fresh noise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.integrate import quad

from medseg_diff.diffusion.grids import GridName, time_grid
from medseg_diff.diffusion.paths import Linear, Path, VarianceExploding
from medseg_diff.diffusion.samplers.unipc import unipc
from tests.diffusion.oracle import DATA_SD, LINEAR_VP, sampled_sds

Row = NDArray[np.float64]
S2 = DATA_SD**2


class Line(NamedTuple):
    """A grid's gains."""

    t: list[float]
    a: list[float]
    sigma: list[float]

    def denoise(self, i: int, x: Row) -> Row:
        return self.a[i] * S2 / (self.a[i] ** 2 * S2 + self.sigma[i] ** 2) * x

    def lam(self, i: int) -> float:
        if self.a[i] == 0:
            return -math.inf
        return math.log(self.a[i] / self.sigma[i]) if self.sigma[i] > 0 else math.inf

    def marginal(self, i: int) -> float:
        return self.a[i] ** 2 * S2 + self.sigma[i] ** 2


def preserving(t: float) -> tuple[float, float]:
    bar = math.exp(-(0.1 * t + 19.9 * t * t / 2))
    return math.sqrt(bar), math.sqrt(1 - bar)


def exploding(t: float) -> tuple[float, float]:
    return 1.0, 0.02 * 1500**t if t > 0 else 0.0


PATHS: dict[str, tuple[Path, Callable[[float], tuple[float, float]]]] = {
    "preserving": (LINEAR_VP, preserving),
    "exploding": (VarianceExploding(0.02, 30.0), exploding),
    "flow": (Linear(), lambda t: (1 - t, t)),
}


def line(name: str, steps: int, grid: GridName) -> Line:
    path, gains = PATHS[name]
    t = [1 - k / steps for k in range(steps + 1)]
    if grid != "uniform":
        t = time_grid(path, steps, grid).tolist()
    return Line(t, *(list(column) for column in zip(*map(gains, t), strict=True)))


def axis(line: Line, index: int) -> Row:
    row = np.zeros(2 * len(line.t))
    row[index + 1] = 1
    return row


def eta_walk(line: Line, eta: float) -> Row:
    """Song, Meng & Ermon (2021), Eq. 12 and 16, with their sqrt(alpha_bar) as a."""
    x = line.sigma[0] * axis(line, -1)
    for i in range(len(line.t) - 1):
        clean = line.denoise(i, x)
        noise = (x - line.a[i] * clean) / line.sigma[i]
        a_t, a_s, before, after = line.a[i], line.a[i + 1], line.sigma[i], line.sigma[i + 1]
        added = (eta * after / before) ** 2 * (before**2 - (a_t / a_s) ** 2 * after**2)
        x = a_s * clean + math.sqrt(max(after**2 - added, 0)) * noise
        x = x + math.sqrt(added) * axis(line, i)
    return x


def posterior_walk(line: Line) -> Row:
    """The exact p(x_s | x_t) of Gaussian data, what the best variance makes of every step."""
    x = line.sigma[0] * axis(line, -1)
    for i in range(len(line.t) - 1):
        a_t, a_s, after = line.a[i], line.a[i + 1], line.sigma[i + 1]
        both = a_t * a_s * S2 + a_t / a_s * after**2
        slope = both / line.marginal(i)
        rest = line.marginal(i + 1) - slope * both
        x = slope * x + math.sqrt(rest) * axis(line, i)
    return x


def weights(nodes: list[float], h: float) -> list[float]:
    """Integrals of exp(u - h) times the Lagrange polynomials of ``nodes`` over u in [0, h]."""

    def term(k: int) -> float:
        def value(u: float) -> float:
            others = [n for j, n in enumerate(nodes) if j != k]
            return math.exp(u - h) * math.prod((u - n) / (nodes[k] - n) for n in others)

        return quad(value, 0, h, epsabs=1e-13, epsrel=1e-12)[0]

    return [term(k) for k in range(len(nodes))]


def multistep_walk(line: Line, order: int) -> Row:
    """Lu et al. (2022b), Alg. 2 for order 2; order 3 integrates a parabola exactly."""
    x, past = line.sigma[0] * axis(line, -1), []
    for i in range(len(line.t) - 1):
        clean = line.denoise(i, x)
        past = [*past, (line.lam(i), clean)]
        after, before, a_s = line.sigma[i + 1], line.sigma[i], line.a[i + 1]
        if after == 0:
            x = a_s * clean
            continue
        h = line.lam(i + 1) - line.lam(i)
        known = [p for p in past if math.isfinite(p[0])][-order:] if math.isfinite(h) else []
        if len(known) < 2:
            blend = -math.expm1(-h) * clean
        elif len(known) == 2:
            r = (known[1][0] - known[0][0]) / h
            blend = (1 - math.exp(-h)) * ((1 + 1 / (2 * r)) * clean - known[0][1] / (2 * r))
        else:
            factors = weights([at - line.lam(i) for at, _ in known], h)
            blend = sum(f * value for f, (_, value) in zip(factors, known, strict=True))
        x = after / before * x + a_s * blend
    return x


def sde_walk(line: Line) -> Row:
    """SDE-DPM-Solver++ 2M of Lu et al. (2022b), in x."""
    x, old = line.sigma[0] * axis(line, -1), None
    for i in range(len(line.t) - 1):
        clean = line.denoise(i, x)
        after, before, a_s = line.sigma[i + 1], line.sigma[i], line.a[i + 1]
        if after == 0:
            x = a_s * clean
            continue
        h = line.lam(i + 1) - line.lam(i)
        estimate = clean
        if old is not None and math.isfinite(old[0]) and math.isfinite(h):
            r = (line.lam(i) - old[0]) / h
            estimate = clean + (clean - old[1]) / (2 * r)
        x = after / before * math.exp(-h) * x + a_s * (1 - math.exp(-2 * h)) * estimate
        x = x + after * math.sqrt(1 - math.exp(-2 * h)) * axis(line, i)
        old = (line.lam(i), clean)
    return x


def unipc_walk(line: Line, variant: str) -> Row:
    """Zhao et al. (2023) in clean prediction: moments over B(h), a linear system for weights."""
    x, last, history = line.sigma[0] * axis(line, -1), None, []
    for i in range(len(line.t) - 1):
        clean = line.denoise(i, x)
        if last is not None and math.isfinite(line.lam(i) - line.lam(i - 1)):
            x = _step(line, i, last, [*history[-2:], (line.lam(i), clean)], variant, corrects=True)
        history = [p for p in [*history, (line.lam(i), clean)] if math.isfinite(p[0])]
        last = x
        if line.sigma[i + 1] == 0:
            return line.a[i + 1] * clean
        if math.isfinite(line.lam(i)):
            x = _step(line, i + 1, last, history[-2:], variant, corrects=False)
        else:
            x = line.a[i + 1] * clean + line.sigma[i + 1] / line.sigma[i] * last
    raise AssertionError("the grid ends in 0")


def _step(line: Line, end: int, x: Row, known: list, variant: str, corrects: bool) -> Row:
    begin = line.lam(end - 1)
    h = line.lam(end) - begin
    newest = next(value for at, value in known if at == begin)
    others = [((at - begin) / h, value) for at, value in known if at != begin]
    b = -h if variant == "bh1" else math.expm1(-h)
    moment, factorial, moments = math.expm1(-h) / -h - 1, 1.0, []
    for k in range(len(others)):
        moments.append(moment * factorial / b)
        factorial *= k + 2
        moment = moment / -h - 1 / factorial
    assert corrects == (1.0 in [r for r, _ in others])
    rho = np.array([0.5])[: len(others)]
    if len(others) == 2:
        rho = np.linalg.solve(np.array([[1.0, 1.0], [r for r, _ in others]]), moments)
    total = sum((p * (v - newest) / r for p, (r, v) in zip(rho, others, strict=True)), 0 * x)
    x = line.sigma[end] / line.sigma[end - 1] * x - line.a[end] * math.expm1(-h) * newest
    return x - line.a[end] * b * total


def ode_walk(line: Line, heun: bool) -> Row:
    """Karras et al. (2022), Alg. 1, in x / a; on the flow Heun's method on noise - clean in t."""
    straight = line.a[0] == 0
    scale = [1.0 if straight else a for a in line.a]
    clock = [s / c for s, c in zip(line.sigma, scale, strict=True)]

    def slope(i: int, y: Row) -> Row:
        x = scale[i] * y
        clean = line.denoise(i, x)
        noise = (x - line.a[i] * clean) / line.sigma[i]
        return noise - clean if straight else (y - clean) / clock[i]

    y = clock[0] * axis(line, -1)
    for i, (now, then) in enumerate(itertools.pairwise(clock)):
        first = slope(i, y)
        moved = y + (then - now) * first
        if heun and then > 0:
            moved = y + (then - now) * (first + slope(i + 1, moved)) / 2
        y = moved
    return scale[-1] * y


def consistency_walk(line: Line) -> Row:
    """Song et al. (2023), Alg. 1."""
    x = line.sigma[0] * axis(line, -1)
    for i in range(len(line.t) - 1):
        x = line.a[i + 1] * line.denoise(i, x) + line.sigma[i + 1] * axis(line, i)
    return x


def corrected_walk(line: Line, snr: float, corrections: int) -> Row:
    """Song et al. (2021), Alg. 2 to 5, for one number: the variance in the limit of many voxels."""
    v = line.sigma[0] ** 2
    for i in range(len(line.t) - 1):
        a_t, a_s, before, after = line.a[i], line.a[i + 1], line.sigma[i], line.sigma[i + 1]
        ratio = a_t / a_s
        added = after**2 * (1 - (ratio * after / before) ** 2)
        gain = a_t * S2 / line.marginal(i)
        mean = a_s * (1 - (ratio * after / before) ** 2) * gain + ratio * (after / before) ** 2
        v = mean**2 * v + added
        for _ in range(corrections if after > 0 else 0):
            score = v / line.marginal(i + 1) ** 2
            size = 2 * snr**2 / score
            v = (1 - size / line.marginal(i + 1)) ** 2 * v + 2 * size
    return np.array([math.sqrt(v)])


RECURSIONS: dict[str, Callable[[Line], Row]] = {
    "ddim": lambda line: eta_walk(line, 0.0),
    "ancestral": lambda line: eta_walk(line, 1.0),
    "analytic": posterior_walk,
    "dpm_solver_2m": lambda line: multistep_walk(line, 2),
    "dpm_solver_3m": lambda line: multistep_walk(line, 3),
    "dpm_solver_sde": sde_walk,
    "unipc": lambda line: unipc_walk(line, "bh2"),
    "euler": lambda line: ode_walk(line, heun=False),
    "heun": lambda line: ode_walk(line, heun=True),
    "predictor_corrector": lambda line: corrected_walk(line, 0.16, 1),
    "consistency": consistency_walk,
}


def length(row: Row) -> float:
    return float(np.sqrt(np.square(row).sum()))


@pytest.mark.parametrize("sampler", RECURSIONS)
@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize(
    ("steps", "grid"), [(1, "uniform"), (2, "uniform"), (10, "uniform"), (13, "log_snr")]
)
def test_walk_equals_its_recursion(sampler: str, name: str, steps: int, grid: GridName):
    expected = length(RECURSIONS[sampler](line(name, steps, grid)))
    found = sampled_sds(sampler, PATHS[name][0], steps, grid)[-1]
    assert found == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("name", PATHS)
def test_the_papers_other_scale_of_unipc_follows_its_recursion_too(name: str):
    found = sampled_sds("", PATHS[name][0], 9, "uniform", walk=unipc, scale="bh1")[-1]
    expected = length(unipc_walk(line(name, 9, "uniform"), "bh1"))
    assert found == pytest.approx(expected, rel=1e-7)
    assert found != pytest.approx(length(unipc_walk(line(name, 9, "uniform"), "bh2")), rel=1e-5)
