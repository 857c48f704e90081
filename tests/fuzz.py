"""Feed the readers damaged files: what is not accepted must be refused in one line.

    python -m tests.fuzz [--inputs 100000] [--only nifti] [--seed 0]

Real small files are mutated byte by byte, cut, spliced, and field by field; each input is a
function of (reader, seed, number), so that any of them can be made again with `--at`. Inputs are
read in a child process whose memory is limited; an input that raises anything but the refusal,
kills the child, or computes longer than ten seconds counts as uncaught.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io as streams
import json
import logging
import os
import random
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import psutil
import pydicom
import yaml

from medseg_diff import io
from medseg_diff.batch.manifest import Manifest
from medseg_diff.config import load_config
from medseg_diff.data.caselist import load_caselist
from medseg_diff.errors import InputError
from tests.io.dicoms import DATA, enhanced, plane
from tests.phantoms import NiftiFile, grid_affine, make_phantom
from tests.tiny import KEYS

# Share of the inputs that each reader gets; NIfTI is the fastest and the most used.
SHARES = {"nifti": 0.6, "dicom": 0.1, "config": 0.1, "caselist": 0.1, "manifest": 0.1}
SECONDS, ROOM = 10, 2**30
SHAPE = (7, 6, 5)
ODD_NUMBERS = (0, 1, -1, 2, 127, 128, 255, 32767, -32768, 65535, 2**31 - 1, -(2**31), 2**40)
ODD_REALS = (0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), float("-inf"), 3.5)
ODD_WORDS = (
    *("null", "[]", "{}", "-1", "0", "1e400", ".nan", ".inf", "true", "''", "'../../x'", "~"),
    *("2001-99-99", "&a [*a]", "*a", "!!python/object/apply:os.getcwd []", "0b_", "0x", "1:99:99"),
    *("'\\0'", '"\\ud800"', "9" * 5000, "[" * 3000, "{a: " * 500, "? {}", "<<: 1", "=", "%", "\t"),
)


class Reader(NamedTuple):
    """A reader, what to name its input, and how inputs are made."""

    suffix: str
    make: Callable[[random.Random], bytes]
    read: Callable[[Path], object]


def mutated(raw: bytes, rng: random.Random, *, head: int | None = None) -> bytes:
    """One to four random changes of bytes, in the first ``head`` of them or anywhere."""
    data = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        end = min(len(data), head or len(data))
        if end < 2:
            break
        at, kind = rng.randrange(end), rng.randrange(6)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            del data[at : at + rng.choice((1, 2, 4, 64))]
        elif kind == 3:
            data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 64)))
        elif kind == 4:
            data[at : at + 4] = rng.choice(ODD_NUMBERS).to_bytes(8, "little", signed=True)[:4]
        else:
            del data[rng.randrange(len(data)) :]
    return bytes(data)


def make_nifti(rng: random.Random) -> bytes:
    """A small scan with damaged header fields, or bytes, packed or not."""
    phantom = make_phantom(grid_affine("LPS", shape=SHAPE), SHAPE)
    kind = rng.choice((np.uint8, np.int16, np.float32, np.float64))
    version = rng.choice((1, 1, 2))
    file = NiftiFile(phantom.image.astype(kind), phantom.affine, version=version)
    file.endian = rng.choice("<<>")
    names = (nib.Nifti1Header if version == 1 else nib.Nifti2Header)().structarr.dtype
    raw = bytearray(file.tobytes())
    if rng.random() < 0.6:
        for _ in range(rng.randint(1, 3)):
            name = rng.choice(names.names)
            place, (field, at) = names[name], names.fields[name][:2]
            size = place.base.itemsize
            at += size * rng.randrange(max(1, place.itemsize // size))
            value = rng.choice(ODD_REALS if field.base.kind == "f" else ODD_NUMBERS)
            number = np.dtype(place.base.newbyteorder(file.endian))
            with np.errstate(all="ignore"):
                if number.kind in "iuf":
                    wide = np.asarray(value).astype(number.newbyteorder("="))
                    raw[at : at + size] = wide.astype(number).tobytes()
                else:
                    raw[at : at + size] = rng.randbytes(size)
    head = rng.choice((352, 352, None))
    result = mutated(bytes(raw), rng, head=head) if rng.random() < 0.6 else bytes(raw)
    if rng.random() < 0.3:
        packed = gzip.compress(result, 1)
        return mutated(packed, rng) if rng.random() < 0.5 else packed
    return result


def make_dicom(rng: random.Random) -> bytes:
    """An enhanced multi-frame file or a picture, with damaged elements or bytes."""
    affine = grid_affine("LPS", (3.0, 3.2, 3.6), (15, 13, 11))
    small = DATA[:6, :5, :4]
    dataset = enhanced(affine, small) if rng.random() < 0.7 else plane(small[..., 0], affine, 0)
    if rng.random() < 0.5:
        owner = dataset
        for _ in range(rng.randint(0, 3)):
            inner = [e.value for e in owner if e.VR == "SQ" and len(e.value)]
            if inner and rng.random() < 0.7:
                owner = rng.choice(rng.choice(inner))
        element = rng.choice(list(owner))
        with contextlib.suppress(Exception), pydicom.config.disable_value_validation():
            odd = rng.choice((*ODD_NUMBERS, *ODD_REALS, "", "x", None, [], ["1", "2"], b"\xff"))
            if rng.random() < 0.3:
                del owner[element.tag]
            else:
                element.value = odd
    stream = streams.BytesIO()
    try:
        with pydicom.config.disable_value_validation():
            dataset.save_as(stream, enforce_file_format=True)
        raw = stream.getvalue()
    except Exception:  # pydicom refuses to write what the change made of it: cut it instead
        raw = stream.getvalue() or b"\0" * 128 + b"DICM"
    return mutated(raw, rng) if rng.random() < 0.6 else raw


def make_text(text: str, rng: random.Random) -> bytes:
    """Lines dropped, doubled, moved in, or with an odd value; or bytes changed."""
    lines = text.split("\n")
    for _ in range(rng.randint(1, 4)):
        at, kind = rng.randrange(len(lines)), rng.randrange(5)
        if kind == 0 and len(lines) > 1:
            del lines[at]
        elif kind == 1:
            lines.insert(at, rng.choice(lines))
        elif kind == 2:
            lines[at] = "  " * rng.randint(0, 3) + lines[at].lstrip()
        elif ":" in lines[at]:
            key, comma = lines[at].split(":", 1)[0], "," * lines[at].endswith(",")
            lines[at] = f"{key}: {rng.choice(ODD_WORDS)}{comma}"
        else:
            lines[at] = rng.choice(ODD_WORDS)
    raw = "\n".join(lines).encode()
    return mutated(raw, rng) if rng.random() < 0.4 else raw


CONFIG = yaml.safe_dump(KEYS, sort_keys=False)
CASES = json.dumps(
    {
        "name": "x",
        "licence": "CC0",
        "modality": "MR",
        "channels": ["T1"],
        "labels": {"background": 0, "a": 1, "b": 2},
        "regions": {"whole": [1, 2], "b": [2]},
        "ignore_label": None,
        "cases": [
            {
                "case": "c",
                "patient": "p",
                "part": "train",
                "channels": {"T1": "cases.json"},
                "references": ["cases.json"],
                "sha256": {"cases.json": "0" * 64},
            }
        ],
    },
    indent=1,
)


def make_manifest(rng: random.Random) -> bytes:
    """A manifest of two cases with odd values in it, or with damaged bytes."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = Manifest(Path(folder))
        manifest.enroll(["a", "b"], afresh=True)
        manifest.claim("a")
        if rng.random() < 0.5:
            column = rng.choice(("status", "owner", "claimed", "made_from", "record_sha256"))
            odd = rng.choice((None, "", "x", "a|b", "a|b|c", "|1|1", b"\xff", 1e308, -1, "||"))
            with contextlib.suppress(Exception):
                manifest._base.execute(f"UPDATE cases SET {column} = ?", (odd,))
        manifest.close()
        raw = (Path(folder) / "manifest.sqlite").read_bytes()
    return raw if rng.random() < 0.4 else mutated(raw, rng)


