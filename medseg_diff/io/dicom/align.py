"""Series of one frame of reference on one grid, so that they can be channels of one image."""

from __future__ import annotations

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from scipy.ndimage import affine_transform

from medseg_diff.io.grid import GRID_TOLERANCE_MM, grid_distance


def same_frame(image: MetaTensor, like: MetaTensor) -> bool:
    """Whether two scans state one frame of reference: their millimetres are the same ones."""
    if image.meta["kind"] != "dicom" or like.meta["kind"] != "dicom":
        return False
    frames = [scan.meta["dicom"]["frame_of_reference"] for scan in (image, like)]
    return bool(frames[0]) and frames[0] == frames[1]


def onto_grid(image: MetaTensor, like: MetaTensor) -> MetaTensor:
    """``image`` (C, *S) resampled linearly onto the grid of ``like``; untouched if it lies there.

    Voxels outside the image take its nearest value; a warning gives their share. The file and the
    warnings stay those of ``image``; affine, header and shape are those of ``like``.
    """
    shape = tuple(int(n) for n in like.shape[1:])
    ours, theirs = (np.asarray(scan.affine, np.float64) for scan in (image, like))
    if tuple(image.shape[1:]) == shape and grid_distance(ours, theirs, shape) <= GRID_TOLERANCE_MM:
        return image
    # From a voxel of the new grid to the place in the old one whose value it takes.
    matrix = np.linalg.inv(ours) @ theirs
    planes = [
        affine_transform(plane.numpy(), matrix, output_shape=shape, order=1, mode="nearest")
        for plane in image.as_tensor()
    ]
    inside = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    place = inside @ matrix[:3, :3].T + matrix[:3, 3]
    last = np.array(image.shape[1:]) - 1
    out = ((place < -0.5) | (place > last + 0.5)).any(-1).mean()
    sentence = "resampled onto the grid of the first channel"
    if out:
        sentence += f"; {out:.1%} of its voxels lie outside this series and repeat its edge"
    kept = ("filename_or_obj", "kind", "dicom")
    meta = {key: value for key, value in like.meta.items() if key != "affine"}
    meta |= {key: image.meta[key] for key in kept}
    meta["warnings"] = [*image.meta["warnings"], sentence]
    return MetaTensor(torch.from_numpy(np.stack(planes)), affine=like.affine, meta=meta)
