"""Case lists with changed images: grids and masks stay, and what is done is not done again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medseg_diff import io
from medseg_diff.data.caselist import load_caselist
from medseg_diff.data.derived import derive, shifted
from medseg_diff.data.frozen_shifts import load_shifts
from medseg_diff.errors import InputError
from tests.training_fixtures import write_dataset

SHIFT = load_shifts().get("low_field", "strong")


def test_images_change_and_grids_and_masks_do_not(tmp_path: Path):
    cases = load_caselist(write_dataset(tmp_path / "data"))
    found = shifted(cases, cases.part("test"), tmp_path / "shifted", SHIFT, seed=1)
    (before,), (after,) = cases.part("test"), found.cases
    assert (after.case, after.patient, after.part) == (before.case, before.patient, before.part)
    old = io.read_channels(cases.channel_paths(before))
    new = io.read_channels(found.channel_paths(after))
    assert old.shape == new.shape
    np.testing.assert_array_equal(np.asarray(old.affine), np.asarray(new.affine))
    direct = SHIFT(np.asarray(old), (1, 1, 1), case=before.case, seed=1)
    np.testing.assert_array_equal(np.asarray(new), direct)
    (mask,), (copy,) = cases.reference_paths(before), found.reference_paths(after)
    assert mask.read_bytes() == copy.read_bytes()


def test_what_is_there_is_kept_only_if_made_from_the_same(tmp_path: Path):
    cases = load_caselist(write_dataset(tmp_path / "data"))
    calls: list[str] = []

    def change(image, case):
        calls.append(case.case)
        return np.asarray(image) + 1

    for made_from, expected in (("a", 1), ("a", 1), ("b", 2)):
        derive(cases, cases.part("test"), tmp_path / "d", change, made_from=made_from)
        assert len(calls) == expected
    # Without its stamp a folder is half done.
    (tmp_path / "d" / "derived.json").unlink()
    derive(cases, cases.part("test"), tmp_path / "d", change, made_from="b")
    assert len(calls) == 3


def test_the_same_files_by_another_path_are_found_and_not_replaced(tmp_path: Path):
    listed = write_dataset(tmp_path / "data")
    (tmp_path / "link").symlink_to(tmp_path / "data", target_is_directory=True)
    calls: list[str] = []

    def change(image, case):
        calls.append(case.case)
        return np.asarray(image) + 1

    for folder in (listed.parent, tmp_path / "link"):
        cases = load_caselist(folder / listed.name)
        derive(cases, cases.part("test"), tmp_path / "d", change, made_from="a")
    assert len(calls) == 1


def test_what_a_shift_cannot_change_is_refused_with_the_file(tmp_path: Path):
    cases = load_caselist(write_dataset(tmp_path / "data"))
    wrong = replace(SHIFT, value=-1.0)
    with pytest.raises(InputError, match=r"ball_4.*0 or more"):
        shifted(cases, cases.part("test"), tmp_path / "out", wrong)
