"""Case lists: which files form a case, whose they are, and in which part they take part.

A case list is one JSON file (docs/architecture.md, "Case list"). It is checked once, here:
everything behind this door may trust that ids are unique, that parts share no patient and no
image, and that every file lies below the list's own folder.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    StrictInt,
    ValidationError,
    model_validator,
)

from medseg_diff.data.list_checks import check_leaks, check_targets, first_of
from medseg_diff.errors import InputError
from medseg_diff.files import atomic_text, file_sha256

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
FILE_NAME = "cases.json"


def _below_root(text: str) -> str:
    """Normalise a relative path with forward slashes; refuse one that can leave its folder."""
    path = PurePosixPath(text)
    if path.is_absolute() or PureWindowsPath(text).drive or "\\" in text or ".." in path.parts:
        raise InputError(
            "path leaves the list's folder",
            file=PureWindowsPath(text).name,
            expected="a path relative to the list, with forward slashes and without '..'",
            remedy="put the file below the list's folder, or load with root=FOLDER",
        )
    if not path.parts or "\0" in text:
        raise InputError("path is empty or not a path", found=repr(text))
    return str(path)


def _file_stem(text: str) -> str:
    """Accept an id that can name a file on every system."""
    if not text.strip() or text.startswith(".") or any(c in '/\\:*?"<>|' for c in text):
        raise InputError(
            "id cannot name a file", found=repr(text), expected='no / \\ : * ? " < > |'
        )
    if any(ord(c) < 32 for c in text):
        raise InputError("id holds control characters", found=repr(text))
    return text


RelativePath = Annotated[str, AfterValidator(_below_root)]
CaseId = Annotated[str, AfterValidator(_file_stem)]
Name = Annotated[str, Field(min_length=1, pattern=r"\S")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Case(BaseModel):
    """One examination: its image files, its reference masks and whose they are.

    Args:
        case: Unique id; prediction files are named after it.
        patient: Cases of one patient never straddle parts.
        site: Hospital, scanner or imaging domain, where known.
        part: ``"train"``, ``"validation"`` or ``"test"``.
        channels: Channel name -> image file, relative to the list's folder.
        references: One mask per annotator; only test cases may have none, and those of a list
            that translates or names no structure.
        target: Image on the first channel's grid that a translation is to make.
        sha256: Digest per file, for any of the files above.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    case: CaseId
    patient: Name
    site: Name | None = None
    part: Part
    channels: dict[Name, RelativePath]
    references: tuple[RelativePath, ...] = ()
    target: RelativePath | None = None
    sha256: dict[RelativePath, Digest] = {}

    @property
    def files(self) -> tuple[str, ...]:
        """Images, references and the target, as written in the list."""
        target = () if self.target is None else (self.target,)
        return (*self.channels.values(), *self.references, *target)


class CaseList(BaseModel):
    """The cases of one dataset and what their labels mean.

    A list with a ``target`` (a name, "FLAIR" say) is for translation: every training and
    validation case then has a target image. ``target_modality`` is that image's; None is the
    channels' own.

    Build one with `load_caselist` or `build_caselist`: both refuse bad content with an
    `InputError`; calling the class itself raises pydantic's own ``ValidationError``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    licence: str
    modality: Literal["MR", "CT", "RGB", "other"]
    channels: tuple[Name, ...] = Field(min_length=1)
    labels: dict[Name, StrictInt] = {}
    target: Name | None = None
    target_modality: Literal["MR", "CT", "RGB", "other"] | None = None
    regions: dict[Name, tuple[StrictInt, ...]] | None = None
    ignore_label: StrictInt | None = None
    cases: tuple[Case, ...] = Field(min_length=1)

    _root: Path = PrivateAttr(default_factory=Path)

    @model_validator(mode="after")
    def _check(self) -> CaseList:
        check_targets(self)
        _check_labels(self)
        _check_cases(self)
        check_leaks(self)
        return self

    @property
    def root(self) -> Path:
        """Folder that the cases' relative paths start from."""
        return self._root

    @property
    def structures(self) -> dict[str, list[int]]:
        """What is scored: each region's labels, or without regions each foreground label."""
        if self.regions is not None:
            return {name: list(values) for name, values in self.regions.items()}
        return {name: [value] for name, value in self.labels.items() if value != 0}

    def part(self, part: Part) -> list[Case]:
        """Cases of one part, in the list's order."""
        if part not in PARTS:
            raise InputError("unknown part", found=part, expected=", ".join(PARTS))
        return [case for case in self.cases if case.part == part]

    def channel_paths(self, case: Case) -> dict[str, Path]:
        """Image file of each channel, in the order of the list's ``channels``."""
        return {name: self._root / case.channels[name] for name in self.channels}

    def reference_paths(self, case: Case) -> list[Path]:
        """One mask file per annotator."""
        return [self._root / reference for reference in case.references]

    def paths(self, case: Case) -> list[Path]:
        """Every file of a case: images in channel order, references, then the target."""
        target = self.target_path(case)
        rest = [] if target is None else [target]
        return [*self.channel_paths(case).values(), *self.reference_paths(case), *rest]

    def target_path(self, case: Case) -> Path | None:
        """The image that a translation is to make, if the case has it."""
        return None if case.target is None else self._root / case.target

    def with_cases(self, cases: Iterable[Case]) -> CaseList:
        """The same dataset with other cases (parts, hashes), checked anew."""
        content = {name: getattr(self, name) for name in type(self).model_fields}
        return build_caselist({**content, "cases": tuple(cases)}, root=self._root)


