"""One translated case through its middle slice, everything side by side. PNG bytes out.

Letters: ``K`` planes of an image, ``*S`` spatial axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from medseg_diff.figures.charts import INK, png
from medseg_diff.figures.views import viewing_axes

# Share of the error's voxels that its colours reach up to: single bright ones do not stretch them.
HEAT_PERCENTILE = 99.5


@dataclass(frozen=True)
class TranslationView:
    """What is shown of one case.

    Attributes:
        target: The real image, (K, *S).
        translated: What was made, (K, *S), in the target's units.
        window: Values of both that are black and white.
        affine: Voxel to RAS+ millimetres, (4, 4); for a 2-D image None.
        source: First channel that it was made from, (C, *S), or None.
        spread: Standard deviation between draws, (*S), or None.
    """

    target: NDArray[Any]
    translated: NDArray[Any]
    window: tuple[float, float]
    affine: NDArray[Any] | None = None
    source: NDArray[Any] | None = None
    spread: NDArray[Any] | None = None


def translation_figure(view: TranslationView) -> bytes:
    """Draw source, target, translated image, absolute error and spread, one row.

    A volume is turned upright by its affine and cut in the middle of its coarsest axis. Error and
    spread share one scale, in the target's units, so that they can be compared; a spread of 0
    throughout, that of a single draw, is left out.
    """
    error = np.abs(view.translated.astype(np.float64) - view.target).mean(0)
    panels: list[tuple[str, NDArray[Any], tuple[float, float], bool]] = [
        ("Target", view.target, view.window, False),
        ("Translated (SYNTHETIC)", view.translated, view.window, False),
    ]
    if view.source is not None:
        low, high = (float(end) for end in np.percentile(view.source, (0.5, 99.5)))
        panels.insert(0, ("Source", view.source, (low, max(high, low + 1e-6)), False))
    heat = (0.0, max(float(np.percentile(error, HEAT_PERCENTILE)), 1e-6))
    panels.append(("|Error|", error[None], heat, True))
    if view.spread is not None and float(view.spread.max()) > 0:
        panels.append(("Spread of draws", view.spread[None], heat, True))
    cuts = [middle_slice(values, view.affine) for _, values, _, _ in panels]
    rows, columns = cuts[0][0].shape[-2:]
    aspect = cuts[0][1]
    tall = float(np.clip(2.6 * rows * aspect / columns, 0.9, 4.5))
    figure = Figure(figsize=(2.6 * len(panels) + 0.6, tall + 0.5), layout="constrained")
    places = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, _, window, hot), (cut, ratio) in zip(places, panels, cuts, strict=True):
        colour = "magma" if hot else "gray"
        shown = axes.imshow(
            _picture(cut, window), cmap=colour, vmin=window[0], vmax=window[1], aspect=ratio,
            interpolation="nearest",
        )  # fmt: skip
        axes.set_title(title, fontsize=10, color=INK)
        axes.set_axis_off()
    figure.colorbar(shown, ax=list(places), fraction=0.02, label="target's units")
    return png(figure)


def middle_slice(values: NDArray[Any], affine: NDArray[Any] | None) -> tuple[NDArray[Any], float]:
    """Cut (K, *S) in the middle of its coarsest axis -> (K, rows, columns) and a pixel's height.

    The height is over the width. A 2-D image is its own slice, with square pixels.
    """
    if values.ndim == 3:
        return values, 1.0
    order, reverse, spacing = viewing_axes(np.eye(4) if affine is None else affine)
    upright = values.transpose([0, *(axis + 1 for axis in order)])
    for axis, back in enumerate(reverse, start=1):
        upright = np.flip(upright, axis) if back else upright
    # Rounded: spacings that differ by a tenth are equal, and the plane is then axial.
    axis = max(range(3), key=lambda a: (round(5 * spacing[a] / max(spacing)), a))
    across, down = (a for a in range(3) if a != axis)
    cut = np.take(upright, upright.shape[1 + axis] // 2, axis=1 + axis).swapaxes(-1, -2)
    return cut, spacing[down] / spacing[across]


def _picture(cut: NDArray[Any], window: tuple[float, float]) -> NDArray[Any]:
    """Colours of a photo, or the values themselves."""
    if len(cut) != 3:
        plane: NDArray[Any] = cut[0]
        return plane
    scaled = (np.moveaxis(cut, 0, -1) - window[0]) / (window[1] - window[0])
    return np.clip(scaled, 0, 1)
