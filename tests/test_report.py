"""The report: pictures that show what is there, a page that stands alone, honest comparisons."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from medseg_diff import figures, report, statistics
from medseg_diff.errors import InputError
from medseg_diff.figures import CaseView

BLANK = dict.fromkeys(
    ["nsd", "hd95_mm", "assd_mm", "volume_ref_ml", "volume_pred_ml", "volume_difference_ml"], 1.0
)
STRUCTURES = {"anterior": (1,), "posterior": (2,)}


def table(dice, structure="a", **columns):
    """Per-case table of one structure, cases named c00, c01, ..."""
    rows = [
        {"case": f"c{i:02d}", "structure": structure, "dice": d, "outcome": "scored"}
        for i, d in enumerate(dice)
    ]
    return pd.DataFrame(rows).assign(**(BLANK | columns))


def block(mean=0.5, **change):
    metric = {"n": 3, "mean": mean, "sd": 0.1, "ci_low": 0.4, "ci_high": 0.6, "median": 0.5}
    names = ["dice", "nsd", "hd95_mm", "assd_mm", "volume_difference_ml"]
    counts = {"n": 3, "n_scored": 2, "misses": "1/3", "false_positives": 4, "both_empty": 5}
    return {**counts, "failed": 6, "metrics": dict.fromkeys(names, metric)} | change


def summary(**change):
    plain = {
        "title": "Test",
        "n_cases": 3,
        "n_failed": 0,
        "structures": {"a": block()},
        "mean": block(),
        "notes": [],
        "conventions": {"hd95": "the larger one"},
    }
    return plain | change


def pixels(png):
    return imread(BytesIO(png))[..., :3]


def share(png, colour, tolerance=0.03):
    """Share of the picture's pixels that have one colour."""
    return np.mean(np.abs(pixels(png) - np.array(to_rgb(colour))).max(-1) < tolerance)


