"""The place of a slice as an input of a 2-D network, in training and in prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medseg_diff.config import PlanConfig, merged, parse_config
from medseg_diff.data.dataset import TrainingSet
from medseg_diff.data.transforms import network_input
from medseg_diff.inference.predictor import load
from medseg_diff.model import FeatureModel, build_model
from medseg_diff.model.features import edges
from medseg_diff.training.fit import fit
from tests.model.test_features import batch as a_batch
from tests.training_fixtures import write_dataset

PLAN = {"spatial_dims": 2, "patch_size": [8, 8], "batch_size": 2, "slice_position": True}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def test_a_plane_runs_over_the_slices_of_a_scan():
    image = np.zeros((2, 5, 6, 4), np.float32)
    plan = PlanConfig(spatial_dims=2, slice_position=True)
    whole = network_input(image, plan)
    assert whole.shape == (3, 5, 6, 4)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole[2, 3, 4], [-0.75, -0.25, 0.25, 0.75])
    assert (whole[2] == whole[2, :1, :1]).all()
    patch = network_input(image[..., 0], plan, (1, -2, 3), (5, 6, 4))
    np.testing.assert_array_equal(patch[2], np.full((5, 6), 0.75, np.float32))


def test_coordinates_come_after_it():
    image = np.zeros((1, 5, 6, 4), np.float32)
    plan = PlanConfig(spatial_dims=2, slice_position=True, coordinates=True)
    both = network_input(image, plan)
    others = network_input(image, PlanConfig(spatial_dims=2, coordinates=True))
    np.testing.assert_array_equal(both[2:], others[1:])
    np.testing.assert_allclose(both[1, 0, 0], [-0.75, -0.25, 0.25, 0.75])


def test_a_training_sample_is_told_which_slice_it_is():
    """Grey values are the slice's number."""
    image = np.broadcast_to(np.arange(10, dtype=np.float32), (1, 12, 12, 10)).copy()
    case = {"image": image, "label": np.zeros((1, 12, 12, 10), np.int16), "foreground": []}
    keys = {"recipe": "unet", "plan": PLAN, "training": {"steps": 8, "augment": False}}
    samples = TrainingSet([case], parse_config(keys), 2)  # type: ignore[arg-type]
    numbers = set()
    for number in range(16):
        shown = samples[number]["image"]
        assert shown.shape == (2, 8, 8)
        assert torch.allclose(shown[1], (shown[0] + 0.5) / 5 - 1, atol=1e-6)
        numbers.add(int(shown[0, 0, 0]))
    assert len(numbers) > 4


def feature_model(condition: str) -> FeatureModel:
    torch.manual_seed(0)
    keys: dict[str, Any] = {
        "recipe": "feature_translation",
        "task": {"channels": ["x"], "labels": {"background": 0, "a": 1}, "input_channels": [1]},
        "plan": {"spatial_dims": 2, "slice_position": True},
        "model": {
            "features": [8, 16],
            "time_channels": 16,
            "latent": {"features": [8, 16], "channels": 3, "steps": 1, "condition": condition},
        },
    }
    made = build_model(parse_config(keys))
    assert isinstance(made, FeatureModel)
    return made.eval()


def test_no_look_and_no_edge_changes_the_place():
    made, given = feature_model("edges"), a_batch()
    place = torch.full_like(given.image, 0.3)
    object.__setattr__(given, "image", torch.cat([given.image, place], 1))
    changed = made._changed(given)
    assert torch.equal(changed[:, 1:], place)
    assert not torch.allclose(changed[:, :1], given.image[:, :1], atol=0.1)
    seen: list[torch.Tensor] = []
    made.conditioner.register_forward_pre_hook(lambda part, shown: seen.append(shown[0]))
    made.context(given.image)
    assert torch.equal(seen[0], torch.cat([edges(given.image[:, :1]), place], 1))


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("unet", {"plan": {"spatial_dims": 3}}),
        ("diffatlas", {}),
        ("image_prior", {}),
        ("refine", {}),
        ("bbdm", {"task": {"channels": ["x"], "target": "y", "labels": {}}}),
    ],
)
def test_other_models_are_told_no_slice(recipe: str, changes: dict[str, Any]):
    keys = {"recipe": recipe, "plan": {"spatial_dims": 2, "slice_position": True}}
    with pytest.raises(ValueError, match="slice_position is for segmenting slice by slice"):
        parse_config(merged(keys, changes))


def test_a_trained_network_looks_at_it_in_prediction(tmp_path: Path):
    cases = write_dataset(tmp_path / "data")
    keys = {
        "recipe": "unet",
        "data": {"cases": str(cases)},
        "plan": PLAN,
        "model": {"features": [4, 8]},
        "training": {"steps": 2, "warmup_steps": 1, "validate_every": 2, "save_every": 2},
    }
    run = fit(parse_config(keys), tmp_path / "run")
    predictor = load(run, "cpu")
    seen: list[torch.Tensor] = []
    plain = predictor.runs[0].model.network.forward
    predictor.runs[0].model.network.forward = lambda x: seen.append(x) or plain(x)
    predictor.predict(tmp_path / "data" / "images" / "ball_4.nii.gz")
    found = torch.cat(seen)[:, 1]
    assert (found == found[:, :1, :1]).all()
    wanted = (torch.arange(16) + 0.5) / 8 - 1
    assert torch.allclose(found[:, 0, 0].unique(), wanted, atol=1e-6)
