"""Slices of one case as small pieces that a page puts together: pictures, and outlines as paths.

Outlines are SVG paths in millimetres from the upper left corner of the slice (pixels for a 2-D
image), so they stay sharp at any size and cost a few hundred bytes each.

Letters: ``*S`` spatial axes, ``N`` draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from skimage.measure import find_contours

from medseg_diff.figures.views import (
    CaseView,
    Plane,
    Structures,
    background,
    grey_window,
    stack,
)

# Together these keep three cases of any size within a few megabytes.
MOST_SLICES = 24
MOST_DRAWS = 8
MOST_PIXELS = 192


@dataclass(frozen=True)
class SliceView:
    """One slice: pictures (PNG) and, per mask, one SVG path per structure ("" where absent)."""

    number: int
    image: bytes | None
    doubt: bytes | None
    reference: tuple[str, ...]
    prediction: tuple[str, ...]
    draws: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class SliceStack:
    """The slices of one case that a page shows.

    Attributes:
        name: ``"axial"``, ``"coronal"``, ``"sagittal"``, or "" for a 2-D image.
        width: Of a slice, in mm (pixels for a 2-D image).
        height: Of a slice.
        edges: Letters of the left, right, top and bottom edge, or None.
        extent: Slices of the whole volume.
        middle: Index of the slice to show first.
        slices: In the order of the slider.
        empty: Whether reference and prediction hold none of the structures.
    """

    name: str
    width: float
    height: float
    edges: tuple[str, str, str, str] | None
    extent: int
    middle: int
    slices: tuple[SliceView, ...]
    empty: bool


def slice_stack(view: CaseView, structures: Structures) -> SliceStack:
    """Cut a case into at most 24 slices through its structures, with at most 8 of its draws."""
    cuts = stack(view, structures, MOST_SLICES)
    window = grey_window(view.image)
    first = cuts.planes[0]
    rows, columns = first.view.reference.shape
    found = tuple(
        _slice(plane, number, structures, window)
        for plane, number in zip(cuts.planes, cuts.numbers, strict=True)
    )
    return SliceStack(
        name=first.name,
        width=columns * first.spacing[1],
        height=rows * first.spacing[0],
        edges=first.edges,
        extent=cuts.extent,
        middle=cuts.middle,
        slices=found,
        empty=not any(any(s.reference) or any(s.prediction) for s in found),
    )


def outline(mask: NDArray[np.bool_], spacing: tuple[float, float]) -> str:
    """Return the outlines of a mask (rows, columns) as one closed SVG path, "" if it is empty.

    Lines run half-way between the centres of voxels inside and outside, and along the border of
    the slice where the mask touches it.
    """
    if not mask.any():
        return ""
    parts = []
    # The rim of zeros closes outlines at the border of the picture.
    for line in find_contours(np.pad(mask.astype(np.float32), 1), 0.5):
        y = (line[:-1, 0] - 0.5) * spacing[0]
        x = (line[:-1, 1] - 0.5) * spacing[1]
        parts.append("M" + " ".join(f"{a:.4g},{b:.4g}" for a, b in zip(x, y, strict=True)) + "Z")
    return "".join(parts)


def _slice(
    plane: Plane, number: int, structures: Structures, window: tuple[float, float]
) -> SliceView:
    view = plane.view

    def paths(labels: NDArray[Any]) -> tuple[str, ...]:
        return tuple(
            outline(np.isin(labels, list(values)), plane.spacing) for values in structures.values()
        )

    return SliceView(
        number=number,
        image=None if view.image is None else _grey(view, window),
        doubt=None if view.doubt is None else _heat(view.doubt),
        reference=paths(view.reference),
        prediction=paths(view.prediction),
        draws=() if view.draws is None else tuple(paths(d) for d in view.draws[:MOST_DRAWS]),
    )


def _grey(view: CaseView, window: tuple[float, float]) -> bytes:
    """Encode the image of a slice: grey within the window, or its own colours."""
    values = background(view, window)
    if values.ndim == 2:
        values = ((values - window[0]) / (window[1] - window[0])).clip(0, 1)
    return _encode(_small(values))


def _heat(doubt: NDArray[Any]) -> bytes:
    """Encode a doubt in [0, 1] with matplotlib's magma, one byte a pixel."""
    picture = _small(np.nan_to_num(doubt).clip(0, 1))
    palette = np.rint(colormaps["magma"](np.arange(256))[:, :3] * 255).astype(np.uint8)
    picture.putpalette(palette.tobytes())
    return _encode(picture)


def _small(values: NDArray[Any]) -> Image.Image:
    """Turn values in [0, 1] into bytes; means over pixels if a side has more than 192."""
    picture = Image.fromarray(np.rint(values * 255).astype(np.uint8))
    shrink = MOST_PIXELS / max(picture.size)
    if shrink >= 1:
        return picture
    width, height = (max(1, round(n * shrink)) for n in picture.size)
    return picture.resize((width, height), Image.Resampling.BOX)


def _encode(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
