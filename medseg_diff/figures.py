"""Pictures for the report: box plots, and one case's masks on its image. PNG bytes out.

Figures are ``matplotlib.figure.Figure`` objects saved by the Agg renderer: no pyplot, no window,
nothing to close.

Letters: ``*S`` spatial axes, ``C`` channels.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import AbstractPathEffect, withStroke
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

# Distinguishable with the common forms of colour blindness, and on grey.
COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#cc79a7", "#d55e00", "#0072b2")
BOX_METRICS = {"dice": "Dice", "nsd": "NSD", "hd95_mm": "HD95 (mm)", "assd_mm": "ASSD (mm)"}
_LEGEND_LIMIT = 24
_LOG_ABOVE_MM = 20.0
_INK = "#1d2733"


@dataclass(frozen=True)
class CaseView:
    """One case as the overlay shows it.

    Attributes:
        reference: Label map, (*S).
        prediction: Label map, (*S).
        affine: Voxel to RAS+ millimetres, (4, 4); for a 2-D image None: rows run down and columns
            run right.
        image: (C, *S), or None for masks on grey.
        doubt: (*S) in [0, 1], or None.
    """

    reference: NDArray[Any]
    prediction: NDArray[Any]
    affine: NDArray[Any] | None = None
    image: NDArray[Any] | None = None
    doubt: NDArray[Any] | None = None


@dataclass(frozen=True)
class _Plane:
    """A slice ready to draw: rows run down, columns right; ``edges`` = left, right, top, bottom."""

    name: str
    view: CaseView
    spacing: tuple[float, float]
    edges: tuple[str, str, str, str] | None


def case_figure(view: CaseView, structures: Mapping[str, Sequence[int]]) -> bytes:
    """Draw image, reference, prediction and doubt side by side, one row per plane.

    A volume is turned upright by its affine (patient's right on the left of the picture, as
    radiologists read it) and cut where the reference is largest in that plane; each panel keeps
    the millimetre proportions. The prediction panel carries the reference's outline.
    """
    planes = [_zoom(plane, structures) for plane in _planes(view, structures)]
    columns = [
        *(["Image"] if view.image is not None else []),
        "Reference",
        "Prediction",
        *(["Doubt"] if view.doubt is not None else []),
    ]
    width = 2.7 if len(planes) > 1 else 3.8
    heights = [_height(plane, width) for plane in planes]
    figure = Figure(figsize=(width * len(columns) + 0.6, sum(heights) + 0.9), layout="constrained")
    grid = figure.subplots(
        len(planes), len(columns), squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    window = _grey_window(view.image)
    for row, plane in zip(grid, planes, strict=True):
        for axes, column in zip(row, columns, strict=True):
            _draw(axes, plane, column, structures, window)
        row[0].set_ylabel(plane.name, color=_INK)
    for axes, column in zip(grid[0], columns, strict=True):
        axes.set_title(column, fontsize=11, color=_INK)
    if view.doubt is not None:
        heat = grid[0][-1].images[-1]
        figure.colorbar(heat, ax=list(grid[:, -1]), fraction=0.05, label="predictive entropy")
    figure.legend(
        handles=_legend(structures, view), loc="outside lower center", ncols=4, frameon=False
    )
    return _png(figure)


def box_plots(per_case: pd.DataFrame) -> bytes:
    """Draw one box per structure for each metric, with every case as a dot."""
    names = list(dict.fromkeys(per_case["structure"]))
    size = (max(7.0, 1.6 + 0.5 * len(names) * 2), 6.4)
    figure = Figure(figsize=size, layout="constrained")
    spread = np.random.default_rng(0)
    for axes, (column, label) in zip(figure.subplots(2, 2).flat, BOX_METRICS.items(), strict=True):
        samples = [per_case.loc[per_case["structure"] == name, column].dropna() for name in names]
        places = np.arange(1, len(names) + 1)
        axes.boxplot(
            [np.asarray(sample, dtype=float) for sample in samples],
            positions=places,
            widths=0.5,
            showfliers=False,
            medianprops={"color": _INK, "linewidth": 1.6},
        )
        for place, sample in zip(places, samples, strict=True):
            jitter = place + spread.uniform(-0.13, 0.13, len(sample))
            colour = COLOURS[(place - 1) % len(COLOURS)]
            # Dots at 0 and 1 are not cut in half, and an empty sample must not move the layout.
            dots = {"markersize": 4, "alpha": 0.75, "mew": 0, "clip_on": False, "in_layout": False}
            axes.plot(jitter, sample, "o", color=colour, **dots)
        axes.set_xticks(
            places, [_plain(name) for name in names], rotation=30 if len(names) > 3 else 0
        )
        if per_case[column].max() > _LOG_ABOVE_MM:
            # One miss costs the image diagonal and would flatten all other boxes to a line.
            axes.set_yscale("symlog", linthresh=1)
            axes.yaxis.set_major_formatter("{x:g}")
            label = label.replace("mm", "mm, log scale")
        axes.set_title(label, fontsize=11, loc="left", color=_INK)
        axes.grid(axis="y", color="#dde3ea", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=0, top=1.02 if column in ("dice", "nsd") else None)
    return _png(figure)


def viewing_axes(affine: NDArray[Any]) -> tuple[list[int], list[bool], list[float]]:
    """Say how to turn a volume so that its axes run to the patient's left, back and feet.

    Returns:
        Voxel axis that becomes each new axis, whether to reverse it, and its spacing in mm.
    """
    matrix = np.asarray(affine, dtype=float)[:3, :3]
    spacing = np.linalg.norm(matrix, axis=0)
    # Oblique scans: the assignment gives each world axis its own voxel axis.
    _, order = linear_sum_assignment(-np.abs(matrix / spacing))
    reverse = [bool(matrix[world, axis] > 0) for world, axis in enumerate(order)]
    return [int(axis) for axis in order], reverse, [float(spacing[axis]) for axis in order]


def _planes(view: CaseView, structures: Mapping[str, Sequence[int]]) -> Iterator[_Plane]:
    if view.reference.ndim == 2:
        yield _Plane("", view, (1.0, 1.0), None)
        return
    affine = np.eye(4) if view.affine is None else view.affine
    order, reverse, spacing = viewing_axes(affine)

    def turn(array: NDArray[Any]) -> NDArray[Any]:
        turned = array.transpose([*range(array.ndim - 3), *(a + array.ndim - 3 for a in order)])
        for axis, back in enumerate(reverse, start=array.ndim - 3):
            turned = np.flip(turned, axis) if back else turned
        return turned

    upright = _map(view, turn)
    kinds = {
        2: ("axial", ("R", "L", "A", "P")),
        1: ("coronal", ("R", "L", "S", "I")),
        0: ("sagittal", ("A", "P", "S", "I")),
    }
    for axis, (name, edges) in kinds.items():
        across, down = (a for a in range(3) if a != axis)
        if 1 in (upright.reference.shape[across], upright.reference.shape[down]):
            continue  # a volume of one slice has one plane worth showing
        index = _largest_section(upright, structures, axis)

        def cut(array: NDArray[Any], axis: int = axis, index: int = index) -> NDArray[Any]:
            # The first remaining axis runs across the picture, the second down.
            return np.take(array, index, axis=axis + array.ndim - 3).swapaxes(-1, -2)

        yield _Plane(name, _map(upright, cut), (spacing[down], spacing[across]), edges)


def _map(view: CaseView, change: Callable[[NDArray[Any]], NDArray[Any]]) -> CaseView:
    """Apply one change to every array of a view."""
    return replace(
        view,
        reference=change(view.reference),
        prediction=change(view.prediction),
        image=None if view.image is None else change(view.image),
        doubt=None if view.doubt is None else change(view.doubt),
    )


def _foreground(labels: NDArray[Any], structures: Mapping[str, Sequence[int]]) -> NDArray[np.bool_]:
    return np.isin(labels, sorted({v for values in structures.values() for v in values}))


def _largest_section(view: CaseView, structures: Mapping[str, Sequence[int]], axis: int) -> int:
    """Return the slice with most reference, else most prediction, else the middle one."""
    others = tuple(a for a in range(3) if a != axis)
    for labels in (view.reference, view.prediction):
        area = _foreground(labels, structures).sum(axis=others)
        if area.any():
            return int(area.argmax())
    return view.reference.shape[axis] // 2


def _zoom(plane: _Plane, structures: Mapping[str, Sequence[int]]) -> _Plane:
    """Crop to the masks with as much again around them, but never below a third of the slice."""
    view = plane.view
    union = _foreground(view.reference, structures) | _foreground(view.prediction, structures)
    if not union.any():
        return plane
    box = []
    for axis, extent in enumerate(union.shape):
        filled = np.flatnonzero(union.any(axis=1 - axis))
        middle, size = (filled[0] + filled[-1] + 1) / 2, filled[-1] + 1 - filled[0]
        half = max(1.5 * size, extent / 6)
        box.append(slice(max(0, math.floor(middle - half)), min(extent, math.ceil(middle + half))))
    return replace(plane, view=_map(view, lambda array: array[..., box[0], box[1]]))


def _height(plane: _Plane, width: float) -> float:
    rows, columns = plane.view.reference.shape
    return float(np.clip(width * rows * plane.spacing[0] / (columns * plane.spacing[1]), 0.9, 4.5))


def _grey_window(image: NDArray[Any] | None) -> tuple[float, float]:
    """Return display limits: the 1st and 99th percentile of the whole image's first channel."""
    if image is None:
        return 0.0, 1.0
    values = image[0][np.isfinite(image[0])]
    low, high = np.percentile(values, [1, 99]) if values.size else (0.0, 1.0)
    return float(low), float(max(high, low + 1e-6))


