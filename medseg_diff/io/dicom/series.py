"""Which series of a folder is meant: grouped by SeriesInstanceUID, chosen in so many words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg_diff.errors import InputError
from medseg_diff.io.dicom.geometry import stack_frames
from medseg_diff.io.dicom.headers import Frame, Header, read_header

# A stack of fewer slices, found rather than named, is more likely a scout than a scan.
FEWEST = 4
_TAIL = 6


@dataclass(frozen=True)
class Series:
    """The files of one series, localizers already left out.

    Args:
        uid: SeriesInstanceUID.
        headers: Files in the order given.
        notes: What was left out.
    """

    uid: str
    headers: tuple[Header, ...]
    notes: tuple[str, ...] = ()

    @property
    def frames(self) -> list[Frame]:
        """All frames of all files."""
        return [frame for header in self.headers for frame in header.frames]

    def by_path(self) -> dict[Path, Header]:
        """Headers by file."""
        return {header.path: header for header in self.headers}


@dataclass(frozen=True)
class SeriesInfo:
    """A series in a list to choose from.

    Attributes:
        uid: SeriesInstanceUID, whole.
        tail: Its last digits, enough to choose it by.
        modality: As ``"CT"``.
        frames: Number of slices.
        spacing_mm: Voxel size; empty where the frames form no regular volume.
        localizer: Whether all of its images are localizers.
    """

    uid: str
    tail: str
    modality: str
    frames: int
    spacing_mm: tuple[float, ...]
    localizer: bool

    def __str__(self) -> str:
        """As a refusal lists it; nothing in it says whose scan it is."""
        size = " x ".join(f"{s:.4g}" for s in self.spacing_mm)
        spacing = f"{size} mm" if size else "no regular volume"
        kind = " localizer" if self.localizer else ""
        return f"...{self.tail} {self.modality or '?'}{kind}, {self.frames} slices, {spacing}"


def read_headers(
    files: Sequence[Path], n_other: int, max_voxels: int, where: Path
) -> tuple[list[Header], str]:
    """Headers of all image files, and a sentence on what else there is (F51), empty if nothing.

    Raises:
        InputError: if a file is damaged, or none holds an image.
    """
    read = [read_header(path, max_voxels) for path in files]
    headers = [header for header in read if isinstance(header, Header)]
    kinds = Counter(kind for kind in read if isinstance(kind, str))
    counts = [f"{n} {kind}" for kind, n in sorted(kinds.items())]
    counts += [f"{n_other} not DICOM"] if n_other else []
    if not headers:
        raise InputError(
            "holds no image",
            file=where,
            found=", ".join(counts),
            expected="a series of slices",
            remedy="name the folder of the scan itself",
        )
    return headers, f"left out: {', '.join(counts)}" if counts else ""


def choose_series(
    headers: Sequence[Header], wanted: str | None, where: Path, *, named: bool
) -> Series:
    """The one series there is, or the one that was asked for.

    Args:
        headers: Image files.
        wanted: SeriesInstanceUID or its last digits.
        where: What a refusal is to name.
        named: Whether the user named the files, so that few slices are meant.

    Raises:
        InputError: if there are several and none or no single one was asked for (F49), or the
            only one looks like a localizer (F50).
    """
    groups = group_series(headers)
    if wanted is not None:
        return _asked_for(groups, wanted, where)
    scans = {uid: group for uid, group in groups.items() if not all(h.localizer for h in group)}
    if len(scans or groups) > 1:
        raise _refusal("several series; choose one with --series", groups, where)
    uid, group = next(iter((scans or groups).items()))
    if not scans and not named:
        _refuse_localizer(group, "ImageType", "LOCALIZER")
    series = _without_localizers(uid, group, len(headers))
    n = len(series.frames)
    if n < FEWEST and not named:
        _one_direction(series)
        _refuse_localizer(group, "slices", str(n))
    return series


def group_series(headers: Sequence[Header]) -> dict[str, list[Header]]:
    """Headers by SeriesInstanceUID, in the order met."""
    groups: dict[str, list[Header]] = {}
    for header in headers:
        groups.setdefault(header.series, []).append(header)
    return groups


def describe_series(groups: Mapping[str, Sequence[Header]]) -> list[SeriesInfo]:
    """A line for each series, the largest first."""
    found = []
    for uid, group in groups.items():
        frames = [frame for header in group for frame in header.frames]
        try:
            affine = stack_frames(frames).affine
            spacing = tuple(float(s) for s in np.linalg.norm(affine[:3, :3], axis=0))
        except InputError:
            spacing = ()
        localizer = all(header.localizer for header in group)
        tail = uid_tail(uid, groups)
        found.append(SeriesInfo(uid, tail, group[0].modality, len(frames), spacing, localizer))
    return sorted(found, key=lambda info: -info.frames)


def _asked_for(groups: Mapping[str, Sequence[Header]], wanted: str, where: Path) -> Series:
    ending = wanted.strip().lstrip(".")
    matches = [uid for uid in groups if uid == ending] or [
        uid for uid in groups if ending and uid.endswith(ending)
    ]
    if len(matches) != 1:
        problem = "no series" if not matches else "several series"
        raise _refusal(f"{problem} ends in what --series asks for", groups, where)
    group = groups[matches[0]]
    return _without_localizers(matches[0], group, len(group))


def _without_localizers(uid: str, group: Sequence[Header], n_all: int) -> Series:
    """The group's images, or its localizers if it holds nothing else."""
    kept = [header for header in group if not header.localizer] or list(group)
    n_left = n_all - len(kept)
    notes = (f"left out: {n_left} localizer image{'s' if n_left > 1 else ''}",) if n_left else ()
    return Series(uid, tuple(kept), notes)


def _refusal(problem: str, groups: Mapping[str, Sequence[Header]], where: Path) -> InputError:
    infos = describe_series(groups)
    shown = "; ".join(str(info) for info in infos[:8])
    return InputError(
        problem,
        file=where,
        field="SeriesInstanceUID",
        found=shown + (f"; and {len(infos) - 8} more" if len(infos) > 8 else ""),
        expected="one series",
        remedy=f"choose one by the end of its UID, as --series {infos[0].tail}",
    )


def _refuse_localizer(group: Sequence[Header], field: str, found: str) -> None:
    raise InputError(
        "looks like a localizer",
        file=group[0].path,
        field=field,
        found=found,
        expected=f"a volume of at least {FEWEST} slices",
        remedy="name the file itself, or choose it with --series, if it is what you mean",
    )


def _one_direction(series: Series) -> None:
    """Three crossed planes are named as such before their number is."""
    frames = series.frames
    if len(frames) > 1 and all(f.orientation is not None for f in frames):
        stack_frames(frames)


def uid_tail(uid: str, others: Mapping[str, object]) -> str:
    """Shortest ending of at least six characters that no other series shares."""
    for n in range(_TAIL, len(uid)):
        tail = uid[-n:]
        if sum(other.endswith(tail) for other in others) == 1:
            return tail
    return uid
