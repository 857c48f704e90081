"""Latent translation with every skip: features of all depths drawn in one step from edges."""

from __future__ import annotations

from medseg_diff.adaptation.features import LATENT_ONLY, source_features
from medseg_diff.adaptation.work import Adapted, Work


def adapt(work: Work) -> Adapted:
    """`latent_edges_one_step` whose segmenting network has skips, all of them drawn."""
    run = source_features(work, "edges", name="features_skips", every_depth=True)
    return Adapted(run, settings={"steps": 1, "draws": 1}, baseline=LATENT_ONLY)
