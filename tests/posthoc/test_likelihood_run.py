"""Bits per dimension of a run's masks: closed forms, files, refusals, the command."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from medseg_diff.checkpoint import load_run
from medseg_diff.cli.main import main
from medseg_diff.config import merged, parse_config
from medseg_diff.diffusion.grids import time_grid
from medseg_diff.diffusion.samplers import Denoised
from medseg_diff.errors import InputError, UsageError
from medseg_diff.model import DiffusionModel, build_model
from medseg_diff.posthoc.likelihood import COLUMNS, Measure, case_bits, likelihood
from medseg_diff.posthoc.truth import TrueWindows
from medseg_diff.training.fit import fit
from tests.tiny import tiny_config
from tests.training_fixtures import tiny, write_dataset

QUICK = Measure(bound_steps=5, flow_steps=4, t_min=0.05)


def flat_model(**changes: Any) -> DiffusionModel:
    torch.manual_seed(0)
    model = build_model(tiny_config(**merged({"plan": {"spatial_dims": 2}}, changes)))
    assert isinstance(model, DiffusionModel)
    return model.eval()


def two_windows(value: int = 1) -> TrueWindows:
    places = tuple((slice(k, k + 8), slice(0, 8), slice(0, 1)) for k in (0, 8))
    labels = torch.zeros(2, 1, 8, 8, dtype=torch.int16)
    labels[1] = value
    return TrueWindows("x", torch.randn(2, 1, 8, 8), labels, places)


def answers(model: DiffusionModel, clean: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the model's estimate be ``clean(x_t)``."""

    def denoised(x_t: Tensor, t: Tensor, context: Any, previous: Any = None) -> Denoised:
        return Denoised(clean(x_t))

    monkeypatch.setattr(model, "denoised", denoised)


def test_a_model_that_knows_the_mask_pays_for_the_prior_alone(monkeypatch: pytest.MonkeyPatch):
    model, windows = flat_model(), two_windows(0)
    truth = model.codec.encode(windows.labels[:1])
    answers(model, lambda x: truth, monkeypatch)
    row = case_bits(model, windows, Measure("bound", bound_steps=20))
    a, _, sigma = (float(c) for c in model.path.coefficients(torch.ones(1).double()))
    # States are -1 or 1: KL(N(a clean, sigma^2) || N(0, sigma^2)) = a^2 / (2 sigma^2) nats each.
    prior = (a / sigma) ** 2 / 2 / math.log(2)
    assert row["prior_bits"] == pytest.approx(prior, rel=1e-6)
    assert row["steps_bits"] == pytest.approx(0, abs=1e-12)
    assert row["decoder_bits"] == pytest.approx(0, abs=1e-3)
    assert row["bound_bits"] == pytest.approx(prior, abs=1e-3)
    assert row["windows"] == 2
    assert row["dimensions"] == 4 * 8 * 8
    assert "flow_bits" not in row


def test_a_model_that_knows_nothing_pays_a_bit_in_the_end(monkeypatch: pytest.MonkeyPatch):
    """An estimate of 0 leaves both signs of a value alike: one bit, half of the line each."""
    model = flat_model()
    answers(model, torch.zeros_like, monkeypatch)
    row = case_bits(model, two_windows(), Measure("bound", bound_steps=1))
    assert row["decoder_bits"] == pytest.approx(1, rel=1e-9)
    assert row["steps_bits"] == 0


@pytest.mark.parametrize("name", ["variance_preserving", "linear"])
def test_the_flow_of_an_empty_estimate_in_closed_form(name: str, monkeypatch: pytest.MonkeyPatch):
    """Then x only scales with sigma, and the density at t_min is N(0, sigma^2 / a^2)."""
    model = flat_model(model={"path": name})
    answers(model, lambda x: 0 * x, monkeypatch)
    t_min = 0.05
    row = case_bits(model, two_windows(), Measure("flow", flow_steps=60, t_min=t_min))
    a, _, sigma = (float(c) for c in model.path.coefficients(torch.tensor([t_min]).double()))
    sd = sigma / a
    nats = 1 / (2 * sd**2) + math.log(sd) + math.log(2 * math.pi) / 2
    assert row["flow_bits"] == pytest.approx(nats / math.log(2), rel=1e-3)
    assert "bound_bits" not in row


def test_windows_are_averaged_and_lie_in_their_own_noise():
    model, windows = flat_model(), two_windows()
    whole = case_bits(model, windows, QUICK)
    alone = [
        case_bits(
            model,
            TrueWindows("x", windows.image[k : k + 1], windows.labels[k : k + 1], (place,)),
            QUICK,
        )
        for k, place in enumerate(windows.places)
    ]
    for name in ("bound_bits", "flow_bits", "decoder_bits"):
        assert alone[0][name] != alone[1][name]
        assert whole[name] == pytest.approx(sum(float(row[name]) for row in alone) / 2, rel=1e-9)
    total = sum(float(whole[f"{part}_bits"]) for part in ("prior", "steps", "decoder"))
    assert whole["bound_bits"] == pytest.approx(total, rel=1e-9)


