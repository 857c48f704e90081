"""The one exception a user sees: a single line that says what is wrong and what to do."""

from __future__ import annotations

from pathlib import Path


class InputError(ValueError):
    """Bad input, refused at the door.

    The text is one line: file, field, what was found, what was expected, what to do. Only
    the file's name enters the text, never its folders: those may carry a patient's name.

    Args:
        problem: What is wrong, in a few words.
        file: The offending file, if there is one.
        field: Header field, configuration key or table column.
        found: The value that came.
        expected: The value or range that was wanted.
        remedy: What the user can do, as an imperative.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: str | Path | None = None,
        field: str | None = None,
        found: object = None,
        expected: object = None,
        remedy: str | None = None,
    ) -> None:
        self.problem = problem
        self.file = None if file is None else Path(file)
        self.field = field
        self.found = found
        self.expected = expected
        self.remedy = remedy
        super().__init__(self._line())

    def _line(self) -> str:
        where = [self.file.name or str(self.file)] if self.file is not None else []
        if self.field is not None:
            where.append(self.field)
        line = ": ".join([*where, self.problem])
        details = [
            f"{word} {value}"
            for word, value in (("found", self.found), ("expected", self.expected))
            if value is not None
        ]
        if details:
            line += f" ({'; '.join(details)})"
        if self.remedy:
            line += f". {self.remedy[0].upper()}{self.remedy[1:]}"
        return " ".join(line.split())


class UsageError(InputError):
    """Wrong use: a flag or a configuration key, not the data. The command line exits with 2."""
