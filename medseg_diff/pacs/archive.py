"""What both protocols share: series and instances by UID, limits, and the choice of a series.

No name, date or description is asked for or kept: an archive is told UIDs and answers with UIDs,
modalities and classes. Nothing that a server says in words enters a message, for it may quote the
patient; status codes do.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydicom.uid import UID

from medseg_diff.errors import InputError

# Their messages quote requests, datasets and identifiers.
_TALKATIVE = ("pynetdicom", "dicomweb_client", "retrying", "urllib3", "requests", "pydicom")


@dataclass(frozen=True)
class Limits:
    """What an archive may cost.

    Args:
        bytes: Received in all.
        instances: Of one series, and answers to one question.
        seconds: For finding, fetching or storing, each.
        timeout_s: Without any word from the server.
    """

    bytes: int = 16 << 30
    instances: int = 20_000
    seconds: float = 1800.0
    timeout_s: float = 60.0


@dataclass(frozen=True)
class Instance:
    """One object of a series: its UID, and its class, empty where the archive does not say."""

    uid: str
    sop_class: str


@dataclass(frozen=True)
class Found:
    """A series that an archive holds.

    Args:
        study: StudyInstanceUID.
        uid: SeriesInstanceUID.
        modality: As ``"CT"``.
        instances: Its objects.
    """

    study: str
    uid: str
    modality: str
    instances: tuple[Instance, ...]

    @property
    def is_image(self) -> bool:
        """Whether it holds images: a Segmentation, a report or a plan is none."""
        # A class without name is private or not told; the reader decides once it is here.
        names = {UID(one.sop_class).keyword for one in self.instances}
        return any(not name or "ImageStorage" in name for name in names)


class Archive(Protocol):
    """An archive of either kind; ``field="--pacs"`` in its refusals."""

    def series(self, study: str) -> list[Found]:
        """All series of a study; empty if there is no such study.

        Raises:
            InputError: if the server cannot be reached, refuses, or answers too much.
        """

    def fetch(self, series: Found, folder: Path) -> None:
        """Write each instance to a file of its own, readable by its owner only.

        Raises:
            InputError: as `series`; also if not all instances arrive, or they exceed a limit.
        """

    def store(self, files: Sequence[Path]) -> None:
        """Store DICOM files, one after the other.

        Raises:
            InputError: naming the file that was refused, the status, and those stored before it.
        """


@dataclass
class Budget:
    """Bytes and seconds used so far, held against the limits."""

    limits: Limits
    bytes: int = 0
    began: float = field(default_factory=time.monotonic)

    def take(self, n: int) -> None:
        """Count ``n`` bytes received.

        Raises:
            InputError: if they are too many, or time is up.
        """
        self.bytes += n
        if self.bytes > self.limits.bytes:
            raise InputError(
                "the server sends more than it may",
                field="--pacs",
                found=f"more than {self.limits.bytes >> 20} MiB",
                remedy="raise --pacs-gib if the series is meant to be this large",
            )
        self.check_time()

    def check_time(self) -> None:
        """Refuse to go on after the time limit."""
        if time.monotonic() - self.began > self.limits.seconds:
            raise InputError(
                "the server takes longer than it may",
                field="--pacs",
                found=f"more than {self.limits.seconds:g} s",
                remedy="raise --pacs-seconds if the connection is meant to be this slow",
            )

    def check_count(self, n: int) -> None:
        """Refuse more answers or instances than the limit."""
        if n > self.limits.instances:
            raise InputError(
                "more instances than allowed",
                field="--pacs",
                found=f"more than {self.limits.instances}",
                remedy="fetch the series by other means and predict from its folder",
            )


def choose_series(found: Sequence[Found], wanted: str | None) -> Found:
    """The one series of images, or the one whose UID ends in ``wanted``.

    Raises:
        InputError: if there is no study, no image, or no single series; those there are get
            listed as ``--series`` takes them.
    """
    from medseg_diff.io.dicom.series import uid_tail  # loads MONAI, which takes seconds

    if not found:
        raise InputError(
            "no such study in the archive",
            field="--study",
            remedy="check the UID, and that this program may see the study",
        )
    images = {one.uid: one for one in found if one.is_image}
    if not images:
        kinds = Counter(one.modality or "?" for one in found)
        raise InputError(
            "the study holds no series of images",
            field="--study",
            found=", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())),
        )
    if wanted is None and len(images) == 1:
        return next(iter(images.values()))
    ending = (wanted or "").strip().lstrip(".")
    exact = [images[ending]] if ending in images else []
    matches = exact or [s for uid, s in images.items() if ending and uid.endswith(ending)]
    if len(matches) == 1:
        return matches[0]
    problem = "several series; choose one with --series"
    if wanted is not None:
        problem = f"{'several' if matches else 'no'} series ends in what --series asks for"
    listed = sorted(images.values(), key=lambda one: -len(one.instances))
    shown = [
        f"...{uid_tail(one.uid, images)} {one.modality or '?'}, {len(one.instances)} instances"
        for one in listed
    ]
    more = f"; and {len(shown) - 8} more" if len(shown) > 8 else ""
    raise InputError(
        problem,
        field="SeriesInstanceUID",
        found="; ".join(shown[:8]) + more,
        expected="one series",
        remedy=f"choose one by the end of its UID, as --series {uid_tail(listed[0].uid, images)}",
    )


def require_whole(series: Found, arrived: int, status: str = "") -> None:
    """Refuse a series of which a part is missing: its ends would be cut off unseen.

    Raises:
        InputError: if not exactly the instances listed have arrived.
    """
    expected = len(series.instances)
    if arrived != expected or not arrived:
        raise InputError(
            "the series did not arrive whole",
            field="--pacs",
            found=f"{arrived} instances{f', {status}' if status else ''}",
            expected=f"{expected}, as the archive lists them",
            remedy="try again once the archive has received the whole series",
        )


def new_file(folder: Path, number: int) -> Path:
    """A new empty file that only its owner can read."""
    path = folder / f"{number:06d}.dcm"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    return path


def unreachable(shown: str, why: str) -> InputError:
    """Refusal: no connection."""
    return InputError(
        "the server cannot be reached",
        field="--pacs",
        found=f"{shown}: {why}",
        remedy="check the address, and that the server runs and is reachable from here",
    )


def store_refused(file: Path, status: str, done: Sequence[Path]) -> InputError:
    """Refusal: an instance was not stored."""
    before = f"; stored before it: {', '.join(p.name for p in done)}" if done else ""
    return InputError(
        "the archive did not store it",
        file=file,
        field="--store",
        found=f"{status}{before}",
        remedy="see the archive's log; the prediction itself is in the output folder",
    )


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep the protocols' libraries from logging or warning: both quote what they transport."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    # Children with a level of their own would not listen to their parent.
    known = list(logging.root.manager.loggerDict)
    loggers += [logging.getLogger(n) for n in known if n.split(".")[0] in _TALKATIVE]
    levels = [(logger, logger.level) for logger in dict.fromkeys(loggers)]
    for logger, _ in levels:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)
