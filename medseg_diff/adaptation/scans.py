"""Crops of target scans without masks, drawn as training samples are.

Legend: B batch, C image channels, *S spatial axes.
"""

from __future__ import annotations

import numpy as np
import torch
from monai.data import CacheDataset
from torch import Tensor

from medseg_diff.config import Config
from medseg_diff.data.caselist import CaseList
from medseg_diff.data.dataset import TrainingSet, preprocessed

# Crops and changes of the target's samples have a seed of their own.
APART = 7919


class UnlabelledCrops:
    """Batches of augmented target crops by number, each a function of it and of the seed.

    Args:
        cases: Scans; masks are not read, whether there are any or not.
        config: Complete configuration of the training that they take part in.
    """

    def __init__(self, cases: CaseList, config: Config) -> None:
        bare = cases.with_cases(
            c.model_copy(update={"references": (), "part": "test", "sha256": {}})
            for c in cases.cases
        )
        found = preprocessed(bare, bare.cases, config.known_task, config.plan)
        # A training set cuts masks along with images: blank ones here, which nobody looks at.
        blank = [
            {**scan, "label": np.zeros((1, *scan["image"].shape[1:]), np.int16), "foreground": []}
            for scan in found
        ]
        held = CacheDataset(blank, _same, num_workers=None, progress=False, copy_cache=False)
        plain = config.training.model_copy(update={"augmentation": "standard"})
        other = config.model_copy(update={"training": plain, "seed": config.seed + APART})
        self.samples = TrainingSet(held, other, 1)
        self.size = config.plan.batch_size or 1

    def images(self, number: int) -> Tensor:
        """Network inputs (B, C, *S) of micro-batch ``number``."""
        numbers = range(number * self.size, (number + 1) * self.size)
        return torch.stack([self.samples[n]["image"] for n in numbers])


def _same(case: object) -> object:
    return case
