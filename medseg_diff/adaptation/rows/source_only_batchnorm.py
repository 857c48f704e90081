"""Source only with batch norm: the network that AdaBN and TENT start from."""

from __future__ import annotations

from medseg_diff.adaptation.work import Adapted, Work

NAME = "source_only_batchnorm"


def adapt(work: Work) -> Adapted:
    """Train a U-Net with batch norm on the source."""
    return Adapted(work.train(NAME, work.source, model={"norm": "batch"}), baseline=NAME)
