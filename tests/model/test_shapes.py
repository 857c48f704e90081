"""Clean-up by structure, from settings to the mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medseg_diff.cli.options import parse_shapes
from medseg_diff.errors import UsageError
from tests.inference.test_inference import SHAPE, SPACING, reading_predictor
from tests.phantoms import NiftiFile, grid_affine, make_phantom


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """The phantom with a stray voxel of its first structure in a far corner."""
    phantom = make_phantom(grid_affine("RAS", SPACING, SHAPE), SHAPE)
    image = phantom.image.copy()
    assert image[0, 0, 0] < image[phantom.labels == 1].min()
    image[0, 0, 0] = np.median(image[phantom.labels == 1])
    return NiftiFile(image, phantom.affine).write(tmp_path / "scan.nii.gz")


@pytest.mark.parametrize("rule", [{"keep_largest": True}, {"min_volume_mm3": 200.0}])
def test_a_stray_voxel_is_taken_away(scan: Path, rule: dict[str, object]) -> None:
    predictor = reading_predictor(spacing_mm=SPACING)
    plain = np.asarray(predictor.predict(scan).mask)[0]
    assert plain[0, 0, 0] == 1
    answer = predictor.predict(scan, shapes={"first": rule})
    cleaned = np.asarray(answer.mask)[0]
    assert cleaned[0, 0, 0] == 0
    assert (cleaned != plain).sum() == 1
    assert answer.record["shapes"]["first"] == {
        "fill_holes": False,
        "min_volume_mm3": 0.0,
        "keep_largest": False,
        **rule,
    }
    other = np.asarray(predictor.predict(scan, shapes={"second": rule}).mask)[0]
    np.testing.assert_array_equal(other, plain)


def test_unknown_structures_and_keys_are_refused(scan: Path) -> None:
    with pytest.raises(UsageError, match=r"no such structure.*fisrt"):
        reading_predictor().predict(scan, shapes={"fisrt": {"keep_largest": True}})
    with pytest.raises(UsageError, match="--shapes"):
        reading_predictor().predict(scan, shapes={"first": {"keep_biggest": True}})


def test_the_flag_is_yaml() -> None:
    assert parse_shapes("{a: {min_volume_mm3: 20}}") == {"a": {"min_volume_mm3": 20}}
    assert parse_shapes(None) is None
    for text in ("[a", "largest"):
        with pytest.raises(UsageError, match="not a mapping"):
            parse_shapes(text)
