"""What another scanner does to an image: documented, seeded models, and their frozen strengths.

Every operator keeps shape, grid and labels, gives the same result for the same seed, and is the
identity at strength 0. Bias field and Rician noise are MONAI's transforms; the others have no MONAI
form in physical units. `shifts.yaml` beside this file freezes the strengths that experiments use.

Fourier operators, noise and gain count signal from the image's smallest value where that is below
zero (CT), so that a constant image stays constant.

Legend: C channels, *S spatial axes (2 or 3), N voxels and M slabs along one axis.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.transforms import RandBiasField, RandRicianNoise
from numpy.typing import NDArray

Array = NDArray[np.float32]
Operator = Callable[..., Array]

# Intensities between these percentiles count as the range of an image: single bright voxels do not.
RANGE_PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class Shift:
    """One scanner model at one strength.

    Attributes:
        name: A key of ``OPERATORS``.
        parameter: The operator's keyword that is its strength; 0 is the identity.
        value: Of that keyword, in its own unit.
        fixed: Further keywords of the operator.
        level: Name of the strength.
        unit: Of ``value``.
    """

    name: str
    parameter: str
    value: float
    fixed: tuple[tuple[str, float], ...] = ()
    level: str = ""
    unit: str = ""

    def __call__(
        self, image: NDArray[Any], spacing_mm: Sequence[float], *, case: str, seed: int = 0
    ) -> Array:
        """Apply the shift.

        Args:
            image: (C, *S), finite, 2 or 3 spatial axes.
            spacing_mm: Voxel size along each of *S.
            case: Names the randomness, with ``seed``.
            seed: The user's.

        Returns:
            (C, *S) float32; a copy of ``image`` at strength 0.

        Raises:
            ValueError: if shapes do not fit, values are not finite or the strength is negative.
        """
        values = _checked(image, spacing_mm)
        if not np.isfinite(self.value) or self.value < 0:
            raise ValueError(f"{self.name}: {self.parameter} is 0 or more, not {self.value}")
        if self.value == 0:
            return values.copy()
        rng = np.random.default_rng(
            [seed, zlib.crc32(case.encode()), zlib.crc32(self.name.encode())]
        )
        given = {self.parameter: self.value, **dict(self.fixed)}
        result = OPERATORS[self.name](values, tuple(spacing_mm), rng, **given)
        return np.ascontiguousarray(result, dtype=np.float32)


def contrast_inversion(
    image: Array,
    spacing_mm: Sequence[float],
    rng: np.random.Generator,
    *,
    strength: float,
    gamma: float = 1.0,
) -> Array:
    """T1- to T2-like contrast: what was dark becomes bright, by a monotone decreasing map.

    With u in [0, 1] over the image's range, x -> (1 - strength) u + strength (1 - u)^gamma, back in
    that range. At strength 1 the map decreases everywhere; below, tissues can share a grey, as
    between the two weightings. ``gamma`` above 1 makes fluid stand out. Voxels of exactly 0 in a
    channel without negative values are padding or air and stay 0. A stand-in for a change of
    weighting: no relaxation times are modelled.
    """
    result = np.empty_like(image)
    for plane, out in zip(image, result, strict=True):
        low, high = np.percentile(plane, RANGE_PERCENTILES)
        u = np.clip((plane - low) / max(high - low, 1e-12), 0, 1)
        turned = (1 - strength) * u + strength * (1 - u) ** gamma
        out[...] = plane if high <= low else low + turned * (high - low)
        if plane.min() == 0:
            out[plane == 0] = 0
    return result


def bias_field(
    image: Array,
    spacing_mm: Sequence[float],
    rng: np.random.Generator,
    *,
    amplitude: float,
) -> Array:
    """Receive-coil inhomogeneity: exp(polynomial of degree 3), MONAI's ``RandBiasField``.

    Its coefficients are uniform in [-amplitude, amplitude] (Van Leemput et al. 1999, IEEE TMI 18
    (10)); the field lies on the array's box, whatever its size in mm.
    """
    change = RandBiasField(degree=3, coeff_range=(-amplitude, amplitude), prob=1.0)
    change.set_random_state(seed=int(rng.integers(2**31)))
    floor = _floor(image)
    changed: Array = np.asarray(change(torch.from_numpy(image - floor)), np.float32)
    return changed + np.float32(floor)


def slice_thickness(
    image: Array,
    spacing_mm: Sequence[float],
    rng: np.random.Generator,
    *,
    thickness_mm: float,
    axis: int = -1,
) -> Array:
    """Thick slices: each slab of ``thickness_mm`` along an axis holds its own mean.

    A voxel that lies in two slabs takes a share of each, so that the image's mean is kept exactly;
    the last slab is as thick as what is left. A thickness up to the spacing changes nothing.

    Args:
        image: (C, *S).
        spacing_mm: Along each of *S.
        rng: Not used: averaging is not random.
        thickness_mm: Of a slab.
        axis: Spatial axis, from 0; negative ones count from the last.
    """
    where = int(axis) % (image.ndim - 1)
    mix = slab_matrix(image.shape[1 + where], spacing_mm[where], thickness_mm)
    moved = np.moveaxis(image, 1 + where, -1)
    return np.moveaxis(moved @ mix.T.astype(np.float32), -1, 1 + where)


def slab_matrix(voxels: int, spacing_mm: float, thickness_mm: float) -> NDArray[np.float64]:
    """Voxels -> slabs -> voxels, (N, N); rows and columns sum to 1."""
    if thickness_mm <= spacing_mm:
        return np.eye(voxels)
    extent = voxels * spacing_mm
    edges = np.append(np.arange(0, extent - 1e-9 * extent, thickness_mm), extent)
    first = np.arange(voxels)[:, None] * spacing_mm
    overlap = np.minimum(first + spacing_mm, edges[1:]) - np.maximum(first, edges[:-1])
    overlap = overlap.clip(min=0)
    return np.asarray((overlap / spacing_mm) @ (overlap / np.diff(edges)).T)


def rician_noise(
    image: Array, spacing_mm: Sequence[float], rng: np.random.Generator, *, sigma: float
) -> Array:
    """Noise of a magnitude image, |x + n1 + i n2|: MONAI's ``RandRicianNoise``.

    ``sigma`` is a share of the image's range, channel by channel, so 1 / sigma is about the SNR of
    its brightest tissue. Gudbjartsson & Patz (1995), doi 10.1002/mrm.1910340618.
    """
    floor = _floor(image)
    result = np.empty_like(image)
    for plane, out in zip(image - floor, result, strict=True):
        low, high = np.percentile(plane, RANGE_PERCENTILES)
        change = RandRicianNoise(prob=1.0, std=float(sigma * (high - low)), sample_std=False)
        change.set_random_state(seed=int(rng.integers(2**31)))
        # MONAI writes into tensors that it is handed.
        out[...] = np.asarray(change(torch.from_numpy(plane[None].copy())))[0]
    return result + floor


def motion(
    image: Array,
    spacing_mm: Sequence[float],
    rng: np.random.Generator,
    *,
    displacement_mm: float,
    moves: float = 3,
    axis: int = 0,
) -> Array:
    """Motion between readouts: parts of k-space come from shifted positions of the object.

    The phase-encoding axis of k-space is cut at ``moves`` random lines; each part but the one with
    the centre is that of the image moved by a random vector of ``displacement_mm`` standard
    deviation an axis, which in k-space is a phase ramp (after Shaw et al. 2019, MIDL, "MRI k-space
    motion artefact augmentation"; rotations are left out). The zero frequency is kept: a constant
    image is unchanged.
    """
    where, dims = int(axis) % (image.ndim - 1), image.ndim - 1
    shape = image.shape[1:]
    lines = shape[where]
    cuts = np.sort(rng.integers(1, max(2, lines), size=int(moves)))
    part = np.searchsorted(cuts, np.arange(lines), side="right")
    vectors = rng.normal(0, displacement_mm, size=(int(moves) + 1, dims))
    # In the order of acquisition the centre line is in the middle.
    vectors[part[lines // 2]] = 0
    vectors = vectors[np.fft.ifftshift(part)]
    phase = np.zeros(shape)
    for other in range(dims):
        frequency = _along(np.fft.fftfreq(shape[other], spacing_mm[other]), other, dims)
        phase = phase + frequency * _along(vectors[:, other], where, dims)
    return _through_k_space(image, np.exp(-2j * np.pi * phase))


def ghosting(
    image: Array,
    spacing_mm: Sequence[float],
    rng: np.random.Generator,
    *,
    intensity: float,
    ghosts: float = 3,
    axis: int = 0,
) -> Array:
    """Ghosts of a periodic change: every ``ghosts``-th line of k-space is weaker.

    The lines lose the share ``intensity`` (up to 1) of their signal, the centre line excepted
    (TorchIO's ``RandomGhosting``, Pérez-García et al. 2021): copies appear at ``1 / ghosts`` of the
    field of view along the axis.
    """
    where, dims = int(axis) % (image.ndim - 1), image.ndim - 1
    lines = image.shape[1 + where]
    gain = np.ones(lines)
    gain[:: int(ghosts)] = 1 - min(intensity, 1.0)
    gain[0] = 1.0
    return _through_k_space(image, _along(gain, where, dims))


def low_field(
    image: Array,
    spacing_mm: Sequence[float],
    rng: np.random.Generator,
    *,
    strength: float,
    voxel_mm: float = 2.5,
    sigma: float = 0.1,
) -> Array:
    """A low-field scanner: larger voxels on every axis, then Rician noise.

    Signal-to-noise falls about with the field (Marques et al. 2019, JMRI, "Low-field MRI: an MR
    physics perspective"), which is paid for in voxel size. Voxels grow by ``strength`` of the
    way from the image's own to ``voxel_mm``, beyond it where ``strength`` is above 1; noise is
    ``strength * sigma`` of the range.
    """
    result = image
    for axis, own in enumerate(spacing_mm):
        wanted = own + strength * max(0.0, voxel_mm - own)
        result = slice_thickness(result, spacing_mm, rng, thickness_mm=wanted, axis=axis)
    return rician_noise(result.astype(np.float32), spacing_mm, rng, sigma=strength * sigma)


OPERATORS: dict[str, Operator] = {
    "contrast_inversion": contrast_inversion,
    "bias_field": bias_field,
    "slice_thickness": slice_thickness,
    "rician_noise": rician_noise,
    "motion": motion,
    "ghosting": ghosting,
    "low_field": low_field,
}


def _checked(image: NDArray[Any], spacing_mm: Sequence[float]) -> Array:
    if image.ndim not in (3, 4):
        raise ValueError(f"an image is (C, *S) with 2 or 3 spatial axes, not {image.shape}")
    if len(spacing_mm) != image.ndim - 1 or not all(s > 0 and np.isfinite(s) for s in spacing_mm):
        raise ValueError(f"{image.ndim - 1} positive spacings are needed, not {spacing_mm}")
    values = np.asarray(image, dtype=np.float32)
    if not np.isfinite(values).all():
        raise ValueError("the image holds NaN or Inf")
    return values


def _floor(image: Array) -> float:
    """What counts as no signal."""
    return min(0.0, float(image.min()))


def _along(values: NDArray[Any], axis: int, dims: int) -> NDArray[Any]:
    """A vector as an array that broadcasts along one of ``dims`` axes."""
    return values.reshape([-1 if a == axis else 1 for a in range(dims)])


def _through_k_space(image: Array, gain: NDArray[Any]) -> Array:
    """Magnitude image after k-space (*S, zero frequency first) times a gain."""
    floor = _floor(image)
    axes = tuple(range(1, image.ndim))
    spectrum = np.fft.fftn(image.astype(np.float64) - floor, axes=axes)
    return (np.abs(np.fft.ifftn(spectrum * gain, axes=axes)) + floor).astype(np.float32)
