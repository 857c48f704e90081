"""Test the tests: plant one fault at a time in a copy of the package and see a test fail.

    python tests/planted_faults.py [part of a file's name]

Each fault is one replacement of text in a temporary copy; the related test file runs against the
copy. Faults that no test notices are listed, and the exit code is 1.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]


class Fault(NamedTuple):
    """``old`` becomes ``new``, once, in a file of the package."""

    old: str
    new: str


PATHS = [
    Fault("sigma_s / sigma_t.clamp_min(1e-300)", "sigma_s.sqrt() / sigma_t.clamp_min(1e-300)"),
    Fault("upper = (sigma_t**2 - (a_t / a_s) ** 2", "upper = (sigma_t**2 - (a_t / a_s)"),
    Fault("(a_t / a_s) ** 2 * sigma_s**2", "(a_s / a_t) ** 2 * sigma_s**2"),
    Fault("torch.where(pinned, sigma_s**2, upper * ratio**2)", "upper * ratio**2"),
    Fault("upper * ratio**2", "upper * ratio"),
    Fault("v = eta**2 *", "v = eta *"),
    Fault("kept=(sigma_s**2 - v)", "kept=(sigma_s**2 - v / 2)"),
    Fault("fresh=v.sqrt()", "fresh=v"),
    Fault("0.1 * t + 0.5 * 19.9 * t**2", "0.1 * t + 19.9 * t**2"),
    Fault("0.1 * t + 0.5 * 19.9", "0.1 * t + 0.5 * 20"),
    Fault("torch.cos(angle) ** 2 / start", "torch.cos(angle) / start"),
    Fault("offset = 0.008", "offset = 0.005"),
    Fault("torch.sigmoid(6 * t - 3)", "torch.sigmoid(6 * t - 2)"),
    Fault(") * start / (start - end)", ") / (start + end)"),
    Fault("torch.where(t < 1, root.clamp_min(0), root - root.detach())", "root + 1e-3"),
    Fault("root - root.detach())", "0.0)"),
    Fault(".clamp(MIN_ALPHA_BAR, 1.0)", ".clamp(0, 1.0)"),
    Fault("a=self.input_scale * root", "a=self.input_scale * root.square()"),
    Fault("a=self.input_scale * root", "a=root"),
    Fault("sigma=(1 - root.square()).clamp_min(0).sqrt()", "sigma=(1 - root).clamp_min(0).sqrt()"),
    Fault(
        "self.knots = torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - table, 0)])",
        "self.knots = torch.cumprod(1 - table, 0)",
    ),
    Fault("return len(self.knots) - 1", "return len(self.knots)"),
    Fault(
        "(t.double() * self.steps).round() / self.steps",
        "(t.double() * self.steps).floor() / self.steps",
    ),
    Fault("torch.arange(1, self.steps + 1,", "torch.arange(0, self.steps,"),
    Fault("torch.where(wanted == torch.inf, 0.0, knots[nearest])", "knots[nearest]"),
    Fault("wanted.clamp_min(ratios[-1])", "wanted"),
    Fault("for _ in range(60)", "for _ in range(12)"),
    Fault("torch.where(a > 0, a.log() - sigma.log(), -torch.inf)", "a.log() - sigma.log()"),
    Fault("a.log() - sigma.log()", "2 * (a.log() - sigma.log())"),
    Fault("(self.sigma_max / self.sigma_min) ** t", "(self.sigma_max / self.sigma_min) * t"),
    Fault("torch.where(t > 0, sigma, zero)", "sigma"),
    Fault("(1 + self.coefficients(t).sigma.square()).rsqrt()", "self.coefficients(t).sigma"),
    Fault("Coefficients(1 - t, t, zero) if", "Coefficients(1 - t, zero, t) if"),
    Fault("(2 * self.variance_scale * (t - t**2))", "(self.variance_scale * (t - t**2))"),
    Fault("(t - t**2)).clamp_min(0).sqrt()", "(t - t**2)).clamp_min(0)"),
    Fault("implied = x_t - a_t * clean", "implied = x_t - a_s * clean"),
    Fault("implied = implied - b_t * source", "implied = implied - b_s * source"),
    Fault("state = a_s * clean", "state = a_t * clean"),
    Fault("state = state + b_s * source", "state = state + b_t * source"),
    Fault("0 * x_t if pinned_noise is None else pinned_noise", "0 * x_t"),
    Fault("bool((pinned & (kept > 0)).any())", "False"),
    Fault("fresh if fresh_gain is None else fresh_gain", "fresh"),
    Fault("if not bool((s < t).all())", "if not bool((s <= t).all())"),
    Fault("return state if source is None else state + b * source", "return state"),
    Fault("sigma * noise if source is None else sigma * noise + b * source", "sigma * noise"),
    Fault(
        "return Coefficients(*(rate.detach() for rate in found))", "return Coefficients(*values)"
    ),
]
GRIDS = [
    Fault("torch.linspace(1, 0, steps + 1", "torch.linspace(1, 0, steps"),
    Fault("torch.linspace(1, 0, steps + 1", "torch.linspace(1, 1 / (steps + 1), steps + 1"),
    Fault('u**2 if kind == "quadratic"', 'u**3 if kind == "quadratic"'),
    Fault("times = t_max * (", "times = ("),
    Fault("times = path.snap(times)", "times = times"),
    Fault("if not bool((times[1:] < times[:-1]).all())", "if False"),
    Fault("if steps < 1", "if steps < 0"),
    Fault("0 < t_max <= 1", "0 < t_max <= 2"),
    Fault("max(path.earliest, T_MIN)", "T_MIN / 2"),
    Fault("RHO = 7.0", "RHO = 6.0"),
    Fault("-RHO * torch.log(", "-torch.log("),
    Fault("inside = first + u * (last - first)", "inside = first + u**2 * (last - first)"),
    Fault("times[0] = ends[0]", "times[0] = times[0] - 1e-9"),
    Fault("ends[:1] * (1 - T_MIN)", "ends[:1] * 0.9"),
    Fault("torch.cat([times, times.new_zeros(1)])", "times"),
]
BASE = [
    Fault("if self.a <= 0", "if self.a < 0"),
    Fault("math.inf if self.sigma <= 0", "0.0 if self.sigma <= 0"),
    Fault("math.log(self.a / self.sigma)", "math.log(self.a / self.sigma**2)"),
    Fault("b, sigma = torch.zeros_like(b), b", "b, sigma = b, b"),
    Fault("state + knot.b * self.source", "state"),
    Fault("return self.fresh_noise(index)", "return self.fresh_noise(0)"),
    Fault("if self.fresh_noise is None", "if False"),
    Fault("self.at(self.times[0]), self.source)", "self.at(self.times[1]), self.source)"),
    Fault("self.at(self.times[0]), self.source)", "self.at(self.times[0]))"),
    Fault("        final = step\n", "        final = final or step\n"),
]
POSTERIOR = [
    Fault("moving = eta if float", "moving = 0.0 if float"),
    Fault("if float(problem.times[index + 1]) > 0 else 0.0", "if index >= 0 else 0.0"),
    Fault("problem.at(t))", "problem.at(s))"),
    Fault("problem.times[index : index + 2]", "problem.times[index - 1 : index + 1]"),
    Fault("noise=problem.fresh(index)", "noise=problem.fresh(index // 2)"),
    Fault("if moving > 0 or analytic else None", "if moving > 0 else None"),
    Fault("        eta=moving,", "        eta=moving / 2,"),
    Fault("        fresh_gain=gain,\n", ""),
    Fault("        pinned_noise=problem.noise,\n", ""),
    Fault("source=problem.source", "source=None"),
    Fault("t, s).sqrt()", "t, s)"),
    Fault("k**2 * problem", "k * problem"),
    Fault("problem.error_variance(t)", "problem.error_variance(s)"),
    Fault("(fresh**2 + k**2", "(k**2"),
    Fault("kept * a_t / sigma_t.clamp_min(tiny)", "kept / sigma_t.clamp_min(tiny)"),
    Fault("float(t), float(s), answer.clean, x)", "float(s), float(t), answer.clean, x)"),
]
TRANSPORT = [
    Fault("path.noised(clean, noise, first), times", "path.noised(clean, 0 * noise, first), times"),
    Fault("first = times[:1]", "first = times[1:2]"),
    Fault("times, sampler, fresh_noise)\n\n\ndef inv", "times, 'ddim')\n\n\ndef inv"),
    Fault("_gain_of_clean(path) * clean", "clean"),
    Fault("invert(path, source, _gain", "invert(path, target, _gain"),
    Fault(
        "x = y = path.noised(clean, noise, times[:1]",
        "x = y = path.noised(clean, noise, times[1:2]",
    ),
    Fault("noise=fresh_noise(index), eta=1.0", "noise=fresh_noise(index), eta=0.5"),
    Fault("fresh_noise(index), eta", "0 * fresh_noise(index), eta"),
    Fault("moved - _mean(path, x, source(x, t).clean", "moved - _mean(path, x, source(y, t).clean"),
    Fault("target(y, t).clean, t, s) + added", "target(x, t).clean, t, s) + added"),
    Fault("_mean(path, y, target", "_mean(path, x, target"),
    Fault("t, s) + added", "t, s)"),
    Fault("        x = moved\n", ""),
    Fault("return y / _gain_of_clean(path)", "return y"),
    Fault("noise=torch.zeros_like(x_t), eta=1.0)", "eta=0.0)"),
    Fault("state / sigma, times", "state, times"),
]
PRIOR_MODEL = [
    Fault("image[:, :1].round()", "image[:, :1].round() * 0"),
    Fault("if condition is None", "if True"),
    Fault("share * latent.penalty", "0 * latent.penalty"),
    Fault("absolute_error(decoded, state)", "absolute_error(decoded, 0 * state)"),
]
PRIOR = [
    Fault("labels is None else labels.astype", "labels is None else 0 * labels.astype"),
    Fault("self.total[place] += self.weight", "self.total[place] += 1"),
    Fault("return sums / self.total", "return sums"),
    Fault("s.stop * k)", "s.stop)"),
    Fault("return values\n            if not flat:", "return values\n            if True:"),
    Fault(
        "model.scan(self.cells.cut(clean[0], group)",
        "model.scan(self.cells.cut(clean[0] * 0, group)",
    ),
    Fault("-(-n // k) * k", "n // k * k"),
    Fault("sums[:, *place] += self.weight * (", "sums[:, *place] = self.weight * ("),
    Fault("NoiseField(seed, case, draw, step,", "NoiseField(seed, case, draw, 0,"),
    Fault("NoiseField(seed, case, draw, step,", "NoiseField(0, case, draw, step,"),
    Fault("NoiseField(seed, case, draw, step,", "NoiseField(seed, 'x', draw, step,"),
    Fault("NoiseField(seed, case, draw, step,", "NoiseField(seed, case, 0, step,"),
    Fault("self.calls += len(group)", "self.calls += 1"),
    Fault("if len(runs) != 1 or", "if"),
    Fault("if any(n % k for", "if all(n % k for"),
]
PRIOR_TRANSLATION = [
    Fault("    if way.strength == 0:\n        return np", "    if False:\n        return np"),
    Fault("if prior.model.condition is not None", "if False"),
    Fault('"normalisation": priors[-1].plan', '"normalisation": priors[0].plan'),
    Fault("        if placed.constant:", "        if False:"),
    Fault(
        "image = io.read_channels({k: channels[k] for k in self.task.channels}, options)", "pass"
    ),
    Fault("return noise(index + 1)", "return noise(0)"),
    Fault('way.encoder == "inversion":\n            return', "False:\n            return"),
    Fault("inverted(path, source, target, clean", "inverted(path, target, target, clean"),
    Fault("recovered_noise(path, source, target", "recovered_noise(path, target, target"),
    Fault("settings.grid, way.strength)", "settings.grid)"),
    Fault(
        "image_values(back((plane + 1) / 2, placed), ends)",
        "image_values(back(plane, placed), ends)",
    ),
    Fault("ranges = placed.ends if units ==", "ranges = placed.ends if units !="),
    Fault("(high - low) / 2 for low, high in ranges", "(high - low) for low, high in ranges"),
    Fault("reshape(-1, 1, 1, 1) ** 2", "reshape(-1, 1, 1, 1)"),
    Fault("return 1 if fixed or way.strength == 0", "return 1 if way.strength == 0"),
    Fault("        if flips:", "        if False:"),
    Fault("if self.source is None and encoder is not None", "if False"),
    Fault("if self.source is not None and sampler is not None", "if False"),
    Fault("len(scan) != translator.task.image_planes", "False"),
]
WAY = [
    Fault("if not 0 <= self.strength <= 1", "if False"),
    Fault("not in get_args(known)", "is None"),
    Fault("if wanted != found", "if False"),
    Fault('told["prediction.window"] =', "_ ="),
    Fault('told["the scans\' planes"] =', "_ ="),
    Fault('"path", "schedule",', '"path",'),
]
SYNTHESIS = [
    Fault("if self.task.image_planes != len(self.task.channels)", "if False"),
    Fault("(plane + 1) / 2", "plane / 2"),
    Fault("noise(index + 1)", "noise(0)"),
    Fault("noise(case, seed, 0,", "noise(case, 0, 0,"),
    Fault("label=True)(label), np.int16)", "label=True)(label), np.int16) * 0"),
    Fault("pipeline(grid), pipeline, None)", "grid, pipeline, None)"),
    Fault("given if raster else (*given, 1)[:3]", "(*given, 1)[:3]"),
    Fault("len(given) != dims or", ""),
    Fault("(mask is not None) != self.takes_masks or", ""),
    Fault('f"SYNTHETIC {channel}"', 'f"{channel}"'),
    Fault("hashes = {file: file_sha256(out / file) for file in written}", "hashes = {}"),
]
SYNTHETIC_LIST = [
    Fault("references[again % len(references)]", "references[0]"),
    Fault("divmod(number, len(chosen))", "divmod(number, len(chosen) + 1)"),
    Fault("{again + 1:02d}", "01"),
    Fault(
        "Wanted(Case(name, {MASK: mask}), case.patient)", "Wanted(Case(name, {MASK: mask}), name)"
    ),
    Fault("if manifest.entry(one.case.name).status == DONE", ""),
    Fault('part="train"', 'part="test"'),
    Fault('task.labels if model.takes_masks else {"background": 0}', "task.labels"),
    Fault(
        "        if found != wanted:\n            raise InputError",
        "        if False:\n            raise InputError",
    ),
    Fault(
        "        if found != wanted:\n            raise UsageError",
        "        if False:\n            raise UsageError",
    ),
    Fault("if not takes_masks", "if False"),
    Fault("            return\n        raise InputError", "            pass\n        return"),
]
MULTISTEP = [
    Fault("problem.at(t)", "problem.at(s)"),
    Fault("past = remember(past, now.log_snr", "past = remember(past, then.log_snr"),
    Fault("math.exp(-h) if stochastic", "math.exp(-2 * h) if stochastic"),
    Fault("y = decay * y", "y = y"),
    Fault("then.a / then.sigma * integral", "now.a / then.sigma * integral"),
    Fault("math.sqrt(-math.expm1(-2 * h))", "-math.expm1(-2 * h)"),
    Fault("math.sqrt(-math.expm1(-2 * h))", "math.sqrt(-math.expm1(-h))"),
    Fault("problem.with_source(then.sigma * y, then)", "then.sigma * y"),
    Fault("problem.with_source(then.a * clean, then)", "problem.with_source(clean, then)"),
    Fault("if -math.inf < at < log_snr]", "if at < log_snr]"),
    Fault("if -math.inf < at < log_snr]", "if -math.inf < at]"),
    Fault("[-order:]", "[-2:]"),
    Fault("-2 * h if stochastic else -h)", "-h)"),
    Fault("latest + slope / 2", "latest + slope"),
    Fault("r0 = (at - older[0][0]) / h", "r0 = h / (at - older[0][0])"),
    Fault("earlier = (older[0][1] - older[1][1]) / r1", "earlier = older[0][1] - older[1][1]"),
    Fault("/ (r0 + r1)", "/ r1"),
    Fault("slope = slope + r0 * bend", "slope = slope"),
    Fault("2 * first / h**2", "first / h**2"),
    Fault("(1 - first / h) * slope", "(1 - first) * slope"),
    Fault("not 0 < h < math.inf", "h == math.inf"),
]
UNIPC = [
    Fault("problem.at(t)", "problem.at(s)"),
    Fault(
        "y = before + now.a / now.sigma * corrected", "_ = before + now.a / now.sigma * corrected"
    ),
    Fault("now.a / now.sigma * corrected", "then.a / now.sigma * corrected"),
    Fault("past[-1][0] if past else math.inf", "past[0][0] if past else math.inf"),
    Fault("if 0 < h < math.inf:", "if 0 < h:"),
    Fault("before, h = y, then.log_snr", "before, h = before, then.log_snr"),
    Fault("order=2)", "order=1)"),
    Fault("_b(h, scale) / 2 *", "_b(h, scale) *"),
    Fault("phi_2 = 1 + math.expm1(-h) / h", "phi_2 = 1 + math.expm1(-h)"),
    Fault("phi_3 = 2 * (0.5", "phi_3 = (0.5"),
    Fault("(phi_2 - phi_3) / (1 - r)", "(phi_2 - phi_3) / (1 + r)"),
    Fault("of_arrived = phi_2 - of_older", "of_arrived = phi_2"),
    Fault("b / 2 * (arrived - latest)", "b * (arrived - latest)"),
    Fault('return h if scale == "bh1"', 'return -h if scale == "bh1"'),
    Fault("then.a * clean", "clean"),
]
ODE = [
    Fault("problem.at(t)", "problem.at(s)"),
    Fault("denoise(x, problem.at(s))", "denoise(x, problem.at(t))"),
    Fault(".a) == 0", ".a) >= 0"),
    Fault(".a) == 0", ".a) < 0"),
    Fault("if c > 0 else 1.0", "if c > 0 else 0.5"),
    Fault("knot.sigma / c if", "knot.sigma if"),
    Fault("end = problem.source", "end = problem.noise"),
    Fault("y = frames[0].u * end", "y = end"),
    Fault("clean + then / now * (y - clean)", "clean + now / then * (y - clean)"),
    Fault("if heun and then > 0", "if heun and index < 0"),
    Fault("scale * arrived, knots[index + 1]", "arrived, knots[index + 1]"),
    Fault("scale * arrived, knots[index + 1]", "scale * arrived, knots[index]"),
    Fault("(slope + later) / 2", "(slope + later)"),
    Fault("slope = (y - clean) / now", "slope = (y - clean) / then"),
    Fault("x = problem.with_source(scale * y, knots[index + 1])", "x = scale * y"),
]
LANGEVIN = [
    Fault("snr: float = 0.16", "snr: float = 0.26"),
    Fault("corrections: int = 1", "corrections: int = 2"),
    Fault("corrections if float(s) > 0 else 0", "corrections"),
    Fault("steps + index * corrections + j", "index * corrections + j"),
    Fault("index * corrections + j", "index + j"),
    Fault("langevin_step(problem, x, s, fresh", "langevin_step(problem, x, t, fresh"),
    Fault("score = -noise_from", "score = noise_from"),
    Fault("problem.source) / sigma", "problem.source)"),
    Fault("size = 2 * snr**2", "size = snr**2"),
    Fault("size = 2 * snr**2", "size = 2 * snr"),
    Fault("(2 * size).sqrt()", "size.sqrt()"),
    Fault("axes = tuple(range(1, x.ndim))", "axes = tuple(range(x.ndim))"),
    Fault("x = ancestral_step(problem, index, x, answer)", "pass"),
]
CONSISTENCY = [
    Fault("problem.at(t)", "problem.at(s)"),
    Fault("noised(clean, noise, problem.at(s)", "noised(clean, noise, problem.at(t)"),
    Fault("noised(clean, noise,", "noised(noise, clean,"),
    Fault("problem.fresh(index)", "problem.fresh(0)"),
    Fault("if float(s) > 0 else", "if index == 0 else"),
    Fault("if float(s) > 0 else", "if index >= 0 else"),
    Fault("problem.at(s), problem.source)", "problem.at(s))"),
    Fault("Step(index,", "Step(index + 1,"),
    Fault("float(t), float(s), clean", "float(s), float(t), clean"),
    Fault("clean, x)", "x, x)"),
    Fault("x = problem.start()", "x = problem.noise"),
]
INVERSION = [
    Fault("if path.uses_source", "if False"),
    Fault("times.flip(0)", "times"),
    Fault("clean / gain", "clean"),
    Fault("denoise(x, problem.at(s))", "denoise(x, problem.at(t))"),
    Fault("denoise(x, problem.at(s))", "denoise(scale * y, problem.at(s))"),
    Fault("(later - now) * (x / scale", "(later - now) * (y"),
    Fault("- estimate) / later", "- estimate)"),
    Fault("(later - now)", "later"),
    Fault("x = scale * y", "x = y"),
    Fault("float(t), float(s), estimate", "float(s), float(t), estimate"),
]
ANALYTIC = [
    Fault("(clean - estimate).double().square()", "(clean - estimate).double().abs()"),
    Fault(".flatten(1).mean(1)", ".flatten(1).sum(1)"),
    Fault("total[k] += error.sum()", "total[k] += error.mean()"),
    Fault("count += len(clean)", "count += 1"),
    Fault("path.noised(clean, noise, t, source)", "path.noised(clean, noise, t)"),
    Fault("if count == 0", "if False"),
    Fault("@torch.no_grad()\n", ""),
    Fault("t.double().clamp(times[0], times[-1])", "t.double()"),
    Fault("torch.searchsorted(times, t).clamp_min(1)", "torch.ones_like(t, dtype=torch.long)"),
    Fault("right - 1", "right"),
    Fault("(times[right] - times[left])", "(times[-1] - times[0])"),
    Fault("torch.lerp(values[left], values[right], share)", "values[left]"),
    Fault("(self.times[1:] > self.times[:-1])", "(self.times[1:] >= self.times[:-1])"),
    Fault("(self.values >= 0)", "(self.values >= -2)"),
    Fault("if len(times) == 1", "if len(times) == 0"),
]
REGISTRY = [
    Fault("partial(reverse_walk, eta=1.0), order=1", "partial(reverse_walk, eta=0.5), order=1"),
    Fault("partial(reverse_walk, eta=0.0)", "partial(reverse_walk, eta=0.1)"),
    Fault("eta=1.0, analytic=True", "eta=1.0"),
    Fault('"dpm_solver_3m": _solver(3)', '"dpm_solver_3m": _solver(2)'),
    Fault('"dpm_solver_2m": _solver(2)', '"dpm_solver_2m": _solver(3)'),
    Fault("_solver(2, stochastic=True)", "_solver(2)"),
    Fault("partial(flow, heun=True)", "flow"),
    Fault("order=1, fresh=True, calls=2)", "order=1, fresh=True)"),
    Fault("self.source and not self.fresh and not self.in_snr", "self.source"),
    Fault("self.source or not path.uses_source", "True"),
    Fault("if path.uses_source and problem.source is None", "if False"),
    Fault("float(times[-1]) != 0", "False"),
    Fault("not bool((times.diff() < 0).all())", "False"),
]
PARAMETERISATIONS = [
    Fault("return a * noise - sigma * clean", "return a * noise + sigma * clean"),
    Fault("return a * noise - sigma * clean", "return sigma * noise - a * clean"),
    Fault("return (x - sigma * output) / a", "return (x - sigma * output) * a"),
    Fault("return (x + sigma * output) / a", "return (x - sigma * output) / a"),
    Fault("/ (a**2 + sigma**2)", ""),
    Fault("return (a * x - sigma * output)", "return (x - sigma * output)"),
    Fault("return (x - a * clean) / sigma", "return (x - clean) / sigma"),
    Fault("x_t - spread(t, x_t) * output", "x_t - output"),
    Fault("return x_t - output", "return x_t + output"),
    Fault("        return -noise", "        return noise"),
    Fault("path.noised(clean, noise, t, source) - clean", "path.noised(clean, noise, t) - clean"),
    Fault("(source if path.uses_source and source is not None else noise)", "noise"),
    Fault(
        "x = x_t if source is None else x_t - b * source\n    return (x - a",
        "x = x_t\n    return (x - a",
    ),
    Fault("x_t, output = x_t.to(exact), output.to(exact)", "pass"),
    Fault("if kind not in PARAMETERISATIONS", "if False"),
    Fault('kind == "flow_velocity" and not isinstance(path, Linear)', "False"),
    Fault('not in ("noise", "score", "velocity")', 'not in ("noise", "score")'),
    Fault("if path.source_as_noise", "if False"),
    Fault("path.snap(torch.tensor([t_max]", "(torch.tensor([t_max]"),
    Fault('torch.hypot(a, sigma) if kind == "velocity" else a', "torch.hypot(a, sigma)"),
    Fault("< SMALLEST_GAIN", "< 0"),
    Fault("share = (output + 1) / 2", "share = output"),
    Fault("share * high + (1 - share) * low", "share * low + (1 - share) * high"),
    Fault("for v in (upper, lower)", "for v in (lower, upper)"),
    Fault("torch.where(s > 0, lower, torch.minimum(_stand_in(path, t), upper))", "lower"),
    Fault("torch.minimum(_stand_in(path, t), upper)", "upper**2"),
    Fault("torch.where(short, 2 * t, t)", "torch.where(short, 3 * t, t)"),
    Fault("short = t <= 0.5", "short = t <= 2"),
    Fault("torch.where(end > 0, lower, upper)", "lower"),
]
OBJECTIVES = [
    Fault("return (a / (a**2 + sigma**2)) ** 2", "return a / (a**2 + sigma**2)"),
    Fault("return (a / (a**2 + sigma**2)) ** 2", "return a**2"),
    Fault("return (a / sigma) ** 2", "return (sigma / a) ** 2"),
    Fault("return torch.ones_like(a)", "return sigma"),
    Fault("        return a**2", "        return a"),
    Fault("    if path.source_as_noise:", "    if False:"),
    Fault("return values.mean(axes)", "return values.sum(axes)"),
    Fault("weight.sum(axes).clamp_min(1) * values.shape[1]", "weight.sum(axes).clamp_min(1)"),
    Fault(
        "return (values * weight).sum(axes) / counted",
        "return (values * weight).sum() / counted.sum() + 0 * counted",
    ),
    Fault(".clamp_min(1) * values", " * values"),
    Fault("(losses * samples.to(losses)).mean()", "(losses * samples).sum() / samples.sum()"),
    Fault("(losses * samples.to(losses)).mean()", "losses.mean()"),
    Fault("miss**gamma * log_p", "miss**gamma * miss.log()"),
    Fault(".clamp_max(-torch.finfo(log_p.dtype).tiny)", ""),
    Fault("miss**gamma", "(gamma * miss)"),
    Fault("torch.exp(gamma * log_q) * log_p", "torch.exp(gamma * log_p) * log_p"),
    Fault("torch.exp(gamma * log_p) * log_q", "log_q"),
    Fault("return (gamma / snr).clamp_max(1)", "return (snr / gamma).clamp_max(1)"),
    Fault("return (gamma / snr).clamp_max(1)", "return gamma / snr"),
    Fault("snr = a**2 / sigma**2", "snr = a / sigma"),
    Fault("capped = snr.clamp_max(gamma)", "capped = snr.clamp_min(gamma)"),
    Fault("(sigma / (a**2 + sigma**2)) ** 2", "sigma**2"),
    Fault("return capped * sigma**2", "return capped"),
    Fault("ratio = variance / other", "ratio = other / variance"),
    Fault("(ratio - 1 - ratio.log()", "(ratio - 1 + ratio.log()"),
    Fault("(mean - other_mean).square() / other", "(mean - other_mean).square() / variance"),
    Fault("+ sd.log() +", "+ 2 * sd.log() +"),
    Fault("+ math.log(2 * math.pi) / 2", ""),
    Fault("(values - bin_width / 2 - mean)", "(values - bin_width - mean)"),
    Fault("values < -1 + bin_width / 2", "values < -2"),
    Fault("values > 1 - bin_width / 2", "values > 2"),
    Fault("right = low + high > 0", "right = low > math.inf"),
    Fault("torch.where(right, -low, high)", "torch.where(right, -high, high)"),
    Fault("lower, _ = step_variances(path, t, s)", "_, lower = step_variances(path, t, s)"),
    Fault("noise=zeros, eta=1.0, pinned", "noise=zeros, eta=0.0, pinned"),
    Fault(
        "gaussian_kl(mean(clean), own, mean(estimate), variance)",
        "gaussian_kl(mean(estimate), variance, mean(clean), own)",
    ),
    Fault("variance.sqrt() / spread(path.coefficients(s).a, clean)", "variance.sqrt()"),
    Fault("path.coefficients(s).a, clean", "path.coefficients(t).a, clean"),
    Fault("torch.where(ending, decoded, divergence)", "divergence"),
    Fault("torch.where(ending, decoded, divergence)", "torch.where(ending, divergence, decoded)"),
    Fault("estimate.detach()", "estimate"),
    Fault("learned, x_t, t, s, source=source, bin_width=bin_width", "learned, x_t, t, s"),
    Fault('math.log(2) if unit == "bits" else 1.0', '1.0 if unit == "bits" else math.log(2)'),
    Fault("sample_means(terms, weight) /", "sample_means(terms) /"),
    Fault("probabilities, target = probabilities * weight, target * weight", "pass"),
    Fault("(2 * overlap + smooth)", "(overlap + smooth)"),
    Fault("axes = tuple(range(2, target.ndim))", "axes = (0, *range(2, target.ndim))"),
    Fault("functional.log_softmax(logits, 1)).sum", "functional.logsigmoid(logits)).sum"),
    Fault("torch.square(output - target)", "torch.abs(output - target)"),
]
TIME_LAWS = [
    Fault("torch.special.ndtri(u.double())", "torch.special.ndtr(u.double())"),
    Fault("torch.sigmoid(mean + sd *", "torch.sigmoid(mean + sd**2 *"),
    Fault("torch.sigmoid(mean +", "torch.sigmoid(-mean +"),
    Fault("u.double() ** (1 / power)", "u.double() ** power"),
    Fault("return late(shape)", "return late()"),
    Fault("return logit_normal()", "return logit_normal(shape)"),
    Fault("(self.counts >= self.losses.shape[1]).all()", "(self.counts >= 1).all()"),
    Fault("(self.counts >= self.losses.shape[1]).all()", "(self.counts > 0).any()"),
    Fault("self.losses.square().mean(1).sqrt()", "self.losses.mean(1)"),
    Fault("self.losses.square().mean(1).sqrt()", "self.losses.square().mean(1)"),
    Fault("+ self.floor * even", ""),
    Fault("(1 - self.floor) * size", "size"),
    Fault("or float(size.sum()) == 0", ""),
    Fault("(edges[at] - u.double())", "edges[at]"),
    Fault("1 - (edges[at]", "(edges[at]"),
    Fault("edges = edges / edges[-1]", "pass"),
    Fault("return Importance(bins, history)", "return Importance()"),
    Fault("/ p[at]).clamp(0, 1)", ").clamp(0, 1)"),
    Fault("(at + inside) / len(p)", "(at + 0.5) / len(p)"),
    Fault("1 / (len(p) * p[at])", "1 / p[at]"),
    Fault("1 / (len(p) * p[at])", "torch.ones_like(t)"),
    Fault(".ceil().long().cpu() - 1", ".floor().long().cpu()"),
    Fault("self.counts[cell] % history", "0"),
    Fault("self.counts[cell] += 1", "self.counts[cell] = 1"),
    Fault("if not bool(torch.isfinite(losses).all())", "if False"),
    Fault('"counts": self.counts.clone()', '"counts": self.counts'),
    Fault('self.losses = state["losses"].double().clone()', "pass"),
    Fault('self.counts = state["counts"].long().clone()', "pass"),
]
GUIDANCE = [
    Fault("unconditional + scale * (", "unconditional + (scale + 1) * ("),
    Fault("unconditional + scale * (", "conditional.clean + scale * ("),
    Fault("(conditional.clean - unconditional)", "(unconditional - conditional.clean)"),
    Fault("    if scale == 1:\n        return conditional\n", ""),
    Fault("both.variance.chunk(2)[0]", "both.variance.chunk(2)[1]"),
    Fault("clean, unconditional = both", "unconditional, clean = both"),
    Fault("torch.cat([t, t])", "torch.cat([t, 0 * t])"),
    Fault("if scale < 0", "if scale < -9"),
    Fault("scale * sigma**2 / a, x_t", "scale * sigma / a, x_t"),
    Fault("scale * sigma**2 / a, x_t", "scale * sigma**2, x_t"),
    Fault("scale * sigma**2 / a, x_t", "sigma**2 / a, x_t"),
    Fault("answer.clean + shift", "answer.clean - shift"),
    Fault("torch.inference_mode(False), torch.enable_grad()", "torch.enable_grad()"),
    Fault("x_t.detach().clone().requires_grad_(True)", "x_t.requires_grad_(True)"),
    Fault("log_probability(state, t.clone())", "log_probability(state, t)"),
    Fault("if bool((a < SMALLEST_GAIN).any())", "if False"),
    Fault("Denoised(answer.clean + shift, answer.variance)", "Denoised(answer.clean + shift)"),
    Fault("clamp(low, high)", "clamp(-1, high)"),
    Fault("answer.clean.abs().flatten(1)", "answer.clean.flatten(1)"),
    Fault("math.ceil(percentile * size.shape[1] - 1e-9)", "int(percentile * size.shape[1])"),
    Fault(" - 1e-9", " + 1"),
    Fault(".values.clamp_min(1)", ".values"),
    Fault("clamp(-bound, bound) / bound", "clamp(-bound, bound)"),
    Fault("clamp(-bound, bound) / bound", "/ bound"),
    Fault(
        "size.kthvalue(rank, dim=1).values",
        "size.kthvalue(rank, dim=1).values.max().expand(len(size))",
    ),
]
LIKELIHOOD = [
    Fault("return self.prior + self.steps.sum(0)", "return self.steps.sum(0)"),
    Fault("self.steps.sum(0) + self.decoder", "self.steps.mean(0) + self.decoder"),
    Fault("noise(index), now, source)", "noise(0), now, source)"),
    Fault("noise(index), now, source)", "noise(index), then, source)"),
    Fault("answer = denoise(x_t, now)", "answer = denoise(x_t, then)"),
    Fault("return nats / math.log(2)", "return nats"),
    Fault("torch.where(s > 0, lower, upper)", "upper"),
    Fault("torch.where(s > 0, lower, upper)", "torch.where(s > 0, upper, upper)"),
    Fault("if answer.variance is not None:", "if False:"),
    Fault("a / sigma.clamp_min", "a * sigma.clamp_min"),
    Fault("* clean).square() / 2", "* clean).square()"),
    Fault("_prior_kl(path, clean, times[0]", "_prior_kl(path, clean, times[1]"),
    Fault("source=source, bin_width=bin_width", "source=source"),
    Fault("torch.stack(terms[:-1])", "torch.stack(terms)"),
    Fault("or float(times[-1]) != 0", ""),
    Fault("of_noise = slope_sigma / sigma", "of_noise = slope_sigma"),
    Fault("slope_a - of_noise * a", "slope_a + of_noise * a"),
    Fault("slope_a - of_noise * a", "slope_a - of_noise"),
    Fault("of_clean * trace + of_noise * x[0].numel()", "of_clean * trace + of_noise"),
    Fault("of_clean * trace +", "trace +"),
    Fault("2 * tau * flow", "tau * flow"),
    Fault("2 * tau * divergence", "divergence"),
    Fault("unit.flatten(1)[:, index] = 1", "unit.flatten(1)[:, 0] = 1"),
    Fault("return probe * gradient", "return gradient"),
    Fault("if self.probe is not None:", "if False:"),
    Fault("x = float(ends.a[0]) * clean", "x = 1.0 * clean"),
    Fault("x[0].numel() * math.log(float(ends.a[0]))", "0.0"),
    Fault("total = total + gathered", "total = total - gathered"),
    Fault("return total - prior", "return total + prior"),
    Fault("ends.sigma[1].to(x)", "torch.ones_like(x)"),
    Fault("x + step / 2 * k2", "x + step / 2 * k1"),
    Fault("k1 + 2 * k2 + 2 * k3 + k4", "k1 + 3 * k2 + 1 * k3 + k4"),
    Fault("d1 + 2 * d2 + 2 * d3 + d4", "d1 + 4 * d2 + d3 + 0 * d4"),
    Fault("torch.inference_mode(False), torch.enable_grad()", "torch.enable_grad()"),
    Fault("x.detach().clone().requires_grad_(True)", "x.requires_grad_(True)"),
    Fault("if not bool(torch.isfinite(torch.stack(rates)).all())", "if False"),
    Fault("and clean[0].numel() > MOST_TRACED", "and False"),
    Fault("    if not clean.requires_grad:", "    if False:"),
]
DISCRETE = [
    Fault("self.schedule.alpha_bar(t), like)", "self.schedule.alpha_bar(t).sqrt(), like)"),
    Fault("return bar * clean + (1 - bar) * prior", "return bar * clean + (1 - bar)"),
    Fault("return bar * clean + (1 - bar) * prior", "return (1 - bar) * clean + bar * prior"),
    Fault("* self.marginal(clean, prior, s)", "* self.marginal(clean, prior, t)"),
    Fault("joint / joint.sum(1", "joint / joint.sum(0"),
    Fault(
        "evidence = bar_t * x_t + (1 - bar_t) * own", "evidence = bar_s * x_t + (1 - bar_s) * own"
    ),
    Fault("evidence = bar_t * x_t + (1 - bar_t) * own", "evidence = torch.ones_like(p)"),
    Fault("share = p / evidence", "share = p * evidence"),
    Fault("prior * share.sum(1, keepdim=True)", "prior"),
    Fault("kept = (1 - bar_s) / (1 - bar_t)", "kept = bar_s / bar_t"),
    Fault("kept * x_t + (1 - kept) * p", "(1 - kept) * x_t + kept * p"),
    Fault("step = self.bar(t, x_t) / self.bar(s, x_t)", "step = self.bar(t, x_t)"),
    Fault("(1 - step) * (x_t * prior).sum(1, keepdim=True)", "(1 - step) * prior"),
    Fault("torch.special.xlogy(true, true) - true", "-true"),
    Fault("estimate.clamp_min(floor).log()", "estimate.clamp_min(floor)"),
    Fault("gumbel = -torch.log(-torch.special", "gumbel = torch.log(-torch.special"),
    Fault("probabilities.log() + gumbel", "probabilities + gumbel"),
    Fault("< probabilities[:, 1])", "< probabilities[:, 0])"),
    Fault("(u.double() * self.steps).ceil()", "(u.double() * self.steps).round()"),
    Fault("self._likelihood(x_t, prior, t, s) * mixed", "mixed"),
    Fault('if kind == "ancestral" else', 'if kind == "ddim" else'),
    Fault("x = problem.draw(prior, problem.noise)", "x = prior"),
    Fault("if float(s) == 0:", "if float(s) < 0:"),
]

LORA = [
    Fault("self.gain = alpha / rank", "self.gain = alpha"),
    Fault("self.gain = alpha / rank", "self.gain = alpha / bounded"),
    Fault("weight.new_zeros(rows, bounded)", "weight.new_ones(rows, bounded)"),
    Fault("bounded = min(rank, rows, columns)", "bounded = rank"),
    Fault("torch.empty_like(weight).copy_(weight + change)", "weight + change"),
    Fault("weight + change)", "weight - change)"),
    Fault("    freeze(network, whole, without=without)\n    return", "    return"),
    Fault("(not adapted and not left and _fits(name, whole))", "_fits(name, whole)"),
    Fault("target + change)", "change)"),
    Fault("change = value if b is None else (gain * (b @ value))", "change = value"),
    Fault("if parameter.requires_grad and", "if"),
]

CODECS = [
    Fault("state = 2 * self.targets(labels) - 1", "state = self.targets(labels)"),
    Fault("state if weight is None else state * weight", "state"),
    Fault("labels != self.ignore_label", "labels == self.ignore_label"),
    Fault("logits.softmax(1) if self.exclusive", "logits.sigmoid() if self.exclusive"),
    Fault("2 * self.probabilities(logits) - 1", "self.probabilities(logits)"),
    Fault("return (state + 1) / 2", "return state"),
    Fault(".clamp(1e-4, 1 - 1e-4)", ""),
    Fault(
        "values[probabilities.argmax(1, keepdim=True)]",
        "probabilities.argmax(1, keepdim=True).to(torch.int16)",
    ),
    Fault("> 0.5] = value", ">= 0.5] = value"),
    Fault("enumerate(self.painted_values())", "enumerate(range(1, self.channels + 1))"),
    Fault("if crossing or not own", "if not own"),
]
MOMENTS = [
    Fault("self.mean += delta / np.float32(self.count)", "self.mean += delta / 2"),
    Fault("delta * (values - self.mean)", "delta * delta"),
    Fault("self._squares / np.float32(self.count)", "self._squares / max(self.count - 1, 1)"),
    Fault("np.array(values, dtype=np.float32)", "values"),
    Fault(" / np.log(len(p))", ""),
    Fault("channel_entropy(probabilities).max(0)", "channel_entropy(probabilities).mean(0)"),
    Fault("(-both / np.log(2))", "(-both)"),
    Fault("+ q * np.log", "- q * np.log"),
    Fault("if moments.mean is None", "if False"),
]
STEP_UNCERTAINTY = [
    Fault("clean = np.clip(clean, -1, 1).astype(np.float32)", "clean = clean.astype(np.float32)"),
    Fault("if not 0 <= step <= len(self._counts)", "if step < 0"),
    Fault("self._clean[step] += clean", "self._clean[step] = clean"),
    Fault("self._logits[step] += logits", "self._logits[step] += clean"),
    Fault("self._logits[index] / np.float32(draws)", "self._logits[index]"),
    Fault("1e-3)", "1e-30)"),
    Fault("p = np.maximum(_sigmoid(", "p = np.maximum(("),
    Fault("doubt = -p * np.log(np.maximum(p, 1e-12))", "doubt = -np.log(np.maximum(p, 1e-12))"),
    Fault("doubt = -p * np.log(np.maximum(p, 1e-12))", "doubt = -p * np.log(p)"),
    Fault("-(index + 1) / steps", "-index / steps"),
    Fault("-(index + 1) / steps", "-(index + 1) / 10"),
    Fault("-(index + 1) / steps", "(index + 1) / steps"),
    Fault("late * (1 - doubt)", "late * doubt"),
    Fault("np.exp(late * (1 - doubt))", "(late * (1 - doubt))"),
    Fault("_sum(parts) / _sum(weights)", "_sum(parts)"),
    Fault("w * self._mean_probability(index) for", "w * self._clean[index] for"),
    Fault("evidence.sum(0, keepdims=True), 1e-12", "evidence.max(0, keepdims=True), 1e-12"),
    Fault("if len(set(self._counts)) > 1", "if False"),
    Fault("return ((mean + 1) / 2)", "return (mean)"),
    Fault("clipped = np.clip(clean, -1, 1)", "clipped = clean"),
    Fault("else self._sum + clipped", "else clipped"),
    Fault("(np.tanh(values / 2) + 1) / 2", "(np.tanh(values) + 1) / 2"),
    Fault("np.clip(clean, -1 + 1e-6, 1 - 1e-6)", "clean"),
    Fault("(2 * np.arctanh(inside))", "np.arctanh(inside)"),
    Fault("powers / powers.sum(0, keepdims=True)", "powers / powers.sum()"),
]
VOTES = [
    Fault("self.overlap += np", "self.overlap = np"),
    Fault("2 * overlap / np.maximum", "overlap / np.maximum"),
    Fault("np.triu_indices(count, 1)", "np.triu_indices(count, 0)"),
    Fault("np.maximum(total, 1), 1.0)", "np.maximum(total, 1), 0.0)"),
    Fault("2 * total > count", "2 * total >= count"),
    Fault("2 * total > count", "total > count"),
    Fault("total += draw", "total = total + 1"),
    Fault(".argmax(0)", "[::-1].argmax(0)"),
    Fault("votes[value] += draw == value", "votes[value] = draw == value"),
    Fault("for value in range(classes)", "for value in range(classes - 1)"),
    Fault("< classes:", "<= classes:"),
    Fault("if wanted != found", "if False"),
]
STAPLE = [
    Fault("em.shares[:, 1]).sum()", "em.shares[:, 0]).sum()"),
    Fault("_checked_prior([1 - prior, prior], 2)", "_checked_prior([prior, 1 - prior], 2)"),
    Fault("_checked_prior([1 - prior, prior], 2)", "np.array([0.5, 0.5])"),
    Fault("start = _normalised(em.mass(em.shares))", "start = _voted_start(em)"),
    Fault("posterior[:, 1][patterns.index]", "em.shares[:, 1][patterns.index]"),
    Fault("posterior[:, 1][patterns.index]", "(em.shares[:, 1] ** 2)[patterns.index]"),
    Fault("theta[:, 1, 1], theta[:, 0, 0]", "theta[:, 0, 0], theta[:, 1, 1]"),
    Fault("theta[:, 1, 1], theta[:, 0, 0]", "theta[:, 1, 1], theta[:, 0, 1]"),
    Fault("list(patterns.counts @ em.shares / patterns.counts.sum())", "[1 / classes] * classes"),
    Fault("tolerance: float = 1e-7", "tolerance: float = 1e-3"),
    Fault("tolerance: float = 1e-5", "tolerance: float = 1e-7"),
    Fault("f, _voted_start(em), tol", "f, _normalised(em.mass(em.shares)), tol"),
    Fault("index *= classes", "index *= 2"),
    Fault("rows[found // classes], found % classes", "rows[found // classes], found // classes"),
    Fault(
        "self.counts = patterns.counts.astype(np.float64)",
        "self.counts = np.ones(patterns.counts.shape)",
    ),
    Fault("_log(theta).transpose(2, 0, 1)", "_log(theta).transpose(1, 0, 2)"),
    Fault("evidence = _log(prior) + (", "evidence = ("),
    Fault("evidence - evidence.max(1, keepdims=True)", "evidence"),
    Fault("powers / powers.sum(1, keepdims=True)", "powers / powers.sum(0, keepdims=True)"),
    Fault("self.counts[:, None] * posterior", "posterior"),
    Fault("<= tolerance", "<= 10 * tolerance"),
    Fault("return theta, iteration, True", "return before, iteration, True"),
    Fault("return theta, max_iterations, False", "return theta, max_iterations, True"),
    Fault("most * (most.sum(1, keepdims=True) == 1)", "most"),
    Fault("total = mass.sum(1, keepdims=True)", "total = mass.sum(2, keepdims=True)"),
    Fault("total = mass.sum(2, keepdims=True)", "total = mass.sum(1, keepdims=True)"),
    Fault("np.where(empty, np.eye(theta.shape[1]), theta)", "theta"),
    Fault("_LOG_ZERO = -1e4", "_LOG_ZERO = -20.0"),
    Fault("_LOG_ZERO = -1e4", "_LOG_ZERO = -np.inf"),
    Fault("or abs(f.sum() - 1) > 1e-6", ""),
    Fault("if draw.shape != shape", "if draw.size != np.prod(shape)"),
    Fault("if max_iterations < 1", "if max_iterations < 0"),
]
WEIGHTED = [
    Fault("1 - entropy + _LEAST", "entropy + _LEAST"),
    Fault("1 - entropy + _LEAST", "1 - entropy"),
    Fault("1 - entropy + _LEAST", "(1 - entropy) ** 2 + _LEAST"),
    Fault("_LEAST = np.float32(1e-6)", "_LEAST = np.float32(1e-1)"),
    Fault(
        "entropy = channel_entropy(probabilities)",
        "entropy = channel_entropy(probabilities).max(0)[None]",
    ),
    Fault("self._sum += weighted", "self._sum = weighted"),
    Fault("self._weight += weight", "self._weight += 1"),
    Fault("weight * probabilities.astype(np.float32)", "probabilities.astype(np.float32)"),
    Fault("if weighted.shape != self._sum.shape", "if False"),
]
DOUBT = [
    Fault(
        "self._entropies.add(self._entropy(probabilities))",
        "self._entropies.add(self._entropy(self._probabilities.mean))",
    ),
    Fault("predictive.argmax(0)", "predictive.argmin(0)"),
    Fault("np.take_along_axis(expected, largest, 0)[0]", "expected.max(0)"),
    Fault("total - own", "total"),
    Fault("variance.mean(0)", "variance.sum(0)"),
    Fault("self._probabilities.variance", "self._entropies.variance"),
    Fault("_boundary(mean))", "mean)"),
    Fault("np.sqrt(distances.variance.astype(np.float64))", "distances.variance"),
    Fault("-distance, distance", "distance, distance"),
    Fault("-far, far", "far, -far"),
    Fault("np.array(mask.shape) * spacing", "np.array(mask.shape)"),
    Fault("surface * spacing", "surface"),
    Fault("border_value=1", "border_value=0"),
    Fault("first - 1, 0), last + 2", "first, 0), last + 1"),
    Fault("mask[box] & ~inside", "mask[box]"),
    Fault("voxel_mm3 / 1000", "voxel_mm3"),
    Fault("[2.5, 97.5]", "[5, 95]"),
    Fault("np.mean(volumes_ml)", "np.median(volumes_ml)"),
    Fault("(spacing > 0)).all()", "(spacing >= 0)).all()"),
]
MORPHOLOGY = [
    Fault("result[before & ~after] = 0", "pass"),
    Fault("distance < nearest", "distance > -1"),
    Fault("distance < nearest", "distance <= 1e9"),
    Fault("(labels != value)", "(labels == value)"),
    Fault("axis=0) > 1", "axis=0) > 2"),
    Fault("float(spacing.prod())", "1.0"),
    Fault("(binary_fill_holes(mask) & background)", "binary_fill_holes(mask)"),
    Fault("* (1 + 1e-9) >=", ">"),
    Fault("enough[0] = False", "pass"),
    Fault("_largest(after) if rule.keep_largest", "_largest(mask) if rule.keep_largest"),
    Fault("if 0 in rules", "if False"),
    Fault("sizes[0] = 0", "pass"),
]
NOISE = [
    Fault("|{self.draw}|", "|"),
    Fault("|{self.step}", ""),
    Fault('f"{self.seed}|', 'f"'),
    Fault("|{self.case}|", "|"),
    Fault("np.array([0, *index]", "np.array([*index, 0]"),
    Fault("np.array([0, *index]", "np.array([0, 0, 0, 0]"),
    Fault("(a + length - 1) // n + 1", "(a + length) // n"),
    Fault("slice(i - o, j - o) for", "slice(i - i, j - i) for"),
    Fault("self._values(index)[:, *cut]", "1.1 * self._values(index)[:, *cut]"),
    Fault("digest()[:16]", "digest()[16:]"),
]
ENSEMBLE = [
    Fault("[member * self.request.draws + d for d in chosen]", "list(chosen)"),
    Fault("if chosen.start == 0 else []", "if chosen.start > 0 else []"),
    Fault("lambda k: noise(k + 1)", "lambda k: noise(0)"),
    Fault("present << (7 - bit)", "present << bit"),
    Fault("fused.joined(answer)", "answer"),
    Fault("_change(work, fused) < request.settle", "_change(work, fused) > request.settle"),
    Fault("max(FIRST_ROUND, 2 * start)", "max(FIRST_ROUND, start + 1)"),
    Fault("self.entropy.add(predictive_entropy(p,", "self.entropy.add(0 * predictive_entropy(p,"),
    Fault('request.fuse in ("majority", "staple")', "False"),
    Fault("mean = self.weighted.probability()", "pass"),
    Fault("if len(group) == len(work.places):", "if False:"),
    Fault(
        "for place in group\n            for f in fields",
        "for f in fields\n            for place in group",
    ),
    Fault("f.window([s.start for s in place]", "f.window([0 for s in place]"),
]
WINDOWS = [
    Fault("weights[here] += weight", "weights[here] += 1"),
    Fault("answer.variance.mean(0)", "answer.variance.sum(0)"),
    Fault("weight * answer.entropy", "answer.entropy"),
    Fault("closer = weight > nearest[here]", "closer = weight < nearest[here]"),
    Fault("np.maximum(nearest[here], weight", "np.minimum(nearest[here], weight"),
    Fault("plane[: len(plane) - done] = plane[done:]", "pass"),
    Fault("if place[0].start > self._row:", "if False:"),
    Fault("self._row = end", "pass"),
    Fault('mode="edge"), tuple(shape)', 'mode="edge"), tuple(image.shape)'),
]
DRAWS = [
    Fault("packed[..., byte] >> (7 - bit)", "packed[..., byte] >> bit"),
    Fault("theirs / (ours + theirs)", "ours / (ours + theirs)"),
    Fault("share * (1 - share) * apart.mean(0)", "share * apart.mean(0)"),
    Fault("+ between,", ","),
    Fault("len(p) / (draws - 1)", "len(p) / draws"),
    Fault("np.sqrt(2 * total)", "np.sqrt(total)"),
    Fault("margin, error = first - second", "margin, error = first"),
    Fault("changed / max(size, 1)", "changed"),
    Fault("planes /= len(fused.masks)", "planes /= len(fused.masks) - 1"),
    Fault("[1 - planes.sum(0, keepdims=True), planes]", "[planes.sum(0, keepdims=True), planes]"),
    Fault("axis1=1, axis2=2)[:, 1:].T", "axis1=1, axis2=2)[:, :-1].T"),
    Fault("float(np.prod(spacing_mm)) / 1000", "float(np.sum(spacing_mm)) / 1000"),
    Fault("axis=-1, count=count", "axis=-1, count=8"),
]
MANIFEST = [
    Fault("entry.owner == self.owner", "entry.owner != self.owner"),
    Fault("time.time() - (entry.claimed or 0) < self.lease", "True"),
    Fault("float(started)) < 1", "float(started)) >= 0"),
    Fault(
        "except psutil.NoSuchProcess:\n            return False",
        "except psutil.NoSuchProcess:\n            return True",
    ),
    Fault("busy = self._busy() if afresh else []", "busy = []"),
    Fault("FAILED if error else DONE", "DONE"),
    Fault("AND owner = ?", "AND owner != ?"),
    Fault('self._base.execute("DELETE FROM cases")', "pass"),
]
PLAUSIBILITY = [
    Fault("2 * cross - float(distance[:n, :n].mean())", "cross - float(distance[:n, :n].mean())"),
    Fault("- float(distance[n:, n:].mean())", "- within[1]"),
    Fault("2 * cross - within[0]", "2 * cross - within[1]"),
    Fault("max(0.0, ged2)", "ged2 / 2"),
    Fault("np.maximum(both - shared, 1), 1.0)", "np.maximum(both - shared, 1), 0.0)"),
    Fault("shared / np.maximum(both - shared, 1)", "shared / np.maximum(both, 1)"),
    Fault("2 * shared / np.maximum(both, 1), 1.0)", "2 * shared / np.maximum(both, 1), 0.0)"),
    Fault("2 * shared / np.maximum(both, 1)", "shared / np.maximum(both - shared, 1)"),
    Fault("dice[:n, n:].max(0)", "dice[:n, n:].max(1)"),
    Fault("dice[:n, n:].max(1)", "dice[:n, n:].min(1)"),
    Fault("maximize=True", "maximize=False"),
    Fault("common = math.lcm(*iou.shape)", "common = max(iou.shape)"),
    Fault(".repeat(common // iou.shape[1], axis=1)", ""),
    Fault("(count * (count - 1))", "count**2"),
    Fault("within[0] / within[1] if", "within[1] / within[0] if"),
    Fault("planes[0].any(0) | planes[1].any(0)", "planes[0].any(0)"),
    Fault("shared += block @ block.T", "shared = block @ block.T"),
    Fault("(references != ignore_label).all(0)", "(references != ignore_label).any(0)"),
    Fault("samples, references = samples[:, judged]", "samples, references = samples"),
    Fault("not bool(size.any())", "not bool(size[:n].any())"),
    Fault("if not score.all_empty]", "if True]"),
    Fault("if not math.isnan(v)]", "]"),
]
CALIBRATION = [
    Fault("np.abs(p - y).sum()) / voxels", "np.abs((p - y).sum())) / voxels"),
    Fault("np.abs(p - y).sum()) / voxels", "(np.abs(p - y) / self.bins).sum())"),
    Fault("(p - y) ** 2 + y * (1 - y)", "(p - y) ** 2"),
    Fault("(p - y) ** 2 + y", "np.abs(p - y) + y"),
    Fault("+ (1 - y) * np.log(np.maximum(1 - p, FLOOR))", ""),
    Fault("np.maximum(1 - p, FLOOR)", "np.maximum(p, FLOOR)"),
    Fault("FLOOR = 1e-7", "FLOOR = 1e-6"),
    Fault("(p > 0.5).any() or", ""),
    Fault("or (y > 0).any())", ")"),
    Fault("self._foreground |= foreground", "self._foreground = foreground"),
    Fault("self._foreground |= other._foreground", "pass"),
    Fault("self._brier += other._brier", "pass"),
    Fault("self._nll += other._nll", "self._nll = other._nll"),
    Fault("self.without_voxels += int(p.size == 0)", "pass"),
    Fault("self._cells[row] += np", "self._cells[row] = np"),
    Fault("enumerate((None, p, y))", "enumerate((None, y, p))"),
    Fault("(p * cells).astype", "(p * (cells - 1)).round().astype"),
    Fault("count > 0, count", "count > 1, count"),
    Fault("p.max(0), correct", "truth, correct"),
    Fault("- 2 * truth + 1", "- truth + 1"),
    Fault("np.linspace(0, filled[-1], bins + 1)", "np.linspace(0, filled[-1], bins)"),
    Fault(
        "np.linspace(0, filled[-1], bins + 1)", "np.quantile(filled, np.linspace(0, 1, bins + 1))"
    ),
    Fault("filled[kept], filled[-1:]", "filled[kept + 1], filled[-1:]"),
    Fault("bool(top.any() or labels.any())", "bool(top.any())"),
    Fault("MARGIN_MM = 5.0", "MARGIN_MM = 10.0"),
    Fault("margin_mm + _ROUNDING_MM\n    return", "margin_mm\n    return"),
    Fault("sampling=tuple(spacing_mm)", "sampling=None"),
    Fault("(margin_mm + _ROUNDING_MM) / step)", "margin_mm / step)"),
    Fault("int(filled[-1]) + reach + 1", "int(filled[-1]) + reach"),
    Fault("max(0, int(filled[0]) - reach)", "int(filled[0]) - reach"),
    Fault("near & judged", "near"),
    Fault("foreground & judged", "foreground"),
    Fault("predicted | (target > 0)", "target > 0"),
    Fault("probability.argmax(0) != 0 if self.exclusive", "probability[0] < 0 if self.exclusive"),
]
TEMPERATURE = [
    Fault("scores / math.exp(log_t)", "scores * math.exp(log_t)"),
    Fault("+ (1 - truth) * log_expit(-scaled)", ""),
    Fault("log_softmax(scaled, axis=0), truth", "scaled, truth"),
    Fault("math.exp(candidates[3]))[best]", "candidates[3])[best]"),
    Fault("at_bound=best < 2", "at_bound=best < 1"),
    Fault("nll_before=values[2]", "nll_before=values[3]"),
    Fault(
        "candidates = (*bounds, 0.0, float(inner.x))", "candidates = (*bounds[::-1], 0.0, inner.x)"
    ),
    Fault("LOWEST = 0.05", "LOWEST = 0.1"),
    Fault("temperature >= LOWEST", "temperature > 0"),
    Fault("_scores(probability, exclusive) / temperature", "_scores(probability, exclusive)"),
    Fault("if exclusive else np.log(p) - np.log1p(-p)", "if exclusive else np.log(p)"),
    Fault("FLOOR, 1 - FLOOR)", "1e-2, 1 - 1e-2)"),
    Fault(
        "np.clip(probability.astype(np.float64), FLOOR, 1 - FLOOR)",
        "np.clip(probability, 1e-30, 1)",
    ),
    Fault(".astype(probability.dtype)", ""),
    Fault("truth[:, judged].astype", "truth.reshape(len(truth), -1).astype"),
    Fault("np.concatenate(scores, axis=1)", "scores[0]"),
]
RISK = [
    Fault("return 1 - values", "return 1 - values**2"),
    Fault("_selective(kept_risk, kept_doubt), _sel", "_selective(kept_doubt, kept_risk), _sel"),
    Fault("_selective(kept_risk, kept_risk)", "_selective(kept_risk, -kept_risk)"),
    Fault("aurc = float(selective.mean())", "aurc = float(np.trapezoid(selective) / n)"),
    Fault("aurc - float(optimum.mean())", "aurc - float(kept_risk.mean())"),
    Fault("np.arange(1, n + 1) / max(n, 1)", "np.arange(n) / max(n, 1)"),
    Fault("/ size\n", "\n"),
    Fault("np.lexsort((risk, group))", "np.argsort(group, kind='stable')"),
    Fault("expected = np.repeat(shared, size)", "expected = risk[order]"),
    Fault("/ np.arange(1, risk.size + 1)", "/ risk.size"),
    Fault("np.cumsum(size) - (size - 1) / 2", "np.cumsum(size)"),
    Fault("(values.size + 1) / 2", "values.size / 2"),
    Fault("math.sqrt(scale) if", "scale if"),
    Fault(
        "bca_interval(spearman, risk, doubt, patients=patients,",
        "bca_interval(spearman, risk, doubt,",
    ),
    Fault("patients=patients, seed=seed)", "patients=patients)"),
    Fault("np.size(risk) - kept_risk.size", "0"),
    Fault("np.isnan(first) | np.isnan(second)", "np.isnan(first) & np.isnan(second)"),
    Fault("spearman=spearman(kept_risk, kept_doubt)", "spearman=spearman(kept_risk, -kept_doubt)"),
]
STATISTICS = [
    Fault("np.mean(ties) / 2", "np.mean(ties)"),
    Fault("z0 + z / (1 - acceleration * z)", "z / (1 - acceleration * z)"),
    Fault("z0 + z / (1 - acceleration * z)", "z0 + z / (1 + acceleration * z)"),
    Fault("z0 + z / (1 - acceleration * z)", "z0 + z"),
    Fault("apart = left.mean() - left", "apart = left - left.mean()"),
    Fault("/ (6 * spread)", "/ (3 * spread)"),
    Fault("(1 - confidence) / 2, (1", "1 - confidence, (1"),
    Fault("found = drawn[~np.isnan(drawn)]", "found = np.nan_to_num(drawn)"),
    Fault("left = without_one[~np.isnan(without_one)]", "left = np.nan_to_num(without_one)"),
    Fault(
        "without_one=np.array([of(i for i in everyone if i != out)",
        "without_one=np.array([of([out])",
    ),
    Fault("known[names[known] == name]", "known[names[known] == name][:1]"),
    Fault("np.isnan(table).any(0)", "np.isnan(table).all(0)"),
    Fault("if len(units) < 3", "if len(units) < 1"),
    Fault("2 * found.size <= drawn.size", "found.size < 1"),
    Fault("seeds < SEEDS_FOR_A_CLAIM", "seeds <= SEEDS_FOR_A_CLAIM"),
]
SEEDS = [
    Fault("known > 0, known, math.nan", "known > 0, len(table), math.nan"),
    Fault("blank.any(0) & ~blank.all(0)", "blank.any(0)"),
    Fault("means.std(ddof=1)", "means.std()"),
    Fault("summarise(pooled, patients=patients,", "summarise(pooled,"),
    Fault("sd_cases=summary.sd", "sd_cases=float(np.nanstd(table, ddof=1))"),
    Fault(
        "own = [row[~np.isnan(row)] for row in table]",
        "own = [np.nan_to_num(row) for row in table]",
    ),
]

RESTORATION = [
    Fault("mean /= mean.sum(1, keepdims=True)", "mean /= factor"),
    Fault("centres = mean @ np.arange(voxels)", "centres = np.arange(count) * factor"),
    Fault("weights @ mean", "mean.T @ mean"),
    Fault("moved = np.moveaxis(result, 1 + axis, -1)", "moved = np.moveaxis(result, axis, -1)"),
    Fault("n - m + 1", "n - m"),
    Fault("rng.random() < 0.5", "False"),
    Fault('indexing="ij")).sum(0) <= 1', 'indexing="ij")).sum(0) <= 2'),
    Fault("(np.arange(m) + 0.5) / m * 2 - 1", "np.arange(m) / m * 2 - 1"),
    Fault("np.where(hole, np.float32(0), image)", "image"),
    Fault("np.where(hole, np.float32(0), image)", "np.where(hole, image, np.float32(0))"),
    Fault("degraded(target, max(wanted.factors)", "degraded(target, min(wanted.factors)"),
    Fault("wanted.factors[int(rng.integers(len(wanted.factors)))]", "wanted.factors[0]"),
    Fault("zlib.crc32(case.encode())", "0"),
    Fault("(n - size) // 2", "0"),
]
CASCADE_PARTS = [
    Fault("torch.sqrt(1 - level.square()) * condition", "(1 - level) * condition"),
    Fault("+ level * noise", "+ level.square() * noise"),
    Fault("+ self.level(t[:, 1])", ""),
    Fault("super().forward(t[:, 0])", "super().forward(t[:, 1])"),
    Fault("self.pool(pad_to_multiple(image, self.factor))", "image[..., :: self.factor, :: 4]"),
    Fault("mode=self.mode", 'mode="nearest"'),
]
CASCADE = [
    Fault("self.config.condition_noise * batch.coins[:, 1]", "batch.coins[:, 1]"),
    Fault("self.config.condition_noise * batch", "0 * batch"),
    Fault("mine = noise[:, : self.condition_channels]", "mine = self._of_state(noise)"),
    Fault("return noise[:, self.condition_channels :]", "return noise[:, : self.codec.channels]"),
    Fault("sampling.condition_noise, device", "0.0, device"),
    Fault("context.anchor.detach()", "context.anchor"),
    Fault("state_from_logits(context.anchor.detach())", "probabilities(context.anchor.detach())"),
    Fault("torch.stack([t, level.to(t)], dim=1)", "torch.stack([level.to(t), t], dim=1)"),
    Fault("torch.stack([t, level.to(t)], dim=1)", "torch.stack([t, 0 * t], dim=1)"),
]
LATENT_IMAGES = [
    Fault("first = channel * self.latent.channels", "first = 0"),
    Fault("clamp(-RANGE, RANGE)", "clamp(-1, 1)"),
    Fault(".unflatten(0, (len(image), -1)).flatten(1, 2)", "[: len(image)].repeat(1, 2, 1, 1)"),
    Fault(
        "images = torch.cat([self.codec.encode(batch.labels), self._channels(batch.image)])",
        "images = self.codec.encode(batch.labels)",
    ),
    Fault("made.clamp(-1, 1)", "made.clamp(0, 1)"),
    Fault("objectives.absolute_error(made, images)", "objectives.squared_error(made, images)"),
]
EVIDENCE = [
    Fault("blur(p * grey) / share", "blur(grey) / share"),
    Fault("- 2 * grey * blur(mean)", "- grey * blur(mean)"),
    Fault("found + grey.square() * whole", "grey.square() * whole"),
    Fault("/ (2 * self.sd**2)", "/ self.sd**2"),
    Fault("p.log() - distances", "p.log() + distances"),
    Fault("(p.log() - distances", "(-distances"),
    Fault("2 * self.posterior(image, p) - 1", "self.posterior(image, p)"),
    Fault("context.image[:, : self.planes]", "context.image * 0"),
    Fault("[torch.cat([1 - one, one]", "[torch.cat([one, 1 - one]"),
]
MEAN_TEACHER = [
    Fault("(found - wanted).square().sum(1).mean()", "(found - wanted).square().mean()"),
    Fault("-5 * (1 -", "-4 * (1 -"),
    Fault("share / RISE", "share"),
    Fault("k.removeprefix(below): v", "k.removeprefix(below): v + 0.1"),
    Fault("unet.network(changed)", "unet.network(shown)"),
    Fault("image[: self.planes].clone()", "image.clone()"),
    Fault("[self.seed, 3, number, position]", "[self.seed, 3, position]"),
    Fault("number / self.steps", "1 - number / self.steps"),
]
OUTPUT_JUDGE = [
    Fault("value.detach() for name", "value for name"),
    Fault("said(self.judge(target.detach())", "said(self.judge(target)"),
    Fault("said(fooled, source=True)", "said(fooled, source=False)"),
    Fault(
        "own = said(self.judge(source), source=True)",
        "own = said(self.judge(source), source=False)",
    ),
    Fault('"discriminator": own / 2', '"discriminator": own'),
    Fault("WEIGHT * said", "said"),
]
CROPS = [
    Fault('"references": (), "part": "test"', '"part": "test"'),
    Fault("number * self.size, (number + 1) * self.size", "number, number + self.size"),
    Fault('"seed": config.seed + APART', '"seed": APART'),
]
FEW_SHOT = [
    Fault("[:shots]", ""),
    Fault("target.with_cases(chosen)", "target"),
    Fault("whole = adapted(load_run(base), run)", "whole = load_run(base)"),
]
DEFINITION = [
    Fault("if c.site in wanted", "if c.site is not None"),
    Fault("for other in names if other != name}", "for other in names}"),
    Fault("[other for other in names if other != name]", "names"),
    Fault(
        "found.both_directions:\n        for name", "not found.both_directions:\n        for name"
    ),
    Fault('target, {"source": source}', 'source, {"source": target}'),
    Fault("(3 if sites.leave_one_out else 2)", "2"),
]
ADVERSARIAL = [
    Fault("judge(made.detach())", "judge(made)"),
    Fault("judge(pair.detach(), t)", "judge(pair, t)"),
    Fault("value.detach() for name, value", "value for name, value"),
    Fault("fooled(judged_by_frozen(judge, made))", "fooled(judge(made))"),
    Fault("functional.softplus(-made).mean()", "-functional.softplus(made).mean()"),
    Fault("functional.softplus(-real).mean() +", "functional.softplus(real).mean() +"),
    Fault("(2 * logits.numel())", "logits.numel()"),
    Fault("slope.square().sum()", "slope.abs().sum()"),
    Fault("create_graph=True", "create_graph=False"),
    Fault("step % self.config.r1_every == 0", "True"),
    Fault("if self.penalised and self.config.r1 > 0", "if self.penalised"),
    Fault("(batch.t * self.config.steps).ceil()", "(batch.t * self.config.steps).floor()"),
    Fault("s = (t - 1 / self.config.steps)", "s = (t - 0.5 / self.config.steps)"),
    Fault("noise=noise, eta=1.0)", "noise=noise, eta=0.5)"),
    Fault("cycled = self.translators[d](made[OTHER[d]])", "cycled = self.translators[d](made[d])"),
    Fault("made[OTHER[d]], t, batch.noise", "made[d], t, batch.noise"),
    Fault("self.config.cycle * absolute_error", "absolute_error"),
    Fault("absolute_error(clean, real)", "absolute_error(clean, x_t)"),
    Fault("parts[name] + value if name in parts else value", "value"),
    Fault("noise[:, 2 * widest :]", "noise[:, widest : widest + self.config.latent_planes]"),
    Fault("noise[:, widest : widest + planes]", "noise[:, :planes]"),
    Fault("self.made, self.codec = domain, self.codecs[domain]", "self.codec = self.codecs['b']"),
    Fault("self.generators[self.made](x, context.image,", "self.generators[self.made](x, 0 * x,"),
    Fault("float(t), clean, x, index + 1", "float(t), x, clean, index + 1"),
    Fault("if sampling != plain:", "if sampling.steps != plain.steps:"),
]
RIMMED = [
    Fault("own = tuple(slice(r, r + n)", "own = tuple(slice(0, n)"),
    Fault('mode="reflect"', 'mode="edge"'),
    Fault("plan = self._within(seen,", "plan = self._within(placed,"),
]
UNPAIRED = [
    Fault("config.seed + OTHER_SEED", "config.seed"),
    Fault('ours | {"label": theirs["image"]}', "ours"),
    Fault("self.others[number]", "self.others[number // 2]"),
    Fault("bad = ours.pop(BAD, {}) | theirs.pop(BAD, {})", "bad = ours.pop(BAD, {})"),
    Fault("_images(backward(config), others, skipped)", "_images(config, others, skipped)"),
    Fault("replace(found, target_range=other.target_range)", "found"),
    Fault("clip=found.target_range", "clip=other.target_range"),
    Fault('update={"references": ()}', "update={}"),
    Fault("if len(cases.channels) != 1:", "if not cases.channels:"),
    Fault('if not cases.part("train"):', "if not cases.cases:"),
    Fault("plan.spatial_dims == 3 and other.raster", "False"),
]
DIRECTIONS = [
    Fault("ends = (plan.normalisation or ())[0].clip", "ends = plan.target_range"),
    Fault("clip=plan.target_range", "clip=(plan.normalisation or ())[0].clip"),
    Fault("(there,) * task.target_planes", "(there,) * task.image_planes"),
    Fault('"target_planes": task.image_planes', '"target_planes": task.target_planes'),
    Fault("None if task.modality == modality else task.modality", "None"),
    Fault('"modality": modality', '"modality": task.modality'),
    Fault("task.target_channel is None or", ""),
    Fault('else f"target {target}"', "else target"),
]

# What samplers are proved by, quick tests first.
ORACLES = "diffusion/test_recursions.py diffusion/test_samplers.py"

# file of the package, related tests, faults
TLS = [
    Fault("        return self._filled(context, ssl.Purpose.SERVER_AUTH)",
          "        context.check_hostname = False\n"
          "        return self._filled(context, ssl.Purpose.SERVER_AUTH)"),
    Fault("context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)",
          "context = ssl._create_unverified_context()"),
    Fault("        context.verify_mode = ssl.CERT_REQUIRED\n", ""),
    Fault("context = Listening(", "context = ssl.SSLContext("),
    Fault('"do_handshake_on_connect": False', '"do_handshake_on_connect": True'),
    Fault("load_cert_chain(f, password=\"\")", "load_cert_chain(f, password=\"CANARY\")"),
    Fault("if self.own is None:", "if False:"),
    Fault("if self.own is not None:", "if False:"),
    Fault("except ssl.SSLCertVerificationError as error:", "except ZeroDivisionError as error:"),
]  # fmt: skip
ENTRIES = [
    Fault("nn.init.zeros_(layer.weight)", "nn.init.ones_(layer.weight)"),
    Fault("_places(x, 1, shared)", "_places(x, 2, shared)"),
    Fault("_places(pooled, block, shared)", "_places(pooled, 1, shared)"),
    Fault("asked, known, seen, need", "asked, seen, seen, need"),
    Fault("SEEN ** (1 / axes)", "SEEN ** (1 / 2)"),
    Fault("ceil_mode=True", "ceil_mode=False"),
    Fault("_tokens(self.norm_context, pooled)", "_tokens(self.norm_context, pooled) * 2"),
]
DEPTHS = [
    Fault("2 ** (deepest + 1 - depths)", "2 ** (deepest - depths + 2)"),
    Fault("if level in shares:", "if False:"),
    Fault("level -= 1", "level -= 0"),
    Fault("2 ** (self.depths - 1 - depth)", "2**depth"),
    Fault("(log_var / 2).exp()", "log_var.exp()"),
    Fault("- log_var - 1", "- log_var"),
    Fault("self._scaled(mean) for", "mean for"),
    Fault(
        "[self.squeeze[str(level)](passed[level])", "[self.squeeze[str(level)](passed[level] * 0)"
    ),
    Fault("deepest, *skips = self.split", "*skips, deepest = self.split"),
]
CYCLE = [
    Fault("distance(self.back(source_like), theirs)", "distance(source_like, theirs)"),
    Fault("drawn(model, target_like, noises[1])", "drawn(model, target_like.detach(), noises[1])"),
    Fault("drawn(model, target_like, noises[1])", "drawn(model, own, noises[1])"),
    Fault("moments(target_like), moments(theirs)", "moments(target_like), moments(own)"),
    Fault("APART + number", "APART"),
    Fault("images(number)", "images(0)"),
    Fault("axes = (0, *range(2, z.ndim))", "axes = tuple(range(2, z.ndim))"),
    Fault(".square().mean(axes)", ".abs().mean(axes)"),
    Fault("torch.ones(len(seen)", "0.5 * torch.ones(len(seen)"),
    Fault("if model.first_stage:", "if False:"),
]
COMPARE = [
    Fault("set(assumed) - before.keys()", "set(assumed)"),
    Fault("if pair[0] != pair[1]", "if None not in pair and pair[0] != pair[1]"),
    Fault("exclude_defaults=True", "exclude_defaults=False"),
    Fault('if not f"{k}.".startswith', "if not k.startswith"),
    Fault("(before.keys() | now.keys())", "now.keys()"),
]
POSITIONS = [Fault("(torch.arange(n) + 0.5) - 0.5", "torch.arange(n)")]
PLAN = [
    ("pacs/tls.py", "pacs/test_tls.py", TLS),
    ("diffusion/paths.py", "diffusion/test_paths.py diffusion/test_reverse_step.py", PATHS),
    ("diffusion/grids.py", "diffusion/test_grids.py", GRIDS),
    ("diffusion/samplers/__init__.py", f"diffusion/test_conformance.py {ORACLES}", REGISTRY),
    ("diffusion/samplers/base.py", f"diffusion/test_conformance.py {ORACLES}", BASE),
    ("diffusion/samplers/posterior.py", f"diffusion/test_conformance.py {ORACLES}", POSTERIOR),
    ("diffusion/samplers/multistep.py", f"diffusion/test_conformance.py {ORACLES}", MULTISTEP),
    ("diffusion/samplers/unipc.py", f"diffusion/test_conformance.py {ORACLES}", UNIPC),
    ("diffusion/samplers/ode.py", f"diffusion/test_conformance.py {ORACLES}", ODE),
    ("diffusion/samplers/langevin.py", f"diffusion/test_conformance.py {ORACLES}", LANGEVIN),
    ("diffusion/samplers/consistency.py", f"diffusion/test_conformance.py {ORACLES}", CONSISTENCY),
    ("diffusion/samplers/inversion.py", "diffusion/test_inversion.py", INVERSION),
    ("diffusion/transport.py", "diffusion/test_transport.py", TRANSPORT),
    ("model/prior.py", "test_synthesis.py", PRIOR_MODEL),
    ("translation/prior.py", "test_synthesis.py translation/test_prior_translation.py", PRIOR),
    ("translation/unpaired.py", "translation/test_prior_translation.py", PRIOR_TRANSLATION),
    (
        "translation/translator.py",
        "training/test_unpaired_training.py::test_a_mirrored_rim_is_seen_and_cut_off",
        RIMMED,
    ),
    ("translation/way.py", "translation/test_prior_translation.py", WAY),
    ("synthesis.py", "test_synthesis.py", SYNTHESIS),
    ("batch/synthetic_list.py", "test_synthesis.py", SYNTHETIC_LIST),
    ("diffusion/samplers/analytic.py", "diffusion/test_analytic.py", ANALYTIC),
    ("diffusion/parameterisations.py", "diffusion/test_parameterisations.py", PARAMETERISATIONS),
    ("diffusion/objectives.py", "diffusion/test_objectives.py", OBJECTIVES),
    ("diffusion/time_laws.py", "diffusion/test_time_laws.py", TIME_LAWS),
    ("diffusion/guidance.py", "diffusion/test_guidance.py", GUIDANCE),
    ("diffusion/discrete.py", "diffusion/test_discrete.py", DISCRETE),
    ("diffusion/likelihood.py", "diffusion/test_likelihood.py", LIKELIHOOD),
    ("model/adversarial.py", "model/test_adversarial.py", ADVERSARIAL),
    ("data/unpaired.py", "translation/test_unpaired.py", UNPAIRED),
    ("config/directions.py", "translation/test_unpaired.py", DIRECTIONS),
    ("networks/lora.py", "test_lora.py", LORA),
    ("data/restoration.py", "data/test_restoration_sources.py", RESTORATION),
    ("networks/cascade.py", "model/test_cascade.py", CASCADE_PARTS),
    ("model/cascade.py", "model/test_cascade.py", CASCADE),
    ("model/latent_image.py", "model/test_latent_images.py", LATENT_IMAGES),
    ("codecs.py", "test_codecs.py", CODECS),
    ("fusion/moments.py", "fusion/test_fusion.py fusion/test_weighted.py", MOMENTS),
    ("fusion/step_uncertainty.py", "fusion/test_fusion.py", STEP_UNCERTAINTY),
    ("fusion/votes.py", "fusion/test_fusion.py fusion/test_votes.py", VOTES),
    ("fusion/staple.py", "fusion/test_staple.py fusion/test_voting_patterns.py", STAPLE),
    ("fusion/weighted.py", "fusion/test_weighted.py", WEIGHTED),
    ("fusion/doubt.py", "fusion/test_doubt.py", DOUBT),
    ("inference/morphology.py", "inference/test_morphology.py", MORPHOLOGY),
    ("inference/noise.py", "inference/test_noise.py", NOISE),
    (
        "inference/ensemble.py",
        "inference/test_ensemble.py inference/test_draws.py inference/test_fused_draws.py",
        ENSEMBLE,
    ),
    ("inference/windows.py", "inference/test_ensemble.py inference/test_draws.py", WINDOWS),
    ("inference/draws.py", "inference/test_draws.py inference/test_fused_draws.py", DRAWS),
    ("batch/manifest.py", "batch/test_manifest.py", MANIFEST),
    ("metrics/plausibility.py", "metrics/test_plausibility.py", PLAUSIBILITY),
    ("calibration.py", "test_calibration.py", CALIBRATION),
    ("temperature.py", "test_temperature.py", TEMPERATURE),
    ("metrics/risk.py", "metrics/test_risk.py", RISK),
    ("metrics/statistics.py", "metrics/test_statistics.py", STATISTICS),
    ("metrics/seeds.py", "metrics/test_seeds.py", SEEDS),
    ("model/evidence.py", "adaptation/test_evidence.py", EVIDENCE),
    ("networks/entries.py", "networks/test_entries.py", ENTRIES),
    ("adaptation/cycle.py", "adaptation/test_cycle.py", CYCLE),
    ("config/compare.py", "config/test_compare.py", COMPARE),
    ("networks/depths.py", "networks/test_depths.py", DEPTHS),
    ("networks/positions.py", "networks/test_entries.py", POSITIONS),
    ("adaptation/rows/mean_teacher.py", "adaptation/test_companions.py", MEAN_TEACHER),
    ("adaptation/rows/adversarial_output.py", "adaptation/test_companions.py", OUTPUT_JUDGE),
    ("adaptation/scans.py", "adaptation/test_companions.py", CROPS),
    ("adaptation/few_shot.py", "adaptation/test_source_diffusion.py", FEW_SHOT),
    ("adaptation/definition.py", "adaptation/test_definition.py", DEFINITION),
]


def survives(copy: Path, file: str, tests: str, fault: Fault) -> bool:
    """Whether the tests pass in spite of the fault."""
    target = copy / "medseg_diff" / file
    original = target.read_text(encoding="utf-8")
    if fault.old not in original:
        raise SystemExit(f"{file}: the text to replace is gone, update this list: {fault.old}")
    target.write_text(original.replace(fault.old, fault.new, 1), encoding="utf-8")
    try:
        code = run_tests(copy, tests)
    finally:
        target.write_text(original, encoding="utf-8")
    return code == 0


def run_tests(copy: Path, tests: str, *plugins: object) -> int:
    """Exit code of some test files against the copy, in a fork that has torch loaded already."""
    files = [f"tests/{name}" for name in tests.split()]
    child = os.fork()
    if child == 0:
        os.chdir(copy)
        sys.path.insert(0, str(copy))
        sys.dont_write_bytecode = True
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
            code = pytest.main(
                [*files, "-qx", "--assert=plain", "-pno:cacheprovider", "-pno:xdist"], plugins
            )
        os._exit(int(code))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, 1, 2):  # 2: the fault breaks the import, which counts as caught
        raise SystemExit(f"tests/{tests} could not run: exit code {code}")
    return code


def preload() -> None:
    """Import once what every fork would import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("torch", "monai.data", "monai.networks.blocks", "scipy.integrate"):
            importlib.import_module(name)
        with contextlib.suppress(ImportError):
            diffusers = importlib.import_module("diffusers")
            _ = diffusers.DDIMScheduler, diffusers.DDPMScheduler
    sys.modules["torch"].set_num_threads(1)


def main() -> int:
    """Plant every fault of the chosen files; 1 if any survives."""
    chosen = sys.argv[1] if len(sys.argv) > 1 else ""
    survivors, planted = [], 0
    preload()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(
            ROOT / "medseg_diff", copy / "medseg_diff", ignore=shutil.ignore_patterns("__pycache__")
        )
        shutil.copytree(
            ROOT / "tests", copy / "tests", ignore=shutil.ignore_patterns("__pycache__")
        )
        shutil.copy(ROOT / "pyproject.toml", copy)
        for file, tests, faults in PLAN:
            if chosen not in file:
                continue
            if run_tests(copy, tests) != 0:
                raise SystemExit(f"tests/{tests} fails without any fault")
            for fault in faults:
                planted += 1
                alive = survives(copy, file, tests, fault)
                print(f"{'SURVIVED' if alive else 'caught  '} {file}: {fault.new!r}", flush=True)
                survivors += [fault] if alive else []
    print(f"{planted} faults planted, {len(survivors)} survived")
    return int(bool(survivors))


if __name__ == "__main__":
    sys.exit(main())