def _draw(
    axes: Axes,
    plane: _Plane,
    column: str,
    structures: Mapping[str, Sequence[int]],
    window: tuple[float, float],
) -> None:
    view, aspect = plane.view, plane.spacing[0] / plane.spacing[1]
    if column == "Doubt":
        assert view.doubt is not None
        axes.imshow(
            view.doubt, cmap="magma", vmin=0, vmax=1, aspect=aspect, interpolation="nearest"
        )
    else:
        axes.imshow(
            _background(view, window),
            cmap="gray",
            vmin=window[0],
            vmax=window[1],
            aspect=aspect,
            interpolation="nearest",
        )
    if column in ("Reference", "Prediction"):
        labels = view.reference if column == "Reference" else view.prediction
        for number, values in enumerate(structures.values()):
            colour = COLOURS[number % len(COLOURS)]
            mask = np.isin(labels, list(values))
            tint = mask[..., None] * np.array(to_rgba(colour, alpha=0.35))
            axes.imshow(tint, aspect=aspect, interpolation="nearest")
            _outline(axes, mask, color=colour, linewidth=1.4)
    if column in ("Prediction", "Doubt"):
        for values in structures.values():
            _outline(axes, np.isin(view.reference, list(values)), color="white", linewidth=0.9)
    _frame(axes, plane)


