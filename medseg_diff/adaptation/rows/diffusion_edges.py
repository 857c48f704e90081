"""Diffusion on edges: the package's default recipe sees the size of a scan's gradient alone."""

from __future__ import annotations

from medseg_diff.adaptation.edges import STYLE, edges_of, source_edges
from medseg_diff.adaptation.source_diffusion import sections
from medseg_diff.adaptation.work import Adapted, Work


def adapt(work: Work) -> Adapted:
    """Recipe `anchored` trained on the source's edges; beside it stands `edge_input`."""
    changes = sections(work.config, "anchored")
    run = work.train("diffusion_edges", source_edges(work), **changes)
    return Adapted(run, restyle=edges_of, style=STYLE)
