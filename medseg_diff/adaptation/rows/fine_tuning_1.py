"""Fine-tuning: all weights of the source model, trained on from one labelled target scan."""

from __future__ import annotations

from medseg_diff.adaptation.few_shot import fine_tuning
from medseg_diff.adaptation.work import Adapted, Work


def adapt(work: Work) -> Adapted:
    """See :func:`fine_tuning`."""
    return fine_tuning(work, "fine_tuning_1", 1)
