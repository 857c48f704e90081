"""From the name of an input to the names of its outputs."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path

from medseg_diff.errors import InputError

SUFFIXES = (".nii.gz", ".nii", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
# Names of DICOM files and archives, which are told by their content but may end in these.
_BARE = (".zip", ".dcm", ".dicom")
DERIVED = ("", "_prob", "_doubt", "_draws", "_SYNTHETIC", "_SYNTHETIC_spread")
"""What predictions append to a case's stem."""

# Windows keeps these names for devices, with any extension.
_DEVICES = {"con", "prn", "aux", "nul"} | {f"{d}{n}" for d in ("com", "lpt") for n in range(1, 10)}
# File systems stop at 255 bytes; the rest is room for "_doubt.nii.gz" and the like.
_LONGEST = 200


def case_stem(path: str | Path) -> str:
    """Name of a file without its folder and its image suffix, in whatever case that is written.

    Names with no suffix of an image (folders, say) come back whole.
    """
    name = Path(path).name
    for suffix in (*SUFFIXES, *_BARE):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def is_image_name(name: str) -> bool:
    """Whether a file of this name is an input image: a known suffix, not hidden."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def safe_stem(name: str) -> str:
    """Turn a case's name into one that every file system takes as a single file's name.

    Spaces, accents and leading hyphens stay. Control characters (a newline, say) become ``_``,
    and names that Windows keeps for devices get one appended.

    Raises:
        InputError: if the name is empty, too long, or would leave its folder.
    """
    stem = "".join("_" if unicodedata.category(c) == "Cc" else c for c in name)
    shown = stem if len(stem) <= 40 else f"{stem[:40]}..."
    if not stem.strip(" .") or "/" in stem or "\\" in stem:
        raise InputError(
            "not usable as an output name",
            field="case name",
            found=repr(shown),
            expected="a name without slashes that is more than dots",
            remedy="rename the case",
        )
    size = len(stem.encode("utf-8", "surrogateescape"))
    if size > _LONGEST:
        raise InputError(
            "too long for an output name",
            field="case name",
            found=f"{size} bytes, {shown!r}",
            expected=f"at most {_LONGEST} bytes",
            remedy="rename the case",
        )
    return f"{stem}_" if stem.split(".")[0].lower() in _DEVICES else stem


def output_names(paths: Iterable[str | Path]) -> dict[Path, str]:
    """Stem of each input's outputs, in the order given.

    Raises:
        InputError: if two inputs would write to one name on a file system that ignores case
            (``x.nii`` and ``X.nii.gz``, or ``x_prob.nii.gz`` beside ``x.nii.gz``).
    """
    stems: dict[Path, str] = {}
    taken: dict[str, Path] = {}
    for path in map(Path, paths):
        stem = safe_stem(case_stem(path))
        for ending in DERIVED:
            # macOS stores names decomposed, Windows and macOS compare them without case.
            key = unicodedata.normalize("NFC", stem + ending).casefold()
            if key in taken:
                raise InputError(
                    "two inputs would write to one output name",
                    file=path,
                    found=f"{stem + ending!r}, also of {taken[key].name!r}",
                    expected="one output name per input",
                    remedy="rename one of them, or predict them into different folders",
                )
            taken[key] = path
        stems[path] = stem
    return stems
