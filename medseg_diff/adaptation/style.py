"""Another domain's style on an image: its histogram, or its low frequencies.

Legend: C channels, *S spatial axes, Q quantiles.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.exposure import match_histograms
from torch.nn import functional

Array = NDArray[np.float32]
QUANTILES = 1001


def mean_histogram(images: Iterable[Array]) -> NDArray[np.float64]:
    """Quantile functions of images (C, *S), averaged, (C, Q).

    The mean of quantile functions is the histogram nearest to all of them (the Wasserstein mean in
    one dimension); unlike pooled voxels it does not spread because scans differ in scale.

    Raises:
        ValueError: if there is no image.
    """
    levels = np.linspace(0, 1, QUANTILES)
    found = [np.quantile(image.reshape(len(image), -1), levels, axis=1).T for image in images]
    if not found:
        raise ValueError("a mean histogram needs an image")
    return np.asarray(np.mean(found, axis=0))


def histogram_match(image: Array, reference: NDArray[np.float64]) -> Array:
    """Give each channel the histogram of a reference, by skimage's ``match_histograms``.

    Args:
        image: (C, *S).
        reference: Quantiles (C, Q) from :func:`mean_histogram`.

    Returns:
        (C, *S). A monotone map: the order of grey values stays.

    Raises:
        ValueError: if the channels differ in number.
    """
    if len(image) != len(reference):
        raise ValueError(f"{len(image)} channels cannot match the histograms of {len(reference)}")
    planes = [
        match_histograms(plane.ravel(), quantiles).reshape(plane.shape)
        for plane, quantiles in zip(image, reference, strict=True)
    ]
    return np.stack(planes).astype(np.float32)


def fourier_style(image: Array, style: Array, beta: float = 0.05) -> Array:
    """Fourier domain adaptation (FDA; Yang & Soatto 2020, arXiv 2004.05498).

    The amplitudes of the low frequencies are those of the style image, the phases and all else the
    image's own.

    Args:
        image: (C, *S).
        style: (C, *S'), brought to the image's shape by linear interpolation.
        beta: Half the side of the exchanged block as a share of each axis, in [0, 0.5); at 0 only
            the mean is exchanged.

    Raises:
        ValueError: if channels or axes differ, or ``beta`` is out of range.
    """
    if image.ndim != style.ndim or len(image) != len(style):
        raise ValueError(f"a style of shape {style.shape} does not fit an image of {image.shape}")
    if not 0 <= beta < 0.5:
        raise ValueError(f"beta lies in [0, 0.5), not {beta}")
    axes = tuple(range(1, image.ndim))
    spectrum = np.fft.fftn(image, axes=axes)
    other = np.fft.fftn(_resized(style, image.shape[1:]), axes=axes)
    low = np.ones(image.shape[1:], dtype=bool)
    for axis, size in enumerate(image.shape[1:]):
        near = np.abs(np.fft.fftfreq(size) * size) <= np.floor(beta * size)
        low &= near.reshape([-1 if a == axis else 1 for a in range(len(axes))])
    amplitude = np.where(low, np.abs(other), np.abs(spectrum))
    mixed = amplitude * np.exp(1j * np.angle(spectrum))
    return np.fft.ifftn(mixed, axes=axes).real.astype(np.float32)


def _resized(image: Array, shape: Sequence[int]) -> Array:
    if image.shape[1:] == tuple(shape):
        return image
    mode = "trilinear" if len(shape) == 3 else "bilinear"
    tensor = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))[None]
    return np.asarray(functional.interpolate(tensor, size=tuple(shape), mode=mode)[0])
