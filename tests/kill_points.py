"""Kill training and batch prediction at random lines of the code that writes, and go on (K01, K10).

    python -m tests.kill_points [--batch 900] [--training 100] [--seed 0]

A child is forked from a warmed-up parent and kills itself with SIGKILL at the n-th line executed in
the modules that write; buffers that were not flushed are lost with it. Then the parent looks at
what is on the disk, and the next child goes on, until one comes through. Every kill is a point.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import nibabel as nib
import numpy as np
import torch

import medseg_diff
from medseg_diff.batch.manifest import DONE, Manifest, this_process
from medseg_diff.batch.run import find_cases, predict_many
from medseg_diff.checkpoint import latest_checkpoint, load_run, load_tensors
from medseg_diff.errors import InputError
from medseg_diff.files import file_sha256
from medseg_diff.inference.predictor import Predictor
from medseg_diff.training.fit import Options, fit
from tests.phantoms import NiftiFile, grid_affine, make_phantom
from tests.tiny import threshold_predictor, tiny_config
from tests.training_fixtures import tiny, write_dataset

PACKAGE = Path(medseg_diff.__file__).parent
WRITERS = {
    str(PACKAGE / name)
    for name in (
        *("files.py", "checkpoint.py", "training/resume.py", "training/log.py", "training/fit.py"),
        *("batch/manifest.py", "batch/run.py", "batch/one_case.py", "io/nifti.py", "io/images.py"),
    )
}
# A file that moved away would never be died in.
assert all(Path(name).is_file() for name in WRITERS)
COUNTS = ("checkpoints lost", "masks half-written", "cases lost", "cases done twice")
SHAPE = (12, 11, 10)
Work = Callable[[Callable[[str], None]], None]


def run_child(work: Work, kill_at: int | None) -> tuple[bool, list[str], int]:
    """Fork, work, die at a line; whether it came through, what it said, and its lines."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        code = 1
        try:
            this_process.cache_clear()
            lines = _die_at(kill_at)
            work(lambda word: os.write(writing, f"{word}\n".encode()) and None)
            sys.settrace(None)
            os.write(writing, f"lines {lines[0]}\n".encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as stream:
        said = stream.read().split("\n")[:-1]
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"the child failed by itself: exit code {code}, {said}")
    lines_ = [int(word.split()[1]) for word in said if word.startswith("lines ")]
    return code == 0, [w for w in said if not w.startswith("lines ")], sum(lines_)


