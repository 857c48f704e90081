"""Curves of a score against the strength of a shift."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.figure import Figure

from medseg_diff.figures.charts import COLOURS, INK, plain, png, tidy

_COLUMNS = 3


def robustness_curves(table: pd.DataFrame) -> bytes:
    """Draw Dice with its interval, and ECE, against strength: one panel a shift.

    Args:
        table: Columns ``shift``, ``value``, ``unit``, ``dice``, ``dice_low``, ``dice_high`` and
            ``ece`` (NaN where not known); one row a point.
    """
    names = list(dict.fromkeys(table["shift"]))
    rows = max(1, math.ceil(len(names) / _COLUMNS))
    figure = Figure(figsize=(3.6 * _COLUMNS, 2.9 * rows), layout="constrained")
    panels = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        points = table[table["shift"] == name].sort_values("value")
        x = points["value"].to_numpy(dtype=float)
        axes.fill_between(
            x,
            points["dice_low"].to_numpy(dtype=float),
            points["dice_high"].to_numpy(dtype=float),
            color=COLOURS[6],
            alpha=0.18,
            linewidth=0,
        )
        axes.plot(x, points["dice"], "o-", color=COLOURS[6], label="Dice", clip_on=False)
        axes.plot(x, points["ece"], "s--", color=COLOURS[5], label="ECE", clip_on=False)
        axes.set_ylim(0, 1.02)
        axes.set_xlim(left=0)
        unit = points["unit"].iloc[-1]
        axes.set_xlabel(plain(str(unit)), color=INK)
        tidy(axes, plain(name.replace("_", " ")))
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    if len(names):
        panels[0].legend(frameon=False, fontsize=9)
    return png(figure)
