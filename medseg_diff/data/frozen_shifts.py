"""Shifts by name and level, from the YAML that freezes their strengths."""

from __future__ import annotations

import difflib
import inspect
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medseg_diff.data.shifts import OPERATORS, Shift
from medseg_diff.errors import UsageError

NO_SHIFT = "none"


class ShiftSpec(BaseModel):
    """One shift of the YAML: which keyword is its strength, and the strengths' names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parameter: str
    unit: str = ""
    levels: dict[str, float] = Field(min_length=1)
    fixed: dict[str, float] = {}


class FrozenShifts(BaseModel):
    """All shifts of a YAML, with the seed of their randomness."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    seed: int = 0
    shifts: dict[str, ShiftSpec] = Field(min_length=1)

    def get(self, name: str, level: str) -> Shift:
        """A shift at a named strength.

        Raises:
            UsageError: if there is no such shift or level.
        """
        spec = self._spec(name)
        if level not in spec.levels:
            raise UsageError(
                f"shift '{name}' has no such level",
                field="level",
                found=repr(level),
                remedy=_nearest(level, list(spec.levels)),
            )
        fixed = tuple(sorted(spec.fixed.items()))
        return Shift(name, spec.parameter, spec.levels[level], fixed, level, spec.unit)

    def curve(self, name: str) -> list[Shift]:
        """No shift, then every level of one shift, by strength."""
        levels = self._spec(name).levels
        found = [self.get(name, level) for level in sorted(levels, key=lambda key: levels[key])]
        return [replace(found[0], value=0.0, level=NO_SHIFT), *found]

    def _spec(self, name: str) -> ShiftSpec:
        if name not in self.shifts:
            remedy = _nearest(name, list(self.shifts))
            raise UsageError("unknown shift", field="shift", found=repr(name), remedy=remedy)
        return self.shifts[name]


def load_shifts(path: str | Path | None = None) -> FrozenShifts:
    """The package's own frozen shifts, or a YAML of the same form.

    Raises:
        UsageError: if the file is missing, no YAML, or names an operator or keyword that does not
            exist, or a strength below 0.
    """
    if path is None:
        text, file = (files("medseg_diff.data") / "shifts.yaml").read_text("utf-8"), None
    else:
        file = Path(path)
        if not file.is_file():
            raise UsageError("no such file", file=file, field="--shifts", remedy="check the path")
        text = file.read_text(encoding="utf-8")
    try:
        frozen = FrozenShifts.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise UsageError(f"not valid YAML: {str(error).splitlines()[0]}", file=file) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or None
        raise UsageError(first["msg"], file=file, field=where) from None
    for name, spec in frozen.shifts.items():
        _check(name, spec, file)
    return frozen


def _check(name: str, spec: ShiftSpec, file: Path | None) -> None:
    if name not in OPERATORS:
        raise UsageError(
            "unknown operator",
            file=file,
            field=f"shifts.{name}",
            remedy=_nearest(name, list(OPERATORS)),
        )
    known = [
        key
        for key, parameter in inspect.signature(OPERATORS[name]).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    for key in (spec.parameter, *spec.fixed):
        if key not in known:
            raise UsageError(
                "no such parameter",
                file=file,
                field=f"shifts.{name}.{key}",
                expected=", ".join(known),
            )
    wrong = {level: value for level, value in spec.levels.items() if not value > 0}
    if wrong:
        raise UsageError(
            "a level's strength is above 0", file=file, field=f"shifts.{name}.levels", found=wrong
        )


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(known)}"
