"""Records that the data hands to the model.

Legend: B batch, C image channels, K state channels, *S spatial axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """A training batch; the randomness of the step is part of it.

    Attributes:
        image: (B, C, *S), normalised.
        labels: (B, 1, *S), integer.
        t: Times (B,) in (0, 1].
        noise: Standard normal (B, K, *S).
    """

    image: Tensor
    labels: Tensor
    t: Tensor
    noise: Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        return Batch(*(x.to(device) for x in (self.image, self.labels, self.t, self.noise)))
