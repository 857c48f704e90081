"""Latent models: two stages in one training, noise cut to the latent's grid, rare classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from medseg_diff.checkpoint import load_run, load_tensors
from medseg_diff.config import Config, parse_config
from medseg_diff.data.records import Batch
from medseg_diff.diffusion.samplers import SAMPLERS
from medseg_diff.inference.predictor import load
from medseg_diff.model import LatentModel, build_model
from medseg_diff.model.latent import class_weight
from medseg_diff.networks.autoencoder import MaskAutoencoder, latent_noise, standardised
from medseg_diff.training.fit import Options, fit, learning_rate, stages
from tests.training_fixtures import write_dataset


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("latent"))


def config(cases: Path, regulariser: str = "kl", **latent: Any) -> Config:
    return parse_config(
        {
            "recipe": "lsegdiff",
            "data": {"cases": str(cases)},
            "plan": {"patch_size": [8, 8, 8], "batch_size": 2},
            "model": {
                "features": [4, 8],
                "time_channels": 8,
                "latent": {
                    "features": [4, 8],
                    "channels": 2,
                    "codes": 8,
                    "steps": 3,
                    "regulariser": regulariser,
                    **latent,
                },
            },
            "training": {"steps": 6, "warmup_steps": 1, "validate_every": 6, "save_every": 1},
            "prediction": {"draws": 2, "steps": 2},
        }
    )


class _Halt(Exception):
    pass


@pytest.mark.parametrize("regulariser", ["kl", "vq"])
@pytest.mark.parametrize("halt_at", [2, 3, 4])
def test_resume_in_either_stage_changes_no_bit(
    cases: Path, tmp_path: Path, regulariser: str, halt_at: int
):
    def halt(progress, values):
        if progress.step == halt_at:
            raise _Halt

    wanted = config(cases, regulariser)
    fit(wanted, tmp_path / "whole")
    with pytest.raises(_Halt):
        fit(wanted, tmp_path / "run", Options(report=halt))
    fit(wanted, tmp_path / "run", Options(resume=True))
    whole, resumed = (load_tensors(tmp_path / n / "model.safetensors") for n in ("whole", "run"))
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_each_stage_trains_its_own_part(cases: Path):
    model = _model(cases)
    given = _batch(model)
    for step, silent in ((0, ("denoiser", "conditioner")), (3, ("autoencoder",))):
        model.begin(step)
        model.zero_grad()
        model(given).total.backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is None) == name.startswith(silent), (step, name)


def test_end_to_end_trains_everything_from_the_start(cases: Path):
    model = _model(cases, end_to_end=True)
    model.begin(0)
    model(_batch(model)).total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert stages(config(cases, end_to_end=True)) == (0, 6)


def test_each_stage_warms_up_and_decays(cases: Path):
    wanted = config(cases)
    ends = stages(wanted)
    assert ends == (0, 3, 6)
    rates = [learning_rate(step, wanted.training, ends) for step in range(6)]
    assert rates[:3] == pytest.approx(rates[3:])
    assert rates[2] < rates[1]


def test_the_run_predicts_on_the_scans_own_grid(cases: Path, tmp_path: Path):
    run = fit(config(cases), tmp_path / "run")
    scan = next((cases.parent / "images").glob("*.nii.gz"))
    answer = load(run, "cpu").predict(scan)
    assert answer.mask.shape[1:] == answer.probability.shape[1:]
    assert answer.record["cleanup"] == "morphology"
    assert answer.record["network_calls"]["denoiser"] > 0
    assert isinstance(load_run(run).model, LatentModel)


def test_the_noise_of_a_latent_is_a_part_of_the_voxels():
    field = torch.arange(2 * 5 * 4, dtype=torch.float32).reshape(1, 2, 5, 4)
    cut = latent_noise(field, 3, 2)
    assert cut.shape == (1, 3, 3, 2)
    # First the lattice of even rows and columns; the padded row wraps round.
    torch.testing.assert_close(cut[0, :2], field[0, :, ::2, ::2])
    torch.testing.assert_close(cut[0, 2, :2], field[0, 0, 1::2, ::2])
    assert len(set(cut.flatten().tolist())) >= cut.numel() - 2
    with pytest.raises(ValueError, match="more noise"):
        latent_noise(field, 9, 2)


def test_latents_have_zero_mean_and_unit_variance():
    z = standardised(3 + 2 * torch.randn(2, 3, 4, 5))
    torch.testing.assert_close(z.mean((1, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.square().mean((1, 2, 3)), torch.ones(2), atol=1e-4, rtol=0)


def test_a_code_book_rounds_to_its_entries():
    coder = MaskAutoencoder(2, 2, 3, (4, 8), "vq", 5).eval()
    with torch.no_grad():
        z = coder.encode(torch.randn(1, 2, 9, 7)).z
    assert coder.book is not None
    vectors = z.movedim(1, -1).reshape(-1, 3)
    distance = torch.cdist(vectors, coder.book.embedding.weight)
    assert float(distance.amin(1).max()) < 1e-4
    torch.testing.assert_close(coder.snap(z), z, atol=1e-5, rtol=0)


def test_rare_classes_weigh_more():
    truth = torch.zeros(1, 3, 4, 4)
    truth[:, 0] = 1
    truth[0, :, 0, 0] = torch.tensor([0.0, 1, 0])
    weights = class_weight(truth, 1.0)
    assert float(weights[0, 0, 0, 0]) == pytest.approx(15)
    assert float(weights[0, 0, 1, 1]) == pytest.approx(1)
    assert bool((class_weight(truth, 0.0) == 1).all())


def test_every_sampler_of_the_configuration_exists(cases: Path):
    from typing import get_args

    from medseg_diff.config import SamplerName

    # The anchor is an answer without sampling.
    assert set(get_args(SamplerName)) == {*SAMPLERS, "anchor"}


def _model(cases: Path, **latent: Any) -> LatentModel:
    torch.manual_seed(0)
    keys = config(cases, **latent).model_dump(exclude={"task", "plan"}) | {
        "task": {"channels": ["x"], "labels": {"background": 0, "a": 1}},
        "plan": {"spatial_dims": 3, "patch_size": [8, 8, 8]},
    }
    model = build_model(parse_config(keys)).train()
    assert isinstance(model, LatentModel)
    return model


def _batch(model: LatentModel) -> Batch:
    size = (2, 1, 8, 8, 8)
    return Batch(
        torch.randn(size),
        torch.randint(0, 2, size, dtype=torch.int16),
        torch.tensor([0.6, 0.25], dtype=torch.float64),
        torch.randn(2, 2, 8, 8, 8),
        torch.rand(2, 2),
    )
