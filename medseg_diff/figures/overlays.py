"""One case's masks on its image, in up to three planes. PNG bytes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import AbstractPathEffect, withStroke
from numpy.typing import NDArray

from medseg_diff.figures.charts import COLOURS, INK, plain, png
from medseg_diff.figures.views import CaseView, Plane, background, grey_window, planes, zoom

_LEGEND_LIMIT = 24


def case_figure(view: CaseView, structures: Mapping[str, Sequence[int]]) -> bytes:
    """Draw image, reference, prediction and doubt side by side, one row per plane.

    A volume is turned upright by its affine (patient's right on the left of the picture, as
    radiologists read it) and cut where the reference is largest in that plane; each panel keeps
    the millimetre proportions. The prediction panel carries the reference's outline.
    """
    cuts = [zoom(plane, structures) for plane in planes(view, structures)]
    columns = [
        *(["Image"] if view.image is not None else []),
        "Reference",
        "Prediction",
        *(["Doubt"] if view.doubt is not None else []),
    ]
    width = 2.7 if len(cuts) > 1 else 3.8
    heights = [_height(plane, width) for plane in cuts]
    figure = Figure(figsize=(width * len(columns) + 0.6, sum(heights) + 0.9), layout="constrained")
    grid = figure.subplots(
        len(cuts), len(columns), squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    window = grey_window(view.image)
    for row, plane in zip(grid, cuts, strict=True):
        for axes, column in zip(row, columns, strict=True):
            _draw(axes, plane, column, structures, window)
        row[0].set_ylabel(plane.name, color=INK)
    for axes, column in zip(grid[0], columns, strict=True):
        axes.set_title(column, fontsize=11, color=INK)
    if view.doubt is not None:
        heat = grid[0][-1].images[-1]
        figure.colorbar(heat, ax=list(grid[:, -1]), fraction=0.05, label="predictive entropy")
    figure.legend(
        handles=_legend(structures, view), loc="outside lower center", ncols=4, frameon=False
    )
    return png(figure)


def _height(plane: Plane, width: float) -> float:
    rows, columns = plane.view.reference.shape
    return float(np.clip(width * rows * plane.spacing[0] / (columns * plane.spacing[1]), 0.9, 4.5))


def _draw(
    axes: Axes,
    plane: Plane,
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
            background(view, window),
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


def _frame(axes: Axes, plane: Plane) -> None:
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
        Patch(facecolor=COLOURS[i % len(COLOURS)], label=plain(name))
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
