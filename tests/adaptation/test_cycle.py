"""Cycles of features: their losses by hand, whom they teach, and what they cannot tell apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from medseg_diff.adaptation import cycle
from medseg_diff.adaptation.cycle import FeatureCycle, distance, drawn, moments, translator
from medseg_diff.adaptation.features import LATENT_ONLY, source_features
from medseg_diff.adaptation.rows import latent_cycle, latent_skips
from medseg_diff.adaptation.source_diffusion import sections
from medseg_diff.adaptation.work import Work
from medseg_diff.checkpoint import load_run, load_tensors
from medseg_diff.config import Config, merged
from medseg_diff.data.records import Batch
from medseg_diff.errors import UsageError
from medseg_diff.model import FeatureModel, Sampling, build_model
from medseg_diff.networks.depths import DepthsAutoencoder
from medseg_diff.recipes import RECIPES
from medseg_diff.training.fit import Options, fit
from tests.adaptation.fixtures import work_on


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    return work_on(tmp_path_factory.mktemp("cycle"))


def config_of(work: Work, **latent: object) -> Config:
    """The recipe at the work's widths, its first stage one step long."""
    small = {"features": [8, 8], "channels": 3, "condition": "features", "steps": 1, **latent}
    recipe = merged(RECIPES["feature_translation"](), {"model": {"latent": small}})
    keys = merged(work.config.model_dump(mode="json"), sections(work.config, recipe))
    return Config.model_validate(keys)


def features(config: Config) -> FeatureModel:
    """In its second stage."""
    torch.manual_seed(0)
    model = build_model(config).train()
    assert isinstance(model, FeatureModel)
    model.begin(1)
    return model


def batch() -> Batch:
    image = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    none = torch.zeros(2)
    return Batch(image, (image > 0).short(), none, torch.zeros(2, 2, 16, 16), torch.zeros(2, 2))


def test_distance_and_moments_by_hand():
    one = torch.tensor([1.0, 3.0, 5.0, 7.0]).reshape(2, 1, 2, 1)
    assert float(distance(one, torch.zeros_like(one))) == 4
    # Over the batch too: mean 4, variance (9 + 1 + 1 + 9) / 4.
    assert torch.allclose(moments(one), torch.tensor([[4.0], [5**0.5]]))
    two = torch.cat([one, -2 * one], 1)
    assert torch.allclose(moments(two)[:, 1], torch.tensor([-8.0, 20**0.5]))


def test_a_draw_is_the_first_step_of_a_trajectory(work: Work):
    model = features(config_of(work)).eval()
    given, noise = batch(), torch.randn(2, 2, 16, 16)
    with torch.no_grad():
        context = model.context(given.image)
        step = next(iter(model.trajectory(context, noise, Sampling("ddim", 1))))
        found = drawn(model, context.z, model.noise_on_grid(noise))
    assert torch.allclose(found.clamp(-5, 5), step.clean, atol=1e-5)