def build_caselist(
    content: Mapping[str, object], *, root: str | Path = "", file: str | Path | None = None
) -> CaseList:
    """Check a case list's content.

    Args:
        content: The keys of the JSON file; ``cases`` may hold `Case` objects or mappings.
        root: Folder that relative paths start from.
        file: Named in refusals.

    Raises:
        InputError: naming the offending key, case or patient.
    """
    try:
        caselist = CaseList.model_validate(content)
    except ValidationError as error:
        raise _refusal(error, file) from None
    caselist._root = Path(root)
    return caselist


def load_caselist(
    path: str | Path, root: str | Path | None = None, *, verify: bool = False
) -> CaseList:
    """Read and check a case list.

    Args:
        path: The JSON file, or a folder that holds one named ``cases.json``.
        root: Folder that relative paths start from; by default the JSON file's own.
        verify: Also compare every file with its stored sha256.

    Raises:
        InputError: if the file is no valid case list or files are missing or changed.
    """
    path = Path(path)
    if path.is_dir():
        path = path / FILE_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(
            "no such case list", file=path, remedy="give a cases.json; data_prep/ writes one"
        ) from None
    # Numbers of thousands of digits are a ValueError, endless brackets a RecursionError.
    except (ValueError, RecursionError) as error:
        raise InputError("not a JSON file", file=path, found=str(error)) from None
    if not isinstance(content, dict):
        raise InputError(
            "not a case list", file=path, found=type(content).__name__, expected="a JSON object"
        )
    caselist = build_caselist(content, root=path.parent if root is None else root, file=path)
    check_files(caselist, file=path)
    if verify:
        verify_hashes(caselist, file=path)
    return caselist


def save_caselist(caselist: CaseList, path: str | Path) -> None:
    """Write a case list, atomically.

    Paths are written as they are: save into the list's own root, or load with ``root=``.
    """
    content = caselist.model_dump(mode="json")
    if caselist.target is None:
        # Lists of masks are written as they were before there were targets.
        for part in (content, *content["cases"]):
            part.pop("target"), part.pop("target_modality", None)
    atomic_text(Path(path), json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def check_files(caselist: CaseList, *, file: str | Path | None = None) -> None:
    """Raise `InputError` naming the first missing files, if any is missing."""
    missing = [p.name for case in caselist.cases for p in caselist.paths(case) if not p.is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} missing files" if len(missing) > 1 else "missing file",
            file=file,
            found=first_of(missing),
            remedy="check the list's folder, or give the right one (root)",
        )


def hash_files(caselist: CaseList) -> CaseList:
    """Compute the sha256 of every file and store it in the cases.

    Raises:
        InputError: if a file is missing, or one image turns up in two parts.
    """
    check_files(caselist)
    return caselist.with_cases(
        case.model_copy(update={"sha256": {f: file_sha256(caselist.root / f) for f in case.files}})
        for case in caselist.cases
    )


