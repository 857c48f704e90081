"""Strong augmentation: random convolutions, gain fields, coarse axes and contrast on the source."""

from __future__ import annotations

from medseg_diff.adaptation.work import Adapted, Work


def adapt(work: Work) -> Adapted:
    """Train on the source with ``training.augmentation: strong``."""
    name = "strong_augmentation"
    return Adapted(work.train(name, work.source, training={"augmentation": "strong"}))
