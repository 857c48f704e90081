"""Tables of the benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def markdown(rows: Sequence[Mapping[str, object]]) -> str:
    """A Markdown table; its columns are those of the first row."""
    head = list(rows[0])
    body = [head, ["---"] * len(head), *([str(v) for v in row.values()] for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in body)
