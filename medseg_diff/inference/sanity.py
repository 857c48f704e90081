"""What speaks against a scan, or against its mask: sentences for the case's JSON.

Legend: C image channels, *S spatial axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from monai.data import MetaTensor
from numpy.typing import NDArray

# A structure that fills this share of a scan is more often a failure than an organ.
LARGE_SHARE = 0.5


def of_intensities(image: MetaTensor, modality: str) -> list[str]:
    """What speaks against a CT's values being Hounsfield units (F28)."""
    if modality != "CT" or image.meta["kind"] == "raster":
        return []
    low, high = float(image.min()), float(image.max())
    if low >= 0 or high <= 0:
        return [
            f"intensity range implausible for CT: {low:g} to {high:g}, where air is -1000 HU and "
            "water 0; check that the scan is in HU"
        ]
    return []


def is_constant(image: MetaTensor) -> bool:
    """Whether every channel (C, *S) holds one value throughout (F27)."""
    return all(float(plane.max()) == float(plane.min()) for plane in image)


def count_voxels(
    labels: NDArray[np.integer[Any]], structures: Mapping[str, Sequence[int]]
) -> dict[str, int]:
    """Voxels of each structure in a label map (*S), whose labels are not negative."""
    # Row by row: counting turns what it counts into int64.
    counts = np.zeros(int(labels.max(initial=0)) + 1, np.int64)
    for row in labels:
        counts += np.bincount(row.ravel(), minlength=len(counts))
    return {
        name: int(sum(counts[value] for value in set(values) if value < len(counts)))
        for name, values in structures.items()
    }


def of_mask(
    labels: NDArray[np.integer[Any]],
    structures: Mapping[str, Sequence[int]],
    counts: Mapping[str, int],
) -> list[str]:
    """Structures of a label map (*S) that are empty, large or cut off (F72)."""
    ends = [labels.take([0, -1], axis) for axis in range(labels.ndim) if labels.shape[axis] > 1]
    sentences = []
    for name, values in structures.items():
        share = counts[name] / labels.size
        if share == 0:
            sentences.append(f"{name}: nothing was found")
        elif share > LARGE_SHARE:
            sentences.append(f"{name}: fills {share:.0%} of the scan")
        if share and any(bool(np.isin(end, values).any()) for end in ends):
            sentences.append(f"{name}: touches the border of the scan and may go on beyond it")
    return sentences