def read_manifest(path: Path) -> None:
    """Take part in a batch."""
    manifest = Manifest(path.parent)
    try:
        manifest.enroll(["a", "b", "c"], afresh=False)
        if manifest.claim("a"):
            manifest.finish("a", "x", "y", None)
    finally:
        manifest.close()


READERS = {
    "nifti": Reader("x.nii", make_nifti, io.read_image),
    "dicom": Reader("x.dcm", make_dicom, io.read_image),
    "config": Reader("x.yaml", lambda rng: make_text(CONFIG, rng), load_config),
    "caselist": Reader("cases.json", lambda rng: make_text(CASES, rng), load_caselist),
    "manifest": Reader("manifest.sqlite", make_manifest, read_manifest),
}


class _TooLong(BaseException):
    """An input took longer than it may."""


def outcome(name: str, number: int, seed: int, folder: Path) -> str:
    """``"accepted"``, ``"refused"``, or the class and place of what was not caught."""
    reader = READERS[name]
    path = folder / reader.suffix
    path.write_bytes(reader.make(random.Random(f"{name} {seed} {number}")))

    def alarm(*_: object) -> None:
        raise _TooLong

    # Of its own computing time: a busy machine is no fault of the reader.
    signal.signal(signal.SIGPROF, alarm)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        reader.read(path)
    except InputError as error:
        return "refused" if "\n" not in str(error) else "several lines"
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        ours = [f for f in traceback.extract_tb(error.__traceback__) if "medseg_diff" in f.filename]
        where = ours[-1] if ours else place
        return f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}: {error}"[
            :160
        ]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return "accepted"


