"""Which test guards which row of the fault tables: writes docs/reliability.md.

    python tests/reliability.py          # runs the tests that carry a row's number, then writes
    python tests/reliability.py --list   # only lists them

F01 ... F78 are bad inputs, K01 ... K22 crashes and kills. A test belongs to a row by the number in
its name or in the first line of its docstring. A row without a test says so: nothing is left out.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import json
import platform
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "reliability.md"
ROWS = [f"F{n:02d}" for n in range(1, 79)] + [f"K{n:02d}" for n in range(1, 23)]
WAITING = {"K19": "waits for the server"}
# Rows whose guard is no text that could be taken away, and why.
NO_GUARD = {"K19": "there is no server yet"}
NUMBER = re.compile(r"(?<![A-Za-z0-9])([FK]\d\d)(?![0-9])")
HEAD = """# Reliability

Every row of the project's fault tables (F: bad inputs; K: crashes and kills), the tests that guard
it, and what became of them. Written by `python tests/reliability.py`{when}. Where the last column
says "missed", `python -m tests.guards` took the row's guard away and its tests failed.

| row | outcome | tests | guard taken away |
|---|---|---|---|
"""
RECORD = TESTS.parent / "docs" / "guards.json"


class Test(NamedTuple):
    """One test function."""

    file: str
    name: str

    @property
    def shown(self) -> str:
        """As the page lists it."""
        return f"`{self.file}::{self.name}`"


def guards() -> dict[str, list[Test]]:
    """Row -> tests."""
    found: dict[str, list[Test]] = defaultdict(list)
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not (isinstance(node, ast.FunctionDef) and node.name.startswith("test_")):
                continue
            first = (ast.get_docstring(node) or "").split("\n")[0]
            text = f"{node.name.replace('_', ' ')} {first}"
            for row in sorted(set(NUMBER.findall(text))):
                found[row].append(Test(str(path.relative_to(TESTS)), node.name))
    return found


def run(tests: set[Test]) -> dict[Test, str]:
    """Worst outcome of each test over its parameters: failed, then skipped, then passed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        names = [f"tests/{t.file}::{t.name}" for t in sorted(tests)]
        command = [sys.executable, "-m", "pytest", "-q", "-n", "2", f"--junitxml={report}"]
        subprocess.run([*command, *names], cwd=TESTS.parent, check=False)
        outcomes: dict[Test, str] = {}
        rank = ("passed", "skipped", "failed")
        for case in ElementTree.parse(report).iter("testcase"):
            file = case.attrib["classname"].removeprefix("tests.").replace(".", "/") + ".py"
            test = Test(file, case.attrib["name"].split("[")[0])
            kinds = {child.tag for child in case}
            now = "failed" if kinds & {"failure", "error"} else "passed"
            now = "skipped" if "skipped" in kinds else now
            outcomes[test] = max(outcomes.get(test, "passed"), now, key=rank.index)
    return outcomes


def page(found: dict[str, list[Test]], outcomes: dict[Test, str] | None) -> str:
    """The page's text."""
    lines = []
    removed = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}
    for row in ROWS:
        tests = found.get(row, [])
        outcome = WAITING.get(row, "no test yet")
        if tests:
            known = {(outcomes or {}).get(test, "not run") for test in tests}
            outcome = next(o for o in ("failed", "not run", "skipped", "passed") if o in known)
        shown = ", ".join(t.shown for t in tests)
        lines.append(f"| {row} | {outcome} | {shown} | {removed.get(row, '')} |")
    when = ""
    if outcomes is not None:
        today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
        when = f"; run on {today}, {platform.machine()}, {platform.system()}"
    guarded = sum(1 for row in ROWS if found.get(row))
    missed = sum(removed.get(row) == "missed" for row in ROWS)
    without = "; ".join(f"{row}: {reason}" for row, reason in NO_GUARD.items())
    return (
        HEAD.format(when=when)
        + "\n".join(lines)
        + f"\n\n{guarded} of {len(ROWS)} rows have a test; "
        + f"{missed} guards were taken away and missed. No guard to take away: {without}.\n"
    )


def main() -> None:
    """List or run, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--list", action="store_true", help="do not run the tests")
    given = parser.parse_args()
    found = guards()
    outcomes = None if given.list else run({test for tests in found.values() for test in tests})
    PAGE.write_text(page(found, outcomes), encoding="utf-8")
    missing = [row for row in ROWS if not found.get(row)]
    print(f"{len(ROWS) - len(missing)} of {len(ROWS)} rows have a test")
    print(f"without: {', '.join(missing)}")


if __name__ == "__main__":
    main()
