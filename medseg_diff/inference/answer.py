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
from numpy.typing import NDArray

from medseg_diff.codecs import OneHotCodec
from medseg_diff.data.transforms import to_scan_grid
from medseg_diff.fusion import Array, StreamedEntropy
from medseg_diff.inference.draws import Fused, blocks
from medseg_diff.temperature import apply_temperature


@dataclass(frozen=True)
class Answer:
    """What a model says about one scan.

    Attributes:
        mask: Label map (1, *S), int16.
        probability: One volume per foreground structure, (K, *S), float32 in [0, 1]; (0, *S) if
            it was not asked for.
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

    def answer(
        self, fused: Fused, temperature: float | None = None, *, maps: bool = True
    ) -> Answer:
        """Mask, probability and doubt; the record is left empty.

        Channels come back one by one, so that no more of them than are asked for lie in memory.

        Args:
            fused: The ensemble's answer on the model grid.
            temperature: Of the probability; None leaves it as it is.
            maps: Whether to keep the probability of every structure.
        """
        exclusive, channels = self.codec.exclusive, len(fused.probability)
        first = 1 if exclusive else 0
        labels, entropy = _Labels(self.codec), StreamedEntropy(channels, exclusive=exclusive)
        kept = None
        skipped = first if temperature is None else 0
        for k in range(channels):
            plane = self._presence(fused.plane(k), background=exclusive and k == 0)
            labels.add(plane)
            entropy.add(plane)
            if maps and kept is None:
                kept = np.empty((channels - skipped, *plane.shape), np.float32)
            if kept is not None and k >= skipped:
                kept[k - skipped] = plane
        mask = labels.map
        del labels
        doubt = torch.empty((4, *mask.shape[1:]))
        doubt[0] = torch.from_numpy(entropy.entropy())
        doubt[1], doubt[2] = self._back(fused.variance), self._back(fused.entropy)
        torch.sub(doubt[0], doubt[2], out=doubt[3]).clamp_(min=0)
        # Monotone: no voxel changes sides. Doubt stays that of the draws as they are.
        if kept is not None and temperature is not None:
            for rows in blocks(kept.shape[1:]):
                kept[:, rows] = apply_temperature(kept[:, rows], temperature, exclusive=exclusive)
        probability = doubt[:0] if kept is None else torch.from_numpy(kept[first - skipped :])
        return Answer(self._image(mask), self._image(probability), self._image(doubt), {})

    def draws(self, fused: Fused) -> MetaTensor:
        """Each draw's label map (N, *S), brought back as its presence in [0, 1]."""
        maps = []
        for mask in fused.masks:
            labels = _Labels(self.codec)
            if self.codec.exclusive:
                background = np.asarray(~mask.any(0), np.float32)
                labels.add(self._presence(background, background=True))
            for plane in mask:
                labels.add(self._back(plane.astype(np.float32)).numpy())
            found = labels.map
            maps.append(found.to(torch.uint8) if int(found.max()) < 256 else found)
        return self._image(torch.cat(maps))

    def _presence(self, plane: Array, *, background: bool) -> NDArray[np.float32]:
        """One channel's probability (*S) on the scan's grid.

        Where the plan's crop did not look there is background: it comes back as what it lacks to 1.
        """
        if not background:
            return self._back(plane).numpy()
        return 1 - self._back(np.subtract(1, plane, dtype=np.float32)).numpy()

    def _back(self, values: Array) -> torch.Tensor:
        """One map (*S) on the model grid -> the scan's grid."""
        carried = torch.from_numpy(np.ascontiguousarray(values))[None]
        return to_scan_grid(carried, self.placed, self.pipeline).as_tensor()[0]

    def _image(self, values: torch.Tensor) -> MetaTensor:
        """Maps on the scan's grid, with its place."""
        affine = self.placed.meta["original_affine"]
        return MetaTensor(values.contiguous(), affine=affine, meta=self._meta())

    def _meta(self) -> dict[str, Any]:
        return {key: value for key, value in self.placed.meta.items() if key != "affine"}


class _Labels:
    """The label map of channels (*S) that come one by one; see :meth:`OneHotCodec.decode`."""

    def __init__(self, codec: OneHotCodec) -> None:
        self.codec, self._count = codec, 0
        self._best: Array | None = None
        self._labels: NDArray[np.int16] | None = None
        self._painted = [m[0] for m in codec.members] if codec.exclusive else codec.painted_values()

    def add(self, plane: Array) -> None:
        """Take the next channel."""
        value = self._painted[self._count]
        self._count += 1
        if self._labels is None:
            start = value if self.codec.exclusive else 0
            self._labels = np.full(plane.shape, start, np.int16)
            self._best = plane.copy() if self.codec.exclusive else None
        if self._best is None:
            self._labels[plane > 0.5] = value
            return
        better = plane > self._best
        self._labels[better] = value
        np.maximum(self._best, plane, out=self._best)

    @property
    def map(self) -> torch.Tensor:
        """(1, *S), int16."""
        if self._labels is None:
            raise ValueError("no channel was added")
        return torch.from_numpy(self._labels)[None]