def outcomes(name: str, numbers: range, seed: int) -> Iterator[tuple[int, str]]:
    """Outcomes in children of limited memory; a child that dies costs one input."""
    at = numbers.start
    while at < numbers.stop:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            limit = psutil.Process().memory_info().vms + ROOM
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            with tempfile.TemporaryDirectory() as folder:
                for number in range(at, numbers.stop):
                    found = " ".join(outcome(name, number, seed, Path(folder)).split())
                    line = f"{number} {found}\n".encode("utf-8", "replace")
                    os.write(writing, line)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, errors="replace") as stream:
            for line in stream:
                number, found = line.rstrip("\n").split(" ", 1)
                yield int(number), found
                at = int(number) + 1
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code != 0:
            yield at, f"the reader died: exit code {code}"
            at += 1


def run(name: str, numbers: range, seed: int) -> Counter[str]:
    """Counts of a reader's outcomes; names the first input of each kind that was not caught."""
    counts: Counter[str] = Counter()
    for number, found in outcomes(name, numbers, seed):
        kind = found if found in ("accepted", "refused") else "uncaught"
        counts[kind] += 1
        key = found.split(":")[0] + found.split(":")[1].split(" ")[0] if ":" in found else found
        if kind == "uncaught" and not counts[key]:
            print(f"{name} --at {number}: {found}", flush=True)
        if kind == "uncaught":
            counts[key] += 1
    return counts


def main() -> int:
    """Print a table of outcomes; 1 if anything was not caught."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--only", choices=list(READERS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at", type=int, help="one input alone, with its traceback")
    given = parser.parse_args()
    if given.at is not None:
        reader = READERS[given.only]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / reader.suffix
            rng = random.Random(f"{given.only} {given.seed} {given.at}")
            path.write_bytes(reader.make(rng))
            reader.read(path)
        return 0
    total: Counter[str] = Counter()
    print("| reader | inputs | accepted | refused | uncaught |\n|---|---:|---:|---:|---:|")
    for name in READERS if given.only is None else [given.only]:
        share = SHARES[name] if given.only is None else 1
        found = run(name, range(round(given.inputs * share)), given.seed)
        shown = [found[kind] for kind in ("accepted", "refused", "uncaught")]
        total.update(found)
        print(f"| {name} | {sum(shown)} | {' | '.join(map(str, shown))} |", flush=True)
    shown = [total[kind] for kind in ("accepted", "refused", "uncaught")]
    print(f"| all | {sum(shown)} | {' | '.join(map(str, shown))} |")
    return int(total["uncaught"] > 0)


if __name__ == "__main__":
    sys.exit(main())
