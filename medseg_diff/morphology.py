"""Clean-up of label maps by shape: what LSegDiff does after its decoder, and the largest component.

Arrays only; the probabilities beside a cleaned mask stay as the ensemble gave them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes
from skimage.measure import label as components
from skimage.morphology import closing, opening

Cleanup = Literal["none", "morphology", "largest"]


def clean_labels(
    labels: NDArray[np.integer[Any]], values: Sequence[int], how: Cleanup
) -> NDArray[np.integer[Any]]:
    """Label map with every structure cleaned on its own.

    Args:
        labels: Label map (*S), two or three axes; axes of length 1 are left out of the shapes.
        values: Label values to clean.
        how: ``"morphology"`` fills holes, then opens and closes by one voxel along each
            axis;
            ``"largest"`` keeps the largest connected component; ``"none"`` returns ``labels``.

    Returns:
        A new map. A voxel taken from a structure becomes background; one given to it was
        background before, so that no structure grows over another.
    """
    if how == "none":
        return labels
    flat = labels.squeeze()
    result = flat.copy()
    for value in values:
        before = flat == value
        after = _largest(before) if how == "largest" else _smoothed(before)
        result[before & ~after] = 0
        result[after & (flat == 0)] = value
    return result.reshape(labels.shape)


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Largest connected component, faces and corners touching."""
    numbered = components(mask)
    sizes = np.bincount(numbered.ravel())
    sizes[0] = 0
    kept: NDArray[np.bool_] = (numbered == sizes.argmax()) & mask
    return kept


def _smoothed(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Filling, opening, closing. A structure that opening would erase is left as it was."""
    # Filled first: opening would widen a hole. Padded, so that the border erodes nothing.
    padded = np.pad(binary_fill_holes(mask), 2, mode="edge")
    opened = opening(padded)
    smooth = closing(opened if opened.any() else padded)
    inside = tuple(slice(2, -2) for _ in range(mask.ndim))
    result: NDArray[np.bool_] = binary_fill_holes(smooth[inside])
    return result
