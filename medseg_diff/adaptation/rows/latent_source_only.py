"""Latent baseline: the segmenting network of latent translation, with nothing translated."""

from __future__ import annotations

from medseg_diff.adaptation.features import source_features
from medseg_diff.adaptation.work import Adapted, Work


def adapt(work: Work) -> Adapted:
    """What the network without skips is worth by itself: the row that translation has to beat."""
    return Adapted(source_features(work), settings={"sampler": "anchor", "draws": 1})
