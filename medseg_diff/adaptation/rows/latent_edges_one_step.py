"""Latent translation by edges in one step: the same network as a regression of source features."""

from __future__ import annotations

from medseg_diff.adaptation.features import LATENT_ONLY, source_features
from medseg_diff.adaptation.work import Adapted, Work


def adapt(work: Work) -> Adapted:
    """From pure noise one step gives the mean of the features that a scan's edges can have."""
    settings = {"steps": 1, "draws": 1}
    run = source_features(work, condition="edges")
    return Adapted(run, settings=settings, baseline=LATENT_ONLY)
