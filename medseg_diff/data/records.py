"""Records that the data hands to the model.

Legend: B batch, C image channels, K state channels, *S spatial axes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """A training batch; the randomness of the step is part of it.

    Attributes:
        image: (B, C, *S), normalised.
        labels: (B, 1, *S), integer; of a translation the normalised target image, (B, K, *S).
        t: Uniform numbers (B,) in (0, 1]; a time law makes times of them.
        noise: Standard normal (B, K, *S).
        coins: Uniform numbers (B, 2) in [0, 1) for what happens to a share of the samples.
    """

    image: Tensor
    labels: Tensor
    t: Tensor
    noise: Tensor
    coins: Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))
