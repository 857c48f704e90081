"""Several annotators: whose mask a sample is trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medseg_diff.config import parse_config
from medseg_diff.data.dataset import TrainingSet
from medseg_diff.data.transforms import foreground_voxels

SIZE = 6


class Cases:
    """Two cases on one grid; annotator r of case c has marked voxel (c, r)."""

    raters = (4, 2)

    def __init__(self) -> None:
        self.data = [{"references": ["mask"] * n} for n in self.raters]

    def __len__(self) -> int:
        return len(self.raters)

    def __getitem__(self, index: int) -> dict[str, Any]:
        label = np.zeros((self.raters[index], SIZE, SIZE, 1), np.int16)
        for rater in range(self.raters[index]):
            label[rater, index, rater] = 1
        return {"image": np.zeros((1, SIZE, SIZE, 1), np.float32), "label": label, "foreground": []}


def seen(annotators: str, samples: int) -> list[tuple[int, int]]:
    """Case and annotator of each sample."""
    config = parse_config(
        {
            "recipe": "unet",
            "data": {"annotators": annotators},
            "task": {"channels": ["x"], "labels": {"background": 0, "a": 1}},
            "plan": {"spatial_dims": 2, "patch_size": [SIZE, SIZE], "batch_size": 1},
            "training": {"augment": False, "steps": samples},
        }
    )
    training_set = TrainingSet(Cases(), config, 2)  # type: ignore[arg-type]
    found = []
    for number in range(samples):
        ((_, row, column),) = np.argwhere(training_set[number]["label"].numpy())
        assert training_set.case_of(number)[0] == row
        found.append((int(row), int(column)))
    return found


def test_all_annotators_are_visited_once_an_epoch():
    epochs = seen("all", 18)
    every = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]
    for start in (0, 6, 12):
        assert sorted(epochs[start : start + 6]) == every
    assert epochs[:6] != epochs[6:12]


def test_a_random_annotator_is_drawn_in_each_epoch():
    found = seen("random", 200)
    assert [case for case, _ in found].count(0) == 100
    counts = [found.count((0, rater)) for rater in range(4)]
    assert min(counts) > 10
    assert set(found) == {(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)}


def test_the_first_annotator_alone():
    assert set(seen("first", 20)) == {(0, 0), (1, 0)}


@pytest.mark.parametrize("annotators", ["all", "random", "first"])
def test_samples_are_fixed_by_their_number(annotators: str):
    assert seen(annotators, 30) == seen(annotators, 30)


def test_crops_look_at_what_any_annotator_marked():
    case = Cases()[0]
    task = parse_config(
        {"recipe": "unet", "task": {"channels": ["x"], "labels": {"background": 0, "a": 1}}}
    ).task
    assert task is not None
    (voxels,) = foreground_voxels(case["label"], task)
    np.testing.assert_array_equal(voxels[:, :2], [[0, 0], [0, 1], [0, 2], [0, 3]])