class Page(HTMLParser):
    """Collects tags and the text between them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


# --- pictures


def test_viewing_axes_turn_any_orientation_to_left_back_feet():
    # Voxel axes of this file run to the feet (2 mm), the right (0.5 mm) and the back (3 mm).
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2] = -2.0, 0.5, -3.0
    order, reverse, spacing = figures.viewing_axes(affine)
    assert order == [1, 2, 0]
    assert reverse == [True, False, False]
    assert spacing == pytest.approx([0.5, 3.0, 2.0])


def test_viewing_axes_of_an_oblique_scan_use_each_axis_once():
    turn = math.radians(44)
    affine = np.eye(4)
    affine[:2, :2] = [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]
    order, reverse, spacing = figures.viewing_axes(affine @ np.diag([1.0, 2.0, 3.0, 1.0]))
    assert order == [0, 1, 2]
    assert reverse == [True, True, True]
    assert spacing == pytest.approx([1, 2, 3])


@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
def test_planes_are_upright_whatever_the_file_order(flip):
    ras = np.zeros((10, 12, 14), int)
    ras[8, 9, 2] = 1  # patient's right, front, low
    stored = ras[:: flip[0], :: flip[1], :: flip[2]].transpose(2, 0, 1)
    affine = np.zeros((4, 4))
    affine[0, 1], affine[1, 2], affine[2, 0], affine[3, 3] = (*flip, 1)
    affine[:3, :3] *= [[1.0], [2.0], [3.0]]
    view = CaseView(stored, stored, affine)
    planes = {plane.name: plane for plane in figures._planes(view, {"a": (1,)})}
    found = {
        name: tuple(int(i[0]) for i in np.nonzero(p.view.reference)) for name, p in planes.items()
    }
    # (row, column) from the top left: right goes left, front goes up or left, low goes down.
    assert found == {"axial": (2, 1), "coronal": (11, 1), "sagittal": (11, 2)}
    spacing = {name: plane.spacing for name, plane in planes.items()}
    assert spacing == {"axial": (2, 1), "coronal": (3, 1), "sagittal": (3, 2)}
    assert planes["axial"].edges == ("R", "L", "A", "P")


def test_slices_go_through_the_largest_section():
    reference = np.zeros((20, 20, 20), int)
    reference[3:6, 3:6, 3:6] = 1
    reference[2:9, 2:9, 5] = 1
    view = CaseView(reference, np.zeros_like(reference), np.eye(4))
    axial = next(iter(figures._planes(view, {"a": (1,)})))
    assert axial.view.reference.sum() == 49
    empty = CaseView(np.zeros_like(reference), reference, np.eye(4))
    axial = next(iter(figures._planes(empty, {"a": (1,)})))
    assert axial.view.prediction.sum() == 49


def test_zoom_keeps_both_masks_and_a_third_of_the_slice():
    reference, prediction = np.zeros((90, 120), int), np.zeros((90, 120), int)
    reference[10:14, 20:24], prediction[12:15, 60:64] = 1, 1
    plane = next(iter(figures._planes(CaseView(reference, prediction), {"a": (1,)})))
    zoomed = figures._zoom(plane, {"a": (1,)}).view
    assert zoomed.reference.sum() == 16
    assert zoomed.prediction.sum() == 12
    assert zoomed.reference.shape[0] < 90
    tiny = CaseView(np.pad([[1]], 44), np.pad([[1]], 44))
    plane = next(iter(figures._planes(tiny, {"a": (1,)})))
    assert figures._zoom(plane, {"a": (1,)}).view.reference.shape == (31, 31)


def volume_view(**change):
    grid = np.indices((30, 40, 20))
    reference = np.zeros((30, 40, 20), int)
    reference[8:18, 10:20, 5:12], reference[8:18, 20:30, 5:12] = 1, 2
    view = {
        "reference": reference,
        "prediction": np.roll(reference, 2, axis=1),
        "affine": np.diag([1.0, 1.0, 2.0, 1.0]),
        "image": grid.sum(0)[None].astype(np.float32),
        "doubt": (grid[1] / 40.0).astype(np.float32),
    }
    return CaseView(**(view | change))


def test_case_figure_draws_masks_in_their_colours_and_doubt():
    full = figures.case_figure(volume_view(), STRUCTURES)
    assert share(full, figures.COLOURS[0]) > 0.0005
    assert share(full, figures.COLOURS[1]) > 0.0005
    bare = figures.case_figure(volume_view(image=None, doubt=None), STRUCTURES)
    assert pixels(bare).shape[1] < 0.7 * pixels(full).shape[1]  # two columns, not four
    nothing = np.zeros((30, 40, 20), int)
    empty = figures.case_figure(volume_view(reference=nothing, prediction=nothing), STRUCTURES)
    assert share(empty, figures.COLOURS[0]) == 0


def test_case_figure_shows_colour_images_as_they_are():
    labels = np.zeros((64, 64), int)
    labels[20:40, 20:40] = 1
    red = np.zeros((3, 64, 64), np.float32)
    red[0] = 200
    png = figures.case_figure(CaseView(labels, labels, image=red), {"a": (1,)})
    assert share(png, (200 / 255, 0, 0)) > 0.2
    grey = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(1, 64, 64)
    png = figures.case_figure(CaseView(labels, labels, image=grey, doubt=grey[0]), {"a": (1,)})
    assert share(png, (1, 0, 0), tolerance=0.3) == 0


def test_pictures_take_awkward_input_without_warnings():
    flat = np.zeros((16, 16, 1), int)
    flat[4:9, 4:9] = 1
    holes = np.full((1, 16, 16, 1), np.nan, np.float32)
    name = r"$\bad{ 肝$ <b>"  # between two dollars matplotlib would parse a formula
    view = CaseView(flat, flat, np.eye(4), image=holes)
    assert figures.case_figure(view, {name: (1,)}).startswith(b"\x89PNG")
    blank = table([math.nan], structure=name, outcome="both_empty", hd95_mm=math.nan)
    assert figures.box_plots(blank).startswith(b"\x89PNG")


def test_box_plots_show_every_case():
    few = figures.box_plots(table([0.1, 0.5, 0.9]))
    many = figures.box_plots(pd.concat([table([0.5] * 3, f"s{i}") for i in range(12)]))
    assert share(few, figures.COLOURS[0], tolerance=0.3) > 0
    assert pixels(many).shape[1] > pixels(few).shape[1]


def test_report_does_not_load_a_window_system():
    code = "import sys, medseg_diff.report; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- page


def test_page_stands_alone_and_says_what_it_must():
    picture = report.Picture("Worst: c00", "Mean Dice 0.1.", b"\x89PNG fake")
    page = report.render_report(
        summary(notes=["n = 3 is too small"]),
        table([0.1, 0.5, 0.9]),
        [picture],
        attribution="Some archive, CC-BY 4.0",
    )
    parsed = Page(page)
    assert not [tag for tag, _ in parsed.tags if tag in ("script", "link", "iframe")]
    sources = [attrs["src"] for tag, attrs in parsed.tags if tag == "img"]
    assert len(sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|@import|https?:", page)
    wanted = ["n = 3 is too small", "Some archive, CC-BY 4.0", report.RESEARCH_USE]
    wanted += ["Worst: c00", "Mean Dice 0.1.", "1/3", "0.500 ± 0.100 [0.400, 0.600]"]
    assert [text for text in wanted if text not in parsed.text] == []
    assert all(attrs.get("alt") for tag, attrs in parsed.tags if tag == "img")


def test_page_escapes_every_name():
    evil = "<script>alert('x')</script>&"
    page = report.render_report(
        summary(title=evil, structures={evil: block()}, notes=[evil], conventions={evil: evil}),
        table([0.1, 0.2], structure=evil).assign(case=evil),
        [report.Picture(f'{evil}"', evil, b"png")],
        attribution=evil,
    )
    parsed = Page(page)
    assert "<script" not in page
    assert not [tag for tag, _ in parsed.tags if tag == "script"]
    # Title twice, notes, structure, cases and structures to look at, picture, conventions, source.
    assert parsed.text.count(evil) >= 11


def test_summary_table_has_a_row_per_structure_and_their_mean():
    one = report.summary_table(summary())
    assert list(one["Structure"]) == ["a"]
    assert one.loc[0, ["Misses", "False positives", "Both empty", "Failed"]].tolist() == [
        "1/3",
        "4",
        "5",
        "6",
    ]
    two = report.summary_table(summary(structures={"a": block(), "b": block()}, mean=block(0.25)))
    assert list(two["Structure"]) == ["a", "b", statistics.MEAN_OF_STRUCTURES]
    assert two["Dice"].iloc[2].startswith("0.250")
    none = dict.fromkeys(["mean", "sd", "ci_low", "ci_high", "median"])
    blank = block(metrics=dict.fromkeys(block()["metrics"], none))
    assert report.summary_table(summary(structures={"a": blank})).loc[0, "Dice"] == "–"


def test_attention_table_puts_failures_first():
    cases = table([0.9, 0.0, 0.0, 0.3, 0.0])
    cases["outcome"] = ["scored", "false_positive", "missed", "scored", "failed"]
    cases = pd.concat([cases, table([math.nan], outcome="both_empty")])
    found = report.attention_table(cases)
    assert list(found["Case"]) == ["c04", "c02", "c01", "c03", "c00"]
    assert list(found["Outcome"])[:3] == ["failed", "missed", "false positive"]
    assert found["Dice"].iloc[4] == "0.900"
    assert len(report.attention_table(table([0.5] * 40))) == 15


# --- comparison


def test_comparison_claims_a_clear_difference_and_nothing_else():
    low = np.linspace(0.3, 0.7, 20)
    noise = np.random.default_rng(0).normal(0, 0.01, 20)
    result = report.compare_table(
        {"ours": table(low + 0.1), "same": table(low + 0.1 + noise), "unet": table(low)},
        metrics=["dice"],
    )
    assert list(result["b"]) == ["same", "unet"]
    assert result["verdict"].iloc[0].startswith("Dice, a: No evidence of a difference")
    assert result["verdict"].iloc[1].startswith("Dice, a: ours is better than unet")
    assert result["difference"].iloc[1] == pytest.approx(0.1)
    assert (result["n"] == 20).all()
    assert result["p_holm"].tolist() == pytest.approx(statistics.holm(result["p"].tolist()))
    assert result["p_holm"].iloc[1] == pytest.approx(2 * result["p"].iloc[1])
    assert result["mean_b"].iloc[1] == pytest.approx(0.5)
    assert f"p = {result['p_holm'].iloc[1]:.2g}," in result["verdict"].iloc[1]


def test_comparison_pairs_by_case_not_by_row():
    dice = np.linspace(0.2, 0.9, 12)
    shuffled = table(dice).sample(frac=1, random_state=1)
    result = report.compare_table({"x": table(dice), "y": shuffled}, metrics=["dice"])
    assert result["difference"].iloc[0] == 0
    assert result["ci_low"].iloc[0] == result["ci_high"].iloc[0] == 0


def test_comparison_knows_that_small_distances_are_good():
    near, far = (table([0.5] * 10, hd95_mm=np.arange(10.0) + shift) for shift in (1, 5))
    result = report.compare_table({"near": near, "far": far}, metrics=["hd95_mm"])
    assert "near is better than far (mean difference -4 mm" in result["verdict"].iloc[0]


def test_comparison_adds_the_mean_of_structures_and_drops_blank_pairs():
    a = pd.concat([table([0.6, 0.8, 0.9], "x"), table([0.4, 0.6, math.nan], "y")])
    b = pd.concat([table([0.5, 0.7, 0.8], "x"), table([0.1, 0.3, 0.5], "y")])
    result = report.compare_table({"a": a, "b": b}, metrics=["dice"]).set_index("structure")
    assert list(result.index) == ["x", "y", statistics.MEAN_OF_STRUCTURES]
    assert result.loc["y", "n"] == 2
    assert result.loc["y", "mean_b"] == pytest.approx(0.2)
    assert result.loc["y", "difference"] == pytest.approx(0.3)
    mean = result.loc[statistics.MEAN_OF_STRUCTURES]
    assert mean["difference"] == pytest.approx(np.mean([0.2, 0.2, 0.9 - 0.65]))
    assert "too small" in mean["verdict"]


def test_comparison_counts_patients():
    a, b = table(np.linspace(0.5, 0.9, 12)), table(np.linspace(0.1, 0.4, 12))
    patients = {f"c{i:02d}": f"p{i // 3}" for i in range(12)}
    result = report.compare_table({"a": a, "b": b}, metrics=["dice"], patients=patients)
    assert result["p"].iloc[0] == statistics.smallest_p(4)
    assert result["n"].iloc[0] == 12


def test_comparison_refuses_different_cases():
    with pytest.raises(InputError, match="c02 / a"):
        report.compare_table({"a": table([0.1, 0.2, 0.3]), "b": table([0.1, 0.2])})
    with pytest.raises(InputError, match="two evaluations"):
        report.compare_table({"a": table([0.1])})