def test_a_bound_of_noise_output_uses_its_learned_variance():
    rows = []
    for bias in (0.0, 4.0):
        model = flat_model(model={"output": "noise", "learned_variance": True})
        with torch.no_grad():
            model.denoiser.head.bias[4:] += bias  # type: ignore[index, union-attr, operator]
        rows.append(case_bits(model, two_windows(), Measure("bound", bound_steps=5)))
    assert rows[0]["steps_bits"] != rows[1]["steps_bits"]


def test_probes_differ_and_their_spread_is_told():
    model = flat_model()
    one = case_bits(model, two_windows(), Measure("flow", flow_steps=3, t_min=0.1))
    assert "flow_probe_sd" not in one
    three = case_bits(model, two_windows(), Measure("flow", flow_steps=3, t_min=0.1, probes=3))
    assert float(three["flow_probe_sd"]) > 0
    assert three["flow_bits"] != one["flow_bits"]


def test_a_table_of_betas_has_its_own_steps_and_no_flow():
    model = flat_model(model={"betas": [0.1, 0.2, 0.3]})
    assert len(time_grid(model.path, 3)) == 4
    row = case_bits(model, two_windows(), Measure(bound_steps=1000))
    assert math.isfinite(float(row["bound_bits"]))
    assert "flow_bits" not in row


def test_ignored_voxels_are_refused():
    model = flat_model(task={"ignore_label": 3})
    assert case_bits(model, two_windows(2), Measure("bound", bound_steps=1))
    with pytest.raises(InputError, match="ignored voxel has no likelihood"):
        case_bits(model, two_windows(3), Measure("bound", bound_steps=1))


def test_what_is_not_finite_is_refused(monkeypatch: pytest.MonkeyPatch):
    model = flat_model()
    answers(model, lambda x: x * math.nan, monkeypatch)
    with pytest.raises(InputError, match=r"not finite \(found nan in case x\)"):
        case_bits(model, two_windows(), Measure("flow", flow_steps=1))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("likelihood")
    cases = write_dataset(folder / "data")
    return fit(tiny(cases, steps=1), folder / "run")


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "per_case.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_command_writes_a_table_that_can_be_made_again(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    quick = ("--bound-steps", 3, "--flow-steps", 2, "--t-min", 0.1)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        words = ("likelihood", "--model", trained, "--out", tmp_path / name, "--seed", seed)
        words += ("--part", "train", "--cases", 2, "--device", "cpu", *quick)
        monkeypatch.setattr(sys, "argv", ["medseg-diff", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert not stopped.value.code
    assert "ball_0: bound_bits" in capsys.readouterr().out
    rows = table(tmp_path / "a")
    assert [row["case"] for row in rows] == ["ball_0", "ball_1"]
    assert tuple(rows[0]) == COLUMNS
    assert rows[0]["dimensions"] == str(2 * 8**3)
    assert (tmp_path / "a" / "per_case.csv").read_text() == (
        tmp_path / "b" / "per_case.csv"
    ).read_text()
    assert table(tmp_path / "c") != rows
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    bits = [float(row["bound_bits"]) for row in rows]
    assert summary["mean"]["bound_bits"] == pytest.approx(sum(bits) / 2)
    assert summary["sd"]["bound_bits"] == pytest.approx(abs(bits[0] - bits[1]) / math.sqrt(2))
    assert summary["settings"]["bound_steps"] == 3
    assert "flow_probe_sd" not in summary["mean"]
    assert "not dequantised" in summary["notes"][0]


def test_a_flow_without_a_path_for_it_is_told(trained: Path, tmp_path: Path):
    run = load_run(trained)
    run.model.path = flat_model(model={"betas": [0.1, 0.3]}).path  # type: ignore[assignment]
    likelihood(run, tmp_path / "out", cases=1)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["notes"] == ["flow_bits is left out: a table of betas has no probability flow"]
    assert set(summary["mean"]) == {"bound_bits", "prior_bits", "steps_bits", "decoder_bits"}
    with pytest.raises(UsageError, match="no probability flow"):
        likelihood(run, tmp_path / "out", measure=Measure("flow"))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--method", "exact"), "--method: unknown choice"),
        (("--t-min", "0"), "--t-min: out of range"),
    ],
)
def test_wrong_use_is_one_line(
    words: tuple[str, str], line: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    given = ["medseg-diff", "likelihood", "--model", "none", "--out", "none", *words]
    monkeypatch.setattr(sys, "argv", given)
    with pytest.raises(SystemExit) as stopped:
        main()
    shown = capsys.readouterr().err
    assert stopped.value.code == 2
    assert line in shown
    assert shown.count("\n") == 1


def test_a_unet_has_no_likelihood(trained: Path, tmp_path: Path):
    keys = load_run(trained).config.model_dump(mode="json")
    keys["model"] = {"kind": "unet", "features": [4, 8]}
    keys |= {"recipe": None, "objective": {"dice": 1.0}}
    run = load_run(fit(parse_config(keys), tmp_path / "run"))
    with pytest.raises(UsageError, match="no likelihood of masks"):
        likelihood(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
