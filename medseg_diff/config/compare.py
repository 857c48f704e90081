"""Whether a configuration is the one that something was made with, perhaps by an older version.

A key that an older version did not know is taken to have had today's default, so that a new key
does not orphan what is there. What that trades: a new key whose default changes what the code does
goes unnoticed. So a new key's default must be what was done before there was the key. All else is
noticed, for what is stored holds every key with its value: values changed from a default, to a
default, defaults that have changed since, and keys that are gone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from medseg_diff.config.sections import Config


def settings(config: Config, without: Iterable[str] = ()) -> dict[str, str]:
    """Values as JSON text by dotted name, without names that are, or lie below, the given ones."""
    return flat(config.model_dump(mode="json"), without)


def flat(tree: Mapping[str, Any], without: Iterable[str] = ()) -> dict[str, str]:
    """:func:`settings` of a dumped configuration."""
    left_out = tuple(f"{name}." for name in without)
    leaves = {name: json.dumps(value, sort_keys=True) for name, value in _leaves(tree)}
    return {k: v for k, v in leaves.items() if not f"{k}.".startswith(left_out)}


def defaults(config: Config) -> frozenset[str]:
    """Names among :func:`settings` whose values nobody chose, or that are as if nobody had."""
    chosen = flat(config.model_dump(mode="json", exclude_defaults=True))
    return frozenset(settings(config).keys() - chosen.keys())


def changed(
    before: Mapping[str, str], now: Mapping[str, str], assumed: Iterable[str]
) -> dict[str, tuple[str | None, str | None]]:
    """Names whose values differ, in order, with both values; None where there is none.

    Args:
        before: What was stored.
        now: What is asked for.
        assumed: Names that ``before`` may lack; see :func:`defaults`.
    """
    new = set(assumed) - before.keys()
    names = sorted((before.keys() | now.keys()) - new)
    pairs = {name: (before.get(name), now.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _leaves(tree: Mapping[str, Any] | list[Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    # Sections in a list are taken apart as well: one of them may get a new key, too.
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    for key, value in items:
        sections = isinstance(value, list) and any(isinstance(v, Mapping) for v in value)
        if (isinstance(value, Mapping) and value) or sections:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
