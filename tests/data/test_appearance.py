"""Strong augmentation: new contrasts, the same anatomy, labels untouched."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import Compose

import medseg_diff
from medseg_diff.config import parse_config
from medseg_diff.data.appearance import (
    SyntheticContrastd,
    coarse_axis,
    random_convolutions,
    smooth_field,
    strong_appearance,
    synthetic_contrast,
)
from medseg_diff.errors import UsageError
from tests.tiny import KEYS

PACKAGE = Path(medseg_diff.__file__).parent


def sample(dims: int, channels: int = 1) -> dict[str, torch.Tensor]:
    shape = (18, 16, 14)[:dims]
    ball = np.square(np.indices(shape) - 8).sum(0) < 16
    noise = np.random.default_rng(0).normal(0, 0.3, (channels, *shape))
    image = torch.from_numpy((noise + 2 * ball).astype(np.float32))
    return {"image": image, "label": torch.from_numpy(ball[None].astype(np.float32))}


@pytest.mark.parametrize("dims", [2, 3])
def test_random_convolutions_keep_norm_and_edges_and_can_invert(dims: int):
    given = sample(dims, 2)
    ball = given["label"][0] > 0
    signs = set()
    for seed in range(20):
        made = random_convolutions(given["image"], np.random.RandomState(seed))
        assert made.shape == given["image"].shape
        torch.testing.assert_close(made.norm(), given["image"].norm())
        gap = float(made[0][ball].mean() - made[0][~ball].mean())
        signs.add(gap > 0)
    assert signs == {True, False}


@pytest.mark.parametrize("dims", [2, 3])
def test_synthetic_contrast_follows_the_labels(dims: int):
    given = sample(dims)
    image, label = given["image"].numpy(), given["label"].numpy()
    inside = label[0] > 0
    gaps, spreads = [], []
    for seed in range(30):
        made = synthetic_contrast(image, label, np.random.RandomState(seed))
        assert made.shape == image.shape
        assert made.mean() == pytest.approx(0, abs=1e-4)
        assert made.std() == pytest.approx(1, rel=1e-4)
        gaps.append(made[0][inside].mean() - made[0][~inside].mean())
        spreads.append(made[0][inside].std())
    # A structure is one tissue of any brightness.
    assert min(gaps) < -0.3
    assert max(gaps) > 0.3
    assert np.median(spreads) < 0.8


def test_synthetic_contrast_of_labels_alone_does_not_show_the_image():
    """Without a background to divide, the image's greys have no say."""
    label = np.tile(np.array([1, 2]), (1, 8, 4))
    one, two = (
        synthetic_contrast(image, label, np.random.RandomState(3))
        for image in (np.zeros((1, 8, 8), np.float32), np.ones((1, 8, 8), np.float32) * 9)
    )
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("steps", [strong_appearance([18, 16]), [SyntheticContrastd()]])
def test_labels_are_never_touched_and_a_seed_repeats(steps: list):
    change, given = Compose(steps), sample(2)
    changed = 0
    for seed in range(6):
        made = []
        for _ in range(2):
            change.set_random_state(seed=seed)
            made.append(change({k: v.clone() for k, v in given.items()}))
        torch.testing.assert_close(torch.as_tensor(made[0]["label"]), given["label"])
        torch.testing.assert_close(
            torch.as_tensor(made[0]["image"]), torch.as_tensor(made[1]["image"])
        )
        changed += not torch.equal(torch.as_tensor(made[0]["image"]), given["image"])
    assert changed >= 4


@pytest.mark.parametrize("dims", [2, 3])
def test_fields_are_smooth_and_coarse_axes_keep_ramps(dims: int):
    shape = (20, 18, 16)[:dims]
    field = smooth_field(shape, np.random.RandomState(0))
    assert field.shape == shape
    assert field.min() > 0
    assert np.abs(np.diff(np.log(field), axis=0)).max() < 0.5
    flat = torch.full((1, *shape), 3.0)
    torch.testing.assert_close(coarse_axis(flat, 0, 3.0), flat)
    stripes = torch.zeros(1, *shape)
    stripes[:, ::2] = 1
    assert coarse_axis(stripes, 0, 2.0).std() < 0.2 * stripes.std()
    torch.testing.assert_close(coarse_axis(stripes, 1, 2.0), stripes)


def test_no_method_uses_a_shifts_own_operator():
    """Training and adaptation are blind to the scanner models they are judged on."""
    files = [PACKAGE / "data" / "appearance.py", PACKAGE / "data" / "transforms.py"]
    files += [p for p in (PACKAGE / "adaptation").rglob("*.py") if p.name != "experiment.py"]
    assert len(files) > 4
    operators = {"RandBiasField", "RandRicianNoise", "RandBiasFieldd", "RandRicianNoised"}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.module != "medseg_diff.data.shifts", path.name
                assert not operators & {alias.name for alias in node.names}, path.name


def test_an_augmentation_needs_augmenting():
    keys = {**KEYS, "training": {"augment": False, "augmentation": "strong"}}
    with pytest.raises(UsageError, match="leave augment on"):
        parse_config(keys)
