"""Comparisons of translations: paired differences of MAE, PSNR and SSIM, and what is refused."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medseg_diff.cli.main import main
from medseg_diff.comparison import compare_folders
from medseg_diff.errors import InputError
from medseg_diff.metrics.statistics import bca_interval, holm, wilcoxon_p
from tests.comparison.test_comparison import folder as folder_of_masks
from tests.comparison.test_comparison import table as table_of_masks


def table(mae: Any, **columns: Any) -> pd.DataFrame:
    """Per-case table of images as ``evaluate`` writes it."""
    count = len(mae)
    ramp = np.linspace(0, 1, count)
    given = {
        "case": [f"c{k:02d}" for k in range(count)], "mae": mae, "psnr_db": 20 + ramp,
        "ssim": 0.5 + 0.1 * ramp, "ms_ssim": np.nan, "nmi": 1.1, "body_voxels": 500,
        "outcome": "scored",
    }  # fmt: skip
    return pd.DataFrame(given).assign(**columns)


def folder(path: Path, per_case: pd.DataFrame, data_range: str = "0 to 1") -> str:
    path.mkdir(parents=True)
    per_case.to_csv(path / "per_case.csv", index=False, float_format="%.6g")
    facts = {"task": "translation", "conventions": {"data_range": data_range, "body": "Otsu"}}
    (path / "summary.json").write_text(json.dumps(facts))
    return str(path)


def test_differences_are_paired_with_interval_and_correction(tmp_path: Path):
    """MAE of the first is 2 lower in the mean: better, since a small error is good."""
    rng = np.random.default_rng(0)
    low = rng.uniform(10, 30, 20)
    ours = np.round(low - 2 + rng.normal(0, 0.3, 20), 4)
    low = np.round(low, 4)
    given = [folder(tmp_path / "ours", table(ours)), folder(tmp_path / "unet", table(low))]
    sentences = compare_folders(given, tmp_path / "out")
    assert sentences[0].startswith("MAE, body: ours is better than unet")
    found = pd.read_csv(tmp_path / "out" / "compare.csv").set_index("metric")
    assert list(found.index) == ["mae", "psnr_db", "ssim"]
    row, gaps = found.loc["mae"], ours - low
    assert row["difference"] == pytest.approx(gaps.mean(), rel=1e-4)
    assert row["p"] == pytest.approx(wilcoxon_p(gaps), rel=1e-4)
    assert row["p_holm"] == pytest.approx(holm([wilcoxon_p(gaps)])[0], rel=1e-4)
    low_end, high_end = bca_interval(np.mean, gaps, seed=0)
    assert row["ci_low"] == pytest.approx(low_end, rel=0.05)
    assert row["ci_high"] == pytest.approx(high_end, rel=0.05)
    assert "No evidence" in found.loc["ssim", "verdict"]
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "Difference in MAE" in page
    assert "Dice" not in page


def test_a_higher_psnr_is_better(tmp_path: Path):
    low = table(np.full(20, 9.0) + np.arange(20) / 7)
    high = low.assign(psnr_db=low["psnr_db"] + np.linspace(1, 2, 20))
    given = [folder(tmp_path / "a", high), folder(tmp_path / "b", low)]
    sentences = compare_folders(given, tmp_path / "out")
    assert sentences[0].startswith("MAE, body: No evidence")
    assert "PSNR, body: a is better" in sentences[0]


def test_an_image_equal_to_its_reference_is_left_out_of_psnr_alone(tmp_path: Path):
    first = table(np.arange(8.0)).assign(psnr_db=[math.inf, *range(20, 27)])
    given = [folder(tmp_path / "a", first), folder(tmp_path / "b", table(np.arange(8.0) + 1))]
    compare_folders(given, tmp_path / "out")
    found = pd.read_csv(tmp_path / "out" / "compare.csv").set_index("metric")
    assert (found.loc["psnr_db", "n"], found.loc["mae", "n"]) == (7, 8)
    assert np.isfinite(found.loc["psnr_db", "mean_a"])


def test_patients_are_the_units_and_seeds_are_averaged(tmp_path: Path):
    patients = [f"p{k // 2}" for k in range(12)]
    values = np.arange(12.0)
    seeds = [folder(tmp_path / f"s{k}", table(values + k, patient=patients)) for k in (0, 2)]
    other = folder(tmp_path / "b", table(values + 5, patient=patients))
    compare_folders([f"a={','.join(seeds)}", f"b={other}"], tmp_path / "out")
    row = pd.read_csv(tmp_path / "out" / "compare.csv").set_index("metric").loc["mae"]
    assert (row["n"], row["units"], row["seeds_a"]) == (12, 6, 2)
    assert row["difference"] == pytest.approx(1 - 5)
    assert row["sd_seeds_a"] == pytest.approx(math.sqrt(2), rel=1e-4)


@pytest.mark.parametrize(
    ("change", "data_range", "words"),
    [
        ({}, "0 to 2", "made differently"),
        ({"body_voxels": 400}, "0 to 1", "different references"),
        ({"case": [f"d{k}" for k in range(8)]}, "0 to 1", "same cases"),
    ],
)
def test_what_does_not_compare_is_refused(
    tmp_path: Path, change: dict[str, Any], data_range: str, words: str
):
    first = folder(tmp_path / "a", table(np.arange(8.0)))
    second = folder(tmp_path / "b", table(np.arange(8.0), **change), data_range)
    with pytest.raises(InputError, match=words):
        compare_folders([first, second], tmp_path / "out")


def test_masks_and_images_do_not_mix(tmp_path: Path):
    images = folder(tmp_path / "a", table(np.arange(8.0)))
    masks = folder_of_masks(tmp_path / "b", table_of_masks(np.linspace(0, 1, 8)))
    with pytest.raises(InputError, match="do not compare"):
        compare_folders([images, masks], tmp_path / "out")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    given = [folder(tmp_path / name, table(np.arange(8.0))) for name in ("a", "b")]
    words = ["medseg-diff", "compare", *given, "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code in (0, None)
    assert "MAE" in capsys.readouterr().out
