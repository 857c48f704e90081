"""One DICOM scan -> values on a grid.

Shapes: V volumes, I J K axes along a row, down a column and along the normal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg_diff.errors import InputError
from medseg_diff.io.dicom.geometry import Stack, stack_frames
from medseg_diff.io.dicom.headers import Frame, Header
from medseg_diff.io.dicom.pixels import inverts, is_padding, stored_frames, values_of
from medseg_diff.io.dicom.series import (
    Series,
    SeriesInfo,
    choose_series,
    describe_series,
    group_series,
    read_headers,
)
from medseg_diff.io.dicom.sources import Source, dicom_files, is_zip
from medseg_diff.io.nifti import fresh_grid
from medseg_diff.io.options import ReadOptions
from medseg_diff.io.stored import Stored

DEFAULT = ReadOptions()
# Cross-sections without a place are broken (F53); of other devices it is the usual thing.
_NEEDS_PLACE = ("CT", "MR", "PT", "NM")


def read_dicom(source: Source, options: ReadOptions = DEFAULT) -> Stored:
    """Read a scan: a folder, a zip, a DICOMDIR, one file, or a list of files.

    The values are (V, I, J, K) float32 with each slice's own rescaling applied; the affine leads
    to mm in RAS+. A single picture that states no place (radiograph, ultrasound, photograph)
    becomes a raster image (C, rows, columns), grey or RGB.

    Raises:
        InputError: if the files are damaged, form no single regular volume (see
            `ReadOptions.series` and ``volume``), or cannot be decoded.
    """
    with dicom_files(source) as (files, n_other):
        series = _series(source, files, n_other, options)
        picture = _picture(series)
        if picture is not None:
            stored = _read_picture(picture, series, options, _where(source))
        else:
            stored = _read_volume(series, options, _where(source))
    if isinstance(source, str | Path) and is_zip(Path(source)):
        # What was unpacked is gone: an answer cannot refer to it.
        stored.extra["dicom"]["files"] = []
    return stored


def dicom_spacing(source: Source, options: ReadOptions = DEFAULT) -> tuple[float, ...]:
    """Voxel size in mm along I, J and K from the headers; (1, 1) for a picture without place.

    Raises:
        InputError: as `read_dicom`, pixels apart.
    """
    with dicom_files(source) as (files, n_other):
        series = _series(source, files, n_other, options)
        if _picture(series) is not None:
            return (1.0, 1.0)
        affine = stack_frames(series.frames).affine
    return tuple(float(s) for s in np.linalg.norm(affine[:3, :3], axis=0))


def list_series(source: Source, options: ReadOptions = DEFAULT) -> list[SeriesInfo]:
    """All series of a source, the largest first.

    Raises:
        InputError: if there is no image, or a file is damaged.
    """
    with dicom_files(source) as (files, n_other):
        headers, _ = read_headers(files, n_other, options.max_voxels, _where(source))
        return describe_series(group_series(headers))


def _where(source: Source) -> Path:
    """What stands for a source in messages and as the case's file."""
    return Path(source) if isinstance(source, str | Path) else Path(source[0])


def _series(source: Source, files: list[Path], n_other: int, options: ReadOptions) -> Series:
    where = _where(source)
    headers, left_out = read_headers(files, n_other, options.max_voxels, where)
    one_file = isinstance(source, str | Path) and files == [Path(source)]
    named = one_file or not isinstance(source, str | Path)
    series = choose_series(headers, options.series, where, named=named)
    notes = (*series.notes, left_out) if left_out else series.notes
    return Series(series.uid, series.headers, notes)


def _picture(series: Series) -> Header | None:
    """The file, if a series is one picture without a place."""
    first = series.headers[0]
    alone = len(series.headers) == 1 and first.frames[0].position is None
    return first if alone and first.modality not in _NEEDS_PLACE else None


def _read_picture(header: Header, series: Series, options: ReadOptions, where: Path) -> Stored:
    n, chosen = len(header.frames), options.volume
    if n > 1 and (chosen is None or chosen == "all" or not 0 <= chosen < n):
        raise _choose_refusal(header.path, n, f"{n} frames that state no place", chosen)
    frame = header.frames[chosen if isinstance(chosen, int) and n > 1 else 0]
    stored, notes = stored_frames([frame], {header.path: header})
    values = values_of(frame, stored[header.path, frame.index], header).astype(np.float32)
    planes = np.moveaxis(values, -1, 0) if values.ndim == 3 else values[None]
    return Stored(
        path=where,
        kind="raster",
        values=planes,
        affine=np.eye(4),
        header={"shape": planes.shape[1:]},
        warnings=[*series.notes, *_warnings(series), *notes],
        extra={"dicom": _meta(series, [frame])},
    )


