"""Latent cycle: features drawn in one step for target scans must lead back to the target's own."""

from __future__ import annotations

from medseg_diff.adaptation.cycle import FeatureCycle
from medseg_diff.adaptation.features import LATENT_ONLY, source_features
from medseg_diff.adaptation.work import Adapted, Work
from medseg_diff.training.fit import Options


def adapt(work: Work) -> Adapted:
    """`latent_encoder` with unlabelled target crops in its second stage; see `cycle.py`.

    Drawn as it was trained, in one step.
    """
    target = work.unlabelled
    options = Options(companion=lambda config: FeatureCycle(target, config))
    run = source_features(work, "features", name="features_cycle", options=options)
    return Adapted(run, settings={"steps": 1, "draws": 1}, baseline=LATENT_ONLY)
