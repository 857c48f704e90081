"""Folders of masks in, scores and a page out: pairing, refusals, failures, written files."""

from __future__ import annotations

import json
import math
import os

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medseg_diff.errors import InputError
from medseg_diff.evaluation import masks as evaluation
from medseg_diff.evaluation.masks import evaluate
from medseg_diff.files import atomic_text
from medseg_diff.metrics import statistics

SHAPE = (20, 24, 16)
SPACING = (1.0, 1.0, 2.0)
LABELS = {"background": 0, "anterior": 1, "posterior": 2}


def volume(shift=0):
    """Two blocks of 6 x 6 x 6 voxels, moved along the first axis."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[4 + shift : 10 + shift, 4:10, 5:11] = 1
    mask[4 + shift : 10 + shift, 12:18, 5:11] = 2
    return mask


def write(path, array, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*SPACING, 1.0]) if affine is None else affine
    nib.save(nib.Nifti1Image(array, affine), path)


@pytest.fixture
def folders(tmp_path):
    """Three cases: perfect, shifted by 2 mm, and one whose posterior part was missed."""
    pred, ref = tmp_path / "pred", tmp_path / "ref"
    predictions = {"a": volume(), "b": volume(2), "c": np.where(volume() == 2, 0, volume())}
    for case, prediction in predictions.items():
        write(ref / f"{case}.nii.gz", volume())
        write(pred / f"{case}.nii.gz", prediction.astype(np.uint8))
        write(pred / f"{case}_prob.nii.gz", np.zeros((*SHAPE, 2), np.float32))
        write(pred / f"{case}_doubt.nii.gz", np.zeros((*SHAPE, 2), np.float32))
    (pred / "volumes.csv").write_text("case\n")
    return pred, ref, tmp_path / "out"


@pytest.fixture
def quick(monkeypatch):
    """Leave drawing out of tests that look at numbers and names only."""
    monkeypatch.setattr("medseg_diff.report.gallery.case_figure", lambda *_: b"png")
    monkeypatch.setattr("medseg_diff.report.render.box_plots", lambda *_: b"png")


def rows(result):
    return result.per_case.set_index(["case", "structure"])


def test_scores_and_files(folders):
    pred, ref, out = folders
    result = evaluate(pred, ref, out, labels=LABELS, title="Hippocampus", attribution="CC-BY-SA")
    table = rows(result)
    assert list(result.per_case.columns) == list(evaluation.COLUMNS)
    assert len(table) == 6
    assert table.loc[("a", "anterior"), "dice"] == 1
    assert table.loc[("b", "posterior"), "dice"] == pytest.approx(4 / 6)
    assert table.loc[("b", "anterior"), "volume_ref_ml"] == pytest.approx(216 * 2 / 1000)
    missed = table.loc[("c", "posterior")]
    assert (missed["outcome"], missed["dice"], missed["nsd"]) == ("missed", 0, 0)
    assert missed["hd95_mm"] == pytest.approx(math.hypot(20, 24, 32))

    assert sorted(p.name for p in out.iterdir()) == ["per_case.csv", "report.html", "summary.json"]
    csv = pd.read_csv(out / "per_case.csv")
    pd.testing.assert_frame_equal(csv, result.per_case, rtol=1e-5)
    written = json.loads((out / "summary.json").read_text())
    assert written == result.summary
    assert result.report == out / "report.html"
    page = result.report.read_text()
    for text in ("Hippocampus", "CC-BY-SA", "Best: a", "Median: c", "Worst: b"):
        assert (text in page) == (text not in ("Median: c", "Worst: b")), text
    assert "Median: b" in page
    assert "Worst: c" in page


@pytest.mark.usefixtures("quick")
def test_summary_counts_and_averages(folders):
    pred, ref, out = folders
    summary = evaluate(pred, ref, out, labels=LABELS).summary
    posterior = summary["structures"]["posterior"]
    assert posterior["misses"] == "1/3"
    assert (posterior["n"], posterior["n_scored"], posterior["false_positives"]) == (3, 2, 0)
    dice = posterior["metrics"]["dice"]
    expected = statistics.summarise([1.0, 4 / 6, 0.0])
    assert dice["mean"] == pytest.approx(expected.mean)
    assert dice["sd"] == pytest.approx(expected.sd)
    assert (dice["ci_low"], dice["ci_high"]) == pytest.approx((expected.low, expected.high))
    assert dice["median"] == pytest.approx(4 / 6)
    # The missed case pays the diagonal: HD95 is the mean of three numbers, not of two.
    hd95 = posterior["metrics"]["hd95_mm"]
    assert hd95["n"] == 3
    assert hd95["mean"] == pytest.approx((0 + 2 + math.hypot(20, 24, 32)) / 3)
    mean = summary["mean"]
    assert mean["metrics"]["dice"]["mean"] == pytest.approx(np.mean([1, 4 / 6, 0.5]))
    assert mean["misses"] == "1/6"
    assert summary["conventions"]["nsd_tolerance_mm"] == 1.0
    assert "95th percentiles" in summary["conventions"]["hd95"]
    assert any("too small to compare" in note for note in summary["notes"])


@pytest.mark.usefixtures("quick")
def test_F78_both_empty_and_false_positives_are_counted_apart(folders):
    pred, ref, out = folders
    nothing = np.zeros(SHAPE, np.uint8)
    write(ref / "a.nii.gz", nothing)  # predicted, so false positives
    write(ref / "d.nii.gz", nothing)
    write(pred / "d.nii.gz", nothing)
    result = evaluate(pred, ref, out, labels=LABELS)
    anterior = result.summary["structures"]["anterior"]
    assert (anterior["n"], anterior["both_empty"], anterior["false_positives"]) == (4, 1, 1)
    assert anterior["misses"] == "0/2"
    assert anterior["metrics"]["dice"]["n"] == 3
    assert anterior["metrics"]["hd95_mm"]["n"] == 2
    assert any("not scored: anterior 1, posterior 1" in note for note in result.summary["notes"])


@pytest.mark.usefixtures("quick")
def test_failed_prediction_counts_as_an_empty_one(folders):
    pred, ref, out = folders
    record = {"case": "b", "status": "failed", "error": "out of memory", "labels": LABELS}
    (pred / "b.json").write_text(json.dumps(record))
    write(ref / "d.nii.gz", np.zeros(SHAPE, np.uint8))
    (pred / "d.json").write_text(json.dumps(record))  # no mask, and an empty reference
    result = evaluate(pred, ref, out)
    failed = rows(result).loc[[("b", "anterior"), ("d", "anterior")]]
    assert list(failed["outcome"]) == ["failed", "failed"]
    assert list(failed["dice"]) == [0, 0]
    assert failed["hd95_mm"].iloc[0] == pytest.approx(math.hypot(20, 24, 32))
    assert math.isnan(failed["hd95_mm"].iloc[1])
    assert result.summary["failed"] == ["b", "d"]
    assert result.summary["structures"]["anterior"]["failed"] == 2
    assert result.summary["structures"]["anterior"]["metrics"]["dice"]["mean"] == 0.5
    page = result.report.read_text()
    assert "Prediction failed for 2: b, d." in page
    assert "Worst: c" in page  # overlays need a mask


def test_everything_unmatched_is_named_at_once(folders):
    pred, ref, out = folders
    write(pred / "extra1.nii.gz", volume())
    write(pred / "extra2.nii.gz", volume())
    write(ref / "lonely.nii.gz", volume())
    write(ref / "a.nii", volume())
    with pytest.raises(InputError) as refusal:
        evaluate(pred, ref, out, labels=LABELS, images={"a": "a.nii.gz", "c": "c.nii.gz"})
    text = str(refusal.value)
    assert "prediction without reference: extra1, extra2" in text
    assert "reference without prediction: lonely" in text
    assert "several references of one case: a" in text
    assert "case without image: b" in text
    assert "_prob" not in text
    assert "\n" not in text
    assert not out.exists()


@pytest.mark.usefixtures("quick")
def test_labels_come_from_the_predictions_then_from_the_values(folders):
    pred, ref, out = folders
    found = evaluate(pred, ref, out).summary["structures"]
    assert list(found) == ["label 1", "label 2"]
    for case in "abc":
        (pred / f"{case}.json").write_text(json.dumps({"status": "ok", "labels": LABELS}))
    assert list(evaluate(pred, ref, out).summary["structures"]) == ["anterior", "posterior"]
    whole = {"whole": [1, 2]}
    given = evaluate(pred, ref, out, regions=whole)
    assert list(given.summary["structures"]) == ["whole"]
    assert rows(given).loc[("b", "whole"), "dice"] == pytest.approx(4 / 6)
    (pred / "b.json").write_text(json.dumps({"status": "ok", "labels": {"other": 1}}))
    with pytest.raises(InputError, match="different labels"):
        evaluate(pred, ref, out)


@pytest.mark.usefixtures("quick")
def test_ignored_label_is_not_judged(folders):
    pred, ref, out = folders
    reference = volume()
    reference[reference == 2] = 9
    for case in "abc":
        write(ref / f"{case}.nii.gz", reference)
    result = evaluate(pred, ref, out, labels=LABELS, ignore_label=9)
    assert rows(result).loc[("a", "posterior"), "outcome"] == "both_empty"
    assert rows(result).loc[("a", "anterior"), "dice"] == 1
    with pytest.raises(InputError, match="ignore_label"):
        evaluate(pred, ref, out, labels=LABELS, ignore_label=2)


@pytest.mark.usefixtures("quick")
def test_patients_widen_the_interval(folders):
    pred, ref, out = folders
    by_case = evaluate(pred, ref, out, labels=LABELS)
    one = evaluate(pred, ref, out, labels=LABELS, patients=dict.fromkeys("abc", "p"))
    assert by_case.summary["mean"]["metrics"]["dice"]["ci_low"] is not None
    assert one.summary["mean"]["metrics"]["dice"]["ci_low"] is None
    assert one.summary["n_patients"] == 1
    assert "resamples of patients" in one.summary["conventions"]["interval"]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda p, r: write(p / "b.nii.gz", volume()[:-1]), "shape"),
        (lambda p, r: write(p / "b.nii.gz", volume(), np.diag([1.1, 1, 2, 1])), "mm apart"),
        (lambda p, r: write(p / "b.nii.gz", volume() * 100), "label values"),
        (lambda p, r: write(r / "b.nii.gz", volume() * 100), "label values"),
        (lambda p, r: (p / "b.json").write_text("{"), "b.json: not readable as JSON"),
        (lambda p, r: (r / "b.nii.gz").write_bytes(b""), "b.nii.gz"),
        (lambda p, r: [f.unlink() for d in (p, r) for f in d.iterdir()], "no masks to score"),
    ],
)
def test_refuses_bad_masks(folders, break_it, message):
    pred, ref, out = folders
    break_it(pred, ref)
    with pytest.raises(InputError, match=message):
        evaluate(pred, ref, out, labels=LABELS)
    assert not out.exists()


def test_refuses_bad_arguments(folders):
    pred, ref, out = folders
    with pytest.raises(InputError, match="no such folder of references"):
        evaluate(pred, ref / "nowhere", out)
    with pytest.raises(InputError, match="tolerance_mm"):
        evaluate(pred, ref, out, tolerance_mm=-1)
    with pytest.raises(InputError, match="regions"):
        evaluate(pred, ref, out, regions={"all": [0, 1]})
    with pytest.raises(InputError, match="is a file"):
        evaluate(pred, ref, pred / "a.nii.gz", labels=LABELS)


def test_images_in_nnunet_names_reach_the_overlay(folders):
    pred, ref, out = folders
    without = evaluate(pred, ref, out, labels=LABELS).report.read_text()
    for case in "abc":
        image = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
        write(out.parent / "images" / f"{case}_0000.nii.gz", image)
    shown = evaluate(pred, ref, out, labels=LABELS, images=out.parent / "images")
    assert len(shown.report.read_text()) > 1.1 * len(without)
    write(out.parent / "images" / "a_0000.nii.gz", image[:-2])
    with pytest.raises(InputError, match="image is not on the grid"):
        evaluate(pred, ref, out, labels=LABELS, images=out.parent / "images")


def test_raster_masks(tmp_path):
    pred, ref, images = (tmp_path / name for name in ("pred", "ref", "images"))
    mask = np.zeros((40, 60), np.uint8)
    mask[10:20, 10:30] = 1
    for folder in (pred, ref, images):
        folder.mkdir()
    for case in ("x", "y"):
        Image.fromarray(mask).save(ref / f"{case}.png")
        Image.fromarray(np.roll(mask, 3, axis=0)).save(pred / f"{case}.png")
        Image.fromarray(np.stack([mask * 200] * 3, -1)).save(images / f"{case}.jpg")
    result = evaluate(pred, ref, tmp_path / "out", labels={"nucleus": 1}, images=images)
    row = rows(result).loc[("x", "nucleus")]
    assert row["dice"] == pytest.approx(0.7)
    assert row["hd95_mm"] == 3
    assert row["volume_ref_ml"] == pytest.approx(0.2)
    assert "one pixel is taken for 1 mm" in result.summary["conventions"]["units"]
    assert "Best: x" in result.report.read_text()


def test_real_hippocampus_masks(shared_data, tmp_path):
    folder = shared_data / "msd_hippocampus"
    for path in sorted((folder / "labelsTs").glob("*.nii.gz"))[:4]:
        image = nib.load(path)
        labels = np.asarray(image.dataobj).astype(np.uint8)
        write(tmp_path / "ref" / path.name, labels, image.affine)
        write(tmp_path / "pred" / path.name, np.roll(labels, 1, axis=2), image.affine)
    images = {
        p.name[:-7]: folder / "imagesTs" / f"{p.name[:-7]}_0000.nii.gz"
        for p in (tmp_path / "ref").iterdir()
    }
    result = evaluate(
        tmp_path / "pred", tmp_path / "ref", tmp_path / "out", images=images, labels=LABELS
    )
    assert result.per_case["dice"].between(0.6, 0.95).all()
    assert (result.per_case["hd95_mm"] <= 1.0).all()  # moved by one voxel of 1 mm
    assert (result.per_case["nsd"] == 1).all()
    assert (result.per_case["volume_difference_ml"] == 0).all()


def test_atomic_text_replaces_whole_files_only(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    assert atomic_text(path, "old ü\n") == path
    assert path.read_bytes() == "old ü\n".encode()
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask

    def no_space(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(InputError, match="no space left"):
        atomic_text(path, "new")
    assert path.read_text(encoding="utf-8") == "old ü\n"
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_overlay_gets_the_first_doubt_volume_and_the_affine(folders, monkeypatch):
    pred, ref, out = folders
    doubt = np.random.default_rng(0).random((*SHAPE, 2)).astype(np.float32)
    for case in "abc":
        write(pred / f"{case}_doubt.nii.gz", doubt)
    views = []
    monkeypatch.setattr(
        "medseg_diff.report.gallery.case_figure", lambda view, _: views.append(view) or b"png"
    )
    monkeypatch.setattr("medseg_diff.report.render.box_plots", lambda *_: b"png")
    evaluate(pred, ref, out, labels=LABELS)
    assert len(views) == 3
    for view in views:
        np.testing.assert_array_equal(view.doubt, doubt[..., 0])
        np.testing.assert_array_equal(view.reference, volume())
        assert np.diag(view.affine)[:3].tolist() == list(SPACING)


def test_draws_beside_a_prediction_reach_the_page(folders):
    pred, ref, out = folders
    without = evaluate(pred, ref, out, labels=LABELS).report.read_text()
    assert "Draw 1" not in without
    for case in "abc":
        write(pred / f"{case}_draws.nii.gz", np.stack([volume(k) for k in range(3)], -1))
    page = evaluate(pred, ref, out, labels=LABELS).report.read_text()
    assert all(f">{title}</figcaption>" in page for title in ("All draws", "Draw 1", "Draw 3"))
    assert ">Draw 4<" not in page
    write(pred / "a_draws.nii.gz", np.stack([volume()[:-1]] * 2, -1))
    with pytest.raises(InputError, match="draws is not on the grid"):
        evaluate(pred, ref, out, labels=LABELS)


def test_draws_of_a_raster_image_are_pages(tmp_path):
    mask = np.zeros((40, 60), np.uint8)
    mask[10:20, 10:30] = 1
    for folder in ("pred", "ref"):
        (tmp_path / folder).mkdir()
        Image.fromarray(mask).save(tmp_path / folder / "x.png")
    pages = [Image.fromarray(np.roll(mask, k, axis=1)) for k in range(2)]
    pages[0].save(tmp_path / "pred" / "x_draws.tif", save_all=True, append_images=pages[1:])
    result = evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out", labels={"n": 1})
    page = result.report.read_text()
    assert ">Draw 2</figcaption>" in page
    assert "Only: x" in page
    assert page.count("data:image/png") == 1  # the charts: a 2-D case is drawn in outlines alone


@pytest.mark.usefixtures("quick")
def test_the_table_says_whose_a_case_is_where_that_is_known(folders):
    pred, ref, out = folders
    patients = {"a": "p1", "b": "p1", "c": "p2"}
    evaluate(pred, ref, out, labels=LABELS, patients=patients)
    table = pd.read_csv(out / "per_case.csv")
    assert dict(zip(table["case"], table["patient"], strict=True)) == patients
    assert "2 patients" in (out / "report.html").read_text()
    evaluate(pred, ref, out, labels=LABELS)
    assert "patient" not in pd.read_csv(out / "per_case.csv")
