"""Known answers of the scores of images, and what an evaluation refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from medseg_diff.data.caselist import load_caselist
from medseg_diff.errors import InputError
from medseg_diff.evaluation.images import (
    evaluate_images,
    evaluate_images_part,
    evaluate_translations,
)
from medseg_diff.metrics.images import MS_SSIM_LEAST, body_mask, score_image
from tests.translation_fixtures import AFFINE, paired, write_pairs

ENDS = (0.0, 200.0)


def head(*size: int) -> np.ndarray:
    """A textured ellipse of 100 to 140 on air of 0, (1, *size)."""
    grid = np.indices(size)
    middle = [((g - n / 2) / (0.4 * n)) ** 2 for g, n in zip(grid, size, strict=True)]
    inside = sum(middle) < 1
    return np.where(inside, 120 + 20 * np.sin(grid[0]), 0)[None].astype(np.float32)


@pytest.mark.parametrize("size", [(40, 50), (24, 30, 20)])
def test_an_image_is_equal_to_itself(size: tuple[int, ...]):
    image = head(*size)
    score = score_image(image, image, ENDS)
    assert (score.mae, score.psnr_db) == (0, math.inf)
    assert score.ssim == pytest.approx(1)
    assert score.nmi == pytest.approx(2)
    assert score.body_voxels == int((image > 0).sum())


def test_a_constant_offset_has_a_known_error():
    """8 too bright in the body, and anything in the air: MAE 8, PSNR 20 log10(200 / 8)."""
    image = head(40, 50)
    brighter = np.where(image > 0, image + 8, 55).astype(np.float32)
    score = score_image(brighter, image, ENDS)
    assert score.mae == pytest.approx(8, rel=1e-5)
    assert score.psnr_db == pytest.approx(20 * math.log10(200 / 8), rel=1e-5)
    # A shift loses no information: each value still tells the other.
    assert score.nmi == pytest.approx(2, abs=0.01)
    assert score.ssim < 1


def test_the_range_moves_psnr_and_ssim_but_not_the_error():
    image = head(40, 50)
    worse = image + np.random.default_rng(0).normal(0, 5, image.shape).astype(np.float32)
    narrow, wide = (score_image(worse, image, (0, end)) for end in (200.0, 2000.0))
    assert wide.mae == narrow.mae
    assert wide.psnr_db == pytest.approx(narrow.psnr_db + 20, rel=1e-4)
    assert wide.ssim > narrow.ssim


def test_ms_ssim_needs_size_and_ignores_the_air():
    small, image = head(40, 50), head(MS_SSIM_LEAST + 4, MS_SSIM_LEAST)
    assert math.isnan(score_image(small, small, ENDS).ms_ssim)
    assert score_image(image, image, ENDS).ms_ssim == pytest.approx(1)
    body = body_mask(image)
    air = np.where(body, image, 150).astype(np.float32)
    assert score_image(air, image, ENDS).ms_ssim == pytest.approx(1)
    noise = np.random.default_rng(0).normal(0, 15, image.shape).astype(np.float32)
    assert score_image(image + noise, image, ENDS).ms_ssim < 0.99


def test_a_thin_volume_is_scored_in_slices():
    image = head(40, 50, 9)[..., 2:7]
    noisy = image + np.random.default_rng(0).normal(0, 5, image.shape).astype(np.float32)
    score = score_image(noisy, image, ENDS)
    body = body_mask(image)
    by_slice = [
        score_image(noisy[..., k], image[..., k], ENDS, body[..., k]) for k in range(5)
    ]  # fmt: skip
    weights = [one.body_voxels for one in by_slice]
    expected = np.average([one.ssim for one in by_slice], weights=weights)
    assert score.ssim == pytest.approx(expected)


def test_the_body_is_one_piece_without_holes():
    image = head(40, 50)
    image[0, 20, 25] = 0
    image[0, 1:3, 1:3] = 130
    body = body_mask(image)
    assert body[20, 25]
    assert not body[1:3, 1:3].any()
    with pytest.raises(ValueError, match="no body"):
        body_mask(np.ones((1, 5, 5), np.float32))


@pytest.mark.parametrize("ends", [(1.0, 1.0), (2.0, 1.0), (0.0, math.inf)])
def test_an_empty_range_is_refused(ends: tuple[float, float]):
    with pytest.raises(ValueError, match="data range"):
        score_image(head(20, 20), head(20, 20), ends)


def predictions(folder: Path, cases: Path, offset: float, status: str = "ok") -> Path:
    """What `translate` writes of the test case, its image ``offset`` off the target."""
    folder.mkdir(parents=True)
    record = {"case": "head_4", "status": status, "synthetic": True, "range": [0.0, 400.0]}
    (folder / "head_4.json").write_text(json.dumps(record))
    values = paired((15, 18, 13), 4)[1] + np.float32(offset)
    for ending in ("", "_spread"):
        nib.save(nib.Nifti1Image(values, AFFINE), folder / f"head_4_SYNTHETIC{ending}.nii.gz")
    return folder


def test_an_evaluation_of_a_case_list(tmp_path: Path):
    cases = write_pairs(tmp_path / "data")
    pred = predictions(tmp_path / "pred", cases, 10)
    found = evaluate_translations(pred, cases, tmp_path / "out")
    assert found is not None
    row = pd.read_csv(tmp_path / "out" / "per_case.csv").iloc[0]
    assert (row["case"], row["patient"], row["outcome"]) == ("head_4", "p4", "scored")
    assert row["mae"] == pytest.approx(10, rel=1e-4)
    assert row["psnr_db"] == pytest.approx(20 * math.log10(40), rel=1e-4)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["range"] == [0.0, 400.0]
    assert summary["metrics"]["mae"]["mean"] == pytest.approx(10, rel=1e-4)
    assert summary["metrics"]["mae"]["ci_low"] is None
    assert summary["metrics"]["ms_ssim"]["mean"] is None
    page = (tmp_path / "out" / "report.html").read_text()
    assert "SYNTHETIC" in page
    assert "head_4" in page
    assert "MAE" in found.describe()


def test_a_failed_case_costs_the_full_price(tmp_path: Path):
    cases = write_pairs(tmp_path / "data")
    pred = predictions(tmp_path / "pred", cases, 0, status="failed")
    found = evaluate_images_part(pred, load_caselist(cases), tmp_path / "out")
    target = paired((15, 18, 13), 4)[1]
    body = body_mask(target[None])
    assert found.summary["failed"] == ["head_4"]
    assert found.per_case["mae"][0] == pytest.approx(float(target[body].mean()), rel=1e-4)


def test_the_range_must_be_known_and_one(tmp_path: Path):
    cases = write_pairs(tmp_path / "data")
    pred = predictions(tmp_path / "pred", cases, 10)
    (pred / "head_4.json").write_text("{}")
    listed = load_caselist(cases)
    with pytest.raises(InputError, match="--range LOW HIGH"):
        evaluate_images_part(pred, listed, tmp_path / "out")
    found = evaluate_images_part(pred, listed, tmp_path / "out", ends=(0.0, 100.0))
    assert found.summary["range"] == [0.0, 100.0]
    with pytest.raises(InputError, match="LOW < HIGH"):
        evaluate_images_part(pred, listed, tmp_path / "out", ends=(5.0, 5.0))


def test_cases_must_pair_up_and_lie_on_one_grid(tmp_path: Path):
    cases = write_pairs(tmp_path / "data")
    pred = predictions(tmp_path / "pred", cases, 10)
    references = {"head_4": tmp_path / "data" / "FLAIR" / "head_4.nii.gz"}
    with pytest.raises(InputError, match="reference without translation: other"):
        evaluate_images(pred, {**references, "other": references["head_4"]}, tmp_path / "out")
    moved = AFFINE.copy()
    moved[0, 3] += 3
    values = paired((15, 18, 13), 4)[1]
    nib.save(nib.Nifti1Image(values, moved), pred / "head_4_SYNTHETIC.nii.gz")
    with pytest.raises(InputError, match="another place"):
        evaluate_images(pred, references, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_beside_a_list_of_masks_are_refused(tmp_path: Path):
    from tests.training_fixtures import write_dataset

    cases = write_pairs(tmp_path / "data")
    pred = predictions(tmp_path / "pred", cases, 10)
    masks = write_dataset(tmp_path / "masks", cases=3)
    with pytest.raises(InputError, match="has no target"):
        evaluate_translations(pred, masks, tmp_path / "out")
    assert evaluate_translations(tmp_path / "nothing", tmp_path / "masks", tmp_path / "out") is None
