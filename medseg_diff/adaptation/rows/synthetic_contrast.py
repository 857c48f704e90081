"""Synthetic contrast: images drawn from the source's label maps, SynthSeg-like."""

from __future__ import annotations

from medseg_diff.adaptation.work import Adapted, Work


def adapt(work: Work) -> Adapted:
    """Train on the source with ``training.augmentation: synthetic``."""
    name = "synthetic_contrast"
    return Adapted(work.train(name, work.source, training={"augmentation": "synthetic"}))
