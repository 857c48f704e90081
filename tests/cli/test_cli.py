"""What a user types: exit codes, one line per refusal, no traceback."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from medseg_diff.cli.main import main
from medseg_diff.training.fit import fit
from tests.training_fixtures import tiny, write_dataset

Run = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a data set in ``data`` and a model of two steps in ``run``."""
    folder = tmp_path_factory.mktemp("cli")
    cases = write_dataset(folder / "data")
    fit(tiny(cases, steps=2, validate_every=2, save_every=2), folder / "run")
    return folder


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Exit code of ``medseg-diff words...``."""
    monkeypatch.setattr(sys, "argv", ["medseg-diff", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def test_train_predict_evaluate(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Run
) -> None:
    """The three commands in a row, from a YAML to a report."""
    config = tmp_path / "c.yaml"
    config.write_text(tiny(Path("nowhere")).to_yaml())
    data, run = trained / "data", tmp_path / "run"
    words = ("train", config, "--data", data, "--out", run, "--set", "training.steps=2")
    assert call(monkeypatch, *words) == 0
    assert "training 2/2" in capsys.readouterr().out
    predict = ("predict", "--model", run, "--input", data / "cases.json", "--out", tmp_path / "p")
    assert call(monkeypatch, *predict, "--draws", 2, "--steps", 1) == 0
    assert {p.name for p in (tmp_path / "p").iterdir()} == {
        "ball_4.json",
        "ball_4.nii.gz",
        "ball_4_doubt.nii.gz",
        "ball_4_prob.nii.gz",
        "volumes.csv",
        "manifest.sqlite",
    }
    record = json.loads((tmp_path / "p" / "ball_4.json").read_text())
    assert (record["draws"], record["steps"]) == (2, 1)
    assert record["network_calls"]["denoiser"] == 2 * record["network_calls"]["context"]
    score = ("evaluate", "--pred", tmp_path / "p", "--ref", data / "cases.json")
    assert call(monkeypatch, *score, "--out", tmp_path / "e") == 0
    assert list(pd.read_csv(tmp_path / "e" / "per_case.csv")["case"]) == ["ball_4"]
    assert "ball_4" in (tmp_path / "e" / "report.html").read_text()


def test_two_models_form_one_ensemble(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each member draws its own masks."""
    scan = trained / "data" / "images" / "ball_4.nii.gz"
    words = ("predict", "--model", trained / "run", "--model", trained / "run", "--input", scan)
    assert call(monkeypatch, *words, "--out", tmp_path / "p", "--draws", 2) == 0
    record = json.loads((tmp_path / "p" / "ball_4.json").read_text())
    assert record["models"] == 2
    assert 0 <= record["pairwise_dice"]["ball"] <= 1


def test_info(trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: Run) -> None:
    """A model and a scan in a few lines."""
    assert call(monkeypatch, "info", trained / "run") == 0
    assert "0 background, 1 ball" in capsys.readouterr().out
    assert call(monkeypatch, "info", trained / "data" / "images" / "ball_0.nii.gz") == 0
    assert "16 x 16 x 16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (("train", "missing.yaml"), 2, "missing.yaml: no such configuration file"),
        (("train", "BAD"), 2, "training.stepz: unknown key. Did you mean 'steps'?"),
        (("train", "GOOD", "--set", "training.steps=0"), 2, "training.steps"),
        (("train", "GOOD", "--out", "RUN"), 1, "the run folder is not empty"),
        (("train", "GOOD", "--out", "new", "--resume"), 1, "nothing to resume from"),
        (("predict", "--model", "none", "--input", "SCAN", "--out", "o"), 1, "not a trained model"),
        (("predict", "--model", "RUN", "--input", "none.nii", "--out", "o"), 1, "none.nii"),
        (("predict", "--model", "RUN", "--input", "SCAN", "--out", "DATA"), 2, "among the inputs"),
        (
            ("predict", "--model", "RUN", "--input", "SCAN", "--out", "o", "--device", "cuda"),
            2,
            "no GPU here",
        ),
        (
            ("predict", "--model", "RUN", "--input", "SCAN", "--out", "o", "--draws", "0"),
            2,
            "--draws",
        ),
        (("evaluate", "--pred", "none", "--ref", "DATA", "--out", "o"), 1, "none"),
        (("info", "none"), 1, "no such model or scan"),
    ],
)
def test_refusals_are_one_line(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Run,
    words: tuple[str, ...],
    code: int,
    line: str,
) -> None:
    """Exit code, the line, nothing else and nothing left behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    good = tiny(trained / "data" / "cases.json").to_yaml()
    (tmp_path / "good.yaml").write_text(good)
    (tmp_path / "bad.yaml").write_text(good.replace("  steps: 10", "  stepz: 10"))
    names = {
        "GOOD": tmp_path / "good.yaml",
        "BAD": tmp_path / "bad.yaml",
        "RUN": trained / "run",
        "SCAN": trained / "data" / "images" / "ball_4.nii.gz",
        "DATA": trained / "data" / "images",
    }
    assert call(monkeypatch, *(names.get(w, w) for w in words)) == code
    shown = capsys.readouterr()
    if "[1/1]" in shown.out:  # a failing case is reported in its line, and in its JSON
        assert line in shown.out
    else:
        assert line in shown.err
        assert shown.err.startswith("error: ")
        assert shown.err.count("\n") == 1
    assert "Traceback" not in shown.out + shown.err
    assert not list(tmp_path.rglob("*.nii.gz"))


def test_an_unknown_orientation_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Run
) -> None:
    """Wrong use, refused before anything is read or written."""
    words = ("predict", "--model", "hippocampus", "--input", tmp_path, "--out", tmp_path / "o")
    assert call(monkeypatch, *words, "--assume-axcodes", "XYZ") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "--assume-axcodes" in lines[0]
    assert "RAS" in lines[0]
    assert not (tmp_path / "o").exists()


def test_a_way_of_sampling_that_the_model_does_not_allow_is_one_line(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Run
) -> None:
    """Guidance without condition dropout stops before the first case, with exit code 2."""
    config = trained / "run" / "config.yaml"
    run = tmp_path / "run"
    run.mkdir()
    for file in (trained / "run").glob("*.*"):
        (run / file.name).write_bytes(file.read_bytes())
    (run / "config.yaml").write_text(config.read_text().replace("guidance: 1.0", "guidance: 3.0"))
    words = ("predict", "--model", run, "--input", trained / "data" / "cases.json")
    assert call(monkeypatch, *words, "--out", tmp_path / "o") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "condition_dropout" in lines[0]
