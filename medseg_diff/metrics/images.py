"""Scores of a translated image against its reference: arrays in, numbers out.

Everything is judged inside the body, found in the reference alone (:func:`body_mask`): air around
a head is easy, and would flatter every number. With R the stated data range:

    MAE      mean |prediction - reference| in the body, in the image's units
    PSNR     10 log10(R^2 / mean squared error in the body), dB        (scikit-image)
    SSIM     mean over the body of the local map, window 7             (scikit-image)
    MS-SSIM  five scales, Gaussian window 11, mean over slices         (MONAI)
    NMI      (H(a) + H(b)) / H(a, b) in the body, 100 bins, 1 to 2     (scikit-image)

Legend: K planes, *S spatial axes, two or three of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]

METRICS = ("mae", "psnr_db", "ssim", "ms_ssim", "nmi")
SSIM_WINDOW = 7
MS_SSIM_WINDOW, MS_SSIM_SCALES = 11, 5
# MONAI asks for more than (window - 1) * (scales - 1)^2 pixels along each axis of a slice.
MS_SSIM_LEAST = MS_SSIM_WINDOW * (MS_SSIM_SCALES - 1) ** 2
NMI_BINS = 100


@dataclass(frozen=True)
class ImageScore:
    """One case; NaN where an image is too small for a metric's window.

    Attributes:
        mae: In the image's units.
        psnr_db: Infinite for equal images.
        ssim: In [-1, 1].
        ms_ssim: In [0, 1].
        nmi: In [1, 2].
        body_voxels: Voxels that were judged.
    """

    mae: float
    psnr_db: float
    ssim: float
    ms_ssim: float
    nmi: float
    body_voxels: int


def body_mask(reference: Image) -> Mask:
    """Voxels of the body, (*S): brighter than Otsu's threshold, largest piece, holes filled.

    Holes are filled in the whole and, of a volume, slice by slice along its shortest axis, where
    the air of sinuses and lungs is closed in by tissue.

    Args:
        reference: (K, *S).

    Raises:
        ValueError: if the image holds one value throughout.
    """
    from skimage.filters import threshold_otsu

    grey = reference.mean(0)
    if float(np.ptp(grey)) == 0:
        raise ValueError("an image of one value has no body")
    pieces, count = ndimage.label(grey > threshold_otsu(grey))
    sizes = np.bincount(pieces.ravel())[1:] if count else np.zeros(1, int)
    body: Mask = ndimage.binary_fill_holes(pieces == 1 + int(sizes.argmax()))
    if body.ndim == 3:
        axis = int(np.argmin(body.shape))
        slices = [ndimage.binary_fill_holes(one) for one in np.moveaxis(body, axis, 0)]
        body = np.moveaxis(np.stack(slices), 0, axis)
    return body


def score_image(
    prediction: Image, reference: Image, ends: tuple[float, float], body: Mask | None = None
) -> ImageScore:
    """Score one image.

    Args:
        prediction: (K, *S), in the reference's units.
        reference: (K, *S).
        ends: Lowest and highest value of the stated data range.
        body: Where to judge, (*S); by default :func:`body_mask` of the reference.

    Raises:
        ValueError: if shapes differ, the range is empty, or there is nothing to judge.
    """
    from skimage.metrics import normalized_mutual_information, peak_signal_noise_ratio

    if prediction.shape != reference.shape:
        raise ValueError(f"shapes differ: {prediction.shape} and {reference.shape}")
    wide = float(ends[1] - ends[0])
    if not (math.isfinite(wide) and wide > 0):
        raise ValueError(f"not a data range: {ends}")
    body = body_mask(reference) if body is None else body
    if not body.any():
        raise ValueError("the body mask is empty")
    # In float64: an SSIM of float32 intensities in the thousands loses digits.
    ours, theirs = (x[:, body].astype(np.float64) for x in (prediction, reference))
    equal = bool((ours == theirs).all())
    psnr = math.inf if equal else float(peak_signal_noise_ratio(theirs, ours, data_range=wide))
    planes = zip(prediction, reference, strict=True)
    return ImageScore(
        mae=float(np.abs(ours - theirs).mean()),
        psnr_db=psnr,
        ssim=float(np.mean([_ssim(p, r, wide, body) for p, r in planes])),
        ms_ssim=_ms_ssim(prediction, reference, ends, body),
        nmi=float(normalized_mutual_information(theirs, ours, bins=NMI_BINS)),
        body_voxels=int(body.sum()),
    )


def _ssim(prediction: Image, reference: Image, wide: float, body: Mask) -> float:
    """Mean of the local map over the body; slice by slice where a volume is too thin for 3-D."""
    from skimage.metrics import structural_similarity

    thin = int(np.argmin(body.shape))
    if body.ndim == 3 and body.shape[thin] < SSIM_WINDOW:
        pairs = [np.moveaxis(x, thin, 0) for x in (prediction, reference)]
        pieces = list(zip(*pairs, np.moveaxis(body, thin, 0), strict=True))
    else:
        pieces = [(prediction, reference, body)]
    if min(pieces[0][0].shape) < SSIM_WINDOW:
        return math.nan
    found = []
    for p, r, inside in pieces:
        both = r.astype(np.float64), p.astype(np.float64)
        local = structural_similarity(*both, win_size=SSIM_WINDOW, data_range=wide, full=True)[1]
        found.append(local[inside])
    return float(np.concatenate(found).mean())


def _ms_ssim(prediction: Image, reference: Image, ends: tuple[float, float], body: Mask) -> float:
    """Mean over slices that hold body, along a volume's shortest axis.

    Outside the body the prediction is replaced by the reference, so that air cannot count
    against it; slices too small for five scales give NaN.
    """
    import torch
    from monai.metrics.regression import compute_ms_ssim

    axis = int(np.argmin(body.shape)) if body.ndim == 3 else None
    judged = np.where(body, prediction, reference)
    if axis is None:
        planes = [np.stack([judged, reference])[:, None]]
    else:
        chosen = np.flatnonzero(np.moveaxis(body, axis, 0).any((1, 2)))
        planes = [np.stack([judged, reference]).take(index, axis + 2)[:, None] for index in chosen]
    if min(planes[0].shape[-2:]) < MS_SSIM_LEAST:
        return math.nan
    found = []
    for both in planes:
        # Between 0 and 1: MONAI computes in float32.
        unit = (both.astype(np.float64) - ends[0]) / (ends[1] - ends[0])
        pair = torch.from_numpy(unit.astype(np.float32))
        found.append(float(compute_ms_ssim(pair[0], pair[1], 2, data_range=1.0)))
    return float(np.mean(found))