def verify_hashes(caselist: CaseList, *, file: str | Path | None = None) -> None:
    """Raise `InputError` if a file has no stored sha256 or differs from it."""
    check_files(caselist, file=file)
    files = [(case, name) for case in caselist.cases for name in case.files]
    unknown = [Path(name).name for case, name in files if name not in case.sha256]
    if unknown:
        raise InputError(
            "no sha256 stored", file=file, field="sha256", found=first_of(unknown),
            remedy="store hashes with hash_files",
        )  # fmt: skip
    changed = [
        Path(name).name
        for case, name in files
        if file_sha256(caselist.root / name) != case.sha256[name]
    ]
    if changed:
        raise InputError(
            "files differ from their stored sha256", file=file, field="sha256",
            found=first_of(changed), remedy="restore the files, or build the list again",
        )  # fmt: skip


def _check_labels(caselist: CaseList) -> None:
    values = sorted(caselist.labels.values())
    if not values and caselist.regions is None:
        return
    if caselist.regions is None and values != list(range(len(values))):
        raise InputError(
            "label values are not contiguous from 0", field="labels", found=values,
            expected=list(range(len(values))), remedy="renumber the labels, or define regions",
        )  # fmt: skip
    if len(set(values)) < len(values) or not values or values[0] != 0:
        raise InputError(
            "label values must be distinct and hold the background 0", field="labels", found=values
        )
    for name, members in (caselist.regions or {}).items():
        wrong = [value for value in members if value == 0 or value not in values]
        if wrong or not members or len(set(members)) < len(members):
            raise InputError(
                "a region is a set of foreground labels", field=f"regions.{name}",
                found=list(members), expected=f"distinct values of {values[1:]}",
            )  # fmt: skip
    if caselist.regions == {}:
        raise InputError("no region given", field="regions", remedy="write null for none")
    if caselist.ignore_label in values:
        raise InputError(
            "the ignored label is also a label", field="ignore_label", found=caselist.ignore_label,
            expected=f"a value outside {values}",
        )  # fmt: skip


def _check_cases(caselist: CaseList) -> None:
    doubles = [c for c, n in Counter(case.case for case in caselist.cases).items() if n > 1]
    if doubles:
        raise InputError("duplicate case ids", field="case", found=", ".join(doubles))
    no_image = [case.case for case in caselist.cases if not case.channels]
    if no_image:
        raise InputError("cases without an image", field="channels", found=", ".join(no_image))
    no_mask = [c.case for c in caselist.cases if c.part != "test" and not c.references]
    if no_mask and caselist.target is None and caselist.structures:
        raise InputError(
            "training or validation cases without a reference mask", field="references",
            found=", ".join(no_mask), remedy="add their masks, or move them to part test",
        )  # fmt: skip
    if len(set(caselist.channels)) < len(caselist.channels):
        raise InputError("duplicate channel names", field="channels", found=caselist.channels)
    for case in caselist.cases:
        if set(case.channels) != set(caselist.channels):
            raise InputError(
                "channels differ from the list's", field=f"{case.case}.channels",
                found=", ".join(case.channels), expected=", ".join(caselist.channels),
            )  # fmt: skip
        stray = [name for name in case.sha256 if name not in case.files]
        if stray:
            raise InputError(
                "sha256 of a file that the case does not use",
                field=f"{case.case}.sha256", found=first_of([Path(name).name for name in stray]),
            )  # fmt: skip


def _refusal(error: ValidationError, file: str | Path | None) -> InputError:
    """Turn pydantic's report into one line; a mistyped key goes before the key it leaves out."""
    first = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    where = [str(step) for step in first["loc"]]
    cause: Any = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return InputError(
            cause.problem, file=file or cause.file, field=cause.field or ".".join(where) or None,
            found=cause.found, expected=cause.expected, remedy=cause.remedy,
        )  # fmt: skip
    if first["type"] == "extra_forbidden":
        key = where.pop()
        known = list((Case if where else CaseList).model_fields)
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
        return InputError(
            f"unknown key {key!r}", file=file, field=".".join(where) or None,
            expected=", ".join(known), remedy=f"did you mean {nearest!r}?",
        )  # fmt: skip
    if first["type"] == "missing":
        return InputError("missing key", file=file, field=".".join(where))
    return InputError(
        first["msg"], file=file, field=".".join(where), found=repr(first["input"])[:80]
    )
