"""Charts of the report: samples, paired differences, and how far a doubt can be trusted.

Figures are ``matplotlib.figure.Figure`` objects saved by the Agg renderer: no pyplot, no window,
nothing to close.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cbook import violin_stats
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from scipy.stats import gaussian_kde

# Distinguishable with the common forms of colour blindness, and on grey.
COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#cc79a7", "#d55e00", "#0072b2")
BOX_METRICS = {"dice": "Dice", "nsd": "NSD", "hd95_mm": "HD95 (mm)", "assd_mm": "ASSD (mm)"}
INK = "#1d2733"
_LINE = "#dde3ea"
_LOG_ABOVE_MM = 20.0
# Below these numbers a box or a density would show a shape that the sample does not have.
LEAST_FOR_BOX = 5
LEAST_FOR_VIOLIN = 10


def box_plots(per_case: pd.DataFrame) -> bytes:
    """Draw every case as a dot, with a box and a violin per structure, for each metric.

    Fewer than 5 cases get no box and fewer than 10 no violin: the dots are all there is to see.
    """
    names = list(dict.fromkeys(per_case["structure"]))
    size = (max(10.0, 1.6 + 1.1 * len(names) * 2), 6.6)
    figure = Figure(figsize=size, layout="constrained")
    for axes, (column, label) in zip(figure.subplots(2, 2).flat, BOX_METRICS.items(), strict=True):
        samples = [
            per_case.loc[per_case["structure"] == name, column].dropna().to_numpy(dtype=float)
            for name in names
        ]
        # One miss costs the image diagonal and would flatten all other boxes to a line.
        log = bool(per_case[column].max() > _LOG_ABOVE_MM)
        _distributions(axes, samples, log=log)
        axes.set_xticks(
            range(1, len(names) + 1),
            [f"{plain(name)}\nn = {len(s)}" for name, s in zip(names, samples, strict=True)],
            rotation=30 if len(names) > 3 else 0,
        )
        if log:
            axes.set_yscale("symlog", linthresh=1)
            axes.yaxis.set_major_formatter("{x:g}")
            label = label.replace("mm", "mm, log scale")
        tidy(axes, label)
        axes.set_ylim(bottom=0, top=1.02 if column in ("dice", "nsd") else None)
        axes.set_xlim(0.4, len(names) + 0.6)
    return png(figure)


def forest_plot(
    rows: Sequence[tuple[str, float, float, float, bool]], label: str, *, higher_is_better: bool
) -> bytes:
    """Draw differences with their intervals against the line of no difference.

    Args:
        rows: Name, difference, the interval's ends (NaN where there is none), and whether the
            difference may be claimed; top to bottom.
        label: What the difference is of, with its unit.
        higher_is_better: Whether a positive difference speaks for the first of a pair.
    """
    figure = Figure(figsize=(10.0, 1.1 + 0.32 * max(1, len(rows))), layout="constrained")
    axes = figure.subplots()
    for place, (_, middle, low, high, sure) in enumerate(rows):
        colour = COLOURS[6] if sure else "#5b6877"
        axes.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot(middle, place, "s", color=colour, markersize=6)
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_yticks(range(len(rows)), [plain(name) for name, *_ in rows])
    axes.set_ylim(max(1, len(rows)) - 0.4, -0.6)
    side = "right" if higher_is_better else "left"
    axes.set_xlabel(f"difference in {label}; {side} of 0 the first is better", color=INK)
    axes.grid(axis="x", color=_LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    return png(figure)


def reliability_diagram(bins: Sequence[tuple[float, float, int]]) -> bytes:
    """Draw how often a probability came true, over how many voxels lie in each bin.

    Args:
        bins: Mean confidence in [0, 1], observed frequency in [0, 1], and count of each bin; bins
            of count 0 are left out.
    """
    held = sorted(row for row in bins if row[2] > 0)
    figure = Figure(figsize=(4.2, 4.6), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    above.plot([0, 1], [0, 1], "--", color="#5b6877", linewidth=1, label="perfect calibration")
    confidence, frequency, count = (np.array([row[i] for row in held]) for i in range(3))
    above.plot(confidence, frequency, "o-", color=COLOURS[6], markersize=5, label="this model")
    above.vlines(confidence, confidence, frequency, color=COLOURS[5], alpha=0.5, linewidth=1.5)
    above.set_ylim(-0.02, 1.02)
    above.set_xlim(-0.02, 1.02)
    above.set_ylabel("observed frequency", color=INK)
    above.legend(frameon=False, loc="upper left", fontsize=9)
    below.bar(confidence, count, width=0.04, color="#9aa7b5")
    if len(held):
        below.set_yscale("log")
    below.set_ylabel("voxels", color=INK)
    below.set_xlabel("confidence", color=INK)
    for axes in (above, below):
        tidy(axes, "")
    return png(figure)


def risk_coverage_curve(curves: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> bytes:
    """Draw the error that is left when only the most certain share of the cases is kept.

    Args:
        curves: Name to coverage in (0, 1] and risk, both (N,), in any order.
    """
    figure = Figure(figsize=(4.6, 4.6), layout="constrained")
    axes = figure.subplots()
    for number, (name, (coverage, risk)) in enumerate(curves.items()):
        x, y = np.asarray(coverage, dtype=float), np.asarray(risk, dtype=float)
        order = np.argsort(x, kind="stable")
        colour = COLOURS[(6 - number) % len(COLOURS)]
        axes.plot(x[order], y[order], ".-", color=colour, label=plain(name), clip_on=False)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("coverage: share of the cases kept", color=INK)
    axes.set_ylabel("risk: mean error of those kept", color=INK)
    if curves:
        axes.legend(frameon=False, fontsize=9)
    tidy(axes, "")
    return png(figure)


def plain(name: str) -> str:
    """Keep a name from being read as a formula: matplotlib typesets what stands between dollars."""
    return str(name).replace("$", r"\$")


def png(figure: Figure) -> bytes:
    """Render a figure."""
    buffer = BytesIO()
    with warnings.catch_warnings():
        # A name in a script the font lacks shows boxes; the tables beside it show the name.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _distributions(axes: Axes, samples: Sequence[NDArray[Any]], *, log: bool) -> None:
    """Dots, boxes and violins at 1, 2, 3 ..."""
    spread = np.random.default_rng(0)
    for place, sample in enumerate(samples, start=1):
        colour = COLOURS[(place - 1) % len(COLOURS)]
        if sample.size >= LEAST_FOR_VIOLIN and np.ptp(sample) > 1e-9:
            body = axes.violin(_violin(sample, log=log), [place], widths=0.78, showextrema=False)
            for shape in body["bodies"]:  # type: ignore[attr-defined]  # a list, by its docs
                shape.set(facecolor=colour, alpha=0.22, edgecolor=colour, linewidth=0.8)
        if sample.size >= LEAST_FOR_BOX:
            axes.boxplot(
                [sample],
                positions=[place],
                widths=0.26,
                showfliers=False,
                medianprops={"color": INK, "linewidth": 1.8},
                boxprops={"color": INK},
            )
        jitter = place + spread.uniform(-0.13, 0.13, sample.size)
        # Dots at 0 and 1 are not cut in half, and an empty sample must not move the layout.
        (dots,) = axes.plot(jitter, sample, "o", color=colour)
        dots.set(markersize=4, alpha=0.75, markeredgewidth=0, clip_on=False, in_layout=False)


def _violin(sample: NDArray[Any], *, log: bool) -> list[dict[str, Any]]:
    """Density between the smallest and the largest value, as wide as the eye sees it.

    On a log axis the density is that of the drawn positions: linear to 1, then decades.
    """

    def drawn(x: NDArray[Any]) -> NDArray[Any]:
        return np.where(x <= 1, x, 1 + np.log10(np.maximum(x, 1)))

    def read(y: NDArray[Any]) -> NDArray[Any]:
        return np.where(y <= 1, y, 10 ** (np.maximum(y, 1) - 1))

    def density(values: NDArray[Any], places: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(gaussian_kde(np.ravel(values))(places))

    (found,) = violin_stats([drawn(sample) if log else sample], density, points=100)
    if log:
        found["coords"] = read(np.asarray(found["coords"]))
    return [found]


def tidy(axes: Axes, title: str) -> None:
    """Title, grid and spines as all charts have them."""
    axes.set_title(title, fontsize=11, loc="left", color=INK)
    axes.grid(axis="y", color=_LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
