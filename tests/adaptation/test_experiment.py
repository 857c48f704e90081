"""A whole experiment on balls: every row trained, scored and tabulated, and never twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from medseg_diff.adaptation import experiment as module
from medseg_diff.adaptation import rows as methods
from medseg_diff.adaptation.definition import load_experiment
from medseg_diff.adaptation.experiment import run_experiment
from medseg_diff.adaptation.pictures import Shown, target_picture, write_report
from medseg_diff.adaptation.work import Work
from medseg_diff.data.caselist import load_caselist
from medseg_diff.errors import UsageError
from tests.training_fixtures import write_dataset

ROWS = methods.names()


def write_experiment(folder: Path, **changes) -> Path:
    """Two steps on patches of 8 x 8: every method's path, no accuracy."""
    if not (folder / "data").is_dir():
        write_dataset(folder / "data", cases=7)
    config = {
        "name": "balls",
        "recipe": "unet",
        "data": {"cases": "elsewhere"},
        "plan": {"spatial_dims": 2, "patch_size": [16, 16], "batch_size": 2},
        "model": {"features": [4, 4]},
        "training": {"steps": 2, "warmup_steps": 1, "validate_every": 2, "save_every": 1},
    }
    (folder / "unet.yaml").write_text(yaml.safe_dump(config))
    data = {"cases": "data/cases.json"}
    keys = {
        "name": "balls",
        "config": "unet.yaml",
        "source": data,
        "targets": {"inverted": {**data, "shift": "contrast_inversion", "level": "strong"}},
        "rows": ROWS,
        **changes,
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(keys))
    return folder / "experiment.yaml"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("adapt")
    torch.set_num_threads(1)
    lines: list[str] = []
    files = run_experiment(load_experiment(write_experiment(folder)), folder / "out", lines.append)
    return folder, files, lines


def test_every_row_leaves_its_cases(done):
    _, files, lines = done
    assert [file.stem for file in files["inverted"]] == [f"{name}_seed0" for name in ROWS]
    used = {}
    for file in files["inverted"]:
        table = pd.read_csv(file)
        assert set(table["domain"]) == {"source", "target"}
        assert table["dice"].notna().all()
        assert (table["training_steps"] == 2).all()
        assert (table["training_seconds"] > 0).all()
        used[table["row"].iloc[0]] = table["target_used"].fillna("none").iloc[0]
    wanted = {
        "none": {
            "source_only", "source_only_batchnorm", "strong_augmentation", "synthetic_contrast",
            "diffusion_source_only", "joint_diffusion", "latent_source_only", "latent_translation",
            "latent_translation_one_step", "latent_edges", "latent_edges_one_step",
            "latent_encoder", "latent_encoder_one_step", "latent_noising", "latent_skips",
        },
        "the scan itself": {
            "tent", "histogram_matching", "guided_prior", "edge_input", "diffusion_edges",
            "partial_noising",
        },
        "scans": {
            "fourier", "adabn", "self_training", "mean_teacher", "adversarial_output",
            "cycle_diffusion", "syndiff", "latent_cycle",
        },
        "labels": {"oracle", "adapters_1", "adapters_5", "fine_tuning_1", "fine_tuning_5"},
    }  # fmt: skip
    for use, names in wanted.items():
        assert {used[name] for name in names} == {use}
    assert len(lines) == len(ROWS)


def test_trainings_without_the_target_are_shared(done):
    folder, _, _ = done
    shared = {p.name for p in (folder / "out" / "seed0" / "runs").iterdir()}
    own = {p.name for p in (folder / "out" / "inverted" / "seed0" / "runs").iterdir()}
    assert shared >= {
        "source_only", "source_only_batchnorm", "strong_augmentation", "synthetic_contrast",
        "diffusion_source_only", "joint_diffusion", "mask_prior",
    }  # fmt: skip
    assert own >= {
        "adabn", "fourier", "oracle", "self_training", "mean_teacher", "adversarial_output",
        "adapters_1", "adapters_1_merged", "adapters_5", "adapters_5_merged", "fine_tuning_1",
        "fine_tuning_5",
    }  # fmt: skip
    assert not shared & own


def test_self_training_learns_the_source_models_masks(done):
    folder, _, _ = done
    home = folder / "out" / "inverted" / "seed0" / "self_training"
    listed = load_caselist(home.parent / "lists" / "self_training.json", home)
    kinds = {c.case.split("_")[0]: c.part for c in listed.cases if c.part == "train"}
    assert kinds == {"source": "train", "target": "train"}
    for case in listed.cases:
        (mask,) = listed.reference_paths(case)
        name = case.case.partition("_")[2]
        if case.case.startswith("target"):
            assert mask.read_bytes() == (home / "predictions" / f"{name}.nii.gz").read_bytes()
        else:
            original = folder / "data" / "labels" / f"{name}.nii.gz"
            assert mask.read_bytes() == original.read_bytes()


