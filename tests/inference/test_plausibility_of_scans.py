"""Warnings that a mask or a scan is not what it should be; F28, F29, F72, K14, K20."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from medseg_diff.batch.run import Case, check_output, predict_many
from medseg_diff.config import Normalisation
from medseg_diff.data.transforms import normalise
from medseg_diff.errors import UsageError
from tests.inference.test_inference import BRIGHT, SHAPE, SPACING, reading_predictor
from tests.phantoms import NiftiFile, grid_affine, make_phantom
from tests.tiny import threshold_predictor, tiny_config

AFFINE = grid_affine("RAS", SPACING, SHAPE)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def scan(path: Path, image: np.ndarray) -> Path:
    return NiftiFile(image.astype(np.float32), AFFINE).write(path)


@pytest.mark.parametrize(
    ("low", "high", "warned"), [(0, 255, True), (0, 4095, True), (-1024, 3071, False)]
)
def test_F28_a_ct_that_is_not_in_hounsfield_units(
    tmp_path: Path, low: float, high: float, warned: bool
) -> None:
    image = np.random.default_rng(0).uniform(low, high, SHAPE)
    image.flat[:2] = low, high
    file = scan(tmp_path / "scan.nii.gz", image)
    config = tiny_config(task={"modality": "CT"}, plan={"normalisation": BRIGHT})
    warnings = threshold_predictor(config).predict(file).record["warnings"]
    assert any("implausible for CT" in sentence for sentence in warnings) == warned
    other = reading_predictor().predict(file).record["warnings"]
    assert not any("implausible" in sentence for sentence in other)


def test_F29_padding_is_clipped_before_it_counts() -> None:
    """-3024 outside the field of view becomes the lowest value of the plan, no more."""
    plan = Normalisation(kind="ct", clip=(-200, 300), mean=40, sd=50)
    values = np.array([[-3024.0, -2000.0, -200.0, 40.0, 3071.0]], np.float32)
    np.testing.assert_allclose(
        normalise(values, [plan])[0], [-4.8, -4.8, -4.8, 0.0, 5.2], atol=1e-5
    )


def test_F72_empty_large_and_cut_structures(tmp_path: Path) -> None:
    """Label k is where the normalised image is near k: the scan is made of labels."""
    labels = np.zeros(SHAPE)
    labels[3:6, 3:6, 3:6] = 1
    labels[:, :, 8:] = 2
    inside = reading_predictor(spacing_mm=SPACING).predict(
        scan(tmp_path / "a.nii.gz", labels * 100)
    )
    assert inside.record["status"] == "warning"
    assert inside.record["warnings"] == [
        "second: touches the border of the scan and may go on beyond it",
        "third: nothing was found",
    ]
    labels[2:] = 3
    large = reading_predictor(spacing_mm=SPACING).predict(scan(tmp_path / "b.nii.gz", labels * 100))
    assert any(w.startswith("third: fills 8") for w in large.record["warnings"])


def test_K14_output_that_cannot_be_used(tmp_path: Path) -> None:
    """Refused before anything is computed: among the inputs, a file, read-only."""
    file = scan(tmp_path / "in.nii.gz", np.ones(SHAPE))
    cases = [Case("in", {"T1": file})]
    with pytest.raises(UsageError, match="among the inputs"):
        check_output(tmp_path, cases)
    (tmp_path / "taken").write_text("x")
    with pytest.raises(UsageError, match="cannot make the folder"):
        check_output(tmp_path / "taken", cases)
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    if not os.access(locked, os.W_OK):  # root may write anywhere
        with pytest.raises(UsageError, match="read-only"):
            check_output(locked, cases)


def test_K20_a_full_disk_fails_the_case_and_leaves_nothing_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second image of the first case meets a full disk; the other case is written."""
    phantom = make_phantom(AFFINE, SHAPE)
    cases = [
        Case(name, {"T1": scan(tmp_path / "in" / f"{name}.nii.gz", phantom.image)})
        for name in ("a", "b")
        if (tmp_path / "in").mkdir(exist_ok=True) is None
    ]
    from medseg_diff import io

    real, calls = io.write_map, []

    def full(path: Path, *rest: object) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(io, "write_map", full)
    out = tmp_path / "out"
    assert predict_many(reading_predictor(), cases, out) == 8
    assert not list(out.glob("a*.nii.gz"))
    assert "No space left" in (out / "a.json").read_text()
    assert {p.name for p in out.glob("b*")} == {
        "b.json",
        "b.nii.gz",
        "b_prob.nii.gz",
        "b_doubt.nii.gz",
    }
    assert not list(out.glob(".*.tmp"))
