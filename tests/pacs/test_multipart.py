"""Parts come out whole however the stream was cut."""

from __future__ import annotations

import random

import pytest

from medseg_diff.errors import InputError
from medseg_diff.pacs.multipart import boundary_of, pieces

MARK = b"xx"


def body(parts: list[bytes], *, first: bytes = b"") -> bytes:
    lines = b"".join(b"\r\n--xx\r\nContent-Type: a/b\r\n\r\n" + part for part in parts)
    return (lines if first else lines[2:]) + b"\r\n--xx--\r\n"


def joined(stream: bytes, size: int) -> list[bytes]:
    chunks = [stream[i : i + size] for i in range(0, len(stream), size)]
    found: list[bytes] = []
    for number, data in pieces(chunks, MARK):
        if number == len(found):
            found.append(b"")
        found[number] += data
    return found


def test_any_content_in_any_cut():
    """Parts of bytes that look like the beginning of a boundary."""
    draw = random.Random(0)
    tokens = [b"\r", b"\n", b"--", b"x", b"\r\n--x", b"a"]
    for _ in range(500):
        parts = [b"".join(draw.choices(tokens, k=draw.randrange(12))) for _ in range(3)]
        parts = [part for part in parts if b"\r\n--xx" not in part] or [b"a"]
        size = draw.randrange(1, 64)
        assert joined(body(parts), size) == parts
        assert joined(body(parts, first=b"\r\n"), size) == parts


@pytest.mark.parametrize("cut", [1, 3, 9, 20])
def test_a_stream_that_ends_early_is_refused(cut: int):
    whole = body([b"abc", b"def" * 5]).removesuffix(b"\r\n")
    with pytest.raises(InputError, match="ends early"):
        joined(whole[:-cut], 4)


def test_a_header_without_end_is_refused():
    with pytest.raises(InputError, match="not multipart"):
        joined(b"--xx\r\n" + b"a" * (1 << 17), 4096)


@pytest.mark.parametrize(
    ("kind", "boundary"),
    [
        ('multipart/related; type="application/dicom"; boundary="a b"', b"a b"),
        ("Multipart/Related;Boundary=abc; type=x", b"abc"),
        ("application/dicom", None),
        ("text/html; boundary=x", None),
        ("multipart/related", None),
    ],
)
def test_boundary(kind: str, boundary: bytes | None):
    assert boundary_of(kind) == boundary
