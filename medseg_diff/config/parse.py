"""YAML and overrides -> configuration; a mistake becomes one line that offers the nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from medseg_diff.config.base import Section
from medseg_diff.config.sections import Config
from medseg_diff.errors import UsageError

# Deeper than any configuration; the parser's time grows with the square of the depth.
DEEPEST = 30


class _PlainLoader(yaml.SafeLoader):
    """YAML as plain data: without aliases, which can hold themselves, and not without end deep."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose one node, counting how deep it lies."""
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        if self.depth == DEEPEST:
            raise yaml.YAMLError(f"nested more than {DEEPEST} deep")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _plain_yaml(text: str) -> Any:
    loader = _PlainLoader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, start from its ``recipe``, apply ``key.sub=value`` overrides.

    Raises:
        UsageError: on a missing file, broken YAML, unknown keys (with the nearest name) or
            values out of range.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError("no such configuration file", file=path, remedy="check the path")
    try:
        given = _plain_yaml(path.read_text(encoding="utf-8")) or {}
    # A date or number that only looks like one is a ValueError of the standard library's.
    except (yaml.YAMLError, ValueError) as error:
        first = (str(error).splitlines() or ["empty"])[0]
        raise UsageError(f"not valid YAML: {first}", file=path) from None
    if not isinstance(given, dict):
        raise UsageError("not a mapping of keys", file=path, found=type(given).__name__)
    return parse_config(given, overrides, file=path)


def parse_config(
    given: Mapping[str, Any], overrides: Sequence[str] = (), *, file: Path | None = None
) -> Config:
    """Checked configuration from a mapping; see :func:`load_config`."""
    from medseg_diff import recipes

    keys = dict(given)
    for override in overrides:
        keys = _with_override(keys, override)
    if keys.get("recipe") is not None:
        keys = merged(recipes.seed(str(keys["recipe"])), keys)
    try:
        return Config.model_validate(keys)
    except ValidationError as error:
        raise _as_input_error(error, file) from None


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the keys of ``over`` on top, mapping by mapping."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = merged(old, value)
        result[key] = value
    return result


def _with_override(keys: dict[str, Any], override: str) -> dict[str, Any]:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise UsageError(
            "an override has the form key.sub=value", field="--set", found=repr(override)
        )
    try:
        tree: Any = _plain_yaml(text)
    except (yaml.YAMLError, ValueError):
        raise UsageError(
            "the value is not valid YAML", field="--set", found=repr(override)
        ) from None
    for part in reversed(name.split(".")):
        tree = {part: tree}
    return merged(keys, tree)


def _as_input_error(error: ValidationError, file: Path | None) -> UsageError:
    """First complaint of pydantic as one line, with the nearest name for an unknown key."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    more = error.error_count() - 1
    tail = f" (and {more} more)" if more else ""
    if first["type"] == "extra_forbidden":
        section: Any = Config
        for part in location[:-1]:
            if part.isdigit():
                continue
            field = section.model_fields.get(part) if hasattr(section, "model_fields") else None
            section = _section_of(field.annotation) if field is not None else None
        names = list(getattr(section, "model_fields", {}))
        near = difflib.get_close_matches(location[-1], names, n=1, cutoff=0.5)
        remedy = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(names)}"
        return UsageError(f"unknown key{tail}", file=file, field=".".join(location), remedy=remedy)
    message = first["msg"].removeprefix("Value error, ")
    found = first.get("input")
    simple = isinstance(found, str | int | float | bool | list | tuple)
    return UsageError(
        f"{message}{tail}",
        file=file,
        field=".".join(location) or None,
        found=repr(found) if simple and first["type"] != "missing" else None,
    )


def _section_of(annotation: Any) -> Any:
    """The Section inside an annotation such as ``tuple[Normalisation, ...] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    inner = (_section_of(argument) for argument in getattr(annotation, "__args__", ()))
    return next((section for section in inner if section is not None), None)
