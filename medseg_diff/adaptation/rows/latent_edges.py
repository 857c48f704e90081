"""Latent translation by edges: the condition is the size of the scan's gradient alone."""

from __future__ import annotations

from medseg_diff.adaptation.features import LATENT_ONLY, source_features
from medseg_diff.adaptation.work import Adapted, Work


def adapt(work: Work) -> Adapted:
    """Structure without style: which side of an edge is bright never reaches the denoiser."""
    return Adapted(source_features(work, condition="edges"), baseline=LATENT_ONLY)
