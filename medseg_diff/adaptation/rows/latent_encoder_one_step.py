"""Latent translation by features in one step: what `latent_cycle` is without its cycles."""

from __future__ import annotations

from medseg_diff.adaptation.features import LATENT_ONLY, source_features
from medseg_diff.adaptation.work import Adapted, Work


def adapt(work: Work) -> Adapted:
    """The training of `latent_encoder`, asked in one step."""
    settings = {"steps": 1, "draws": 1}
    run = source_features(work, condition="features")
    return Adapted(run, settings=settings, baseline=LATENT_ONLY)
