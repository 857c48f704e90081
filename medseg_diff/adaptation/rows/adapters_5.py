"""Adapters: the source model with low-rank changes learned from five labelled target scans."""

from __future__ import annotations

from medseg_diff.adaptation.few_shot import low_rank_adapters
from medseg_diff.adaptation.work import Adapted, Work


def adapt(work: Work) -> Adapted:
    """See :func:`low_rank_adapters`."""
    return low_rank_adapters(work, "adapters_5", 5)
