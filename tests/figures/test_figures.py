"""Pictures of the report: what they show is there, upright, in its place and to scale."""

from __future__ import annotations

import math
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from medseg_diff import figures
from medseg_diff.figures import CaseView, charts, slices, views

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


def pixels(png):
    return imread(BytesIO(png))[..., :3]


def share(png, colour, tolerance=0.03):
    """Share of the picture's pixels that have one colour."""
    return np.mean(np.abs(pixels(png) - np.array(to_rgb(colour))).max(-1) < tolerance)


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
    planes = {plane.name: plane for plane in views.planes(view, {"a": (1,)})}
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
    axial = next(iter(views.planes(view, {"a": (1,)})))
    assert axial.view.reference.sum() == 49
    empty = CaseView(np.zeros_like(reference), reference, np.eye(4))
    axial = next(iter(views.planes(empty, {"a": (1,)})))
    assert axial.view.prediction.sum() == 49


def test_zoom_keeps_both_masks_and_a_third_of_the_slice():
    reference, prediction = np.zeros((90, 120), int), np.zeros((90, 120), int)
    reference[10:14, 20:24], prediction[12:15, 60:64] = 1, 1
    plane = next(iter(views.planes(CaseView(reference, prediction), {"a": (1,)})))
    zoomed = views.zoom(plane, {"a": (1,)}).view
    assert zoomed.reference.sum() == 16
    assert zoomed.prediction.sum() == 12
    assert zoomed.reference.shape[0] < 90
    tiny = CaseView(np.pad([[1]], 44), np.pad([[1]], 44))
    plane = next(iter(views.planes(tiny, {"a": (1,)})))
    assert views.zoom(plane, {"a": (1,)}).view.reference.shape == (31, 31)


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


def test_charts_leave_out_shapes_that_few_cases_do_not_have(monkeypatch):
    drawn = []
    axes = charts.Axes
    for kind in ("boxplot", "violin"):
        real = getattr(axes, kind)
        monkeypatch.setattr(
            axes, kind, lambda *a, real=real, kind=kind, **k: drawn.append(kind) or real(*a, **k)
        )
    rising = {"nsd": [0.5] * 4, "hd95_mm": [1.0] * 4, "assd_mm": [1.0] * 4}
    charts.box_plots(table([0.1, 0.2, 0.3, 0.4], **rising))
    assert drawn == []
    charts.box_plots(table(np.linspace(0, 1, 9)))
    assert drawn == ["boxplot"] * 4
    drawn.clear()
    charts.box_plots(table(np.linspace(0, 1, 10)))
    # The other three metrics are the same for every case: no density to draw.
    assert sorted(drawn) == ["boxplot"] * 4 + ["violin"]


def test_violins_on_a_log_axis_stay_within_the_sample():
    sample = np.array([0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 100.0])
    (found,) = charts._violin(sample, log=True)
    places = np.asarray(found["coords"])
    assert (places[0], places[-1]) == pytest.approx((0, 100))
    # Equal steps on the axis: linear to 1, then decades.
    low, high = places[places <= 1], np.log10(places[places >= 1])
    assert np.diff(low) == pytest.approx(np.diff(low)[0])
    assert np.diff(high) == pytest.approx(np.diff(low)[0])


def test_doubt_and_forest_charts_draw_what_they_are_given():
    bins = [(0.9, 0.7, 100), (0.1, 0.2, 1000), (0.5, 0.0, 0)]
    assert share(charts.reliability_diagram(bins), charts.COLOURS[6]) > 0.001
    assert charts.reliability_diagram([]).startswith(b"\x89PNG")
    curves = {"entropy": ([1.0, 0.5], [0.2, 0.1]), "$x": ([0.5, 1.0], [0.15, 0.2])}
    png = charts.risk_coverage_curve(curves)
    assert share(png, charts.COLOURS[6]) > 0.0005
    assert share(png, charts.COLOURS[5]) > 0.0005
    rows = [("a - b", 0.1, 0.05, 0.15, True), ("a - c", 0.0, math.nan, math.nan, False)]
    assert share(charts.forest_plot(rows, "Dice", higher_is_better=True), charts.COLOURS[6]) > 0.001
    grey = [(name, *numbers, False) for name, *numbers, _ in rows]
    assert share(charts.forest_plot(grey, "Dice", higher_is_better=True), charts.COLOURS[6]) == 0


