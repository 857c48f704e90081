"""Latent translation: source-like features drawn for a target scan and decoded to a mask."""

from __future__ import annotations

from medseg_diff.adaptation.features import LATENT_ONLY, source_features
from medseg_diff.adaptation.work import Adapted, Work


def adapt(work: Work) -> Adapted:
    """Recipe `feature_translation`: the condition is the scan, trained by changed looks."""
    return Adapted(source_features(work), baseline=LATENT_ONLY)
