"""Translate, then segment: noise recovered under a target model, decoded under the source's."""

from __future__ import annotations

from medseg_diff.adaptation.restyling import source_prior, target_prior, walked
from medseg_diff.adaptation.work import SOURCE_ONLY, Adapted, Work
from medseg_diff.translation.way import Way

STRENGTH = 0.6


def adapt(work: Work) -> Adapted:
    """CycleDiffusion (Wu & De la Torre 2023, arXiv 2210.05559), two models trained apart."""
    # Before the target is looked at: these trainings are then shared between targets.
    run, source = work.train(SOURCE_ONLY, work.source), source_prior(work)
    restyle = walked(Way(STRENGTH, "noise"), source, target_prior(work))
    return Adapted(run, restyle=restyle, style=["cycle_diffusion", STRENGTH])
