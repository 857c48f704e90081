"""One slice through two domains and what each method makes of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from medseg_diff.figures.charts import COLOURS, INK, plain, png

_COLUMNS = 5


@dataclass(frozen=True)
class Panel:
    """One picture.

    Attributes:
        title: Above it.
        image: Grey slice (H, W).
        reference: Label map (H, W); outlined.
        prediction: Label map (H, W), or None; outlined in colour.
    """

    title: str
    image: NDArray[Any]
    reference: NDArray[Any]
    prediction: NDArray[Any] | None = None


def domain_panels(panels: Sequence[Panel], labels: Sequence[int], columns: int = _COLUMNS) -> bytes:
    """Draw panels in rows, each in its own grey window; the reference is white, dashed.

    Args:
        panels: In reading order.
        labels: Label values of the structures.
        columns: Panels in a row.
    """
    rows = max(1, math.ceil(len(panels) / columns))
    figure = Figure(figsize=(2.4 * columns, 2.5 * rows), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(places, panels, strict=False):
        low, high = np.percentile(panel.image, [1, 99])
        axes.imshow(panel.image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
        for number, value in enumerate(labels):
            _outline(axes, panel.reference == value, "white", "dashed")
            if panel.prediction is not None:
                colour = COLOURS[number % len(COLOURS)]
                _outline(axes, panel.prediction == value, colour, "solid")
        axes.set_title(plain(panel.title), fontsize=9, color=INK)
    for axes in places:
        axes.set_axis_off()
    return png(figure)


def _outline(axes: Any, mask: NDArray[np.bool_], colour: str, style: str) -> None:
    if mask.any() and not mask.all():
        axes.contour(mask.astype(float), [0.5], colors=[colour], linestyles=style, linewidths=1.1)
