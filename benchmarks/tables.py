"""Tables of the benchmarks, and what of a table is done."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

DONE = "done.json"


def markdown(rows: Sequence[Mapping[str, object]]) -> str:
    """A Markdown table; its columns are those of the first row."""
    head = list(rows[0])
    body = [head, ["---"] * len(head), *([str(v) for v in row.values()] for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in body)


def known(folder: Path, asked: object) -> bool:
    """Whether a folder was finished by the same asking; another asking ends the benchmark."""
    file = folder / DONE
    if not file.is_file():
        return False
    if json.loads(file.read_text(encoding="utf-8")) != json.loads(json.dumps(asked)):
        sys.exit(f"{folder} was made with other settings: give another --work, or remove it")
    return True


def finish(folder: Path, asked: object) -> None:
    """Say that a folder holds all that was asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DONE).write_text(json.dumps(asked), encoding="utf-8")
