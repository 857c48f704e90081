"""What `predict --pacs` adds: fetch a series, hand its folder on, store what came of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg_diff.errors import UsageError

if TYPE_CHECKING:
    from medseg_diff.batch.run import Case
    from medseg_diff.pacs import Archive, Found

Pacs = Annotated[
    str | None,
    typer.Option(
        help="Archive to fetch from instead of --input: https://HOST/dicom-web or "
        "dicom(s)://AET@HOST:PORT. Credentials: see docs/pacs.md."
    ),
]
Study = Annotated[str | None, typer.Option(help="With --pacs: StudyInstanceUID.")]
Store = Annotated[
    bool,
    typer.Option(
        "--store/--no-store",
        help="With --pacs: store Segmentation and Parametric Map in the archive.",
    ),
]
OwnTitle = Annotated[str, typer.Option(help="Own AE title, for dicom://.")]
MovePort = Annotated[
    int | None,
    typer.Option(min=1, max=65535, help="Fetch by C-MOVE to this port of ours, not by C-GET."),
]
Authority = Annotated[
    Path | None, typer.Option(help="PEM of who vouches for a dicoms:// node; else the system's.")
]
OwnCertificate = Annotated[
    Path | None, typer.Option(help="PEM of own certificate and key, for dicoms://.")
]
Gib = Annotated[float, typer.Option(min=0.001, help="Most GiB to receive from the archive.")]
Seconds = Annotated[
    float, typer.Option(min=1, help="Most seconds for finding, fetching and storing, each.")
]


@dataclass(frozen=True)
class Remote:
    """A study in an archive, and whether the answer goes back there."""

    archive: Archive
    study: str
    series: str | None
    store: bool

    @contextlib.contextmanager
    def fetched(self, channels: Sequence[str]) -> Iterator[tuple[list[Path], str | None]]:
        """Fetch a series for each channel into a private folder that is gone afterwards.

        Args:
            channels: The model's; one series is one channel.

        Yields:
            The folders with their files, as ``find_cases`` takes them, and the SeriesInstanceUID
            where there is one series alone.

        Raises:
            UsageError: if ``--series`` does not name one series for each channel.
            InputError: if there is no such single series, or it does not arrive whole.
        """
        from medseg_diff.pacs import choose_series, private_folder

        wanted = series_of_channels(self.series, channels)
        listed = self.archive.series(self.study)
        chosen = {channel: choose_series(listed, end) for channel, end in wanted.items()}
        _check_apart(chosen)
        name = _case_name(next(iter(chosen.values())))
        with private_folder() as folder:
            scans = []
            for channel, series in chosen.items():
                scan = folder / (name if len(chosen) == 1 else f"{name}_{channel}")
                scan.mkdir(mode=0o700)
                self.archive.fetch(series, scan)
                what = f"{len(series.instances)} instances, {series.modality or '?'}"
                print(f"fetched: {what}{'' if len(chosen) == 1 else f' for {channel}'}")
                scans.append(scan)
            yield scans, series.uid if len(chosen) == 1 else None

    def store_answers(self, out: Path, cases: Sequence[Case]) -> None:
        """Store what was written of the cases as DICOM, where that was asked for.

        Raises:
            InputError: naming the file that the archive refused, and why.
        """
        if not self.store:
            return
        found = [out / f"{case.name}{end}.dcm" for case in cases for end in ("_seg", "_doubt")]
        files = [file for file in found if file.is_file()]
        self.archive.store(files)
        print(f"stored: {', '.join(file.name for file in files)}")


def remote(
    pacs: str | None,
    study: str | None,
    series: str | None,
    store: bool,
    *,
    own: tuple[str, int | None],
    certificates: tuple[Path | None, Path | None],
    limits: tuple[float, float],
    dicom_seg: bool | None,
) -> Remote | None:
    """Check what was typed before any model is loaded; None without ``--pacs``.

    Args:
        pacs: Address.
        study: StudyInstanceUID.
        series: End of a SeriesInstanceUID; ``NAME=END,NAME=END`` for a model of several channels.
        store: Whether to store the answer.
        own: AE title, and port for C-MOVE.
        certificates: Files of the authority and of ourselves, for ``dicoms://``.
        limits: GiB and seconds.
        dicom_seg: Whether the answer is written as DICOM; None leaves it to the scan.

    Raises:
        UsageError: for options that do not fit together, or an address that means nothing.
    """
    if pacs is None:
        if study is not None or store:
            raise UsageError("needs --pacs", field="--study" if study else "--store")
        return None
    if study is None:
        raise UsageError("needs --study, the StudyInstanceUID", field="--pacs")
    if store and dicom_seg is False:
        raise UsageError("there would be nothing to store", field="--store", found="--no-dicom-seg")
    from medseg_diff.pacs import Certificates, Limits, Own, open_archive, parse_address, require_uid

    require_uid(study, "--study")
    archive = open_archive(
        parse_address(pacs),
        own=Own(*own, Certificates(*certificates)),
        limits=Limits(bytes=int(limits[0] * 2**30), seconds=limits[1]),
    )
    return Remote(archive, study, series, store)


def series_of_channels(series: str | None, channels: Sequence[str]) -> dict[str, str | None]:
    """What ``--series`` asks for, by channel: ``END``, or ``NAME=END,NAME=END`` for several.

    Raises:
        UsageError: if several channels do not each have their series.
    """
    if len(channels) == 1 and "=" not in (series or ""):
        return {channels[0]: series}
    pairs = [part.partition("=")[::2] for part in (series or "").split(",") if part]
    named = {name.strip(): end.strip() for name, end in pairs}
    if set(named) != set(channels) or len(pairs) != len(channels) or not all(named.values()):
        raise UsageError(
            "each of the model's channels needs its series",
            field="--series",
            found=series,
            expected=",".join(f"{name}=END_OF_UID" for name in channels),
        )
    return {name: named[name] for name in channels}


def _check_apart(chosen: Mapping[str, Found]) -> None:
    """Refuse one series for two channels."""
    by_uid: dict[str, str] = {}
    for channel, series in chosen.items():
        other = by_uid.setdefault(series.uid, channel)
        if other != channel:
            raise UsageError(
                "one series for two channels", field="--series", found=f"{other}, {channel}"
            )


def _case_name(series: Found) -> str:
    """Of the answer's files: the end of the series' UID, which --series takes, and no name."""
    return f"series_{series.uid[-12:].strip('.').replace('.', '-')}"
