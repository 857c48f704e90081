"""A condition under noise: what the network is shown, what trains what, and who sees the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from medseg_diff.checkpoint import load_tensors
from medseg_diff.config import Config, merged, parse_config
from medseg_diff.data.records import Batch
from medseg_diff.errors import UsageError
from medseg_diff.inference.predictor import load
from medseg_diff.model import NoisedConditionModel, Sampling, UNetModel, build_model
from medseg_diff.model.guide import Guide
from medseg_diff.networks.cascade import CoarseSegmenter, LevelledUNet, under_noise
from medseg_diff.training.fit import Options, fit
from tests.training_fixtures import write_dataset

KEYS: dict[str, Any] = {
    "recipe": "refine",
    "task": {"channels": ["x"], "labels": {"background": 0, "a": 1, "b": 2}},
    "plan": {"spatial_dims": 2},
    "model": {"features": [4, 8], "time_channels": 8, "coarse": {"features": [4, 8], "factor": 4}},
}


def built(**changes: Any) -> NoisedConditionModel:
    torch.manual_seed(0)
    model = build_model(parse_config(merged(KEYS, changes)))
    assert isinstance(model, NoisedConditionModel)
    return model.eval()


def batch(model: NoisedConditionModel, level: float = 0.8) -> Batch:
    generator = torch.Generator().manual_seed(1)
    size = (2, 1, 13, 18)
    labels = torch.randint(0, 3, size, generator=generator, dtype=torch.int16)
    noise = torch.randn((2, model.noise_channels, 13, 18), generator=generator)
    times = torch.tensor([0.6, 0.25], dtype=torch.float64)
    coins = torch.tensor([[0.9, level], [0.1, level]], dtype=torch.float64)
    return Batch(torch.randn(size, generator=generator), labels, times, noise, coins)


class Spy(torch.nn.Module):
    """Keeps what a denoiser was handed; the state's channels are its answer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels, self.calls = channels, list[tuple[Tensor, Tensor]]()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, t: Tensor, features: Any = None) -> Tensor:
        """Remember, answer."""
        self.calls.append((x.detach(), t.detach()))
        return self.weight * x[:, : self.channels]


def spied(**changes: Any) -> tuple[NoisedConditionModel, Spy]:
    model = built(**changes)
    model.denoiser = spy = Spy(3)
    return model, spy


def test_noise_keeps_a_unit_conditions_variance():
    condition, noise = torch.randn(2, 3, 200, 200), torch.randn(2, 3, 200, 200)
    level = torch.tensor([0.0, 0.6])
    shown = under_noise(condition, noise, level)
    assert torch.equal(shown[0], condition[0])
    torch.testing.assert_close(shown[1], 0.8 * condition[1] + 0.6 * noise[1])
    assert float(shown[1].var()) == pytest.approx(1, rel=0.02)


def test_training_shows_the_coarse_mask_at_the_coins_level():
    """By hand: state, then sqrt(1 - s^2) mask + s noise with s = 0.5 x 0.8, then the image."""
    model, spy = spied()
    given = batch(model)
    model(given)
    x, t = spy.calls[0]
    assert x.shape[1] == 3 + 3 + 1
    mask = 2 * model.context(given.image).anchor.softmax(1) - 1
    expected = (1 - 0.16) ** 0.5 * mask + 0.4 * given.noise[:, :3]
    torch.testing.assert_close(x[:, 3:6], expected.detach())
    torch.testing.assert_close(x[:, 6:], given.image)
    torch.testing.assert_close(t[:, 1], torch.full((2,), 0.4, dtype=torch.float64))
    clean = model.codec.encode(given.labels)
    torch.testing.assert_close(x[:, :3], model.path.noised(clean, given.noise[:, 3:], given.t))


@pytest.mark.parametrize("level", [0.0, 0.3])
def test_prediction_shows_it_at_the_settings_level_by_each_draws_own_noise(level: float):
    model, spy = spied()
    given = batch(model)
    context = model.context(given.image)
    list(model.trajectory(context, given.noise, Sampling("ddim", 2, condition_noise=level)))
    assert len(spy.calls) == 2
    mask = 2 * context.anchor.softmax(1) - 1
    expected = (1 - level**2) ** 0.5 * mask + level * given.noise[:, :3]
    for x, t in spy.calls:
        torch.testing.assert_close(x[:, 3:6], expected.detach())
        torch.testing.assert_close(t[:, 1].float(), torch.full((2,), level))
    assert torch.equal(model.context(given.image).anchor, context.anchor)


def test_the_network_knows_the_level():
    torch.manual_seed(0)
    network = LevelledUNet(2, 2, 1, (4, 8), time_channels=8).eval()
    x = torch.randn(1, 2, 12, 12)
    with torch.no_grad():
        first, same, other = (network(x, torch.tensor([[0.5, s]])) for s in (0.1, 0.1, 0.4))
        swapped, early = (network(x, torch.tensor([pair])) for pair in ((0.1, 0.5), (0.2, 0.1)))
    assert torch.equal(first, same)
    assert float((first - other).abs().max()) > 1e-4
    assert float((first - swapped).abs().max()) > 1e-4
    assert float((first - early).abs().max()) > 1e-4, "and its time"


