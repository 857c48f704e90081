"""Guided prior: a diffusion prior of source masks, steered by each scan's own grey values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from medseg_diff.adaptation.source_diffusion import sections
from medseg_diff.adaptation.work import Adapted, Work
from medseg_diff.inference.predictor import Around
from medseg_diff.model import DiffusionModel, SegmentationModel
from medseg_diff.model.evidence import Evidence
from medseg_diff.recipes import Keys

DRAWS, STEPS = 3, 10


def prior() -> Keys:
    """A denoiser of masks that is shown no image.

    Cross-entropy alone: its answer is then the mean of the masks that a noisy one can stand for,
    which the steering takes for granted; Dice would sharpen it.
    """
    return {
        "model": {
            "kind": "diffusion",
            "features": [16, 32, 64, 160],
            "concat_image": False,
            "time_channels": 128,
            "schedule": "linear",
            "output": "clean",
        },
        "objective": {"cross_entropy": 1.0},
        "prediction": {"draws": DRAWS, "steps": STEPS, "sampler": "ddim"},
    }


def adapt(work: Work) -> Adapted:
    """Learn how masks look, on the source; see :class:`Evidence` for what the scan adds.

    Nothing of the source's intensities is learned or used, so a change of contrast costs nothing
    by itself. The standard deviation and the reach of the means were chosen among seven settings on
    five validation cases of hippocampus slices, in the source's contrast. In 2-D the prior does not
    know which slice it draws, which leaves it little to say.
    """
    run = work.train("mask_prior", work.source, **sections(work.config, prior()))
    return Adapted(run, around=steered(work.config.known_task.image_planes))


def steered(planes: int) -> Around:
    """Steers a model for the time of a scan, whose first ``planes`` are its image's."""

    @contextmanager
    def around(
        model: SegmentationModel, values: NDArray[np.float32], patch: Sequence[int]
    ) -> Iterator[None]:
        if not isinstance(model, DiffusionModel):
            raise TypeError("a prior is a diffusion model")
        model.steer = Evidence(model.mask_codec, planes)
        try:
            yield
        finally:
            model.steer = None

    return around