# --- slices


def test_outlines_run_between_voxels_in_millimetres():
    mask = np.zeros((5, 6), bool)
    mask[1:3, 2:5] = True
    numbers = [
        tuple(map(float, pair.split(",")))
        for pair in slices.outline(mask, (2.0, 1.0)).strip("MZ").split()
    ]
    x, y = np.array(numbers).T
    # Voxel edges: columns 2 to 5, rows 1 to 3 of 2 mm; contours cut the corners.
    assert (x.min(), x.max(), y.min(), y.max()) == (2.0, 5.0, 2.0, 6.0)
    area = 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))
    assert area == pytest.approx(3 * 4 - 4 * 0.5 * 0.5 * 1.0)
    assert slices.outline(np.zeros((3, 3), bool), (1, 1)) == ""
    assert slices.outline(np.ones((3, 3), bool), (1, 1)).count("M") == 1
    ring = np.ones((5, 5), bool)
    ring[2, 2] = False
    assert slices.outline(ring, (1, 1)).count("M") == 2


def test_slices_cover_the_masks_from_the_feet_up():
    view = volume_view()
    stack = slices.slice_stack(view, STRUCTURES)
    assert (stack.name, stack.extent, stack.empty) == ("axial", 20, False)
    # Masks fill the third axis from 5 to 11; one slice beyond each end, counted from 1.
    assert [s.number for s in stack.slices] == list(range(5, 14))
    assert not any(stack.slices[0].reference)
    assert all(stack.slices[1].reference)
    assert stack.slices[stack.middle].number in range(6, 13)
    # 10 columns and 22 rows of masks of all slices, and half as much on each side.
    assert (stack.width, stack.height) == (20, 40)


def test_slices_are_cut_across_the_coarsest_axis():
    view = volume_view(affine=np.diag([1.0, 3.0, 1.0, 1.0]))
    stack = slices.slice_stack(view, STRUCTURES)
    assert stack.name == "coronal"
    # The second axis runs to the front, whence slices are counted: the masks end at voxel 31 of
    # 40, the ninth slice, and one slice is shown beyond them.
    assert stack.slices[0].number == 8
    assert not any(stack.slices[0].prediction)
    assert any(stack.slices[1].prediction)
    nearly = volume_view(affine=np.diag([1.0, 1.02, 1.0, 1.0]))
    assert slices.slice_stack(nearly, STRUCTURES).name == "axial"


def test_many_slices_are_thinned_around_the_largest():
    labels = np.zeros((8, 8, 200), int)
    labels[2:4, 2:4, 10:190] = 1
    labels[2:6, 2:6, 77] = 1
    stack = slices.slice_stack(CaseView(labels, labels, np.eye(4)), {"a": (1,)})
    numbers = [s.number for s in stack.slices]
    assert 20 <= len(numbers) <= slices.MOST_SLICES
    assert len(set(np.diff(numbers))) == 1
    assert numbers[stack.middle] == 78


def test_pictures_of_slices_stay_small():
    wide = np.zeros((1000, 600), int)
    wide[100:900, 100:500] = 1
    image = np.linspace(0, 1, 600_000, dtype=np.float32).reshape(1, 1000, 600)
    doubt = image[0]
    stack = slices.slice_stack(CaseView(wide, wide, None, image, doubt), {"a": (1,)})
    (shown,) = stack.slices
    grey, heat = imread(BytesIO(shown.image)), imread(BytesIO(shown.doubt))
    assert max(grey.shape) == slices.MOST_PIXELS
    # Means over blocks keep the range and the order of the values.
    assert grey[0].mean() < 0.02 < 0.98 < grey[-1].mean()
    assert heat[0, :, :3].sum() < heat[-1, :, :3].sum()
    assert (stack.width, stack.height) == (600, 1000)
