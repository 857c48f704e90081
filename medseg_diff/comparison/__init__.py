"""Which of several methods is better, and whether the cases allow one to say so.

Methods are paired by case and structure; patients, where the evaluations name them, are the unit of
every test; several seeds of one method are averaged case by case before anything is compared.
"""

from medseg_diff.comparison.methods import (
    Method,
    check_comparable,
    pool,
    read_evaluation,
    read_method,
)
from medseg_diff.comparison.table import (
    caveats,
    claims,
    compare_methods,
    compare_table,
    headlines,
    primary_rows,
)
from medseg_diff.comparison.write import (
    compare_folders,
    latex_escape,
    to_html,
    to_latex,
    to_markdown,
)

__all__ = [
    "Method",
    "caveats",
    "check_comparable",
    "claims",
    "compare_folders",
    "compare_methods",
    "compare_table",
    "headlines",
    "latex_escape",
    "pool",
    "primary_rows",
    "read_evaluation",
    "read_method",
    "to_html",
    "to_latex",
    "to_markdown",
]
