"""Unpaired translation from training to images: resuming, both directions, arrays, the YAML."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from medseg_diff import io
from medseg_diff.checkpoint import TENSORS, latest_checkpoint, load_tensors, read_card
from medseg_diff.cli.main import main
from medseg_diff.config import load_config, parse_config
from medseg_diff.data.caselist import load_caselist, save_caselist
from medseg_diff.errors import InputError, UsageError
from medseg_diff.inference.draws import DrawMasks, Fused
from medseg_diff.inference.predictor import Predictor
from medseg_diff.inference.scan import PlacedScan, place
from medseg_diff.training.fit import Options, fit
from medseg_diff.translation.translator import RIM, load_translator
from tests.translation_fixtures import AFFINE, tiny_translator, write_pairs
from tests.unpaired_fixtures import tiny_unpaired, unpaired_keys, write_domains

VOLUME = (15, 18, 13)


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Case lists of 2-D images."""
    return write_domains(tmp_path_factory.mktemp("flat"))


@pytest.fixture(scope="module")
def run(flat: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run in 2-D."""
    return fit(tiny_unpaired(*flat), tmp_path_factory.mktemp("runs") / "run")


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Exit code of ``medseg-diff words...``."""
    monkeypatch.setattr(sys, "argv", ["medseg-diff", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


# Training


class _Cut(Exception):
    pass


@pytest.mark.parametrize("dims", [2, 3])
def test_an_interrupted_training_ends_with_the_same_weights(dims: int, tmp_path: Path):
    """Cut off after its first resume point and resumed: the same tensors, optimiser included."""
    lists = write_domains(tmp_path / "data", VOLUME if dims == 3 else (14, 17))
    config = tiny_unpaired(*lists, dims)

    def cut(progress: Any, values: Any) -> None:
        if progress.step == 4:
            raise _Cut

    whole = fit(config, tmp_path / "whole")
    with pytest.raises(_Cut):
        fit(config, tmp_path / "parts", Options(report=cut))
    parts = fit(config, tmp_path / "parts", Options(resume=True))
    ours, theirs = (load_tensors(latest_checkpoint(run)[0] / TENSORS) for run in (whole, parts))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if "random" not in name)
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    assert "r1=" in (whole / "log.csv").read_text()


def test_a_changed_second_list_is_noticed_on_resuming(tmp_path: Path):
    ours, theirs = write_domains(tmp_path / "data")
    fit(tiny_unpaired(ours, theirs), tmp_path / "run")
    listed = load_caselist(theirs)
    save_caselist(listed.with_cases(listed.cases[1:]), theirs)
    with pytest.raises(InputError, match="target data"):
        fit(tiny_unpaired(ours, theirs), tmp_path / "run", Options(resume=True))


def test_cycle_and_clean_error_fall(tmp_path: Path):
    """What has a known direction goes there; discriminators begin by guessing."""
    ours, theirs = write_domains(tmp_path / "data", (24, 24))
    keys = unpaired_keys(ours, theirs, steps=60, learning_rate=0.003)
    keys["plan"] |= {"patch_size": [16, 16]}
    log = pd.read_csv(fit(parse_config(keys), tmp_path / "run") / "log.csv")
    rows = [dict(part.split("=") for part in row.split()) for row in log["parts"]]

    def mean(name: str, steps: slice) -> float:
        return float(np.mean([float(row[name]) for row in rows[steps]]))

    first, last = slice(0, 5), slice(-10, None)
    for name in ("cycle", "absolute_error"):
        assert mean(name, last) < 0.8 * mean(name, first), name
    # Two logistic losses in each of two domains: 4 log 2 where nothing is told apart.
    assert mean("image_judges", first) == pytest.approx(4 * np.log(2), rel=0.1)


# Translation by the commands


def test_from_two_lists_to_images_by_the_command_line(tmp_path: Path, monkeypatch, capsys):
    """train, info and translate in both directions, 3-D: names, grid, units, spread."""
    ours, theirs = write_domains(tmp_path / "data", VOLUME)
    (tmp_path / "c.yaml").write_text(tiny_unpaired(ours, theirs, 3).to_yaml())
    run = tmp_path / "run"
    assert call(monkeypatch, "train", tmp_path / "c.yaml", "--out", run) == 0
    card = read_card(run)
    assert card["target"]["name"] == "FLAIR"
    assert card["training"] == {"steps": 6, "validation_mae": None}
    assert call(monkeypatch, "info", run) == 0
    assert "SYNTHETIC" in capsys.readouterr().out
    ranges = {"forward": card["target"]["range"], "backward": card["intensity"][0]["clip"]}
    for direction, cases, target in (("forward", ours, "FLAIR"), ("backward", theirs, "T1")):
        out = tmp_path / direction
        words = ("translate", "--model", run, "--input", cases, "--out", out)
        assert call(monkeypatch, *words, "--direction", direction) == 0
        name = f"{cases.parent.name}_4"
        assert {p.name for p in out.iterdir()} == {
            f"{name}.json", f"{name}_SYNTHETIC.nii.gz", f"{name}_SYNTHETIC_spread.nii.gz",
            "manifest.sqlite",
        }  # fmt: skip
        made = nib.load(out / f"{name}_SYNTHETIC.nii.gz")
        np.testing.assert_allclose(made.affine, AFFINE, atol=1e-6)
        assert made.shape == VOLUME
        assert bytes(made.header["descrip"]).startswith(f"SYNTHETIC {target}".encode())
        record = json.loads((out / f"{name}.json").read_text())
        assert (record["target"], record["status"]) == (target, "ok")
        assert record["range"] == pytest.approx(ranges[direction])
        assert record["mean_spread"] > 0
        low, high = ranges[direction]
        values = np.asarray(made.dataobj)
        assert low - 1e-3 <= values.min()
        assert values.max() <= high + 1e-3


def test_the_other_direction_is_another_answer_to_continue(run, flat, tmp_path, monkeypatch):
    """The same scan and folder: what the one direction wrote is not taken for the other's."""
    file, out = flat[0].parent / "ours_4.png", tmp_path / "out"
    words = ("translate", "--model", run, "--input", file, "--out", out, "--continue")
    assert call(monkeypatch, *words) == 0
    assert json.loads((out / "ours_4.json").read_text())["target"] == "FLAIR"
    assert call(monkeypatch, *words, "--direction", "backward") == 0
    assert json.loads((out / "ours_4.json").read_text())["target"] == "T1"


def test_arrays_are_translated_as_files_are(run: Path, flat: tuple[Path, Path]):
    """What domain adaptation asks: a scan that was read -> (K, *S) float32, the files' answer."""
    for direction, cases in (("forward", flat[0]), ("backward", flat[1])):
        translator = load_translator(run, direction=direction)
        file = next(cases.parent.glob("*_4.png"))
        made = translator.restyle(io.read_image(file), file.stem)
        assert made.dtype == np.float32
        assert made.shape == (1, 14, 17)
        same = translator.translate(file, draws=1).image
        np.testing.assert_array_equal(made, same.numpy())
        other = translator.restyle(io.read_image(file), file.stem, seed=1)
        assert np.abs(other - made).max() > 0
        with pytest.raises(InputError, match="planes"):
            translator.restyle(torch.cat([io.read_image(file)] * 3), "three")


def test_a_mirrored_rim_is_seen_and_cut_off(run: Path, flat: tuple[Path, Path], monkeypatch):
    """A network that answers with what it is shown gives the scan back, voxel by voxel."""
    translator = load_translator(run, "cpu")
    image = io.read_image(next(flat[0].parent.glob("*_4.png")))
    placed = place(image, translator.task, translator.plan, Path("same"))
    rim = [side // RIM for side in translator.patch]
    assert any(rim)
    shown, planned = [], []

    def answers(self: Predictor, scan: PlacedScan, *_: Any) -> tuple[Fused, list[str]]:
        shown.append(scan.values)
        plane = np.zeros(scan.values.shape[1:], np.float32)
        masks = DrawMasks((np.zeros((0, *plane.shape, 1), np.uint8),), (1,))
        return Fused(scan.values / 2 + 0.5, plane, plane, masks, {}), []

    within = Predictor._within

    def counted(self: Predictor, scan: PlacedScan, *words: Any, **named: Any) -> Any:
        planned.append(scan.values.shape)
        return within(self, scan, *words, **named)

    monkeypatch.setattr(Predictor, "_infer", answers)
    monkeypatch.setattr(Predictor, "_within", counted)
    fused, _ = translator._drawn(placed, "same", translator.defaults, 0, None)
    wide = np.pad(placed.values, [(0, 0), *((r, r) for r in rim)], mode="reflect")
    np.testing.assert_array_equal(shown[0], wide)
    # Memory is planned for what is shown, not for what comes back.
    assert planned == [wide.shape]
    np.testing.assert_allclose(2 * fused.probability - 1, placed.values, atol=1e-6)
    assert fused.variance.shape == fused.entropy.shape == placed.values.shape[1:]


def test_other_steps_are_refused_in_one_line(run, flat, tmp_path, monkeypatch, capsys):
    words = ("translate", "--model", run, "--input", flat[0], "--out", tmp_path / "out")
    assert call(monkeypatch, *words, "--steps", 2) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert "4 steps" in told[0]


def test_a_model_of_pairs_has_no_way_back(tmp_path: Path):
    trained = fit(tiny_translator("one_step", write_pairs(tmp_path, (14, 17)), 2), tmp_path / "run")
    with pytest.raises(UsageError, match="knows one direction"):
        load_translator(trained, direction="backward")
    with pytest.raises(UsageError, match="unknown direction"):
        load_translator(trained, direction="sideways")  # type: ignore[arg-type]


# The shipped YAML


def test_the_shipped_yaml_trains_and_translates(tmp_path: Path, repository: Path, monkeypatch):
    """At a width and length for a test, on lists with masks, which nobody looks at."""
    ours, theirs = write_domains(tmp_path / "data", (24, 26))
    settings = {
        "data.cases": json.dumps(str(ours)), "data.target_cases": json.dumps(str(theirs)),
        "plan.patch_size": [16, 16], "plan.batch_size": 2, "model.features": [4, 8, 8],
        "model.time_channels": 8, "training.steps": 2, "training.warmup_steps": 1,
    }  # fmt: skip
    words = [w for key, value in settings.items() for w in ("--set", f"{key}={value}")]
    file, run = repository / "configs" / "nuclei_syndiff.yaml", tmp_path / "run"
    assert load_config(file).data.foreground_crops == 0
    assert call(monkeypatch, "train", file, "--out", run, *words) == 0
    out = tmp_path / "out"
    assert call(monkeypatch, "translate", "--model", run, "--input", ours, "--out", out) == 0
    assert (out / "ours_4_SYNTHETIC.tif").is_file()
