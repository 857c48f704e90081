"""Rules that fuse an ensemble's draws, and what its JSON says of each structure."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from medseg_diff.codecs import OneHotCodec
from medseg_diff.config import PredictionConfig
from medseg_diff.errors import UsageError
from medseg_diff.fusion import certainty_weighted_mean, staple_labels
from medseg_diff.inference.draws import DrawMasks, doubt_of_structures
from medseg_diff.inference.ensemble import infer
from tests.inference.test_draws import image_of, packed, request
from tests.inference.test_inference import SHAPE, SPACING, reading_predictor
from tests.phantoms import NiftiFile, grid_affine, make_phantom
from tests.tiny import Threshold

TWO = OneHotCodec(((0,), (1,)))
THREE = OneHotCodec(((0,), (1,), (2,)))


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def draws_of(codec: OneHotCodec, count: int, rule: str):
    fused = infer(
        [Threshold(codec, noise=0.6)], image_of(8, 8, 8), (8, 8, 8), request(draws=count, fuse=rule)
    )
    return fused, np.stack(list(fused.masks))


@pytest.mark.parametrize("codec", [TWO, THREE])
def test_majority_is_the_share_of_draws(codec: OneHotCodec):
    fused, masks = draws_of(codec, 5, "majority")
    np.testing.assert_allclose(fused.probability[1:], masks.mean(0), atol=1e-6)
    np.testing.assert_allclose(fused.probability.sum(0), 1, atol=1e-6)
    mean, _ = draws_of(codec, 5, "mean")
    assert not np.allclose(mean.probability, fused.probability, atol=0.01)


def test_staple_is_simpleitks():
    fused, masks = draws_of(TWO, 7, "staple")
    stack = [sitk.GetImageFromArray(mask[0].astype(np.uint8)) for mask in masks]
    rule = sitk.STAPLEImageFilter()
    rule.SetForegroundValue(1)
    wanted = sitk.GetArrayFromImage(rule.Execute(stack))
    np.testing.assert_allclose(fused.probability[1], wanted, atol=1e-3)
    np.testing.assert_allclose(fused.rates["sensitivity"][0], rule.GetSensitivity(), atol=1e-3)
    np.testing.assert_allclose(fused.rates["specificity"][0], rule.GetSpecificity(), atol=1e-3)


def test_staple_of_classes_is_simpleitks():
    fused, masks = draws_of(THREE, 5, "staple")
    labels = [(mask * np.array([1, 2])[:, None, None, None]).sum(0) for mask in masks]
    stack = [sitk.GetImageFromArray(one.astype(np.uint8)) for one in labels]
    wanted = sitk.GetArrayFromImage(sitk.MultiLabelSTAPLE(stack, 255))
    decided = wanted != 255
    assert decided.mean() > 0.9
    np.testing.assert_array_equal(fused.probability.argmax(0)[decided], wanted[decided])
    confusion = staple_labels(labels, 3).confusion
    for structure in (1, 2):
        found = fused.rates["sensitivity"][structure - 1]
        np.testing.assert_allclose(found, confusion[:, structure, structure], atol=1e-6)


def test_certainty_weighs_each_draw_by_itself():
    fused, _ = draws_of(TWO, 3, "certainty")
    single = [
        infer(
            [Threshold(TWO, noise=0.6)], image_of(8, 8, 8), (8, 8, 8), request(draws=d + 1)
        ).probability
        for d in range(3)
    ]
    # Means over 1, 2 and 3 draws give the draws back.
    alone = [single[0], 2 * single[1] - single[0], 3 * single[2] - 2 * single[1]]
    clipped = [np.clip(p, 0, 1).astype(np.float32) for p in alone]
    wanted = certainty_weighted_mean(clipped, exclusive=True)
    np.testing.assert_allclose(fused.probability, wanted, atol=1e-3)


def test_doubt_of_structures_by_hand():
    """Cubes of side 4 and 6: boundary 1 voxel apart, volumes 64 and 216 voxels."""
    small, large = np.zeros((2, 12, 12, 12), bool)
    small[4:8, 4:8, 4:8] = True
    large[3:9, 3:9, 3:9] = True
    masks = DrawMasks((packed(np.stack([small, large, large])[:, None]),), (3,))
    found = doubt_of_structures(masks, ["cube"], (2.0, 2.0, 2.0))["cube"]
    assert found["mean_ml"] == pytest.approx((64 + 2 * 216) / 3 * 8 / 1000)
    assert found["low_ml"] == pytest.approx(np.percentile([64, 216, 216], 2.5) * 8 / 1000)
    assert found["high_ml"] == pytest.approx(216 * 8 / 1000)
    # Most of the large cube's faces lie 2 mm outside the small one's: sd of (2, 0, 0).
    assert found["boundary_doubt_mm"] == pytest.approx(2 * math.sqrt(2) / 3, rel=0.35)
    alone = DrawMasks((packed(small[None, None]),), (1,))
    assert (
        doubt_of_structures(alone, ["cube"], (2.0, 2.0, 2.0))["cube"]["boundary_doubt_mm"] is None
    )


def test_the_record_tells_what_lies_between_draws(tmp_path: Path):
    phantom = make_phantom(grid_affine("RAS", SPACING, SHAPE), SHAPE)
    scan = NiftiFile(phantom.image, phantom.affine).write(tmp_path / "scan.nii.gz")
    predictor = reading_predictor(noise=0.2)
    record = predictor.predict(scan, draws=4, fuse="staple").record
    assert set(record["between_draws"]) == {"first", "second", "third"}
    for found in record["between_draws"].values():
        assert found["low_ml"] <= found["mean_ml"] <= found["high_ml"]
        assert found["boundary_doubt_mm"] > 0
    assert np.shape(record["staple"]["sensitivity"]) == (3, 4)
    assert record["staple"]["converged"] in (True, False)
    assert predictor.predict(scan, draws=4).record["staple"] is None


@pytest.mark.parametrize("rule", ["certainty", "step_sum", "step_uncertainty"])
def test_settling_needs_a_rule_that_uses_the_mean(rule: str):
    with pytest.raises(ValueError, match="settle watches the mean"):
        PredictionConfig(settle=0.1, fuse=rule)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="settle watches the mean"):
        reading_predictor().predict("x.nii.gz", settle=0.1, fuse=rule)
