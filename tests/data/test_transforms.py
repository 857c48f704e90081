"""Augmentation and cropping, in 2-D and 3-D."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from medseg_diff.config import Normalisation, PlanConfig
from medseg_diff.data.augmentation import augmentation
from medseg_diff.data.dataset import StepSampler, crop
from medseg_diff.data.transforms import network_input, normalise
from medseg_diff.errors import InputError


def sample(dims: int) -> dict[str, torch.Tensor]:
    """A square (cube) of label 2 that is bright in the image."""
    label = torch.zeros(1, *[24] * dims)
    label[(0, *[slice(6, 18)] * dims)] = 2
    return {"image": label * 3 + torch.randn(1, *[24] * dims) * 0.1, "label": label}


@pytest.mark.parametrize("dims", [2, 3])
def test_every_transform_runs_and_labels_stay_labels(dims: int) -> None:
    """With all probabilities at 1, in 2-D too; intensities change, label values do not."""
    chain = augmentation([16] * dims, mirror_axes=range(dims))
    for step in chain.transforms:
        step.prob = 1.0
    chain.set_random_state(seed=3)
    before = sample(dims)
    after: dict[str, Any] = chain(dict(before))
    assert after["image"].shape == after["label"].shape == (1, *[16] * dims)
    assert set(np.unique(after["label"])) <= {0, 2}
    assert bool(torch.isfinite(torch.as_tensor(after["image"])).all())


@pytest.mark.parametrize("dims", [2, 3])
def test_image_and_label_move_together(dims: int) -> None:
    """After any change the bright voxels are still the labelled ones."""
    chain = augmentation([20] * dims, mirror_axes=range(dims))
    for seed in range(5):
        chain.set_random_state(seed=seed)
        after: dict[str, Any] = chain(sample(dims))
        image, label = np.asarray(after["image"]), np.asarray(after["label"]) > 0
        assert image[label].mean() > image[~label].mean() + 1


@pytest.mark.parametrize("dims", [2, 3])
def test_the_same_seed_gives_the_same_sample(dims: int) -> None:
    """Augmentation is a function of its seed."""
    chain, given = augmentation([16] * dims), sample(dims)
    outputs = []
    for seed in (1, 2, 1):
        chain.set_random_state(seed=seed)
        outputs.append(np.asarray(chain(dict(given))["image"]))
    np.testing.assert_array_equal(outputs[0], outputs[2])
    assert np.abs(outputs[0] - outputs[1]).max() > 0


def test_a_crop_repeats_the_edge_outside() -> None:
    """Inside it is the array itself."""
    values = np.arange(24).reshape(1, 4, 6, 1)
    np.testing.assert_array_equal(
        crop(values, np.array([2, 3, 0]), [2, 2, 1])[0, ..., 0], values[0, 1:3, 2:4, 0]
    )
    np.testing.assert_array_equal(
        crop(values, np.array([0, 0, 0]), [2, 2, 1])[0, ..., 0], [[0, 0], [0, 0]]
    )


def test_normalisation_by_hand() -> None:
    """Foreground z-score leaves zeros out; CT clips first; a constant channel becomes zeros."""
    image = np.array([[[[0.0, 0, 2, 4]]]], dtype=np.float32)
    found = normalise(image, [Normalisation(kind="zscore_foreground")])
    np.testing.assert_allclose(found[0, 0, 0], [-3, -3, -1, 1])
    ct = Normalisation(kind="ct", clip=(1, 3), mean=2, sd=0.5)
    np.testing.assert_allclose(normalise(image, [ct])[0, 0, 0], [-2, -2, 0, 2])
    flat = np.full((1, 1, 1, 4), 7.0, dtype=np.float32)
    for kind in ("zscore", "zscore_foreground"):
        assert not normalise(flat, [Normalisation(kind=kind)]).any()


def test_processes_share_every_global_batch() -> None:
    """Together they see each sample number once, in the order of one process."""
    one = list(StepSampler(2, 4, 4))
    two = [list(StepSampler(2, 4, 4, rank, 2)) for rank in (0, 1)]
    assert one == list(range(8, 16))
    assert two == [[8, 9, 12, 13], [10, 11, 14, 15]]
    with pytest.raises(InputError, match="multiple of 3"):
        StepSampler(0, 1, 4, 0, 3)


@pytest.mark.parametrize("patch", [[40, 56, 40], [24, 40, 16], [56, 40]])
def test_image_and_label_of_a_training_sample_lie_on_each_other(patch: list[int]) -> None:
    """A crop of other parity than the patch once parted them by half a voxel."""
    from medseg_diff.config import parse_config
    from medseg_diff.data.dataset import TrainingSet

    shape = (1, 60, 60, 60 if len(patch) == 3 else 1)
    label = np.zeros(shape, dtype=np.int16)
    label[0, 20:41, 22:37, : shape[3] // 2 + 1] = 1
    case = {
        "image": label.astype(np.float32),
        "label": label,
        "foreground": [np.argwhere(label[0])],
    }
    config = parse_config(
        {
            "recipe": "unet",
            "plan": {"patch_size": patch, "spatial_dims": len(patch), "batch_size": 1},
            "training": {"steps": 8},
        }
    )
    training_set = TrainingSet([case], config, 2)  # type: ignore[arg-type]
    assert training_set.augment is not None
    # Without the random changes what is left is the cut from the crop to the patch.
    for step in training_set.augment.transforms:
        step.prob = 0.0
    seen = 0
    for number in range(8):
        item = training_set[number]
        image, mask = np.asarray(item["image"][0]), np.asarray(item["label"][0])
        np.testing.assert_allclose(image, mask, atol=1e-3)
        seen += bool(mask.any() and not mask.all())
    assert seen >= 3


def test_coordinates_run_over_the_scan() -> None:
    """Windows of a scan carry the scan's own coordinates; a 2-D patch has two."""
    plan = PlanConfig(spatial_dims=3, coordinates=True)
    image = np.zeros((2, 4, 5, 6), np.float32)
    whole = network_input(image, plan)
    assert whole.shape == (5, 4, 5, 6)
    np.testing.assert_allclose(whole[2, :, 0, 0], [-0.75, -0.25, 0.25, 0.75])
    np.testing.assert_allclose(whole[4, 1, 3], (np.arange(6) + 0.5) / 3 - 1, atol=1e-6)
    piece = network_input(image[:, 1:3, 2:, 3:5], plan, (1, 2, 3), (4, 5, 6))
    np.testing.assert_array_equal(piece, whole[:, 1:3, 2:, 3:5])
    flat = PlanConfig(spatial_dims=2, coordinates=True)
    slices = network_input(np.zeros((1, 4, 5, 3), np.float32), flat)
    patch = network_input(np.zeros((1, 4, 5), np.float32), flat, (0, 0), (4, 5, 3))
    assert patch.shape == (3, 4, 5)
    np.testing.assert_array_equal(slices[..., 2], patch)
    assert network_input(image, PlanConfig(spatial_dims=3)) is image


def test_a_training_sample_knows_its_place() -> None:
    from medseg_diff.config import parse_config
    from medseg_diff.data.dataset import TrainingSet

    label = np.zeros((1, 30, 40, 1), dtype=np.int16)
    label[0, 21, 33] = 1
    case = {"image": label.astype(np.float32), "label": label, "foreground": []}
    config = parse_config(
        {
            "recipe": "unet",
            "plan": {
                "patch_size": [24, 32],
                "spatial_dims": 2,
                "batch_size": 1,
                "coordinates": True,
            },
            "training": {"steps": 6, "augment": False},
        }
    )
    training_set = TrainingSet([case], config, 2)  # type: ignore[arg-type]
    seen = 0
    for number in range(6):
        item = training_set[number]
        assert item["image"].shape == (3, 24, 32)
        for place in np.argwhere(item["label"][0].numpy()):
            row, column = item["image"][1:, place[0], place[1]].tolist()
            assert (row, column) == pytest.approx((21.5 / 15 - 1, 33.5 / 20 - 1), abs=1e-6)
            seen += 1
    assert seen
