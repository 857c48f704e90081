"""A batch of generated scans, this process against a local Ray cluster: the same answers, how fast.

    python benchmarks/batch.py --scans 200 --out benchmarks/results/batch

Prints and writes a Markdown table. Every engine runs `medseg-diff predict` in a process of its own.
Memory is the proportional set size of that process and all its children, looked at once a second.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import psutil

SHAPE = (36, 48, 36)
COLUMNS = (
    "engine",
    "seconds",
    "to the first case",
    "cases per minute",
    "after the first",
    "peak memory GiB",
    "masks as row 1",
    "all files as row 1",
)


class Row(NamedTuple):
    """One run."""

    label: str
    flags: list[str]
    threads: int


class Measured(NamedTuple):
    """What a run took."""

    seconds: float
    first: float
    peak_gib: float


def write_scans(folder: Path, count: int) -> None:
    """Bright bodies of random place and size on noise, 1 mm voxels."""
    grid = np.indices(SHAPE)
    for number in range(count):
        rng = np.random.default_rng(number)
        centre = np.array(SHAPE).reshape(3, 1, 1, 1) * rng.uniform(0.4, 0.6, (3, 1, 1, 1))
        axes = rng.uniform(5, 12, (3, 1, 1, 1))
        body = np.square((grid - centre) / axes).sum(0) < 1
        image = 300 + 200 * body + rng.normal(0, 40, SHAPE)
        file = folder / f"phantom_{number:05d}.nii.gz"
        nib.save(nib.Nifti1Image(image.astype(np.int16), np.eye(4)), file)


def run(row: Row, source: Path, out: Path) -> Measured:
    """Predict the folder once, and watch."""
    command = [sys.executable, "-W", "ignore", "-m", "medseg_diff.cli", "predict"]
    command += ["--model", "hippocampus", "--input", f"{source}/*.nii.gz", "--out", str(out)]
    command += ["--draws", "1", "--steps", "1", *row.flags]
    environment = {**os.environ, "OMP_NUM_THREADS": str(row.threads)}
    began, peak, first = time.monotonic(), 0, float("nan")
    with (out.parent / f"{out.name}.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        while process.poll() is None:
            time.sleep(1)
            peak = max(peak, family_bytes(process.pid))
            if np.isnan(first) and out.is_dir() and any(out.glob("*.json")):
                first = time.monotonic() - began
    if process.returncode:
        sys.exit((out.parent / f"{out.name}.log").read_text()[-2000:])
    return Measured(time.monotonic() - began, first, peak / 2**30)


def family_bytes(pid: int) -> int:
    """Proportional set size of a process and its children."""
    total = 0
    with contextlib.suppress(psutil.Error):
        head = psutil.Process(pid)
        for process in (head, *head.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().pss
    return total


def digests(folder: Path) -> dict[str, str]:
    """Hash of every image of an answer."""
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("*.nii.gz"))
    }


def equal(one: dict[str, str], other: dict[str, str], *, masks: bool) -> str:
    """How many files are the same, of how many."""
    names = [n for n in one if not masks or not n.endswith(("_prob.nii.gz", "_doubt.nii.gz"))]
    return f"{sum(one[n] == other.get(n) for n in names)}/{len(names)}"


def main() -> None:
    """Measure every row and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scans", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/batch"))
    given = parser.parse_args()
    rows = [
        Row("local, 1 thread", [], 1),
        Row(
            f"ray, {given.workers} workers of 1 thread",
            ["--engine", "ray", "--workers", str(given.workers)],
            1,
        ),
    ]
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "scans"
        source.mkdir()
        write_scans(source, given.scans)
        reference: dict[str, str] = {}
        for number, row in enumerate(rows):
            out = Path(scratch) / f"out{number}"
            took = run(row, source, out)
            found = digests(out)
            reference = reference or found
            rate = 60 * given.scans / took.seconds
            later = 60 * (given.scans - 1) / (took.seconds - took.first)
            cells = [row.label, f"{took.seconds:.0f}", f"{took.first:.0f} s", f"{rate:.1f}"]
            cells += [f"{later:.1f}", f"{took.peak_gib:.2f}"]
            cells += [equal(reference, found, masks=masks) for masks in (True, False)]
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    shape, today = "x".join(map(str, SHAPE)), datetime.datetime.now(tz=datetime.UTC).date()
    cores, load = os.cpu_count(), os.getloadavg()[2]
    head = (
        f"`python benchmarks/batch.py --scans {given.scans} --workers {given.workers}`: "
        f"{given.scans} scans of {shape} voxels, the shipped model, 1 draw, 1 step; "
        f"{platform.machine()}, {cores} cores, no GPU, {today}. Mean load over the last 15 minutes "
        f"at the end: {load:.1f}.\n\n"
    )
    given.out.mkdir(parents=True, exist_ok=True)
    text = head + "\n".join(lines) + "\n"
    (given.out / "README.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
