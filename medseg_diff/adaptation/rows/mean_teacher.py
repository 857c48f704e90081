"""Mean teacher: consistency of strongly changed target scans with the averaged weights' answer."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from monai.transforms import Compose
from torch import Tensor
from torch.func import functional_call

from medseg_diff.adaptation.scans import UnlabelledCrops
from medseg_diff.adaptation.work import Adapted, Work
from medseg_diff.config import Config
from medseg_diff.data.appearance import strong_appearance
from medseg_diff.data.caselist import CaseList
from medseg_diff.data.dataset import plain_tensors
from medseg_diff.data.records import Batch
from medseg_diff.model import SegmentationModel
from medseg_diff.training.companion import Companion, segmenter
from medseg_diff.training.fit import Options

# Full weight of the consistency, and the share of the training over which it rises to it.
WEIGHT, RISE = 10.0, 0.4


def adapt(work: Work) -> Adapted:
    """Tarvainen & Valpola (2017, arXiv 1703.01780), for a new domain as Perone et al. (2019).

    Trains on the source as ever; beside it the squared error between the student's probabilities of
    a strongly changed target crop and the teacher's of the same crop before that change. The
    teacher is the training's running average of the weights, the student's gradient does not reach
    it, and the weight rises as exp(-5 (1 - s)^2). Changes are of appearance alone
    (:func:`strong_appearance`), so that the two answers lie on one grid.

    Departures: the average is the package's own, with its warm-up; weight and rise are neither
    paper's, and were not tuned.
    """
    target = work.unlabelled
    options = Options(companion=lambda config: Consistency(target, config))
    return Adapted(work.train("mean_teacher", work.source, options))


class Consistency(Companion):
    """The unlabelled half of a mean teacher.

    Args:
        target: Scans.
        config: Of the training, complete.
    """

    def __init__(self, target: CaseList, config: Config) -> None:
        super().__init__()
        self.crops, self.seed = UnlabelledCrops(target, config), config.seed
        self.steps = config.training.steps * config.training.accumulate
        self.change = Compose(strong_appearance(config.plan.patch_size or ()))
        # Planes of coordinates come after the image's and stay what they are.
        self.planes = config.known_task.image_planes

    def losses(
        self, model: SegmentationModel, batch: Batch, number: int, average: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """See :class:`Companion`."""
        unet = segmenter(model)
        shown = self.crops.images(number)
        changed = self._changed(shown, number).to(batch.image.device)
        below = "network."
        teacher = {k.removeprefix(below): v for k, v in average.items() if k.startswith(below)}
        with torch.no_grad():
            logits = functional_call(unet.network, teacher, (shown.to(batch.image.device),))
            wanted = unet.codec.probabilities(logits)
        found = unet.codec.probabilities(unet.network(changed))
        return {"consistency": ramp(number / self.steps) * disagreement(found, wanted)}

    def _changed(self, images: Tensor, number: int) -> Tensor:
        """Student's view of crops (B, C, *S)."""
        views = []
        for position, image in enumerate(images):
            rng = np.random.default_rng([self.seed, 3, number, position])
            self.change.set_random_state(seed=int(rng.integers(2**31)))
            with plain_tensors():
                view = self.change({"image": image[: self.planes].clone()})["image"]
            views.append(torch.cat([torch.as_tensor(view), image[self.planes :]]))
        return torch.stack(views).float()


def disagreement(found: Tensor, wanted: Tensor) -> Tensor:
    """Squared error of probabilities (B, K, *S), summed over structures, a mean over voxels."""
    return (found - wanted).square().sum(1).mean()


def ramp(share: float) -> float:
    """Weight of the consistency after a share of the training, in [0, 1]."""
    return WEIGHT * math.exp(-5 * (1 - min(1.0, share / RISE)) ** 2)
