"""Codecs: label map or image <-> diffused state; the one place where logits become state units.

Legend: B batch, K channels of the state: classes, regions or image planes, *S spatial axes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg_diff.errors import InputError


class Codec(ABC):
    """What all codecs offer to training and to the ensemble, whatever is diffused.

    Attributes:
        exclusive: Whether the channels are classes of which each voxel has one.
    """

    exclusive: bool

    @property
    @abstractmethod
    def channels(self) -> int:
        """Number of channels K of the state."""

    @property
    @abstractmethod
    def structures(self) -> int:
        """Planes of a draw's own mask; 0 where no masks are made."""

    @abstractmethod
    def weight(self, truth: Tensor) -> Tensor | None:
        """1 where there is truth, 0 where it is ignored, (B, 1, *S); None if nothing can be."""

    @abstractmethod
    def encode(self, truth: Tensor) -> Tensor:
        """Truth as a batch holds it -> clean state (B, K, *S) in [-1, 1]."""

    def probabilities_from_state(self, state: Tensor) -> Tensor:
        """Clean state in [-1, 1] -> what the ensemble averages, in [0, 1]."""
        return (state + 1) / 2


@dataclass(frozen=True)
class ImageCodec(Codec):
    """An image in its plan's units: the range's ends at -1 and 1. The state is the image.

    What the ensemble averages is the image between 0 and 1; :func:`image_values` gives it back
    its own units.

    Args:
        planes: Channels of the image.
    """

    planes: int = 1
    exclusive: bool = field(default=False, init=False)

    @property
    def channels(self) -> int:
        """Number of channels K of the state."""
        return self.planes

    @property
    def structures(self) -> int:
        """No masks are made."""
        return 0

    def weight(self, truth: Tensor) -> Tensor | None:
        """Every voxel of an image counts."""
        return None

    def encode(self, truth: Tensor) -> Tensor:
        """Normalised image (B, K, *S), itself."""
        return truth


def image_values(unit: NDArray[Any], ends: tuple[float, float]) -> NDArray[np.float32]:
    """An ensemble's image between 0 and 1 -> the target's own units, same shape.

    Args:
        unit: Of any shape, in [0, 1].
        ends: Values that 0 and 1 stand for: the plan's ``target_range``.
    """
    low, high = ends
    return (unit.astype(np.float64) * (high - low) + low).astype(np.float32)


@dataclass(frozen=True)
class OneHotCodec(Codec):
    """One channel a structure, -1 where it is absent and +1 where it is present.

    Args:
        members: Label values of each channel. Exclusive classes list one value each and begin
            with the background, ``((0,), (1,), (2,))``; overlapping regions list several and
            leave the background out, ``((1, 2, 3), (2, 3), (3,))``.
        exclusive: True for classes (softmax), False for overlapping regions (sigmoid).
        ignore_label: Label value whose voxels carry no truth: their state is 0 in every channel
            and their weight is 0.
    """

    members: tuple[tuple[int, ...], ...]
    exclusive: bool = True
    ignore_label: int | None = None

    def __post_init__(self) -> None:
        """Refuse regions that could not be painted back into one label map."""
        if not self.exclusive:
            self.painted_values()

    @property
    def channels(self) -> int:
        """Number of channels K of the state."""
        return len(self.members)

    @property
    def structures(self) -> int:
        """All channels but the background of exclusive classes."""
        return self.channels - (1 if self.exclusive else 0)

    def targets(self, labels: Tensor) -> Tensor:
        """Label map (B, 1, *S) -> presence in {0, 1}, (B, K, *S) float32."""
        planes = [
            torch.isin(labels, torch.as_tensor(values, dtype=labels.dtype, device=labels.device))
            for values in self.members
        ]
        return torch.cat(planes, dim=1).float()

    def weight(self, labels: Tensor) -> Tensor | None:
        """1 where there is truth, 0 where it is ignored, (B, 1, *S); None if nothing can be."""
        return None if self.ignore_label is None else (labels != self.ignore_label).float()

    def encode(self, labels: Tensor) -> Tensor:
        """Label map (B, 1, *S) -> state (B, K, *S) in [-1, 1]."""
        state = 2 * self.targets(labels) - 1
        weight = self.weight(labels)
        return state if weight is None else state * weight

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits (B, K, *S) -> probabilities in [0, 1]."""
        return logits.softmax(1) if self.exclusive else logits.sigmoid()

    def state_from_logits(self, logits: Tensor) -> Tensor:
        """Logits -> clean state in [-1, 1]: the posterior mean of the encoded mask."""
        return 2 * self.probabilities(logits) - 1

    def logits_from_state(self, state: Tensor) -> Tensor:
        """Clean state -> logits; the inverse of :meth:`state_from_logits` up to a constant.

        States outside (-1, 1), which a noise or velocity output can imply, are clipped.
        """
        present = self.probabilities_from_state(state).clamp(1e-4, 1 - 1e-4)
        return present.log() if self.exclusive else torch.logit(present)

    def decode(self, probabilities: Tensor) -> Tensor:
        """Probabilities (B, K, *S) -> label map (B, 1, *S), int16.

        Regions are painted in their order, each with the one label that only it adds: from
        outer to inner, ``((1, 2, 3), (2, 3), (3,))`` paints 1, then 2, then 3.
        """
        if self.exclusive:
            values = torch.as_tensor(
                [m[0] for m in self.members], dtype=torch.int16, device=probabilities.device
            )
            return values[probabilities.argmax(1, keepdim=True)]
        labels = torch.zeros_like(probabilities[:, :1], dtype=torch.int16)
        for channel, value in enumerate(self.painted_values()):
            labels[probabilities[:, channel : channel + 1] > 0.5] = value
        return labels

    def painted_values(self) -> Sequence[int]:
        """For each region, the label it paints: one that no later (inner) region holds.

        Raises:
            InputError: if a later region is neither inside an earlier one nor apart from it, or
                a region holds no label of its own: painting would then change labels.
        """
        painted = []
        for index, values in enumerate(self.members):
            later = [set(region) for region in self.members[index + 1 :]]
            crossing = any(not (r <= set(values) or r.isdisjoint(values)) for r in later)
            own = [v for v in values if not any(v in region for region in later)]
            if crossing or not own:
                raise InputError(
                    "regions do not lie inside one another",
                    field="regions",
                    found=list(map(list, self.members)),
                    expected="each inside an earlier one, or apart from it",
                    remedy="list regions from outer to inner",
                )
            painted.append(own[0])
        return painted
