"""Target oracle: trained on the target's own labelled scans, same budget."""

from __future__ import annotations

from medseg_diff.adaptation.work import Adapted, Work


def adapt(work: Work) -> Adapted:
    """Train on the target."""
    return Adapted(work.train("oracle", work.labelled))
