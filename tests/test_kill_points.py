"""Kills at random lines of the code that writes; `tests/kill_points.py` makes a thousand."""

from __future__ import annotations

import random

import pytest
import torch

from tests.kill_points import COUNTS, kill_batches, kill_trainings


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.mark.filterwarnings("ignore")
def test_K10_K20_batches_killed_at_random_lines() -> None:
    """Nothing half-written, lost or done twice."""
    found = kill_batches(30, random.Random(1))
    assert found["kills"] >= 30
    assert {name: found[name] for name in COUNTS} == dict.fromkeys(COUNTS, 0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_K01_K17_trainings_killed_at_random_lines() -> None:
    """No checkpoint that was reported is lost, and every training ends where it would have."""
    found = kill_trainings(10, random.Random(1))
    assert found["kills"] >= 10
    assert found["checkpoints lost"] == found["trainings that ended elsewhere"] == 0
