"""Draws that lean towards a U-Net: the shift by hand, its effect, its record, its refusals."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medseg_diff.checkpoint import load_run
from medseg_diff.cli.main import main
from medseg_diff.config import Config, merged, parse_config
from medseg_diff.diffusion.paths import spread
from medseg_diff.diffusion.samplers import Denoised
from medseg_diff.errors import InputError, UsageError
from medseg_diff.inference.guided import GuidedPredictor, guided
from medseg_diff.inference.predictor import load
from medseg_diff.model import DiffusionModel, Sampling, UNetModel, build_model
from medseg_diff.model.guide import MARGIN, Guide
from medseg_diff.training.fit import fit
from tests.tiny import tiny_config
from tests.training_fixtures import tiny, write_dataset


def pair(scale: float = 1.0, **changes: Any) -> tuple[DiffusionModel, UNetModel]:
    """A diffusion model and a U-Net of one task in 2-D, the first steered by the second."""
    torch.manual_seed(0)
    changes = merged({"plan": {"spatial_dims": 2}}, changes)
    model = build_model(tiny_config(**changes)).eval()
    keys = {"model": {"kind": "unet", "conditioner": "none", "output": "clean"}}
    unet = build_model(tiny_config(**merged(changes, keys))).eval()
    assert isinstance(model, DiffusionModel)
    assert isinstance(unet, UNetModel)
    model.steer = Guide(unet, model.path, model.codec, scale)
    return model, unet


def last(model: DiffusionModel, image: Tensor, noise: Tensor, steps: int) -> Any:
    with torch.inference_mode():
        context = model.context(image)
        return list(model.trajectory(context, noise, Sampling("ddim", steps)))[-1]


@pytest.mark.parametrize("regions", [None, {"whole": [1, 2, 3], "core": [2]}])
def test_the_shift_of_a_known_estimate_by_hand(
    regions: dict[str, list[int]] | None, monkeypatch: pytest.MonkeyPatch
):
    """With the state itself as estimate, p = (x + 1) / 2 and the slope is half of log u."""
    scale = 1e-4
    model, unet = pair(scale, task={"regions": regions})
    monkeypatch.setattr(model, "denoised", lambda x, t, context, previous=None: Denoised(x / 9))
    image, noise = torch.randn(2, 1, 8, 8), torch.randn(2, model.codec.channels, 8, 8)
    found = last(model, image, noise, 1).clean
    with torch.no_grad():
        u = unet.codec.probabilities(unet.network(image)).clamp(MARGIN, 1 - MARGIN)
    a, _, sigma = (float(c) for c in model.path.coefficients(torch.ones(1).double()))
    slope = u.log() if regions is None else u.log() - torch.log1p(-u)
    x = sigma * noise
    wanted = x / 9 + scale * sigma**2 / a * slope / 2 / 9
    torch.testing.assert_close(found, wanted.clamp(-1, 1))
    assert float((found - x / 9).abs().max()) > 1e-4


def exact(model: DiffusionModel) -> Any:
    """Posterior mean of one-hot states of two classes, each as likely in every voxel."""

    def denoised(x: Tensor, t: Tensor, context: Any, previous: Any = None) -> Denoised:
        a, _, sigma = (spread(c, x) for c in model.path.coefficients(t))
        first = torch.tanh(a * (x[:, :1] - x[:, 1:]) / sigma**2)
        return Denoised(torch.cat([first, -first], 1))

    return denoised


@pytest.fixture
def coin(monkeypatch: pytest.MonkeyPatch) -> tuple[DiffusionModel, Tensor, Tensor, Tensor]:
    """A model of fair coins at every voxel, an image, and the guide's probabilities of it."""
    keys = tiny_config(plan={"spatial_dims": 2}).model_dump(mode="json")
    keys["task"]["labels"] = {"background": 0, "a": 1}
    torch.manual_seed(0)
    model = build_model(parse_config(keys)).eval()
    keys["model"] = {"kind": "unet", "features": [4, 4]}
    unet = build_model(parse_config(keys)).eval()
    assert isinstance(model, DiffusionModel)
    assert isinstance(unet, UNetModel)
    monkeypatch.setattr(model, "denoised", exact(model))
    model.steer = Guide(unet, model.path, model.codec, 0.0)
    image, noise = torch.randn(2, 1, 8, 8), torch.randn(2, 2, 8, 8)
    with torch.no_grad():
        u = unet.codec.probabilities(unet.network(image))
    return model, image, noise, u.clamp(MARGIN, 1 - MARGIN)


def scaled(model: DiffusionModel, scale: float) -> DiffusionModel:
    assert isinstance(model.steer, Guide)
    model.steer = replace(model.steer, scale=scale)
    return model


def test_a_faint_guide_tilts_the_exact_posterior(
    coin: tuple[DiffusionModel, Tensor, Tensor, Tensor],
):
    """Odds times (u_1 / u_0)^scale: to first order in the scale, with nothing left over."""
    model, image, noise, u = coin
    gaps = []
    for scale in (0.02, 0.01):
        with torch.inference_mode():
            context = model.context(image)
            sampling = Sampling("ddim", 1, t_max=0.3)
            (step,) = scaled(model, scale).trajectory(context, noise, sampling)
        a, _, sigma = (float(c) for c in model.path.coefficients(torch.tensor([0.3]).double()))
        x = sigma * noise
        plain = a * (x[:, 0] - x[:, 1]) / sigma**2
        tilted = torch.tanh(plain + scale * (u[:, 0] / u[:, 1]).log() / 2)
        moved = float((tilted - plain.tanh()).abs().max())
        gaps.append(float((step.clean[:, 0] - tilted).abs().max()))
        assert gaps[-1] < 0.02 * moved
    assert gaps[0] == pytest.approx(4 * gaps[1], rel=0.1)


