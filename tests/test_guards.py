"""The list of guards keeps up with the code; `python -m tests.guards` takes them away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.guard_list import GUARDS
from tests.reliability import NO_GUARD, ROWS, guards

PACKAGE = Path(__file__).resolve().parents[1] / "medseg_diff"


@pytest.mark.parametrize("row", GUARDS)
def test_a_guard_stands_where_the_list_says(row: str) -> None:
    """Once: a text that moved, or stands twice, takes nothing away."""
    file, fault = GUARDS[row]
    assert (PACKAGE / file).read_text(encoding="utf-8").count(fault.old) == 1


def test_every_row_has_a_guard_or_says_why_not() -> None:
    assert sorted([*GUARDS, *NO_GUARD]) == sorted(ROWS)
    assert not set(GUARDS) - set(guards()), "a row without a test"


def test_every_guard_was_missed(repository: Path) -> None:
    """As `python -m tests.guards` last found."""
    found = json.loads((repository / "docs" / "guards.json").read_text(encoding="utf-8"))
    assert found == dict.fromkeys(sorted(GUARDS), "missed")
