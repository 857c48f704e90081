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
    Fault(
        "ratio = torch.where(sigma_t > 0, sigma_s /", "ratio = torch.where(sigma_t > 0, sigma_t /"
    ),
    Fault("bridged = sigma_t**2 - (a_t / a_s) ** 2", "bridged = sigma_t**2 - (a_t / a_s)"),
    Fault("(a_t / a_s) ** 2 * sigma_s**2", "(a_s / a_t) ** 2 * sigma_s**2"),
    Fault("* ratio**2, sigma_s**2)", "* ratio, sigma_s**2)"),
    Fault("v = eta**2 *", "v = eta *"),
    Fault("kept=(sigma_s**2 - v)", "kept=(sigma_s**2 - v / 2)"),
    Fault("fresh=v.sqrt()", "fresh=v"),
    Fault("* ratio**2, sigma_s**2)", "* ratio**2, 0 * sigma_s**2)"),
    Fault("0.1 * t + 0.5 * 19.9 * t**2", "0.1 * t + 19.9 * t**2"),
    Fault("0.1 * t + 0.5 * 19.9", "0.1 * t + 0.5 * 20"),
    Fault("torch.cos(angle) ** 2 / start", "torch.cos(angle) / start"),
    Fault("offset = 0.008", "offset = 0.005"),
    Fault("a=self.input_scale * alpha_bar.sqrt()", "a=self.input_scale * alpha_bar"),
    Fault("a=self.input_scale * alpha_bar.sqrt()", "a=alpha_bar.sqrt()"),
    Fault("sigma=(1 - alpha_bar).clamp_min(0).sqrt()", "sigma=(1 - alpha_bar).clamp_min(0)"),
    Fault(
        "self.knots = torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - table, 0)])",
        "self.knots = torch.cumprod(1 - table, 0)",
    ),
    Fault("return len(self.knots) - 1", "return len(self.knots)"),
    Fault(
        "(t.double() * self.steps).round() / self.steps",
        "(t.double() * self.steps).floor() / self.steps",
    ),
    Fault("implied = x_t - a_t * clean", "implied = x_t - a_s * clean"),
    Fault("state = a_s * clean", "state = a_t * clean"),
    Fault("state = state + b_s * source", "state = state + b_t * source"),
    Fault("if not bool((s < t).all())", "if not bool((s <= t).all())"),
    Fault("return state if source is None else state + b * source", "return state"),
]
SAMPLERS = [
    Fault("torch.linspace(1, 0, steps + 1", "torch.linspace(1, 0, steps"),
    Fault("torch.linspace(1, 0, steps + 1", "torch.linspace(1, 1 / (steps + 1), steps + 1"),
    Fault('u**2 if kind == "quadratic"', 'u**3 if kind == "quadratic"'),
    Fault("return t_max * (", "return ("),
    Fault("times = path.snap(times)", "times = times"),
    Fault("x = start * path.coefficients(times[:1]).sigma.to(start)", "x = start"),
    Fault("path.coefficients(times[:1]).sigma", "path.coefficients(times[:1]).a"),
    Fault("clean = denoise(x, t.expand(batch))", "clean = denoise(x, s.expand(batch))"),
    Fault("refresh = eta if float(s) > 0 else 0.0", "refresh = 0.0"),
    Fault("refresh = eta if float(s) > 0 else 0.0", "refresh = eta"),
    Fault("fresh_noise(index)", "fresh_noise(0)"),
    Fault("noise=noise, eta=refresh", "noise=noise, eta=refresh / 2"),
    Fault('"ancestral": 1.0', '"ancestral": 0.5'),
    Fault(
        "yield Step(index, float(t), float(s), clean, x)",
        "yield Step(index, float(s), float(t), clean, x)",
    ),
    Fault("yield Step(index,", "yield Step(index + 1,"),
    Fault("if not bool((times[1:] < times[:-1]).all())", "if False"),
    Fault("if steps < 1", "if steps < 0"),
]
PARAMETERISATIONS = [
    Fault("return a * noise - sigma * clean", "return a * noise + sigma * clean"),
    Fault("return a * noise - sigma * clean", "return sigma * noise - a * clean"),
    Fault("return (x_t - sigma * output) / a", "return (x_t - sigma * output) * a"),
    Fault("/ (a**2 + sigma**2)", ""),
    Fault("return (a * x_t - sigma * output)", "return (x_t - sigma * output)"),
    Fault("return (x_t - a * clean) / sigma", "return (x_t - clean) / sigma"),
    Fault("x_t, output = x_t.to(exact), output.to(exact)", "pass"),
]
OBJECTIVES = [
    Fault("return values.mean(axes).mean()", "return values.sum(axes).mean()"),
    Fault("weight.sum(axes).clamp_min(1) * values.shape[1]", "weight.sum(axes).clamp_min(1)"),
    Fault(
        "return ((values * weight).sum(axes) / counted).mean()",
        "return (values * weight).sum() / counted.sum()",
    ),
    Fault(".clamp_min(1) * values", " * values"),
    Fault("probabilities, target = probabilities * weight, target * weight", "pass"),
    Fault("(2 * overlap + smooth)", "(overlap + smooth)"),
    Fault("axes = tuple(range(2, target.ndim))", "axes = (0, *range(2, target.ndim))"),
    Fault("functional.log_softmax(logits, 1)", "functional.logsigmoid(logits)"),
    Fault("torch.square(output - target)", "torch.abs(output - target)"),
]
CODECS = [
    Fault("state = 2 * self.targets(labels) - 1", "state = self.targets(labels)"),
    Fault("state if weight is None else state * weight", "state"),
    Fault("labels != self.ignore_label", "labels == self.ignore_label"),
    Fault("logits.softmax(1) if self.exclusive", "logits.sigmoid() if self.exclusive"),
    Fault("2 * self.probabilities(logits) - 1", "self.probabilities(logits)"),
    Fault("((state + 1) / 2)", "(state)"),
    Fault(".clamp(1e-4, 1 - 1e-4)", ""),
    Fault(
        "values[probabilities.argmax(1, keepdim=True)]",
        "probabilities.argmax(1, keepdim=True).to(torch.int16)",
    ),
    Fault("> 0.5] = value", ">= 0.5] = value"),
    Fault("enumerate(self.painted_values())", "enumerate(range(1, self.channels + 1))"),
    Fault("if crossing or not own", "if not own"),
]
FUSION = [
    Fault("self.mean += delta / np.float32(self.count)", "self.mean += delta / 2"),
    Fault("delta * (values - self.mean)", "delta * delta"),
    Fault("self._squares / np.float32(self.count)", "self._squares / max(self.count - 1, 1)"),
    Fault("np.array(values, dtype=np.float32)", "values"),
    Fault(" / np.log(len(p))", ""),
    Fault("(-both / np.log(2)).max(0)", "(-both / np.log(2)).mean(0)"),
    Fault("self.overlap += np", "self.overlap = np"),
    Fault("2 * overlap / np.maximum", "overlap / np.maximum"),
    Fault("np.triu_indices(count, 1)", "np.triu_indices(count, 0)"),
    Fault("np.maximum(total, 1), 1.0)", "np.maximum(total, 1), 0.0)"),
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
    Fault("[member * request.draws + d for d in chosen]", "list(chosen)"),
    Fault("lambda k: noise(k + 1)", "lambda k: noise(0)"),
    Fault("present << (7 - bit)", "present << bit"),
    Fault("canvas.weight[place] += importance", "canvas.weight[place] += 1"),
    Fault("moments.variance.mean(0)", "moments.variance.sum(0)"),
    Fault(
        "for place in group\n            for f in fields",
        "for f in fields\n            for place in group",
    ),
    Fault("f.window([s.start for s in place]", "f.window([0 for s in place]"),
    Fault(
        "closer = importance > canvas.nearest[place]", "closer = importance < canvas.nearest[place]"
    ),
]

# file of the package, related tests, faults
PLAN = [
    ("diffusion/paths.py", "diffusion/test_paths.py", PATHS),
    ("diffusion/samplers.py", "diffusion/test_samplers.py", SAMPLERS),
    ("diffusion/parameterisations.py", "diffusion/test_parameterisations.py", PARAMETERISATIONS),
    ("diffusion/objectives.py", "diffusion/test_objectives.py", OBJECTIVES),
    ("codecs.py", "test_codecs.py", CODECS),
    ("fusion.py", "test_fusion.py", FUSION),
    ("noise.py", "test_noise.py", NOISE),
    ("ensemble.py", "test_ensemble.py", ENSEMBLE),
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


def run_tests(copy: Path, tests: str) -> int:
    """Exit code of one test file against the copy, in a fork that has torch loaded already."""
    child = os.fork()
    if child == 0:
        os.chdir(copy)
        sys.path.insert(0, str(copy))
        sys.dont_write_bytecode = True
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
            code = pytest.main([f"tests/{tests}", "-qx", "--assert=plain", "-pno:cacheprovider"])
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
