"""Masks on grids of any order, direction and tilt (F09, F10), through all readers."""

from __future__ import annotations

import pytest

from tests.orientations import combinations, count


def test_F09_F10_some_of_all_orientations() -> None:
    """19 has no factor with 48, 4 or 3: every oblique and reader takes part."""
    cases = combinations()[::19]
    assert {c.reader for c in cases} == {c.reader for c in combinations()}
    assert count(cases) == {"right": len(cases)}


@pytest.mark.slow
def test_F09_F10_all_orientations() -> None:
    assert count(combinations()) == {"right": 576}
