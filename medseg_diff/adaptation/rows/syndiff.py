"""Translate, then segment: few-step adversarial diffusion between unpaired scans."""

from __future__ import annotations

from medseg_diff.adaptation.restyling import adversarial
from medseg_diff.adaptation.work import SOURCE_ONLY, Adapted, Work


def adapt(work: Work) -> Adapted:
    """Recipe `syndiff`, from the target's look to the source's."""
    run = work.train(SOURCE_ONLY, work.source)
    return Adapted(run, restyle=adversarial(work), style=["syndiff"])
