"""The report: one self-contained HTML page about a folder of predictions."""

from medseg_diff.report.page import RESEARCH_USE
from medseg_diff.report.render import Extras, Picture, render_images, render_report
from medseg_diff.report.tables import attention_table, summary_table

__all__ = [
    "RESEARCH_USE",
    "Extras",
    "Picture",
    "attention_table",
    "render_images",
    "render_report",
    "summary_table",
]
