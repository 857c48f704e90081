"""Joint diffusion: image and mask as one state, learned on the source; the scan is put in later."""

from __future__ import annotations

from medseg_diff.adaptation.source_diffusion import sections
from medseg_diff.adaptation.work import Adapted, Work

DRAWS, STEPS = 3, 10


def adapt(work: Work) -> Adapted:
    """DiffAtlas (`recipes_wider.diffatlas`), trained on the source alone.

    At test time the target scan stands in the image's channels, noised to each step. Three draws of
    ten DDIM steps in the place of the recipe's five of fifty ancestral ones, for two CPU cores.
    """
    drawn = {"draws": DRAWS, "steps": STEPS, "sampler": "ddim"}
    changes = sections(work.config, "diffatlas", prediction=drawn)
    return Adapted(work.train("joint_diffusion", work.source, **changes))