def test_the_picture_shows_every_row(done):
    folder, _, _ = done
    experiment = load_experiment(folder / "experiment.yaml")
    picture = target_picture(experiment, "inverted", folder / "out")
    assert picture.startswith(b"\x89PNG")
    fewer = experiment.model_copy(update={"rows": ("source_only",)})
    assert picture != target_picture(fewer, "inverted", folder / "out")


def test_the_report_shows_the_best_rows_and_restyled_scans(done):
    folder, files, _ = done
    experiment = load_experiment(folder / "experiment.yaml")
    write_report(experiment, "inverted", files["inverted"], folder / "out")
    page = (folder / "out" / "inverted" / "report.html").read_text(encoding="utf-8")
    for heading in ("The best rows", "One case under every row", "Restyled scans"):
        assert f"<h2>{heading}</h2>" in page
    shown = Shown.of(experiment, "inverted", folder / "out")
    case = shown.scored[0]
    plain, styled = (
        shown.panel(row, case, "").image for row in ("source_only", "histogram_matching")
    )
    assert not np.array_equal(plain, styled)
    inverted = shown.scan(shown.cases, case, "").image
    np.testing.assert_array_equal(plain, inverted)
    fewer = experiment.model_copy(update={"rows": ("source_only", "oracle")})
    write_report(fewer, "inverted", files["inverted"], folder / "out")
    page = (folder / "out" / "inverted" / "report.html").read_text(encoding="utf-8")
    assert "Restyled scans" not in page


def test_tent_costs_more_passes(done):
    _, files, _ = done
    passes = {f.stem: pd.read_csv(f)["passes"].iloc[0] for f in files["inverted"]}
    assert passes["tent_seed0"] == 10 * passes["source_only_batchnorm_seed0"]


def test_nothing_is_done_twice_and_other_settings_are_refused(
    done, monkeypatch: pytest.MonkeyPatch
):
    folder, files, _ = done
    before = [file.read_bytes() for file in files["inverted"]]
    lines: list[str] = []
    again = load_experiment(folder / "experiment.yaml")
    with monkeypatch.context() as patch:
        patch.setattr(module, "predict_many", None)
        patch.setattr("medseg_diff.adaptation.work.fit", None)
        run_experiment(again, folder / "out", lines.append)
    assert [file.read_bytes() for file in files["inverted"]] == before
    assert all("done before" in line for line in lines)
    other = again.model_copy(update={"set": ("training.steps=3",)})
    with pytest.raises(UsageError, match="other settings"):
        run_experiment(other, folder / "out")


def test_rows_of_an_older_version_are_taken_up(done, tmp_path: Path):
    """Keys that it did not know are at their defaults; chosen since, they are other settings."""
    folder, files, _ = done
    experiment = load_experiment(folder / "experiment.yaml")
    experiment = experiment.model_copy(update={"rows": ("source_only",)})
    stamp = files["inverted"][ROWS.index("source_only")].with_suffix(".json")
    whole = stamp.read_text()
    record = json.loads(whole)
    del record["key"]["config"]["training"]["betas"], record["key"]["config"]["model"]["coarse"]
    stamp.write_text(json.dumps(record))
    lines: list[str] = []
    try:
        run_experiment(experiment, folder / "out", lines.append)
        chosen = experiment.model_copy(update={"set": ("training.betas=[0.5,0.9]",)})
        with pytest.raises(UsageError, match="other settings"):
            run_experiment(chosen, folder / "out")
    finally:
        stamp.write_text(whole)
    assert "done before" in lines[0]


def test_methods_do_not_see_target_masks_unless_they_ask(done):
    folder, _, _ = done
    cases = load_caselist(folder / "data" / "cases.json")
    work = Work(None, cases, cases, folder, folder)
    assert not any(case.references for case in work.unlabelled.cases)
    assert {c.case for c in work.unlabelled.cases} == {c.case for c in cases.part("train")}
    assert (work.target_used, work.labels_used) == (True, False)
    assert work.labelled is cases
    assert work.labels_used


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"rows": ["source_onl"]}, "Did you mean 'source_only'"),
        ({"targets": {"a": {"cases": "x", "shift": "motion"}}}, "needs its level"),
        ({"targets": {"a": {"cases": "x", "shift": "fog", "level": "mild"}}}, "unknown shift"),
        ({"speed": 1}, "speed"),
    ],
)
def test_a_wrong_experiment_is_refused(tmp_path: Path, changes: dict, word: str):
    with pytest.raises(UsageError, match=word):
        load_experiment(write_experiment(tmp_path, **changes))
    with pytest.raises(UsageError, match="no such experiment"):
        load_experiment(tmp_path / "gone.yaml")
