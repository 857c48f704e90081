"""A multipart body (RFC 2046, 5.1.1) split while it streams: no part is ever held in memory.

dicomweb-client keeps each part whole, parses it and writes it anew; here the bytes go to the disk
as they come, and are opened by the reader that distrusts them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from medseg_diff.errors import InputError

_HEADER_LIMIT = 16 << 10


def boundary_of(content_type: str) -> bytes | None:
    """The boundary that a ``multipart/related`` content type states; None for any other type."""
    found = re.search(r';\s*boundary="?([^";]{1,70})"?', content_type, re.IGNORECASE)
    if not content_type.lower().startswith("multipart/related") or found is None:
        return None
    return found[1].strip().encode("latin-1", "replace")


def pieces(chunks: Iterable[bytes], boundary: bytes) -> Iterator[tuple[int, bytes]]:
    """Pairs of a part's number, from 0, and the next bytes of its content.

    Raises:
        InputError: if the body ends before its closing boundary, or a part's header is endless.
    """
    mark = b"\r\n--" + boundary
    # The first boundary may lack the line break before it.
    buffer, number, inside = bytearray(b"\r\n"), -1, False
    for chunk in chunks:
        buffer += chunk
        while True:
            if inside:
                at = buffer.find(mark)
                # Without a boundary in sight, its first bytes may be the last ones here.
                ready = at if at >= 0 else max(0, len(buffer) - len(mark) + 1)
                if ready:
                    yield number, bytes(buffer[:ready])
                    del buffer[:ready]
                if at < 0:
                    break
                inside = False
            start = _content_start(buffer, mark)
            if start is None:
                break
            if start < 0:
                return
            del buffer[:start]
            number, inside = number + 1, True
            yield number, b""
    raise InputError(
        "the answer ends early",
        field="--pacs",
        found=f"{number + 1} instances, the last one cut off",
        remedy="try again",
    )


def _content_start(buffer: bytearray, mark: bytes) -> int | None:
    """Where the next part's content begins; -1 after the last part, None until enough is there."""
    at = buffer.find(mark)
    if at < 0:
        # What comes before the first boundary means nothing.
        del buffer[: max(0, len(buffer) - len(mark) + 1)]
        return None
    after = at + len(mark)
    if buffer[after : after + 2] == b"--":
        return -1
    end = buffer.find(b"\r\n\r\n", after)
    if end >= 0:
        return end + 4
    if len(buffer) - after > _HEADER_LIMIT:
        raise InputError("the answer is not multipart", field="--pacs", found="an endless header")
    return None