def test_the_coarse_stage_learns_from_its_own_loss_alone():
    """The fine loss is cut off from the segmenter, and the anchor's from the denoiser."""
    for objective, silent in (
        ({"dice": 0.0, "cross_entropy": 0.0}, "denoiser"),
        ({"anchor": 1e-30}, "coarse"),
    ):
        model = built(objective=objective).train()
        model(batch(model)).total.backward()
        for name, parameter in model.named_parameters():
            moved = parameter.grad is not None and float(parameter.grad.abs().max()) > 1e-20
            assert moved != name.startswith(silent), name


@pytest.mark.parametrize(("dims", "size"), [(2, (13, 18)), (3, (9, 11, 6))])
def test_a_coarse_segmenter_sees_block_means(dims: int, size: tuple[int, ...]):
    """What keeps every block's mean keeps the answer, and its own grid is 4 times coarser."""
    torch.manual_seed(0)
    network = CoarseSegmenter(dims, 1, 2, (4, 8), 4).eval()
    image = torch.randn(1, 1, *size)
    moved = image.clone()
    block = (0, 0, *[slice(0, 4)] * dims)
    moved[block] = image[block].flip(0)
    with torch.no_grad():
        before, after = network(image), network(moved)
    assert before.shape == (1, 2, *size)
    assert not torch.equal(image, moved)
    torch.testing.assert_close(before, after, atol=1e-5, rtol=0)
    steps = before.diff(n=2, dim=-1)[..., 2:3].abs().max()
    assert float(steps) < 1e-5, "linear between the centres of coarse voxels"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"denoiser": "dit", "features": [12, 12]}}, "denoiser: unet"),
        ({"model": {"concat_image": False}}, "concat_image: true"),
        ({"model": {"self_conditioning": True}}, "leave out self_conditioning"),
        ({"model": {"learned_variance": True}}, "no learned_variance"),
        ({"model": {"conditioner": "anchored"}}, "another conditioner than anchored"),
        ({"model": {"coarse": None, "conditioner": "pyramid"}}, "the image itself"),
        ({"objective": {"anchor": 0.0}}, "trains the coarse segmenter"),
        ({"prediction": {"condition_noise": 0.7}}, "beyond the levels"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], words: str):
    with pytest.raises(UsageError, match=words):
        parse_config(merged(KEYS, change))


def tiny(cases: Path) -> Config:
    return parse_config(
        {
            "recipe": "refine",
            "data": {"cases": str(cases)},
            "plan": {"patch_size": [8, 8, 8], "batch_size": 2},
            "model": {"features": [4, 8], "time_channels": 8, "coarse": {"features": [4, 8]}},
            "training": {"steps": 4, "warmup_steps": 1, "validate_every": 4, "save_every": 2},
            "prediction": {"draws": 2, "steps": 2},
        }
    )


def test_it_trains_resumes_and_predicts(tmp_path: Path):
    class Cut(Exception):
        pass

    def cut(progress: Any, values: Any) -> None:
        if progress.step == 3:
            raise Cut

    cases = write_dataset(tmp_path / "data")
    config = tiny(cases)
    whole = fit(config, tmp_path / "whole")
    with pytest.raises(Cut):
        fit(config, tmp_path / "parts", Options(report=cut))
    parts = fit(config, tmp_path / "parts", Options(resume=True))
    ours, theirs = (load_tensors(run / "model.safetensors") for run in (whole, parts))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    predictor = load(whole, "cpu")
    scan = cases.parent / "images" / "ball_4.nii.gz"
    first, again = (predictor.predict(scan, seed=1) for _ in range(2))
    assert torch.equal(first.probability.as_tensor(), again.probability.as_tensor())
    coarse = predictor.predict(scan, sampler="anchor")
    assert coarse.record["network_calls"]["denoiser"] == 0
    mirrored = predictor.predict(scan, flips=[0])
    assert torch.isfinite(mirrored.probability.as_tensor()).all()


def test_fields_of_noise_hold_the_states_channels_and_the_conditions():
    model = built()
    assert model.noise_channels == 6
    with_regions = built(task={"regions": {"both": [1, 2], "b": [2]}})
    assert with_regions.noise_channels == 4


def test_a_guide_steers_it():
    """The gradient passes through the denoiser with its condition as shown."""
    model = built()
    keys = {**KEYS, "recipe": "unet", "model": {"features": [4, 8]}}
    unet = build_model(parse_config(keys)).eval().requires_grad_(False)
    assert isinstance(unet, UNetModel)
    given = batch(model)
    sampling = Sampling("ddim", 2, t_max=0.95, condition_noise=0.1)
    answers = []
    for scale in (0.0, 5.0):
        model.requires_grad_(False)
        model.steer = Guide(unet, model.path, model.mask_codec, scale)
        with torch.inference_mode():
            steps = model.trajectory(model.context(given.image), given.noise, sampling)
            answers.append(list(steps)[-1].clean)
    assert float((answers[0] - answers[1]).abs().max()) > 1e-5
