"""Two case lists without pairs: samples, plan, the way back, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import CacheDataset

from medseg_diff.cli.main import main
from medseg_diff.config import parse_config
from medseg_diff.config.directions import backward, target_name
from medseg_diff.data.caselist import build_caselist, load_caselist
from medseg_diff.data.dataset import batches
from medseg_diff.data.prepare import open_targets, prepare
from medseg_diff.data.unpaired import UnpairedSet, training_set
from medseg_diff.data.unreadable import BAD, Skipped
from medseg_diff.errors import InputError, UsageError
from medseg_diff.training.fit import Options, fit
from tests.translation_fixtures import paired
from tests.unpaired_fixtures import tiny_unpaired, unpaired_keys, write_domain, write_domains

VOLUME = (15, 18, 13)


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Case lists of 2-D images."""
    return write_domains(tmp_path_factory.mktemp("flat"))


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Exit code of ``medseg-diff words...``."""
    monkeypatch.setattr(sys, "argv", ["medseg-diff", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def samples_of(ours: Path, theirs: Path, **training: Any) -> UnpairedSet:
    config, cases, _ = prepare(tiny_unpaired(ours, theirs, **training))
    made = training_set(config, cases, open_targets(config), 3, Skipped())
    assert isinstance(made, UnpairedSet)
    return made


# Samples


def cases_with(patch: np.ndarray, held: CacheDataset) -> set[int]:
    """Which preprocessed cases show a patch of 8 x 8 somewhere."""
    return {
        index
        for index, case in enumerate(map(held.__getitem__, range(len(held))))
        for r in range(7)
        for c in range(10)
        if np.array_equal(patch, case["image"][:, r : r + 8, c : c + 8, 0])
    }


def test_a_sample_holds_a_patch_of_each_domain(flat: tuple[Path, Path]):
    """Without augmentation each is found again in its own list, every case once an epoch."""
    made = samples_of(*flat, augment=False)
    for key, held in (("image", made.cases), ("label", made.others.cases)):
        patches = [made[number][key].numpy() for number in range(6)]
        assert {(p.shape, p.dtype.name) for p in patches} == {((1, 8, 8), "float32")}
        found = [cases_with(patch, held) for patch in patches]
        assert all(found), key
        for epoch in (found[:3], found[3:]):
            assert set.union(*epoch) == {0, 1, 2}, key
    assert made[0]["noise"].shape == (3, 8, 8)


def test_a_sample_is_a_function_of_its_number(flat: tuple[Path, Path]):
    first, again = samples_of(*flat), samples_of(*flat)
    second = again[5], again[2]
    for number, other in zip((5, 2), second, strict=True):
        sample = first[number]
        assert sample.keys() == other.keys()
        assert all(torch.equal(sample[key], other[key]) for key in sample)
    assert not torch.equal(first[2]["label"], first[5]["label"])


def test_the_two_draws_have_nothing_to_do_with_one_another(flat: tuple[Path, Path]):
    """One list in both places: neither the same case nor the same crop comes as a rule."""
    made = samples_of(flat[0], flat[0], augment=False, steps=30)
    same_case = [made.case_of(number)[0] == made.others.case_of(number)[0] for number in range(60)]
    same_patch = [torch.equal(made[number]["image"], made[number]["label"]) for number in range(60)]
    assert 5 < sum(same_case) < 40
    assert sum(same_patch) < 5


def test_a_batch_is_the_same_for_two_processes(flat: tuple[Path, Path]):
    made = samples_of(*flat)
    (whole,) = batches(made, 2, 3)
    parts = [next(iter(batches(made, 2, 3, rank=rank, world=2))) for rank in range(2)]
    for name in ("image", "labels", "noise", "t"):
        both = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(getattr(whole, name), both), name


def test_a_bad_image_of_the_second_list_is_named_and_passed_over(tmp_path: Path):
    ours, theirs = write_domains(tmp_path)
    (theirs.parent / "theirs_1.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="theirs_1"):
        fit(tiny_unpaired(ours, theirs), tmp_path / "run")
    config, cases, _ = prepare(tiny_unpaired(ours, theirs), Skipped(1))
    made = training_set(config, cases, open_targets(config), 3, Skipped(1))
    told = [made[number].get(BAD, {}) for number in range(3)]
    assert [list(lines) for lines in told if lines] == [["theirs_1"]]
    fit(tiny_unpaired(ours, theirs), tmp_path / "other", Options(skip_bad=1))
    listed = json.loads((tmp_path / "other" / "skipped_cases.json").read_text())
    assert [each["case"] for each in listed] == ["theirs_1"]


# Plan and task


def test_each_domain_has_one_range_that_inverts_it(flat: tuple[Path, Path]):
    config, _, facts = prepare(tiny_unpaired(*flat))
    ends = []
    for channel in (0, 1):
        values = [
            paired((14, 17), n + 10 * channel)[channel].clip(0, 255).astype(np.uint8)
            for n in range(4)
        ]
        found = [np.percentile(v, (0.05, 99.95)) for v in values]
        ends.append((min(f[0] for f in found), max(f[1] for f in found)))
    assert config.plan.target_range == pytest.approx(ends[1])
    (fixed,) = config.plan.normalisation or ()
    assert fixed.kind == "range"
    assert fixed.clip == pytest.approx(ends[0])
    task = config.known_task
    assert (task.channels, task.target, task.target_channel) == (("T1",), "FLAIR", "FLAIR")
    assert (facts.train, facts.validation, facts.name) == (6, 2, "ours and theirs")


def test_the_way_back_and_back_again_is_the_way(flat: tuple[Path, Path]):
    config, _, _ = prepare(tiny_unpaired(*flat))
    turned = backward(config)
    assert turned.known_task.channels == ("FLAIR",)
    assert turned.known_task.target == "T1"
    assert turned.plan.target_range == (config.plan.normalisation or ())[0].clip
    assert backward(turned) == config


def test_planes_and_modalities_change_places():
    keys = unpaired_keys(Path("a"), Path("b"))
    keys["task"] = {
        "modality": "MR", "target_modality": "CT", "channels": ["x"], "input_channels": [1],
        "target": "target x", "target_channel": "x", "target_planes": 3,
    }  # fmt: skip
    keys["plan"] |= {"normalisation": [{"kind": "range", "clip": [1, 2]}], "target_range": [3, 4]}
    turned = backward(parse_config(keys))
    task, plan = turned.known_task, turned.plan
    assert (task.modality, task.target_modality) == ("CT", "MR")
    assert (task.input_channels, task.target_planes, task.target) == ((3,), 1, "target x")
    assert [n.clip for n in plan.normalisation or ()] == [(3, 4)] * 3
    assert plan.target_range == (1, 2)
    keys["task"].pop("target_channel")
    with pytest.raises(UsageError, match="knows one direction"):
        backward(parse_config(keys))
    assert target_name("x", "x") == "target x"
    assert target_name("x", "y") == "y"


# What is refused


def test_a_bad_second_list_gives_one_line(flat, tmp_path: Path, monkeypatch, capsys):
    """Missing, broken, several channels, nothing to train on: exit 1 and one line that names it."""
    ours, theirs = flat
    content = json.loads(theirs.read_text())
    lists = {
        "missing.json": (None, "no such case list"),
        "broken.json": ("{", "not a json file"),
        "channels.json": (
            {**content, "channels": ["FLAIR", "T2"], "cases": [
                {**case, "channels": {"FLAIR": case["channels"]["FLAIR"], "T2": "theirs_0.png"}}
                for case in content["cases"][:1]
            ]},
            "one channel in each domain",
        ),
        "empty.json": (
            {**content, "cases": [{**case, "part": "test"} for case in content["cases"]]},
            "no training case",
        ),
    }  # fmt: skip
    for name, (written, words) in lists.items():
        file = tmp_path / name
        if written is not None:
            file.write_text(written if isinstance(written, str) else json.dumps(written))
        keys = unpaired_keys(ours, file)
        keys["data"] |= {"target_root": str(theirs.parent)}
        (tmp_path / "c.yaml").write_text(parse_config(keys).to_yaml())
        assert call(monkeypatch, "train", tmp_path / "c.yaml", "--out", tmp_path / "run") == 1
        told = capsys.readouterr().err.strip().splitlines()
        assert len(told) == 1, told
        assert words in told[0].lower()
        assert name in told[0]
    assert not (tmp_path / "run").exists()


def test_volumes_are_not_translated_into_flat_images(flat: tuple[Path, Path], tmp_path: Path):
    volumes = write_domain(tmp_path / "ours", "T1", VOLUME, target=False)
    with pytest.raises(InputError, match="second list are 2-D"):
        prepare(tiny_unpaired(volumes, flat[1], 3))


def test_images_alone_are_a_list_that_cannot_be_segmented(flat: tuple[Path, Path], tmp_path: Path):
    assert load_caselist(flat[0]).labels == {}
    with pytest.raises(InputError, match="images alone"):
        prepare(parse_config({"recipe": "unet", "data": {"cases": str(flat[0])}}))
    content = json.loads(flat[0].read_text()) | {"labels": {"background": 0, "a": 1}}
    with pytest.raises(InputError, match="without a reference mask"):
        build_caselist(content)


def test_masks_of_a_list_are_not_looked_at(tmp_path: Path):
    ours, theirs = write_domains(tmp_path)
    content = json.loads(ours.read_text()) | {"labels": {"background": 0, "a": 1}}
    for case in content["cases"]:
        # A file that is no mask: reading it would be refused.
        case["references"] = ["cases.json"]
    ours.write_text(json.dumps(content))
    fit(tiny_unpaired(ours, theirs, steps=1), tmp_path / "run")
    assert (tmp_path / "run" / "model.safetensors").is_file()
