"""Pictures of translations: which slice, which cases, which panels."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.figure import Figure

from medseg_diff.evaluation.images import evaluate_images
from medseg_diff.figures import TranslationView, translation_figure, translations
from medseg_diff.figures.translations import middle_slice
from tests.translation_fixtures import AFFINE, paired


def test_the_middle_slice_is_across_the_coarsest_axis_and_upright():
    values = np.arange(2 * 4 * 5 * 6, dtype=float).reshape(2, 4, 5, 6)
    cut, aspect = middle_slice(values, np.diag([1.0, 1.0, 3.0, 1.0]))
    # RAS+: rows run from front to back, columns from the patient's right to the left.
    np.testing.assert_array_equal(cut, values[:, ::-1, ::-1, ::-1][..., 3].swapaxes(1, 2))
    assert aspect == 1
    thin, aspect = middle_slice(values, np.diag([1.0, 4.0, 2.0, 1.0]))
    np.testing.assert_array_equal(thin, values[:, ::-1, ::-1, ::-1][:, :, 2].swapaxes(1, 2))
    assert aspect == 2
    flat = values[:, :, :, 0]
    assert middle_slice(flat, None)[0] is flat


@pytest.mark.parametrize("with_source", [True, False])
@pytest.mark.parametrize("spread", [None, 0.0, 2.0])
def test_panels_are_what_is_known(
    monkeypatch: pytest.MonkeyPatch, with_source: bool, spread: float | None
):
    """Titles, and the error's and spread's own values; a spread of 0 is that of one draw."""
    kept: list[Figure] = []
    monkeypatch.setattr(translations, "png", lambda figure: kept.append(figure) or b"")
    target = np.zeros((1, 8, 9))
    made = target + np.linspace(-4, 4, 9)
    view = TranslationView(
        target, made, (-5, 5), None, target + 1 if with_source else None,
        None if spread is None else np.full((8, 9), spread),
    )  # fmt: skip
    translation_figure(view)
    axes = [a for a in kept[0].axes if a.get_title()]
    expected = ["Source"] if with_source else []
    expected += ["Target", "Translated (SYNTHETIC)", "|Error|"]
    expected += ["Spread of draws"] if spread else []
    assert [a.get_title() for a in axes] == expected
    shown = {a.get_title(): a.images[0] for a in axes}
    np.testing.assert_allclose(shown["|Error|"].get_array(), np.abs(made[0]))
    assert shown["Target"].get_clim() == shown["Translated (SYNTHETIC)"].get_clim() == (-5, 5)
    if spread:
        assert shown["Spread of draws"].get_clim() == shown["|Error|"].get_clim()


def test_a_photo_keeps_its_colours():
    photo = np.random.default_rng(0).uniform(0, 255, (3, 12, 10))
    assert translation_figure(TranslationView(photo, photo + 5, (0, 255)))[:4] == b"\x89PNG"


def test_the_report_shows_best_median_and_worst(tmp_path: Path):
    (tmp_path / "pred").mkdir()
    for number in range(5):
        source, target = paired((15, 18, 13), number)
        error = [30, 10, 50, 20, 40][number]
        for folder, name, values in (
            ("T1", f"h{number}", source),
            ("FLAIR", f"h{number}", target),
            ("pred", f"h{number}_SYNTHETIC", target + error),
            ("pred", f"h{number}_SYNTHETIC_spread", np.ones_like(target)),
        ):
            (tmp_path / folder).mkdir(exist_ok=True)
            file = tmp_path / folder / f"{name}.nii.gz"
            nib.save(nib.Nifti1Image(values.astype(np.float32), AFFINE), file)
        record = {"synthetic": True, "status": "ok", "range": [0.0, 300.0]}
        (tmp_path / "pred" / f"h{number}.json").write_text(json.dumps(record))
    found = evaluate_images(
        tmp_path / "pred", tmp_path / "FLAIR", tmp_path / "out", images=tmp_path / "T1"
    )
    page = found.report.read_text()
    assert page.count("data:image/png") == 3
    for heading in ("Best: h1", "Median: h0", "Worst: h2"):
        assert heading in page
