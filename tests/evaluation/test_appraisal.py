"""What `evaluate` says beyond overlap, against the same numbers computed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from medseg_diff.calibration import RegionalCalibration
from medseg_diff.errors import InputError
from medseg_diff.evaluation.masks import evaluate
from medseg_diff.metrics.plausibility import score_structures
from medseg_diff.metrics.risk import score_doubt

SHAPE = (10, 12, 8)
SPACING = (1.0, 1.5, 2.0)
LABELS = {"background": 0, "a": 1, "b": 2}


def save(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.diag([*SPACING, 1.0])), path)
    return path


def masks(seed: int, count: int) -> np.ndarray:
    """Label maps (N, *S) that differ in where they end."""
    rng = np.random.default_rng(seed)
    found = np.zeros((count, *SHAPE), np.uint8)
    for one in found:
        low, high = rng.integers(1, 4), rng.integers(6, 9)
        one[low:high, 2:9, 2:6] = 1
        one[low : low + 2, 3:7, 3:5] = 2
    return found


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Three cases: predictions with maps and draws, and three annotators."""
    cases = {}
    for number, name in enumerate("xyz"):
        draws, annotators = masks(number, 4), masks(number + 10, 3)
        p = np.stack([(draws == k).mean(0) for k in (1, 2)]).astype(np.float32)
        label = np.concatenate([1 - p.sum(0, keepdims=True), p]).argmax(0).astype(np.uint8)
        out = tmp_path / "pred"
        save(out / f"{name}.nii.gz", label)
        save(out / f"{name}_prob.nii.gz", np.moveaxis(p, 0, -1))
        save(out / f"{name}_draws.nii.gz", np.moveaxis(draws, 0, -1))
        save(out / f"{name}_doubt.nii.gz", np.moveaxis(p * (1 - p), 0, -1))
        voxels = {"a": int((label == 1).sum()), "b": int((label == 2).sum())}
        record = {
            "case": name,
            "status": "ok",
            "labels": LABELS,
            "voxels": voxels,
            "pairwise_dice": {"a": 0.9 - 0.1 * number, "b": None},
        }
        (out / f"{name}.json").write_text(json.dumps(record))
        for rater, mask in enumerate(annotators):
            save(tmp_path / f"ref{rater}" / f"{name}.nii.gz", mask)
        cases[name] = {"draws": draws, "annotators": annotators, "p": p, "label": label}
    return cases


def scored(tmp_path: Path, several: bool = True, **changes):
    annotators = {n: [tmp_path / f"ref{r}" / f"{n}.nii.gz" for r in range(3)] for n in "xyz"}
    return evaluate(
        tmp_path / "pred",
        tmp_path / "ref0",
        tmp_path / "out",
        annotators=annotators if several else None,
        **changes,
    )


def test_plausibility_is_that_of_the_draws(tmp_path: Path, folders) -> None:
    found = scored(tmp_path)
    wanted = [
        score_structures(c["draws"], c["annotators"], {"a": (1,), "b": (2,)})
        for c in folders.values()
    ]
    for name in "ab":
        block = found.summary["plausibility"]["structures"][name]
        assert (block["n"], block["samples"], block["references"]) == (3, 4, 3)
        assert block["ged2"]["mean"] == pytest.approx(np.mean([w[name].ged2 for w in wanted]))
        assert block["hm_iou"]["mean"] == pytest.approx(np.mean([w[name].hm_iou for w in wanted]))
    table = pd.read_csv(tmp_path / "out" / "plausibility.csv")
    assert list(table["case"]) == ["x", "x", "y", "y", "z", "z"]
    page = found.report.read_text()
    assert "GED²" in page
    assert "best-match Dice" in page


@pytest.mark.parametrize("several", [True, False])
def test_calibration_is_judged_by_all_annotators(tmp_path: Path, folders, several: bool) -> None:
    found = scored(tmp_path, several).summary["calibration"]
    for k, name in enumerate("ab"):
        pool = RegionalCalibration()
        for case in folders.values():
            truth = case["annotators"] if several else case["annotators"][:1]
            pool.add(case["p"][k], (truth == k + 1).mean(0), SPACING)
        whole, near = pool.scores()
        assert found[name]["whole image"]["ece"] == pytest.approx(whole.ece)
        assert found[name][near.region]["brier"] == pytest.approx(near.brier)
        assert near.ece > whole.ece > 0


def test_doubt_ranks_the_cases(tmp_path: Path, folders) -> None:
    found = scored(tmp_path)
    risk = 1 - found.per_case.groupby("case")["dice"].mean().to_numpy()
    scores = found.summary["doubt"]["scores"]
    assert scores["spread"]["aurc"] == pytest.approx(score_doubt(risk, [0.1, 0.2, 0.3]).aurc)
    entropy = [
        (c["p"][0] * (1 - c["p"][0])).sum() / (c["label"] > 0).sum() for c in folders.values()
    ]
    assert scores["entropy"]["aurc"] == pytest.approx(score_doubt(risk, entropy).aurc, abs=1e-6)
    assert "Risk is 1 - mean Dice of the cases answered" in found.report.read_text()


def test_a_failed_case_is_risked_without_doubt(tmp_path: Path, folders) -> None:
    for ending in ("", "_prob", "_draws", "_doubt"):
        (tmp_path / "pred" / f"y{ending}.nii.gz").unlink()
    (tmp_path / "pred" / "y.json").write_text(
        json.dumps({"case": "y", "status": "failed", "error": "y: broken", "labels": LABELS})
    )
    found = scored(tmp_path)
    assert found.summary["doubt"]["scores"]["spread"]["left_out"] == 1
    assert found.summary["plausibility"]["structures"]["a"]["n"] == 2


def test_masks_alone_are_enough(tmp_path: Path, folders) -> None:
    """Predictions from elsewhere: no maps, no draws, no JSON, and nothing is made up."""
    for file in (tmp_path / "pred").iterdir():
        if "_" in file.name or file.suffix == ".json":
            file.unlink()
    found = scored(tmp_path, labels=LABELS)
    assert not {"calibration", "doubt", "plausibility"} & set(found.summary)
    assert not (tmp_path / "out" / "plausibility.csv").exists()


def test_draws_on_another_grid_are_refused(tmp_path: Path, folders) -> None:
    save(tmp_path / "pred" / "x_draws.nii.gz", np.zeros((4, 4, 4, 3), np.uint8))
    with pytest.raises(InputError, match=r"x_draws\.nii\.gz: draws are not on the grid"):
        scored(tmp_path)
