"""Source only: the model as it was trained, no adaptation."""

from __future__ import annotations

from medseg_diff.adaptation.work import SOURCE_ONLY, Adapted, Work


def adapt(work: Work) -> Adapted:
    """Train on the source."""
    return Adapted(work.train(SOURCE_ONLY, work.source))