def _background(view: CaseView, window: tuple[float, float]) -> NDArray[Any]:
    """Return what lies under the masks: grey, colour, or a flat middle grey."""
    if view.image is None:
        return np.full(view.reference.shape, 0.45)
    if view.image.shape[0] in (3, 4) and view.affine is None:
        colour = np.nan_to_num(np.moveaxis(view.image[:3].astype(float), 0, -1))
        return np.clip(colour / (255.0 if colour.max() > 1 else 1.0), 0, 1)
    return np.nan_to_num(view.image[0].astype(float), nan=window[0])


def _outline(axes: Axes, mask: NDArray[np.bool_], *, color: str, linewidth: float) -> None:
    if not mask.any():
        return
    # The rim of zeros closes outlines at the border of the picture.
    padded = np.pad(mask.astype(float), 1)
    rows, columns = (np.arange(n) - 1 for n in padded.shape)
    dark: list[AbstractPathEffect] = [withStroke(linewidth=linewidth + 1.0, foreground="#000000aa")]
    contour = axes.contour(
        columns, rows, padded, levels=[0.5], colors=[color], linewidths=linewidth
    )
    if color == "white":
        contour.set_linestyle("--")
        contour.set_path_effects(dark)


def _frame(axes: Axes, plane: _Plane) -> None:
    rows, columns = plane.view.reference.shape
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    if plane.edges is None:
        return
    left, right, top, bottom = plane.edges
    letters = {left: (0.03, 0.5), right: (0.97, 0.5), top: (0.5, 0.95), bottom: (0.5, 0.05)}
    for letter, (x, y) in letters.items():
        text = axes.text(x, y, letter, transform=axes.transAxes, ha="center", va="center")
        text.set(
            color="white", fontsize=8, path_effects=[withStroke(linewidth=2, foreground="black")]
        )


def _legend(structures: Mapping[str, Sequence[int]], view: CaseView) -> list[Any]:
    """Return handles for the structures this case holds, and for the reference's outline."""
    present = set(np.unique(view.reference)) | set(np.unique(view.prediction))
    shown = [
        Patch(facecolor=COLOURS[i % len(COLOURS)], label=_plain(name))
        for i, (name, values) in enumerate(structures.items())
        if present & set(values)
    ]
    more = len(shown) - _LEGEND_LIMIT
    handles: list[Any] = shown[:_LEGEND_LIMIT]
    if more > 0:
        handles.append(Patch(facecolor="none", label=f"and {more} more"))
    outline = Line2D([], [], color="white", linestyle="--", label="outline of the reference")
    shadow: list[AbstractPathEffect] = [withStroke(linewidth=2.4, foreground="#000000aa")]
    outline.set_path_effects(shadow)
    return [*handles, outline]


def _plain(name: str) -> str:
    """Keep a name from being read as a formula: matplotlib typesets what stands between dollars."""
    return str(name).replace("$", r"\$")


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    with warnings.catch_warnings():
        # A name in a script the font lacks shows boxes; the tables beside it show the name.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
