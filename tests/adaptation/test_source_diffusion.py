"""Diffusion rows share the budget and the widths; adapters touch nothing but their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medseg_diff.adaptation.few_shot import fine_tuning, low_rank_adapters
from medseg_diff.adaptation.rows import diffusion_source_only, guided_prior, joint_diffusion
from medseg_diff.adaptation.source_diffusion import sections
from medseg_diff.adaptation.work import Work
from medseg_diff.checkpoint import load_run
from medseg_diff.config import Config
from medseg_diff.data.caselist import load_caselist
from medseg_diff.errors import InputError
from medseg_diff.files import file_sha256
from medseg_diff.inference.predictor import load
from medseg_diff.model import JointModel
from medseg_diff.training.fit import Options, fit
from tests.adaptation.fixtures import work_on


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    return work_on(tmp_path_factory.mktemp("diffusion"))


def test_a_recipe_replaces_every_key_of_the_experiments_own(work: Work):
    found = sections(work.config, "diffatlas", prediction={"steps": 7})
    assert found["model"]["features"] == [4, 8]
    assert found["model"]["joint"]
    assert found["model"]["kind"] == "diffusion"
    # The U-Net's Dice would otherwise stay.
    assert (found["objective"]["dice"], found["objective"]["squared_error"]) == (0, 1)
    assert (found["prediction"]["draws"], found["prediction"]["steps"]) == (5, 7)
    anchored = sections(work.config, "anchored")["model"]
    assert (anchored["conditioner_features"], anchored["features"]) == ([4, 8], [2, 3])
    assert set(found) == {"model", "objective", "prediction"}


def test_rows_train_on_the_source_with_the_rows_budget(work: Work):
    runs = {row: row.adapt(work) for row in (diffusion_source_only, joint_diffusion, guided_prior)}
    for adapted in runs.values():
        config = load_run(adapted.run).config
        assert config.training == work.config.training
        assert config.plan == work.config.plan
    assert not work.target_used
    assert isinstance(load_run(runs[joint_diffusion].run).model, JointModel)
    assert runs[guided_prior].around is not None


def test_a_prior_is_shown_no_image(work: Work):
    """Another image changes the answer only through the steering."""
    adapted = guided_prior.adapt(work)
    case = work.target.part("test")[0]
    scan = work.target.channel_paths(case)
    other = work.target.channel_paths(work.target.part("validation")[0])
    predictor = load(adapted.run, "cpu")

    def answer(paths) -> np.ndarray:
        return predictor.predict(paths, case="same").probability.numpy()

    np.testing.assert_array_equal(answer(scan), answer(other))
    plain = answer(scan)
    predictor.around = adapted.around
    assert np.abs(answer(scan) - answer(other)).max() > 1e-4
    np.testing.assert_array_equal(answer(scan), answer(scan))
    predictor.around = None
    np.testing.assert_array_equal(answer(scan), plain)


def test_adapters_answer_as_base_and_adapter_do_and_see_one_scan(tmp_path: Path):
    work = work_on(tmp_path)
    adapted = low_rank_adapters(work, "adapters_1", 1)
    base, thin = tmp_path / "shared/runs/source_only", tmp_path / "own/runs/adapters_1"
    assert load_run(base).card["sha256"]["model.safetensors"] == file_sha256(
        base / "model.safetensors"
    )
    listed = load_caselist(tmp_path / "own/lists/adapters_1.json", work.target.root)
    assert [c.part for c in listed.cases] == ["train"]
    assert work.labels_used
    scan = work.target.channel_paths(work.target.part("test")[0])
    wanted = load(base, "cpu", thin).predict(scan).probability
    found = load(adapted.run, "cpu").predict(scan).probability
    assert torch.equal(wanted.as_tensor(), found.as_tensor())
    plain = load(base, "cpu").predict(scan).probability
    assert not torch.equal(plain.as_tensor(), found.as_tensor())


def test_fine_tuning_starts_from_the_source_model_and_sees_one_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    begun = []

    def watched(config: Config, run: Path, options: Options) -> None:
        begun.append((run.name, options.init, config.training.lora))
        fit(config, run, options)

    monkeypatch.setattr("medseg_diff.adaptation.work.fit", watched)
    work = work_on(tmp_path)
    adapted = fine_tuning(work, "fine_tuning_1", 1)
    base = tmp_path / "shared/runs/source_only"
    assert begun == [("source_only", None, None), ("fine_tuning_1", base, None)]
    listed = load_caselist(tmp_path / "own/lists/fine_tuning_1.json", work.target.root)
    assert [c.part for c in listed.cases] == ["train"]
    assert work.labels_used
    scan = work.target.channel_paths(work.target.part("test")[0])
    plain = load(base, "cpu").predict(scan).probability
    tuned = load(adapted.run, "cpu").predict(scan).probability
    assert not torch.equal(plain.as_tensor(), tuned.as_tensor())


@pytest.mark.parametrize("way", [low_rank_adapters, fine_tuning])
def test_too_few_labelled_scans_are_refused(work: Work, way):
    with pytest.raises(InputError, match=r"too few.*3.*5"):
        way(work, "adapters_5", 5)
