"""Edge input: a plain U-Net that sees the size of a scan's gradient in the place of the scan."""

from __future__ import annotations

from medseg_diff.adaptation.edges import STYLE, edges_of, source_edges
from medseg_diff.adaptation.work import Adapted, Work


def adapt(work: Work) -> Adapted:
    """What every diffusion row on edges has to beat: the same invariance without diffusion."""
    return Adapted(work.train("edge_input", source_edges(work)), restyle=edges_of, style=STYLE)
