"""The error table of a run: measured by hand-checkable rules, stored, vouched for, and used."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medseg_diff.checkpoint import ERRORS, load_run, save_model
from medseg_diff.cli.main import main
from medseg_diff.config import merged, parse_config
from medseg_diff.diffusion.samplers import Denoised
from medseg_diff.errors import InputError, UsageError
from medseg_diff.files import file_sha256
from medseg_diff.inference.predictor import load
from medseg_diff.model import DiffusionModel, build_model
from medseg_diff.posthoc.truth import MOST_WINDOWS, TrueWindows, cases_of, true_windows
from medseg_diff.posthoc.variance import case_errors, estimate_variance
from medseg_diff.training.fit import fit
from tests.tiny import tiny_config
from tests.training_fixtures import tiny, write_dataset

TIMES = torch.tensor([0.2, 0.7], dtype=torch.float64)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("variance"))


@pytest.fixture(scope="module")
def trained(cases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps, validated although the sampler has no table yet."""
    config = tiny(cases, steps=2, validate_every=1)
    keys = merged(config.model_dump(mode="json"), {"prediction": {"sampler": "analytic"}})
    return fit(parse_config(keys), tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def flat_model(**changes: Any) -> DiffusionModel:
    torch.manual_seed(0)
    model = build_model(tiny_config(**merged({"plan": {"spatial_dims": 2}}, changes)))
    assert isinstance(model, DiffusionModel)
    return model


def two_windows(labels: Tensor) -> TrueWindows:
    places = tuple((slice(k, k + 8), slice(0, 8), slice(0, 1)) for k in (0, 8))
    return TrueWindows("x", torch.randn(2, 1, 8, 8), labels, places)


def answers(model: DiffusionModel, clean: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the model's estimate be ``clean(x_t, t, previous)``."""

    def denoised(x_t: Tensor, t: Tensor, context: Any, previous: Any = None) -> Denoised:
        return Denoised(clean(x_t, t, previous))

    monkeypatch.setattr(model, "denoised", denoised)


def test_an_estimate_of_nothing_is_off_by_one(monkeypatch: pytest.MonkeyPatch):
    """States are -1 or 1, so their square is 1, in whatever voxels count."""
    labels = torch.randint(0, 4, (2, 1, 8, 8), dtype=torch.int16)
    for ignore in (None, 3):
        model = flat_model(task={"ignore_label": ignore})
        answers(model, lambda x, t, previous: torch.zeros_like(x), monkeypatch)
        errors = case_errors(model, two_windows(labels), TIMES, 0)
        assert errors is not None
        assert errors.tolist() == pytest.approx([1.0, 1.0])
    assert case_errors(model, two_windows(torch.full_like(labels, 3)), TIMES, 0) is None


def test_an_estimate_that_ignores_noise_is_off_by_its_gains(monkeypatch: pytest.MonkeyPatch):
    """The state itself as estimate misses by (a - 1) clean + sigma noise."""
    model = flat_model()
    answers(model, lambda x, t, previous: x, monkeypatch)
    windows = two_windows(torch.zeros(2, 1, 8, 8, dtype=torch.int16))
    errors = case_errors(model, windows, TIMES, 5)
    assert errors is not None
    state = model.codec.encode(windows.labels)
    for k, error in enumerate(errors):
        a, _, sigma = (float(c) for c in model.path.coefficients(TIMES[k : k + 1]))
        off = (a - 1) * state + sigma * windows.noise(5, 0, k, 4)
        assert float(error) == pytest.approx(float(off.double().square().mean()), rel=1e-5)


def test_self_conditioning_sees_its_own_first_estimate(monkeypatch: pytest.MonkeyPatch):
    model = flat_model(model={"self_conditioning": True})
    seen: list[Any] = []

    def clean(x: Tensor, t: Tensor, previous: Tensor | None) -> Tensor:
        seen.append(None if previous is None else float(previous.mean()))
        return torch.full_like(x, 0.25 if previous is None else 0.75)

    answers(model, clean, monkeypatch)
    errors = case_errors(
        model, two_windows(torch.zeros(2, 1, 8, 8, dtype=torch.int16)), TIMES[:1], 0
    )
    assert errors is not None
    assert seen == [None, 0.25]
    assert float(errors) == pytest.approx((0.25**2 + 3 * 1.75**2) / 4)


def test_the_noise_of_a_window_is_its_place_in_the_field():
    windows = two_windows(torch.zeros(2, 1, 8, 8, dtype=torch.int16))
    noise = windows.noise(0, 0, 0, 3)
    assert noise.shape == (2, 3, 8, 8)
    shifted = TrueWindows("x", windows.image, windows.labels, (windows.places[1],) * 2)
    assert torch.equal(shifted.noise(0, 0, 0, 3)[0], noise[1])
    assert not torch.equal(noise[0], noise[1])
    for other in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        assert not torch.equal(windows.noise(*other, 3), noise)


def test_windows_of_a_case_hold_its_first_mask(run: Path):
    loaded = load_run(run)
    (found,) = true_windows(loaded, cases_of(loaded, None), "test")
    assert found.case == "ball_4"
    # 16 voxels along each axis, in windows of 8.
    assert found.image.shape == (MOST_WINDOWS, 1, 8, 8, 8)
    assert found.labels.shape == (MOST_WINDOWS, 1, 8, 8, 8)
    image, inside = found.image, found.labels == 1
    assert 0.02 < float(inside.float().mean()) < 0.2
    assert float(image[inside].mean()) > float(image[~inside].mean()) + 1
    with pytest.raises(InputError, match="unknown part"):
        list(true_windows(loaded, cases_of(loaded, None), "tests"))  # type: ignore[arg-type]


def test_another_task_is_refused(run: Path, tmp_path: Path):
    loaded, listed = load_run(run), write_dataset(tmp_path / "data")
    assert len(cases_of(loaded, listed).cases) == 5
    content = json.loads(listed.read_text())
    listed.write_text(json.dumps({**content, "labels": {"background": 0, "cube": 1}}))
    with pytest.raises(InputError, match="does not segment what the model does"):
        cases_of(loaded, listed)


def test_a_table_is_measured_stored_and_used(run: Path, cases: Path):
    scan = cases.parent / "images" / "ball_4.nii.gz"
    with pytest.raises(UsageError, match="medseg-diff estimate-variance --model RUN"):
        load(run).predict(scan)
    loaded = load_run(run)
    found = estimate_variance(loaded, part="train", cases=2)
    assert found.cases == 2
    assert found.file == run / ERRORS
    loaded = load_run(run)
    # Part of what an answer is made from, so that a folder is not continued with another table.
    assert loaded.card["sha256"][ERRORS] == file_sha256(run / ERRORS)
    again = loaded.model.error_table
    assert again is not None
    assert torch.equal(again.times, found.table.times)
    assert torch.equal(again.values, found.table.values)
    assert float(again.times[-1]) == 1
    assert len(again.times) == 50
    assert bool((again.values[-10:] > 0).all())
    # The walk is ancestral but for the variance, and so is the answer.
    p = [np.asarray(load(run).predict(scan, sampler=s).probability) for s in ("analytic", "ddim")]
    assert np.isfinite(p[0]).all()
    assert not np.array_equal(p[0], p[1])


def test_a_measurement_is_reproducible(run: Path):
    values = [estimate_variance(load_run(run), seed=seed).table.values for seed in (0, 0, 1)]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


def test_a_table_has_no_more_times_than_its_path(run: Path):
    loaded = load_run(run)
    betas = {"model": {"betas": [0.02, 0.1, 0.3], "features": [4, 4]}}
    loaded.model.path = flat_model(**betas).path  # type: ignore[assignment]
    assert estimate_variance(loaded).table.times.tolist() == pytest.approx([1 / 3, 2 / 3, 1])


def test_a_table_of_other_weights_is_as_good_as_none(run: Path):
    loaded = load_run(run)
    estimate_variance(loaded)
    with torch.no_grad():
        next(loaded.model.parameters()).add_(1)
    save_model(run, loaded.model, loaded.config, loaded.card)
    assert (run / ERRORS).is_file()
    assert load_run(run).model.error_table is None


@pytest.mark.parametrize("damage", ["value", "cut", "list", "unsorted"])
def test_a_damaged_table_is_refused(run: Path, damage: str):
    estimate_variance(load_run(run), cases=1)
    file = run / ERRORS
    record = json.loads(file.read_text())
    if damage == "value":
        record["values"][3] += 1e-9
    if damage == "unsorted":
        record["times"].reverse()
    text = json.dumps([1] if damage == "list" else record)
    file.write_text(text[:-5] if damage == "cut" else text)
    with pytest.raises(InputError, match="not the error table that was written"):
        load_run(run)


def test_analytic_variance_refuses_what_changes_the_estimate(run: Path, cases: Path):
    estimate_variance(load_run(run), cases=1)
    config = run / "config.yaml"
    config.write_text(
        config.read_text().replace("dynamic_threshold: null", "dynamic_threshold: 0.9")
    )
    with pytest.raises(UsageError, match="error of the plain estimate"):
        load(run).predict(cases.parent / "images" / "ball_4.nii.gz")


def test_a_latent_model_is_measured_in_its_latent(cases: Path, tmp_path: Path):
    keys = {
        "recipe": "lsegdiff",
        "data": {"cases": str(cases)},
        "plan": {"patch_size": [8, 8, 8], "batch_size": 2},
        "model": {
            "features": [4, 8],
            "time_channels": 8,
            "latent": {"features": [4, 8], "channels": 2, "steps": 1},
        },
        "training": {"steps": 2, "warmup_steps": 1, "validate_every": 2, "save_every": 2},
    }
    folder = fit(parse_config(keys), tmp_path / "run")
    values = estimate_variance(load_run(folder), cases=1, knots=4).table.values
    # A standardised latent has mean square 1; noise takes over towards t = 1.
    assert 0 < float(values[0]) < float(values[-1]) < 4
    scan = cases.parent / "images" / "ball_4.nii.gz"
    assert load(folder).predict(scan, sampler="analytic", draws=1).record["sampler"] == "analytic"


def test_a_unet_has_no_sampler(cases: Path, tmp_path: Path):
    keys = tiny(cases, steps=1).model_dump(mode="json")
    keys["model"] = {"kind": "unet", "features": [4, 8]}
    keys |= {"recipe": None, "objective": {"dice": 1.0}}
    with pytest.raises(UsageError, match="no diffusion of a mask"):
        estimate_variance(load_run(fit(parse_config(keys), tmp_path / "run")))


def test_features_have_no_mask_for_their_truth(cases: Path, tmp_path: Path):
    keys: dict[str, Any] = {
        "recipe": "feature_translation",
        "data": {"cases": str(cases)},
        "plan": {"patch_size": [8, 8, 8], "batch_size": 2},
        "model": {
            "features": [4, 8],
            "conditioner_features": [4, 8],
            "time_channels": 8,
            "latent": {"features": [4, 8], "channels": 2, "steps": 1},
        },
        "training": {"steps": 2, "warmup_steps": 1, "validate_every": 2, "save_every": 2},
    }
    with pytest.raises(UsageError, match="no diffusion of a mask"):
        estimate_variance(load_run(fit(parse_config(keys), tmp_path / "run")))


def test_the_command(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    def call(*words: object) -> None:
        monkeypatch.setattr(sys, "argv", ["medseg-diff", *map(str, words)])
        main()

    for words, line in (
        (("--part", "tests"), "unknown part"),
        (("--data", run / "none.json"), "no such case list"),
    ):
        with pytest.raises(SystemExit) as stopped:
            call("estimate-variance", "--model", run, *words)
        assert stopped.value.code == 1
        shown = capsys.readouterr().err
        assert line in shown
        assert shown.count("\n") == 1
    with pytest.raises(SystemExit) as stopped:
        call("estimate-variance", "--model", run, "--cases", 1)
    assert not stopped.value.code
    assert "(cases: 1)" in capsys.readouterr().out
    assert load_run(run).model.error_table is not None
