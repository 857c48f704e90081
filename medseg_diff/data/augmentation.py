"""The random changes of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from monai.transforms import (
    Compose,
    Rand2DElasticd,
    Rand3DElasticd,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandSimulateLowResolutiond,
)


def augmentation(
    patch_size: Sequence[int],
    mirror_axes: Sequence[int] = (),
    *,
    images: bool = False,
    intensities: bool = True,
) -> Compose:
    """nnU-Net-like random changes of ``image`` (C, *S) and ``label`` (1, *S), cut to the patch.

    Rotation, scaling, elastic deformation, noise, blur, gain, gamma, contrast, low resolution and
    mirroring, at about nnU-Net's rates. Intensity changes never reach the label; labels move by
    nearest neighbour.

    With ``images`` the label is a target image: it moves by linear interpolation as its source
    does, and no intensity is changed, since the two belong together. Without ``intensities``
    neither is it, but the label stays one.
    """
    dims = len(patch_size)
    both = ("image", "label")
    moves: dict[str, Any] = {
        "keys": both,
        "mode": ("bilinear", "bilinear" if images else "nearest"),
        "padding_mode": "border",
        "spatial_size": tuple(patch_size),
    }
    # Anisotropic patches tolerate little rotation out of the plane of their long axes.
    angle = np.pi / 9 if min(patch_size) * 2 > max(patch_size) else np.pi / 18
    rotation = [angle] * (3 if dims == 3 else 1)
    elastic = Rand3DElasticd if dims == 3 else Rand2DElasticd
    bend: dict[str, Any] = (
        {"sigma_range": (5, 8), "magnitude_range": (40, 120)}
        if dims == 3
        else {"spacing": (24, 24), "magnitude_range": (1, 4)}
    )
    steps: list[Any] = [
        RandAffined(prob=0.35, rotate_range=rotation, scale_range=[0.15] * dims, **moves),
        elastic(prob=0.1, **bend, **moves),
    ]
    looks: list[Any] = [
        RandGaussianNoised("image", prob=0.1, std=0.1),
        RandGaussianSmoothd("image", prob=0.1, **{f"sigma_{a}": (0.3, 0.8) for a in "xyz"[:dims]}),
        RandScaleIntensityd("image", prob=0.15, factors=0.25),
        RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
        RandSimulateLowResolutiond(
            "image",
            prob=0.1,
            zoom_range=(0.5, 1.0),
            upsample_mode="trilinear" if dims == 3 else "bilinear",
        ),
    ]
    steps += looks if intensities and not images else []
    steps += [RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in mirror_axes]
    return Compose(steps)
