"""Pairs for translation made of one contrast: the target is the frozen scanner models' own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from medseg_diff import io
from medseg_diff.data.caselist import load_caselist
from medseg_diff.data.frozen_shifts import load_shifts
from tests.training_fixtures import write_dataset

CHAIN = (("contrast_inversion", "strong"), ("bias_field", "moderate"), ("rician_noise", "mild"))


def prepare(repository: Path, cases: Path, out: Path, *words: str) -> None:
    script = repository / "data_prep" / "synthetic_contrast.py"
    command = [sys.executable, str(script), "--cases", str(cases), "--out", str(out), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_pairs_are_the_shifts_of_their_sources(repository: Path, tmp_path: Path) -> None:
    cases = write_dataset(tmp_path / "data", cases=4)
    # Twice: a second call finds what the first one made.
    for _ in range(2):
        prepare(repository, cases, tmp_path / "paired")
    made, given = load_caselist(tmp_path / "paired"), load_caselist(cases)
    assert made.target == "synthetic"
    assert [(c.case, c.part) for c in made.cases] == [(c.case, c.part) for c in given.cases]
    case = made.cases[0]
    source = io.read_channels(made.channel_paths(case))
    low, high = np.percentile(np.asarray(source), (0.5, 99.5))
    wanted = 1000 * ((np.asarray(source) - low) / (high - low)).clip(0, 1)
    for name, level in CHAIN:
        wanted = load_shifts().get(name, level)(wanted, (1, 1, 1), case=case.case, seed=0)
    (target,) = [made.root / str(case.target)]
    assert np.allclose(np.asarray(io.read_image(target)), wanted, rtol=1e-3, atol=1e-2)
    (mask,), (original,) = made.reference_paths(case), given.reference_paths(given.cases[0])
    assert mask.read_bytes() == original.read_bytes()


def test_the_contrast_as_a_second_channel(repository: Path, tmp_path: Path) -> None:
    cases = write_dataset(tmp_path / "data", cases=4)
    prepare(repository, cases, tmp_path / "paired")
    prepare(repository, cases, tmp_path / "channels", "--as-channel")
    pairs, both = load_caselist(tmp_path / "paired"), load_caselist(tmp_path / "channels")
    given = load_caselist(cases)
    (channel,) = pairs.channels
    assert (both.channels, both.target) == ((channel, "synthetic"), None)
    for pair, case, own in zip(pairs.cases, both.cases, given.cases, strict=True):
        paths = both.channel_paths(case)
        target = pairs.root / str(pair.target)
        wanted = {channel: given.channel_paths(own)[channel], "synthetic": target}
        for name, file in wanted.items():
            assert paths[name].read_bytes() == file.read_bytes()
        masks = [path.read_bytes() for path in both.reference_paths(case)]
        assert masks == [path.read_bytes() for path in given.reference_paths(own)]