def _die_at(kill_at: int | None) -> list[int]:
    """Count lines of the writers in this thread, and die at one of them."""
    lines = [0]

    def count(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            lines[0] += 1
            if lines[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return count

    def enter(frame: FrameType, event: str, _: Any) -> Any:
        return count if frame.f_code.co_filename in WRITERS else None

    sys.settrace(enter)
    return lines


class Canned(Predictor):
    """Answers every case with the same masks: what is tested is what becomes of them."""

    def predict(self, scan: Any, **settings: Any) -> Any:
        """The answer made once, under the case's name."""
        answer = copy.copy(self.answer)
        record = copy.deepcopy(self.answer.record) | {"case": settings["case"]}
        object.__setattr__(answer, "record", record)
        return answer


def canned(scan: Path) -> Canned:
    """A predictor that has answered once."""
    bright = [{"kind": "ct", "mean": 0.0, "sd": 100.0}]
    real = threshold_predictor(tiny_config(plan={"normalisation": bright}), 0.2)
    predictor = Canned(real.runs)
    predictor.answer = real.predict(scan)
    return predictor


def vouched(out: Path) -> set[str]:
    """Cases whose record and files are whole.

    Raises:
        ValueError: naming a file under its final name that is not.
    """
    for file in out.glob("*.nii.gz"):
        try:
            np.asarray(nib.load(file).dataobj)
        except Exception as error:
            raise ValueError(file.name) from error
    found = set()
    for file in out.glob("*.json"):
        for name, digest in json.loads(file.read_text())["hashes"]["written"].items():
            if not (out / name).is_file() or file_sha256(out / name) != digest:
                raise ValueError(name)
        found.add(file.stem)
    return found


def done_in(out: Path) -> set[str]:
    """Cases that the manifest calls done."""
    if not (out / "manifest.sqlite").is_file():
        return set()
    manifest = Manifest(out)
    found = {entry.name for entry in manifest.entries() if entry.status == DONE}
    manifest.close()
    return found


def kill_batches(points: int, rng: random.Random, cases: int = 3) -> Counter[str]:
    """Kill batch prediction at random lines; counts of what went wrong, and of kills."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "in", Path(folder) / "out"
        source.mkdir()
        phantom = make_phantom(grid_affine("RAS", (3.0, 3.2, 3.6), SHAPE), SHAPE)
        for n in range(cases):
            NiftiFile(phantom.image + n, phantom.affine).write(source / f"case{n}.nii")
        predictor = canned(source / "case0.nii")
        listed = find_cases([source], ["T1"])

        def work(say: Callable[[str], None]) -> None:
            predict_many(predictor, listed, out, go_on=True, report=lambda _, o: say(o.case))

        _, _, lines = run_child(work, None)
        while counts["kills"] < points:
            shutil.rmtree(out)
            finished = False
            while not finished:
                before = done_in(out) if out.is_dir() else set()
                finished, said, _ = run_child(work, rng.randint(1, lines))
                counts["kills"] += not finished
                counts["cases done twice"] += len(before & set(said))
                try:
                    whole = vouched(out) if out.is_dir() else set()
                except ValueError:
                    counts["masks half-written"] += 1
                    break
                counts["cases lost"] += len(done_in(out) - whole) if out.is_dir() else 0
            counts["runs"] += 1
            counts["cases lost"] += cases - len(done_in(out))
    return counts


def kill_trainings(points: int, rng: random.Random) -> Counter[str]:
    """Kill a training at random lines; a checkpoint that was reported must be there."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        data = write_dataset(Path(folder) / "data", cases=3, size=8)
        config, out = tiny(data, steps=3, validate_every=2, save_every=1), Path(folder) / "run"

        def work(say: Callable[[str], None]) -> None:
            resume = newest(out) > 0
            if not resume:
                shutil.rmtree(out, ignore_errors=True)
            report = Options(resume=resume, report=lambda p, _: say(str(p.step)))
            fit(config, out, report)

        _, _, lines = run_child(work, None)
        wanted = load_tensors(latest_checkpoint(out)[0] / "tensors.safetensors")
        while counts["kills"] < points:
            shutil.rmtree(out, ignore_errors=True)
            finished, reported = False, 0
            while not finished:
                # Reading a checkpoint takes as many lines as a short training.
                finished, said, _ = run_child(work, rng.randint(1, 3 * lines))
                counts["kills"] += not finished
                reported = max([reported, *map(int, said)])
                if newest(out) < reported:
                    counts["checkpoints lost"] += 1
                    reported = newest(out)
            counts["runs"] += 1
            found = load_tensors(latest_checkpoint(out)[0] / "tensors.safetensors")
            same = all(torch.equal(found[name], value) for name, value in wanted.items())
            counts["trainings that ended elsewhere"] += not same
            load_run(out)
    return counts


def newest(run: Path) -> int:
    """Step of the newest whole checkpoint; 0 if there is none."""
    try:
        return int(latest_checkpoint(run)[0].name.removeprefix("step_"))
    except InputError:
        return 0


def main() -> int:
    """Print the counts; 1 if anything was lost."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=900, help="kills of batch predictions")
    parser.add_argument("--training", type=int, default=100, help="kills of trainings")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng, lost = random.Random(given.seed), 0
    for name, kill, points in (
        ("batch prediction", kill_batches, given.batch),
        ("training", kill_trainings, given.training),
    ):
        if points == 0:
            continue
        found = kill(points, rng)
        wrong = (*COUNTS, "trainings that ended elsewhere")
        lost += sum(found[w] for w in wrong)
        shown = ", ".join(f"{w} {found[w]}" for w in wrong)
        print(f"{name}: {found['kills']} kills in {found['runs']} runs: {shown}", flush=True)
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
