"""Latent translation by features: the condition is the source network's features of the scan."""

from __future__ import annotations

from medseg_diff.adaptation.features import LATENT_ONLY, source_features
from medseg_diff.adaptation.work import Adapted, Work


def adapt(work: Work) -> Adapted:
    """The idea as first written down: target features in, source-like features out."""
    return Adapted(source_features(work, condition="features"), baseline=LATENT_ONLY)
