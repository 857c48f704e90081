"""Take away one guard of the fault tables at a time and see the row's tests fail.

    python -m tests.guards [F39 K05 ...]      # all listed rows without arguments
    python tests/reliability.py               # puts what this found into docs/reliability.md

Each guard (`guard_list.py`) is one replacement of text in a temporary copy of the package; the
tests that carry the row's number run against the copy. A guard is missed if one of them fails
without it, by what the code did and not because it is broken, and passes with it. What was found
is kept in `docs/guards.json`.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from tests.guard_list import GUARDS, Guard
from tests.planted_faults import ROOT, preload, run_tests
from tests.reliability import TESTS, Test
from tests.reliability import guards as tests_of

RECORD = ROOT / "docs" / "guards.json"
# What a replacement that merely breaks the code would raise; a test that fails by it says nothing.
BREAKS = ("SyntaxError", "NameError", "UnboundLocalError", "ImportError", "ModuleNotFoundError")


class FirstFailure:
    """Plugin of pytest: writes which test failed first, and what it raised, into a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def pytest_exception_interact(self, node: pytest.Item, call: pytest.CallInfo[None]) -> None:
        """Write it down, once."""
        if call.excinfo is not None and not self.file.exists():
            line = str(call.excinfo.value).split("\n")[0]
            self.file.write_text(f"{node.nodeid}\n{call.excinfo.typename}\n{line}")


def _is_slow(test: Test) -> bool:
    """Whether it is marked so: those come last, and mostly not at all."""
    before, _, _ = (TESTS / test.file).read_text(encoding="utf-8").partition(f"def {test.name}(")
    return "mark.slow" in before.rsplit("\n\n", 1)[-1]


def tests_notice(copy: Path, row: str, guard: Guard) -> tuple[bool, str]:
    """Whether a test of the row fails without its guard and passes with it; and what it said."""
    target, failure = copy / "medseg_diff" / guard.file, copy / "failure.txt"
    original = target.read_text(encoding="utf-8")
    if original.count(guard.fault.old) != 1:
        raise SystemExit(f"{row}: not once in {guard.file}: {guard.fault.old}")
    target.write_text(original.replace(guard.fault.old, guard.fault.new), encoding="utf-8")
    tests = sorted(tests_of()[row], key=_is_slow)
    names = " ".join(f"{test.file}::{test.name}" for test in tests)
    failure.unlink(missing_ok=True)
    try:
        if run_tests(copy, names, FirstFailure(failure)) == 0:
            return False, "all tests pass without it"
    finally:
        target.write_text(original, encoding="utf-8")
    if not failure.exists():
        return False, "no test ran"
    test, error, line = failure.read_text().split("\n")
    said = f"{test.removeprefix('tests/')}: {error}: {line}"
    if error in BREAKS:
        return False, f"the replacement breaks the code: {said}"
    # The function with all of its parameters, whose names may hold blanks.
    if run_tests(copy, test.removeprefix("tests/").split("[")[0]) != 0:
        return False, f"the test fails with the guard, too: {said}"
    return True, said


def main() -> int:
    """Remove the guards of the chosen rows; 1 if one is not missed."""
    chosen = sys.argv[1:] or sorted(GUARDS)
    preload()
    survived = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        ignored = shutil.ignore_patterns("__pycache__")
        for part in ("medseg_diff", "tests"):
            shutil.copytree(ROOT / part, copy / part, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", copy)
        for row in chosen:
            missed, said = tests_notice(copy, row, GUARDS[row])
            survived += not missed
            # Read again: another process may have written meanwhile.
            found = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}
            found[row] = "missed" if missed else "not missed"
            print(f"{row}: {found[row]} ({GUARDS[row].file}): {said}", flush=True)
            RECORD.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main())
