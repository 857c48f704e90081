"""What a model says about one scan, and its way back to the scan's own grid.

Legend: K structures, N draws, *S spatial axes of the scan.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from medseg_diff.codecs import OneHotCodec
from medseg_diff.data.transforms import to_scan_grid
from medseg_diff.draws import Fused
from medseg_diff.fusion import predictive_entropy
from medseg_diff.temperature import apply_temperature


@dataclass(frozen=True)
class Answer:
    """What a model says about one scan.

    Attributes:
        mask: Label map (1, *S), int16.
        probability: One volume per foreground structure, (K, *S), float32 in [0, 1].
        doubt: Four volumes, (4, *S): predictive entropy in [0, 1], variance between draws, and
            the entropy's two parts: the mean entropy of single draws (what each draw doubts) and
            the mutual information (where draws disagree).
        draws: The draws' own label maps, (N, *S), uint8 or int16; None unless asked for.
        record: What the case's JSON says: settings, versions, hashes, volumes, warnings.
    """

    mask: MetaTensor
    probability: MetaTensor
    doubt: MetaTensor
    record: dict[str, Any] = field(repr=False)
    draws: MetaTensor | None = None


@dataclass(frozen=True)
class WayBack:
    """From the model's grid to the scan's.

    Attributes:
        codec: What the channels stand for.
        placed: The scan on the model's grid, which remembers how it came there.
        pipeline: The transforms that placed it.
    """

    codec: OneHotCodec
    placed: MetaTensor
    pipeline: Compose

    def answer(self, fused: Fused, temperature: float | None = None) -> Answer:
        """Mask, probability and doubt; the record is left empty.

        Args:
            fused: The ensemble's answer on the model's grid.
            temperature: Of the probability; None leaves it as it is.
        """
        stacked = np.concatenate([fused.probability, fused.variance[None], fused.entropy[None]])
        back = to_scan_grid(torch.from_numpy(stacked), self.placed, self.pipeline)
        probability, variance, single = self._filled(back[:-2]), back[-2], back[-1].as_tensor()
        plain = probability.numpy()
        mask = self.codec.decode(probability.as_tensor()[None])[0]
        entropy = torch.from_numpy(predictive_entropy(plain, exclusive=self.codec.exclusive))
        shared = (entropy - single).clamp(min=0)
        doubt = torch.stack([entropy, variance.as_tensor(), single, shared])
        first = 1 if self.codec.exclusive else 0
        # Monotone: no voxel changes sides. Doubt stays that of the draws as they are.
        if temperature is not None:
            plain = apply_temperature(plain, temperature, exclusive=self.codec.exclusive)

        def image(values: torch.Tensor) -> MetaTensor:
            return MetaTensor(values.contiguous(), affine=back.affine, meta=self._meta())

        return Answer(image(mask), image(torch.from_numpy(plain[first:])), image(doubt), {})

    def draws(self, fused: Fused) -> MetaTensor:
        """Each draw's label map (N, *S), brought back as its presence in [0, 1]."""
        maps = []
        for mask in fused.masks:
            planes = mask.astype(np.float32)
            if self.codec.exclusive:
                planes = np.concatenate([1 - planes.sum(0, keepdims=True), planes])
            back = to_scan_grid(torch.from_numpy(planes), self.placed, self.pipeline)
            labels = self.codec.decode(self._filled(back).as_tensor()[None])[0]
            maps.append(labels.to(torch.uint8) if int(labels.max()) < 256 else labels)
        return MetaTensor(torch.cat(maps), affine=back.affine, meta=self._meta())

    def _filled(self, probability: MetaTensor) -> MetaTensor:
        """Probabilities (K, *S) with background where the plan's crop did not look."""
        if self.codec.exclusive:
            unseen = probability.as_tensor().sum(0) < 0.5
            probability[0][unseen] = 1
        return probability

    def _meta(self) -> dict[str, Any]:
        return {key: value for key, value in self.placed.meta.items() if key != "affine"}
