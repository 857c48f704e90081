"""Diffusion without adaptation: the package's default recipe trained on the source."""

from __future__ import annotations

from medseg_diff.adaptation.source_diffusion import sections
from medseg_diff.adaptation.work import Adapted, Work


def adapt(work: Work) -> Adapted:
    """Recipe `anchored` at the experiment's widths: does diffusion generalise better by itself?"""
    changes = sections(work.config, "anchored")
    return Adapted(work.train("diffusion_source_only", work.source, **changes))
