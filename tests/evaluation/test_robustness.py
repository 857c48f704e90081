"""Curves against the strength of a shift, on a model whose answer is known."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medseg_diff.cli import main as cli
from medseg_diff.data.caselist import load_caselist
from medseg_diff.data.frozen_shifts import FrozenShifts
from medseg_diff.errors import InputError, UsageError
from medseg_diff.evaluation import robustness as module
from medseg_diff.evaluation.robustness import COLUMNS, MEAN, robustness
from tests.tiny import threshold_predictor, tiny_config
from tests.training_fixtures import write_dataset

SHIFTS = FrozenShifts.model_validate(
    {
        "version": 1,
        "shifts": {
            "contrast_inversion": {"parameter": "strength", "levels": {"strong": 1.0}},
            "slice_thickness": {"parameter": "thickness_mm", "levels": {"a": 2.0, "b": 8.0}},
        },
    }
)


def measure(folder: Path, out: Path, **more):
    """Balls of intensity 7 on 5, which the plan makes 1 on 0."""
    config = tiny_config(
        task={"labels": {"background": 0, "ball": 1}},
        plan={
            "spacing_mm": [1.0, 1.0, 1.0],
            "normalisation": [{"kind": "ct", "mean": 5.0, "sd": 2.0}],
        },
    )
    config = config.model_copy(
        update={"task": config.task.model_copy(update={"labels": {"background": 0, "ball": 1}})}
    )
    return robustness(
        threshold_predictor(config), load_caselist(folder / "cases.json"), out, SHIFTS, **more
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("robustness")
    write_dataset(folder / "data")
    lines: list[str] = []
    result = measure(folder / "data", folder / "out", report=lines.append)
    return folder, result, lines


def test_dice_falls_with_strength(found):
    _, result, lines = found
    table = result.points
    assert list(table.columns) == list(COLUMNS)
    dice = table[table["structure"] == MEAN].set_index(["shift", "level"])["dice"]
    assert dice["contrast_inversion", "none"] == dice["slice_thickness", "none"] > 0.9
    # The ball is now the dark part: none of it is found.
    assert dice["contrast_inversion", "strong"] < 0.2
    assert dice["slice_thickness", "none"] > dice["slice_thickness", "a"]
    assert dice["slice_thickness", "a"] > dice["slice_thickness", "b"]
    ece = table[table["structure"] == MEAN].set_index(["shift", "level"])["ece"]
    assert ece["contrast_inversion", "strong"] > ece["contrast_inversion", "none"] + 0.1
    assert len(lines) == 5
    assert "strong" in result.describe()


def test_the_files_are_there_and_the_shifted_scans_are_not(found):
    folder, _, _ = found
    out = folder / "out"
    stored = pd.read_csv(out / "robustness.csv")
    assert set(stored["level"]) == {"none", "a", "b", "strong"}
    assert (out / "robustness.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "contrast inversion" in page
    assert "data:image/png" in page
    assert not list((out / "images").rglob("*.nii.gz"))
    assert (out / "evaluations" / "slice_thickness" / "b" / "per_case.csv").is_file()


def test_a_second_run_measures_nothing_again(found, monkeypatch: pytest.MonkeyPatch):
    folder, before, _ = found

    def never(*_, **__):
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        patch.setattr(module, "predict_many", never)
        after = measure(folder / "data", folder / "out")
        np.testing.assert_allclose(after.points["dice"], before.points["dice"])
        # Other draws are other points.
        with pytest.raises(AssertionError, match="measured again"):
            measure(folder / "data", folder / "out", seed=5)


def test_wrong_use_is_refused(found, tmp_path: Path):
    folder, _, _ = found
    with pytest.raises(UsageError, match="Did you mean 'slice_thickness'"):
        measure(folder / "data", tmp_path, names=["slice_thicknes"])
    with pytest.raises(InputError, match="no validation case"):
        measure(folder / "data", tmp_path, part="validation", limit=0)


def test_evaluate_with_shifts_does_what_robustness_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """The same run, whichever command asks for it."""
    calls = []
    monkeypatch.setattr(cli, "robustness", lambda *given, **more: calls.append((given, more)))
    assert call(monkeypatch, "evaluate", "--shifts", "--model", "RUN", "--out", "o") == 0
    asked = ("evaluate", "--shifts", "--model", "A", "--model", "B", "--out", "o", "--ref", "c")
    assert call(monkeypatch, *asked) == 0
    assert calls == [
        ((["RUN"], Path("o")), {"data": None}),
        ((["A", "B"], Path("o")), {"data": Path("c")}),
    ]
    for words in (
        ("--shifts",),
        ("--model", "RUN"),
        ("--shifts", "--model", "RUN", "--pred", "p"),
        ("--pred", "p", "--ref", "r", "--model", "RUN"),
        ("--pred", "p"),
        (),
    ):
        assert call(monkeypatch, "evaluate", "--out", tmp_path, *words) == 2
    assert len(calls) == 2


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Exit code of ``medseg-diff words...``."""
    monkeypatch.setattr(sys, "argv", ["medseg-diff", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)
