"""The methods of the table: one file each, found by its name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules

from medseg_diff.adaptation.work import Adapted, Work
from medseg_diff.errors import UsageError


def names() -> list[str]:
    """Names of all methods."""
    return sorted(module.name for module in iter_modules(__path__))


def method(name: str) -> Callable[[Work], Adapted]:
    """The function of a method.

    Raises:
        UsageError: if there is none of that name.
    """
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        remedy = f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(names())}"
        raise UsageError("unknown method", field="rows", found=repr(name), remedy=remedy)
    found: Callable[[Work], Adapted] = import_module(f"{__name__}.{name}").adapt
    return found