def test_no_scale_is_no_guide_and_more_leans_further(
    coin: tuple[DiffusionModel, Tensor, Tensor, Tensor],
):
    model, image, noise, u = coin
    leaning, wanted = [], u[:, 0] > 0.5
    for scale in (0.0, 1.0, 4.0):
        answer = last(scaled(model, scale), image, noise, 20)
        assert answer.calls == 40
        leaning.append(float(((answer.clean[:, 0] > 0) == wanted).float().mean()))
        if scale == 0:
            model.steer, steer = None, model.steer
            plain = last(model, image, noise, 20)
            torch.testing.assert_close(answer.clean, plain.clean)
            assert plain.calls == 20
            model.steer = steer
    assert leaning[0] == pytest.approx(0.5, abs=0.15)
    assert leaning[0] < leaning[1] < leaning[2]


@pytest.mark.parametrize(
    ("changes", "sampling", "sentence"),
    [
        ({"model": {"path": "linear"}}, Sampling(), "set prediction.t_max below 1"),
        ({"model": {"self_conditioning": True}}, Sampling(), "self-conditioning"),
    ],
)
def test_what_a_guide_does_not_reach_is_refused(
    changes: dict[str, Any], sampling: Sampling, sentence: str
):
    model, _ = pair(**changes)
    with pytest.raises(ValueError, match=sentence):
        model.check(sampling)
    model.steer = None
    model.check(sampling)


def test_a_straight_path_is_guided_from_where_it_has_signal():
    model, _ = pair(model={"path": "linear"})
    model.check(Sampling(t_max=0.9))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, a diffusion model in ``run`` and a U-Net in ``unet``."""
    where = tmp_path_factory.mktemp("guided")
    cases = write_dataset(where / "data")
    fit(tiny(cases, steps=2, validate_every=2), where / "run")
    fit(unet_config(cases), where / "unet")
    return where


def unet_config(cases: Path, **plan: Any) -> Config:
    keys = tiny(cases, steps=2, validate_every=2).model_dump(mode="json")
    keys["model"] = {"kind": "unet", "features": [4, 8]}
    keys |= {"recipe": None, "objective": {"dice": 1.0, "cross_entropy": 1.0}}
    return parse_config(merged(keys, {"plan": plan}))


def test_a_guide_changes_the_answer_and_stands_in_the_record(folder: Path):
    scan = folder / "data" / "images" / "ball_4.nii.gz"
    plain = load(folder / "run").predict(scan)
    assert "guide" not in plain.record
    predictor = guided(load(folder / "run"), folder / "unet", 2.0)
    assert isinstance(predictor, GuidedPredictor)
    found = predictor.predict(scan, flips=[0])
    card = json.loads((folder / "unet" / "card.json").read_text())
    wanted = {"model": card["sha256"]["model.safetensors"], "scale": 2.0}
    assert found.record["guide"] == wanted
    assert predictor.runs[0].card["sha256"]["guide"] == wanted
    once = predictor.predict(scan)
    twice = guided(load(folder / "run"), folder / "unet", 2.0).predict(scan)
    assert np.array_equal(np.asarray(once.probability), np.asarray(twice.probability))
    assert not np.array_equal(np.asarray(once.probability), np.asarray(plain.probability))
    calls = (once.record["network_calls"]["denoiser"], plain.record["network_calls"]["denoiser"])
    assert calls[0] == 2 * calls[1]


def test_guides_that_do_not_fit_are_refused(folder: Path, tmp_path: Path):
    predictor = load(folder / "run")
    with pytest.raises(UsageError, match="not a plain U-Net"):
        guided(predictor, folder / "run")
    with pytest.raises(UsageError, match="--guide-scale"):
        guided(predictor, folder / "unet", -1.0)
    with pytest.raises(UsageError, match="only a model that diffuses masks"):
        guided(load(folder / "unet"), folder / "unet")
    run = Path(shutil.copytree(folder / "unet", tmp_path / "other"))
    config = load_run(run).config
    for plan, fits in (({"batch_size": 7}, True), ({"spacing_mm": (2.0, 2.0, 2.0)}, False)):
        changed = config.model_copy(update={"plan": config.plan.model_copy(update=plan)})
        (run / "config.yaml").write_text(changed.to_yaml())
        if fits:
            guided(predictor, run)
            continue
        with pytest.raises(InputError, match="its plan differs"):
            guided(predictor, run)


def test_the_command(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    scan = folder / "data" / "images" / "ball_4.nii.gz"
    words = ["medseg-diff", "predict", "--model", folder / "run", "--input", scan, "--out"]
    words += [tmp_path / "out", "--guide", folder / "unet", "--guide-scale", 0.5]
    monkeypatch.setattr(sys, "argv", [*map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    assert json.loads((tmp_path / "out" / "ball_4.json").read_text())["guide"]["scale"] == 0.5
