"""What the fault tables share: one clean scan, and how a refusal must look."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg_diff import io
from medseg_diff.errors import InputError
from tests.phantoms import NiftiFile, grid_affine, make_phantom, turn

AFFINE = grid_affine("LPS", (1.5, 1.6, 1.8), rotation=turn(10, 2))
PHANTOM = make_phantom(AFFINE)
CLEAN = NiftiFile(PHANTOM.image, AFFINE)
CLEAN_LABEL = NiftiFile(PHANTOM.labels, AFFINE)
AXIS_LABELS = (("L", "R"), ("P", "A"), ("I", "S"))


def refusal(path: Path, *words: str, read: Callable[[], object] | None = None) -> InputError:
    """Read ``path``, expect one refusing line with the file's name and all ``words`` in it."""
    with pytest.raises(InputError) as caught:
        (read or (lambda: io.read_image(path)))()
    line = str(caught.value)
    assert "\n" not in line
    assert " ".join(path.name.split()) in line
    assert str(path.parent) not in line
    for word in words:
        assert word in line, line
    return caught.value


def assert_equals_clean(image: Any, tolerance_mm: float = 1e-5) -> None:
    """Voxels bitwise those of the phantom, affine that of the phantom."""
    np.testing.assert_array_equal(np.asarray(image)[0], PHANTOM.image)
    np.testing.assert_allclose(np.asarray(image.affine), AFFINE, atol=tolerance_mm)


@contextmanager
def peak_memory(limit: int) -> Iterator[None]:
    """Fail if the block allocates more than ``limit`` bytes at any time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()
