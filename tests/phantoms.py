"""Volumes whose content says where it lies, on any grid, written by nibabel alone.

A phantom is defined in the world: three balls with centres and radii in mm. Sampling them with a
grid's affine gives the image and the mask, so two grids show the same anatomy by construction.
"""

from __future__ import annotations

import gzip
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Nothing is symmetric: no flip or swap of axes maps the set of balls to itself.
BALLS = {1: ((-9.0, 4.0, 2.0), 6.0), 2: ((8.0, 9.0, -3.0), 4.5), 3: ((3.0, -8.0, 6.0), 3.5)}
BRIGHTNESS = {0: 10.0, 1: 100.0, 2: 200.0, 3: 300.0}


@dataclass(frozen=True)
class Phantom:
    """Image (X, Y, Z) float32, labels (X, Y, Z) uint8, and the affine of both."""

    image: Array
    labels: Array
    affine: Array

    def centroid(self, label: int, labels: Array | None = None) -> Array:
        """World position in mm of a label's centre of mass."""
        return centroid(self.labels if labels is None else labels, label, self.affine)


def centroid(labels: Array, label: int, affine: Array) -> Array:
    """World position in mm of the centre of mass of ``labels == label``."""
    index = np.argwhere(labels == label).mean(axis=0)
    return affine[:3, :3] @ index + affine[:3, 3]


def make_phantom(affine: Array, shape: tuple[int, int, int] = (30, 26, 22)) -> Phantom:
    """Sample the balls on a grid."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    labels = np.zeros(shape, np.uint8)
    for label, (centre, radius) in BALLS.items():
        labels[np.linalg.norm(world - centre, axis=-1) <= radius] = label
    image = np.vectorize(BRIGHTNESS.get)(labels).astype(np.float32)
    return Phantom(image, labels, affine)


def grid_affine(
    axcodes: str = "RAS",
    spacing: tuple[float, float, float] = (1.5, 1.6, 1.8),
    shape: tuple[int, int, int] = (30, 26, 22),
    rotation: Array | None = None,
) -> Array:
    """Affine of a grid centred on the world's origin; spacing and shape follow the array axes."""
    affine = np.eye(4)
    directions = np.zeros((3, 3))
    for axis, code in enumerate(axcodes):
        world = next(i for i, pair in enumerate(("RL", "AP", "SI")) if code in pair)
        directions[world, axis] = 1.0 if code in "RAS" else -1.0
    if rotation is not None:
        directions = rotation @ directions
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    return affine


def all_axcodes() -> list[str]:
    """The 48 orders and directions of three axes."""
    pairs = list(itertools.product("RL", "AP", "SI"))
    return ["".join(order) for pair in pairs for order in itertools.permutations(pair)]


def turn(degrees: float, axis: int) -> Array:
    """Rotation matrix about a world axis."""
    angle = np.deg2rad(degrees)
    first, second = [i for i in range(3) if i != axis]
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[first, second], matrix[second, first] = -np.sin(angle), np.sin(angle)
    return matrix


@dataclass
class NiftiFile:
    """A NIfTI file to be written, field by field.

    Args:
        data: Array as stored.
        affine: Goes into both forms unless codes say otherwise.
        fields: Header fields to overwrite after everything else, by their NIfTI names.
        endian: ``"<"`` or ``">"``.
        version: 1 or 2.
    """

    data: Array
    affine: Array
    sform_code: int = 1
    qform_code: int = 1
    fields: dict[str, Any] = field(default_factory=dict)
    endian: str = "<"
    version: int = 1

    def tobytes(self) -> bytes:
        """The whole file, unpacked."""
        kind = nib.Nifti1Header if self.version == 1 else nib.Nifti2Header
        header = kind(endianness=self.endian)
        header.set_data_shape(self.data.shape)
        header.set_data_dtype(self.data.dtype)
        header.set_sform(self.affine, self.sform_code)
        header.set_qform(self.affine, self.qform_code, strip_shears=True)
        header.set_xyzt_units("mm")
        header["scl_slope"], header["scl_inter"] = 1, 0
        header["vox_offset"] = 352 if self.version == 1 else 544
        for name, value in self.fields.items():
            header.structarr[name] = value
        stored = self.data.astype(self.data.dtype.newbyteorder(self.endian))
        return bytes(header.structarr.tobytes() + b"\0\0\0\0" + stored.tobytes(order="F"))

    def write(self, path: Path) -> Path:
        """Write to ``path``, gzipped if its name says so."""
        raw = self.tobytes()
        path.write_bytes(gzip.compress(raw) if path.name.lower().endswith(".gz") else raw)
        return path
