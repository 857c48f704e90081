"""Which cases there are to predict: files, folders, patterns, a case list or a CSV."""

from __future__ import annotations

import csv
import glob
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg_diff import io
from medseg_diff.data.caselist import load_caselist
from medseg_diff.errors import InputError

# Wrong rows of a CSV that a refusal names; the rest are counted.
SHOWN_ROWS = 5


@dataclass(frozen=True)
class Case:
    """A case to predict: its name, and its files by channel."""

    name: str
    channels: dict[str, Path]


def find_cases(inputs: Sequence[str | Path], channels: Sequence[str]) -> list[Case]:
    """Group files and folders into cases.

    A model of one channel takes every image as a case, an nnU-Net suffix ``_0000`` left aside. A
    model of several groups ``<case>_<channel name>`` or ``<case>_0000``, ``<case>_0001`` ... A
    folder with DICOM files in it, or a zip of them, counts as one image of that name. A case list
    (``cases.json``) gives its test part, a ``.csv`` every row (see :func:`read_table`), and a name
    with ``*``, ``?`` or ``[`` that is no file everything it matches (``**`` crosses folders).

    Raises:
        InputError: if no image is found, a row of a CSV is wrong, or two files make one case or
            one output. A case that lacks a channel fails by itself when it is predicted.
    """
    files: list[Path] = []
    listed: list[Case] = []
    for given in _expanded(inputs):
        if given.suffix == ".json":
            known = load_caselist(given)
            listed += [Case(c.case, known.channel_paths(c)) for c in known.part("test")]
        elif given.suffix.lower() == ".csv":
            listed += read_table(given, channels)
        elif given.is_dir():
            files += io.find_scans(given)
        else:
            files.append(given)
    if not files and not listed:
        raise InputError(
            "no image found",
            file=inputs[0] if inputs else None,
            expected=f"{', '.join(io.SUFFIXES)} or DICOM",
        )
    groups: dict[str, dict[str, Path]] = {}
    for path in files:
        name, channel = _split_name(io.case_stem(path), channels)
        other = groups.setdefault(name, {})
        if channel in other:
            raise InputError(
                f"two files for one case: {other[channel].name} and {path.name}",
                file=path,
                field=channel,
                remedy="rename one, or predict them into different folders",
            )
        other[channel] = path
    _check_names([case.name for case in listed], groups)
    # Refuses names that would overwrite each other, on this system or on one without case (F44).
    stems = io.output_names(groups)
    return listed + [Case(stems[Path(name)], group) for name, group in groups.items()]


def _check_names(listed: Sequence[str], found: Iterable[str]) -> None:
    """Refuse names of a list that would overwrite each other or those of files (F44)."""
    if not listed:
        return
    counts = Counter([*listed, *found])
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise InputError(
            "two cases of one name",
            field="case",
            found=", ".join(twice[:SHOWN_ROWS]),
            remedy="rename one, or predict them into different folders",
        )
    # The suffix keeps a name's own dots.
    io.output_names(f"{name}.nii" for name in counts)


def _expanded(inputs: Sequence[str | Path]) -> Iterator[Path]:
    """The inputs, patterns replaced by what they match, in the order of names."""
    for given in inputs:
        path = Path(given)
        if not glob.has_magic(str(given)) or path.exists():
            yield path
            continue
        # Through glob, not Path.glob: the pattern may be absolute.
        found = sorted(glob.iglob(str(given), recursive=True))  # noqa: PTH207
        if not found:
            raise InputError("no file matches the pattern", file=path, field="--input")
        yield from map(Path, found)


def read_table(file: Path, channels: Sequence[str]) -> list[Case]:
    """Cases of a CSV: a column ``case`` and one per channel, paths relative to the CSV's folder.

    With a single channel its column may also be called ``image``.

    Raises:
        InputError: if a column is missing, or rows lack a name or a path or repeat a name; the
            rows are named by their line. A file that is not there fails its own case, later.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns = list(reader.fieldnames or ())
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"cannot be read as CSV: {reason}", file=file) from None
    if len(channels) == 1 and channels[0] not in columns and "image" in columns:
        names = {channels[0]: "image"}
    else:
        names = {channel: channel for channel in channels}
    missing = [name for name in ("case", *names.values()) if name not in columns]
    if missing:
        raise InputError(
            "column is missing",
            file=file,
            field=", ".join(missing),
            found=", ".join(columns) or "an empty file",
            expected=f"case, {', '.join(channels)}",
        )
    return _cases_of(file, rows, names)


def _cases_of(
    file: Path, rows: Sequence[tuple[int, dict[str, str]]], names: dict[str, str]
) -> list[Case]:
    """Rows as cases, or one refusal that names every row that is none."""
    wrong: list[str] = []
    cases: dict[str, Case] = {}
    for line, row in rows:
        try:
            name = (row["case"] or "").strip()
            if not name:
                raise InputError("no name", field="case")
            if name != io.safe_stem(name) or name in cases:
                problem = "is listed twice" if name in cases else "not usable as an output name"
                raise InputError(problem, field="case", found=repr(name))
            empty = [column for column in names.values() if not (row[column] or "").strip()]
            if empty:
                raise InputError("no path", field=", ".join(empty))
        except InputError as error:
            wrong.append(f"line {line}: {error}")
            continue
        paths = {channel: file.parent / row[column].strip() for channel, column in names.items()}
        cases[name] = Case(name, paths)
    if wrong:
        more = f"; and {len(wrong) - SHOWN_ROWS} more" if len(wrong) > SHOWN_ROWS else ""
        raise InputError("; ".join(wrong[:SHOWN_ROWS]) + more, file=file)
    return list(cases.values())


def _split_name(stem: str, channels: Sequence[str]) -> tuple[str, str]:
    """Case name and channel of a file's stem."""
    # The longest name first: "ce_T1" also ends in "_T1".
    for channel in sorted(channels, key=len, reverse=True):
        for separator in ("_", "-"):
            ending = f"{separator}{channel}".lower()
            if len(channels) > 1 and stem.lower().endswith(ending):
                return stem[: -len(ending)], channel
    number = re.fullmatch(r"(.+)_(\d{4})", stem)
    if number and int(number[2]) < len(channels):
        return number[1], channels[int(number[2])]
    return stem, channels[0]