def _read_volume(series: Series, options: ReadOptions, where: Path) -> Stored:
    headers = series.by_path()
    colour = next((h for h in series.headers if h.samples != 1), None)
    if colour is not None:
        raise InputError(
            "a volume of colour images",
            file=colour.path,
            field="SamplesPerPixel",
            found=colour.samples,
            expected="1, grey values",
            remedy="use the series these colours were computed from",
        )
    stack = stack_frames(series.frames)
    volumes = _chosen_volumes(stack, options, where)
    size = int(np.prod(stack.shape)) * len(volumes)
    if size > options.max_voxels:
        raise InputError(
            "larger than it may be", file=where, field="voxels", found=size,
            expected=f"at most {options.max_voxels}",
        )  # fmt: skip
    values, notes = _values(volumes, headers, stack.shape)
    return Stored(
        path=where,
        kind="dicom",
        values=values,
        affine=stack.affine,
        header=fresh_grid(stack.affine, stack.shape).as_meta(),
        warnings=[*series.notes, *_warnings(series), *stack.warnings, *notes],
        extra={"dicom": _meta(series, volumes[0])},
    )


def _chosen_volumes(stack: Stack, options: ReadOptions, where: Path) -> Sequence[tuple[Frame, ...]]:
    n, chosen = len(stack.volumes), options.volume
    if chosen == "all" or (n == 1 and chosen is None):
        return stack.volumes
    if chosen is not None and 0 <= chosen < n:
        return stack.volumes[chosen : chosen + 1]
    k = stack.shape[2]
    found = f"{k} positions, {n} frames at each" + (
        f", told apart by {stack.told_apart_by}" if stack.told_apart_by else ""
    )
    raise _choose_refusal(where, n, found, chosen)


def _choose_refusal(where: Path, n: int, found: str, chosen: object) -> InputError:
    asked = "" if chosen is None else f", volume {chosen} asked for"
    return InputError(
        f"{n} volumes; choose --volume k",
        file=where,
        field="ImagePositionPatient",
        found=found + asked,
        expected=f"one volume, or k from 0 to {n - 1}",
    )


def _values(
    volumes: Sequence[Sequence[Frame]],
    headers: Mapping[Path, Header],
    shape: tuple[int, int, int],
) -> tuple[NDArray[np.float32], list[str]]:
    """(V, I, J, K): slices scaled one by one in float64, then stacked (F56)."""
    columns, rows, k = shape
    stored, notes = stored_frames([frame for volume in volumes for frame in volume], headers)
    result = np.empty((len(volumes), k, rows, columns), np.float32)
    outside = np.zeros(result.shape, np.bool_)
    for v, volume in enumerate(volumes):
        for z, frame in enumerate(volume):
            numbers, header = stored.pop((frame.path, frame.index)), headers[frame.path]
            result[v, z] = values_of(frame, numbers, header)
            padding = is_padding(numbers, header)
            if padding is not None:
                outside[v, z] = padding
    if outside.any() and not outside.all():
        lowest = result[~outside].min()
        result[outside] = lowest
        notes.append(f"{int(outside.sum())} padding voxels were set to {lowest:g}")
    return result.transpose(0, 3, 2, 1), notes


def _warnings(series: Series) -> list[str]:
    """Each sentence once, with the number of files it holds for."""
    counts: dict[str, int] = {}
    for header in series.headers:
        for sentence in header.warnings:
            counts[sentence] = counts.get(sentence, 0) + 1
        if header.photometric == "MONOCHROME1":
            turned = "was turned so that more is brighter" if inverts(header) else (
                "was not turned: its values have units")  # fmt: skip
            counts[f"MONOCHROME1 {turned}"] = counts.get(f"MONOCHROME1 {turned}", 0) + 1
    return [f"{text} ({n} files)" if n > 1 else text for text, n in counts.items()]


def _meta(series: Series, frames: Sequence[Frame]) -> dict[str, Any]:
    """What a writer of DICOM needs to refer to the scan; no name, no date.

    ``files`` has one entry per slice in the order of k, or each multi-frame file once; it is
    empty for an archive. ``frame_numbers`` counts from 1, as DICOM does.
    """
    paths = [str(frame.path) for frame in frames]
    single = all(len(header.frames) == 1 for header in series.headers)
    first = series.headers[0]
    return {
        "files": paths if single else list(dict.fromkeys(paths)),
        "frame_numbers": [frame.index + 1 for frame in frames],
        "frame_of_reference": first.frame_of_reference,
        "series": series.uid,
        "modality": first.modality,
    }
