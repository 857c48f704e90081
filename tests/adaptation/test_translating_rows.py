"""Rows that translate, or draw features: who sees the target, and what is shared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medseg_diff import io
from medseg_diff.adaptation.features import LATENT_ONLY, source_features
from medseg_diff.adaptation.restyling import images_alone, walked
from medseg_diff.adaptation.rows import (
    cycle_diffusion,
    diffusion_edges,
    edge_input,
    latent_edges,
    latent_noising,
    latent_source_only,
    latent_translation,
    partial_noising,
    syndiff,
)
from medseg_diff.adaptation.work import Adapted, Work
from medseg_diff.checkpoint import load_run
from medseg_diff.inference.predictor import checked, load
from medseg_diff.translation.way import Way
from tests.adaptation.fixtures import work_on


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("translating")


def fresh(folder: Path) -> Work:
    return work_on(folder)


def restyled(work: Work, adapted: Adapted) -> np.ndarray:
    case = work.target.part("train")[0]
    image = io.read_channels(work.target.channel_paths(case))
    assert adapted.restyle is not None
    made = adapted.restyle(image, case)
    assert made.shape == tuple(image.shape)
    assert np.isfinite(made).all()
    return made


def test_images_alone_have_no_masks_and_no_test_cases(folder: Path):
    work = fresh(folder)
    bare = images_alone(work.unlabelled)
    assert {c.part for c in bare.cases} == {"train"}
    assert all(c.references == () for c in bare.cases)
    assert bare.labels == {"background": 0}


def test_partial_noising_learns_from_the_source_alone(folder: Path):
    work = fresh(folder)
    adapted = partial_noising.adapt(work)
    assert not work.target_used
    assert load_run(work.shared / "runs" / "image_prior_source").config.makes == "scans"
    assert np.array_equal(restyled(work, adapted), restyled(work, adapted))


@pytest.mark.parametrize("row", [cycle_diffusion, syndiff])
def test_translators_see_target_scans_and_no_masks(folder: Path, row):
    work = fresh(folder)
    adapted = row.adapt(work)
    assert work.target_used
    assert not work.labels_used
    # The segmenter is the source's own, trained before the target was looked at.
    assert adapted.run == work.shared / "runs" / "source_only"
    restyled(work, adapted)


def test_no_strength_changes_nothing(folder: Path):
    from medseg_diff.adaptation.restyling import source_prior

    work = fresh(folder)
    case = work.target.part("train")[0]
    image = io.read_channels(work.target.channel_paths(case))
    same = walked(Way(0.0), source_prior(work))(image, case)
    assert np.allclose(same, np.asarray(image))


@pytest.mark.parametrize("row", [edge_input, diffusion_edges])
def test_edges_do_not_know_a_negative(folder: Path, row):
    work = fresh(folder)
    adapted = row.adapt(work)
    assert not work.target_used
    case = work.target.part("train")[0]
    image = io.read_channels(work.target.channel_paths(case))
    assert adapted.restyle is not None
    found, negative = (adapted.restyle(x, case) for x in (image, 100 - 2 * image))
    assert np.allclose(found, negative, atol=1e-4)


def test_latent_rows_share_a_training_and_differ_in_how_they_draw(folder: Path):
    work = fresh(folder)
    drawn = latent_translation.adapt(work)
    for row in (latent_source_only, latent_noising):
        other = row.adapt(work)
        assert other.run == drawn.run
        assert checked(load(other.run, "cpu").defaults, other.settings)
    assert latent_edges.adapt(work).run != drawn.run
    assert drawn.baseline == LATENT_ONLY
    assert not work.target_used
    stages = load_run(source_features(work)).config
    assert stages.model.latent is not None
    assert stages.model.latent.steps == stages.training.steps // 3