def test_losses_by_hand_where_the_draw_doubles_and_the_way_back_adds_one(
    work: Work, monkeypatch: pytest.MonkeyPatch
):
    class Plus(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return z + 1

    config = config_of(work)
    companion, model = FeatureCycle(work.unlabelled, config), features(config)
    companion.back = Plus()
    monkeypatch.setattr(cycle, "drawn", lambda model, seen, noise: 2 * seen)
    given = batch()
    own = model.autoencoder.encode(given.image).z.detach()
    theirs = model.autoencoder.encode(companion.crops.images(4)).z.detach()
    found = companion.losses(model, given, 4, {})
    # H(G(t)) - t = t + 1 and G(H(s)) - s = s + 2.
    assert found["cycle_target"].item() == pytest.approx(float((theirs + 1).abs().mean()))
    assert found["cycle_source"].item() == pytest.approx(float((own + 2).abs().mean()))
    far = (moments(own + 1) - moments(theirs)).abs().mean()
    far = far + (moments(2 * theirs) - moments(own)).abs().mean()
    assert found["moments"].item() == pytest.approx(float(far), rel=1e-5)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_codes_that_can_be_undone_are_not_told_from_the_right_one(
    work: Work, monkeypatch: pytest.MonkeyPatch, sign: float
):
    """As the docstring owns: the identity and a change of sign close both cycles."""

    class Times(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return sign * z

    config = config_of(work)
    companion, model = FeatureCycle(work.unlabelled, config), features(config)
    companion.back = Times()
    monkeypatch.setattr(cycle, "drawn", lambda model, seen, noise: sign * seen)
    found = companion.losses(model, batch(), 0, {})
    assert found["cycle_target"].item() == found["cycle_source"].item() == 0
    assert found["moments"].item() > 1e-3


def test_losses_follow_from_the_number_and_teach_all_but_the_frozen_network(
    work: Work, monkeypatch: pytest.MonkeyPatch
):
    config = config_of(work)
    torch.manual_seed(1)
    companion, model = FeatureCycle(work.unlabelled, config), features(config)
    first, again, other = (companion.losses(model, batch(), n, {}) for n in (2, 2, 3))
    assert all(first[name].item() == again[name].item() for name in first)
    assert any(first[name].item() != other[name].item() for name in first)
    torch.stack(list(first.values())).sum().backward()
    # Of the same crops too: noise has the number in it.
    images = companion.crops.images(2)
    monkeypatch.setattr(companion.crops, "images", lambda number: images)
    alike, noised = (companion.losses(model, batch(), n, {}) for n in (2, 3))
    assert alike["cycle_source"].item() == first["cycle_source"].item()
    assert noised["cycle_source"].item() != first["cycle_source"].item()
    for part in (model.denoiser, model.conditioner, companion):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in part.parameters())
    assert all(p.grad is None for p in model.autoencoder.parameters())


@pytest.mark.parametrize("name", ["cycle_target", "cycle_source"])
def test_each_cycle_teaches_both_ways(work: Work, name: str):
    config = config_of(work)
    companion, model = FeatureCycle(work.unlabelled, config), features(config)
    companion.losses(model, batch(), 0, {})[name].backward()
    for part in (model.denoiser, model.conditioner, companion.back):
        assert any(p.grad is not None and bool(p.grad.any()) for p in part.parameters())


def test_the_first_stage_has_no_cycles(work: Work):
    config = config_of(work)
    companion, model = FeatureCycle(work.unlabelled, config), features(config)
    model.begin(0)
    assert companion.losses(model, batch(), 0, {}) == {}


@pytest.mark.parametrize("dims", [2, 3])
def test_the_way_back_takes_any_size(dims: int):
    z = torch.randn(1, 4, *[5] * dims)
    made = translator(dims, 4)
    assert made(z).shape == z.shape
    assert not torch.allclose(made(z), z, atol=0.1)


def test_other_conditions_and_models_are_refused(work: Work):
    with pytest.raises(UsageError, match="shown features"):
        FeatureCycle(work.unlabelled, work.config)
    config = config_of(work, condition="edges")
    companion = FeatureCycle(work.unlabelled, config)
    with pytest.raises(UsageError, match="shown features"):
        companion.losses(features(config), batch(), 0, {})


def test_a_resumed_training_is_the_one_that_never_stopped(work: Work, tmp_path: Path):
    class Cut(Exception):
        pass

    def stop(progress, values):
        if progress.step == 2:
            raise Cut

    config, losses = config_of(work), []
    target = work.unlabelled

    def options(report, resume: bool = False) -> Options:
        return Options(resume, report=report, companion=lambda whole: FeatureCycle(target, whole))

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    fit(config, whole, options(lambda p, v: losses.append(v)))
    with pytest.raises(Cut):
        fit(config, cut, options(stop))
    fit(config, cut, options(None, resume=True))
    points = [r / "checkpoints" / "step_00000004" / "tensors.safetensors" for r in (whole, cut)]
    ends = [load_tensors(point) for point in points]
    assert any(k.startswith("companion/back.") for k in ends[0])
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])
    assert "cycle_target" not in losses[0]
    assert {"cycle_target", "cycle_source", "moments"} <= set(losses[1])
    # The run holds the model alone, and the model is not the one that trained without.
    fit(config, tmp_path / "plain")
    runs = [load_tensors(r / "model.safetensors") for r in (whole, tmp_path / "plain")]
    assert runs[0].keys() == runs[1].keys()
    assert any(not torch.equal(runs[0][k], runs[1][k]) for k in runs[0])


def test_the_cycles_row_sees_target_scans_and_no_masks(tmp_path: Path):
    work = work_on(tmp_path)
    adapted = latent_cycle.adapt(work)
    assert (work.target_used, work.labels_used) == (True, False)
    assert adapted.run == work.folder / "runs" / "features_cycle"
    assert adapted.baseline == LATENT_ONLY
    latent = load_run(adapted.run).config.model.latent
    assert latent is not None
    assert (latent.condition, latent.change) == ("features", "strong")


def test_the_row_with_every_skip_draws_all_depths(tmp_path: Path):
    work = work_on(tmp_path)
    adapted = latent_skips.adapt(work)
    assert not work.target_used
    model = load_run(adapted.run).model
    assert isinstance(model, FeatureModel)
    assert isinstance(model.autoencoder, DepthsAutoencoder)
    assert model.autoencoder.factor == 1
    assert model.latent.condition == "edges"
    assert source_features(work, "edges") != adapted.run
