"""Pictures for the report: charts, one case's masks on its image, and its slices one by one."""

from medseg_diff.figures.charts import (
    COLOURS,
    box_plots,
    forest_plot,
    reliability_diagram,
    risk_coverage_curve,
)
from medseg_diff.figures.curves import robustness_curves
from medseg_diff.figures.domains import Panel, domain_panels
from medseg_diff.figures.overlays import case_figure
from medseg_diff.figures.slices import SliceStack, SliceView, slice_stack
from medseg_diff.figures.translations import TranslationView, translation_figure
from medseg_diff.figures.views import CaseView, viewing_axes

__all__ = [
    "COLOURS",
    "CaseView",
    "Panel",
    "SliceStack",
    "SliceView",
    "TranslationView",
    "box_plots",
    "case_figure",
    "domain_panels",
    "forest_plot",
    "reliability_diagram",
    "risk_coverage_curve",
    "robustness_curves",
    "slice_stack",
    "translation_figure",
    "viewing_axes",
]
