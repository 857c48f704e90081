"""Stored numbers of frames, and the values they mean.

Plain little-endian pixels are copied here. All other syntaxes are decoded in a child process with
limits on memory, time and output: codecs are old C code, and a broken fragment that makes one read
out of bounds must not take the caller with it (F61).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg_diff.errors import InputError
from medseg_diff.io.dicom.dataset import open_dataset
from medseg_diff.io.dicom.headers import Frame, Header
from medseg_diff.io.dicom.syntaxes import decoder_for, package_for, syntax_name

# What the child needs before it has decoded anything, and per byte of the largest file's pixels.
CHILD_BYTES, CHILD_RATIO = 2 << 30, 8
CHILD_SECONDS, CHILD_BYTES_PER_SECOND = 60.0, 2 << 20
# The signal of the kernel when memory ends; no name of it on Windows.
KILLED = 9
# Scaled values of these have units of their own, which turning black into white would destroy.
_QUANTITATIVE = ("CT", "PT")
Pixels = NDArray[Any]


def stored_frames(
    frames: Sequence[Frame], headers: Mapping[Path, Header]
) -> tuple[dict[tuple[Path, int], Pixels], list[str]]:
    """Stored numbers of frames, (rows, columns) or (rows, columns, 3), and warnings.

    Raises:
        InputError: if there is no decoder, pixels are missing, or decoding fails.
    """
    by_file: dict[Path, list[int]] = {}
    for frame in frames:
        by_file.setdefault(frame.path, []).append(frame.index)
    found: dict[tuple[Path, int], Pixels] = {}
    apart: dict[Path, list[int]] = {}
    longer = 0
    for path, indices in by_file.items():
        how = decoder_for(headers[path].syntax)
        if how is None:
            _refuse_syntax(headers[path])
        if how != "plain":
            apart[path] = indices
            continue
        planes, rest = _plain(headers[path], indices)
        longer += rest > 0
        found |= {(path, i): plane for i, plane in zip(indices, planes, strict=True)}
    if apart:
        found |= decode_apart(apart, headers)
    notes = [f"{longer} files hold more pixel data than they state; the rest was ignored"]
    return found, notes if longer else []


def values_of(frame: Frame, stored: Pixels, header: Header) -> NDArray[np.float64]:
    """Values of one frame (rows, columns[, 3]) from its stored numbers.

    MONOCHROME1 is turned so that more is brighter, except where values have units.
    """
    numbers = stored
    if inverts(header):
        low = -(2 ** (header.bits_stored - 1)) if header.signed else 0
        numbers = (2 * low + 2**header.bits_stored - 1) - stored.astype(np.int64)
    values = numbers.astype(np.float64)
    values *= frame.slope
    values += frame.intercept
    return values


def inverts(header: Header) -> bool:
    """Whether black and white are turned round."""
    return header.photometric == "MONOCHROME1" and header.modality not in _QUANTITATIVE


def is_padding(stored: Pixels, header: Header) -> NDArray[np.bool_] | None:
    """Where a CT's stored numbers mean that nothing was measured; None where it does not say.

    Of other modalities the padding often is a value that tissue has too (0 in MR).
    """
    if header.padding is None or header.modality != "CT":
        return None
    low, high = header.padding
    return np.asarray((stored >= low) & (stored <= high))


def decode_apart(
    files: Mapping[Path, Sequence[int]], headers: Mapping[Path, Header]
) -> dict[tuple[Path, int], Pixels]:
    """Decode frames of files in one child process.

    Raises:
        InputError: if it crashes, takes too long or too much memory, or a file is damaged.
    """
    with tempfile.TemporaryDirectory(prefix="medseg_diff_") as folder:
        scratch = Path(folder)
        jobs = [_job(headers[path], indices, scratch) for path, indices in files.items()]
        sizes = [len(j["frames"]) * _frame_bytes(j) for j in jobs]
        largest = max(_frame_bytes(j) * len(headers[Path(j["path"])].frames) for j in jobs)
        work = {
            "memory": CHILD_BYTES + CHILD_RATIO * largest,
            "out": str(scratch / "frames"),
            "out_bytes": sum(sizes) + (1 << 20),
            "jobs": jobs,
        }
        _run(work, CHILD_SECONDS + sum(sizes) / CHILD_BYTES_PER_SECOND)
        data = (scratch / "frames").read_bytes()
    found = {}
    at = 0
    for job, size in zip(jobs, sizes, strict=True):
        shape = (len(job["frames"]), *job["shape"])
        block = np.frombuffer(data, job["dtype"], count=size // np.dtype(job["dtype"]).itemsize,
                              offset=at).reshape(shape)  # fmt: skip
        path, at = Path(job["path"]), at + size
        for index, plane in zip(job["frames"], block, strict=True):
            found[path, index] = _significant(plane, headers[path])
    return found


def _job(header: Header, indices: Iterable[int], scratch: Path) -> dict[str, Any]:
    colour = [3] if header.samples == 3 else []
    return {
        "path": str(header.path),
        "frames": list(indices),
        "how": decoder_for(header.syntax),
        "shape": [header.rows, header.columns, *colour],
        "dtype": _dtype(header).str,
        "scratch": str(scratch),
    }


def _frame_bytes(job: Mapping[str, Any]) -> int:
    return int(np.prod(job["shape"])) * np.dtype(job["dtype"]).itemsize


def _run(work: Mapping[str, Any], seconds: float) -> None:
    """Run the child; whatever becomes of it, the file it was at is named."""
    script = Path(__file__).with_name("decoder_child.py")
    quiet = {"PYTHONWARNINGS": "ignore", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    # -P keeps the script's folder, whose modules it must not find, off the path.
    command = [sys.executable, "-P", str(script)]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(work).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=seconds,
            check=False,
            env={**os.environ, **quiet},
        )
        code, said = done.returncode, done.stdout
    except subprocess.TimeoutExpired as late:
        code, said = None, late.stdout or b""
    if code == 0:
        return
    words = said.decode("ascii", "replace").split()
    numbers = [int(word) for word in words if word.isdigit()]
    job = work["jobs"][numbers[-1] if numbers else 0]
    name = words[-1][:40] if words and not words[-1].isdigit() else None
    if code is None:
        problem = f"decoding its pixels took longer than {seconds:.0f} s"
    elif name == "MemoryError":
        problem = "decoding its pixels needs more memory than it may"
    elif name is not None:
        problem = f"compressed pixels are damaged ({name})"
    elif code == -KILLED:
        problem = "its decoder was killed by the operating system, probably memory"
    else:
        problem = "compressed pixels crash their decoder"
    raise InputError(
        problem, file=job["path"], field="PixelData", remedy="export it again, uncompressed"
    )


def _refuse_syntax(header: Header) -> None:
    package = package_for(header.syntax)
    raise InputError(
        "no decoder for its compression is installed",
        file=header.path,
        field="TransferSyntaxUID",
        found=syntax_name(header.syntax)[:120],
        expected=f"a syntax decoded here, or the package {package}",
        remedy=f"install it with `pip install {package}`, or export it uncompressed",
    )


def _dtype(header: Header) -> np.dtype[Any]:
    return np.dtype(f"<{'i' if header.signed else 'u'}{header.bits_allocated // 8}")


def _plain(header: Header, indices: Sequence[int]) -> tuple[list[Pixels], int]:
    """Frames of a file that stores plain numbers, and how many bytes lie behind them."""
    dtype = _dtype(header)
    size = header.rows * header.columns * header.samples
    claimed = size * dtype.itemsize * len(header.frames)
    dataset = open_dataset(header.path, ("Rows",), pixels=True)
    try:
        found: Any = dataset.get("PixelData")
    except Exception as error:  # pydicom parses an element when it is asked for
        raise InputError(
            "pixel data cannot be parsed",
            file=header.path,
            field="PixelData",
            found=type(error).__name__,
            remedy="copy or export it again",
        ) from None
    data = found if isinstance(found, bytes) else b""
    if len(data) < claimed:
        raise InputError(
            "pixel data ends early" if data else "holds no pixel data",
            file=header.path,
            field="PixelData",
            found=f"{len(data)} bytes",
            expected=f"{claimed} bytes",
            remedy="copy or export it again",
        )
    planes: list[Pixels] = []
    for index in indices:
        plane: Pixels
        flat: Pixels = np.frombuffer(data, dtype, count=size, offset=index * size * dtype.itemsize)
        if header.samples == 1:
            plane = flat.reshape(header.rows, header.columns)
        elif header.planar:
            plane = flat.reshape(3, header.rows, header.columns).transpose(1, 2, 0)
        else:
            plane = flat.reshape(header.rows, header.columns, 3)
        planes.append(_significant(plane, header))
    # One byte pads an odd length.
    return planes, max(0, len(data) - claimed - claimed % 2)


def _significant(plane: Pixels, header: Header) -> Pixels:
    """The stored bits alone: overlays may lie above them, and the sign below the top one."""
    if header.bits_stored == header.bits_allocated:
        return plane
    drop = header.bits_allocated - header.high_bit - 1
    width = header.bits_allocated - header.bits_stored
    # Up to the top of the word and back down; on signed words the way down repeats the sign.
    shifted: Pixels = np.right_shift(np.left_shift(plane, drop), width)
    return shifted
