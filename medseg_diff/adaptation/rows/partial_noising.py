"""Partial noising: each scan noised half-way, then denoised by a model of source scans (SDEdit)."""

from __future__ import annotations

from medseg_diff.adaptation.restyling import source_prior, walked
from medseg_diff.adaptation.work import SOURCE_ONLY, Adapted, Work
from medseg_diff.translation.way import Way

STRENGTH = 0.5


def adapt(work: Work) -> Adapted:
    """The source model is shown nothing of the target but the scan itself (Meng et al. 2022)."""
    run = work.train(SOURCE_ONLY, work.source)
    restyle = walked(Way(STRENGTH), source_prior(work))
    return Adapted(run, restyle=restyle, style=["partial_noising", STRENGTH])
