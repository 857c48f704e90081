"""Archives that misbehave on demand, on the loopback interface, inside the tests' own process."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pydicom
from pydicom.dataset import Dataset
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind as Find,
)
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelGet as Get,
)
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelMove as Move,
)

from tests.pacs.orthanc import free_port

BOUNDARY = "a-boundary"
# What a server may say in words; none of it may be repeated.
GOSSIP = "CANARY^Gossip of the server"


def _series_of(file: Path) -> str | None:
    try:
        return str(pydicom.dcmread(file, stop_before_pixels=True).SeriesInstanceUID)
    except pydicom.errors.InvalidDicomError:
        return None


@dataclass
class Web:
    """A DICOMweb server; its fields say what it holds and how it errs.

    Args:
        files: Instances of one study.
        status: HTTP status of every answer.
        location: For a redirect.
        password: ``Authorization`` header it wants.
        cut: Bytes left out at the end of what WADO sends.
        lost: Instances that WADO leaves out.
        padding: Bytes that WADO sends before the first part.
        pause_s: Between pieces of 4 KiB.
        stow: Status and JSON of the answer to STOW; None confirms.
        extra: Further rows for QIDO's list of series.
        page: Most rows of an answer; 0 for a server that knows no pages.
        seen: Headers of the requests that came.
        stored: Bodies of STOW.
    """

    files: list[Path] = field(default_factory=list)
    status: int = 200
    location: str = ""
    password: str = ""
    cut: int = 0
    lost: int = 0
    padding: int = 0
    pause_s: float = 0.0
    stow: tuple[int, Any] | None = None
    extra: list[dict[str, Any]] = field(default_factory=list)
    page: int = 1000
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    stored: list[bytes] = field(default_factory=list)
    url: str = ""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, str, bytes]:
        """Status, content type and body."""
        parts = urlsplit(path)
        if self.status != 200:
            return self.status, "text/plain", GOSSIP.encode()
        if method == "POST":
            return self._store(body)
        if parts.path.endswith(("/series", "/instances")):
            rows = self._series() if parts.path.endswith("/series") else self._instances(parts.path)
            if self.page:
                offset = int(parse_qs(parts.query)["offset"][0])
                rows = rows[offset : offset + self.page]
            return 200, "application/dicom+json", json.dumps(rows).encode()
        content = b" " * self.padding
        for file in self._files_of(parts.path)[self.lost :]:
            content += f"\r\n--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
            content += file.read_bytes()
        content += f"\r\n--{BOUNDARY}--".encode()
        kind = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
        return 200, kind, content[: len(content) - self.cut]

    def _files_of(self, path: str) -> list[Path]:
        """Files of a series, and those that are no DICOM."""
        return [file for file in self.files if _series_of(file) in (None, path.split("/")[-1])]

    def _headers(self) -> list[Dataset]:
        return [pydicom.dcmread(file, stop_before_pixels=True) for file in self.files]

    def _series(self) -> list[dict[str, Any]]:
        uids = dict.fromkeys((str(d.SeriesInstanceUID), str(d.Modality)) for d in self._headers())
        return [row(**{"0020000E": u, "00080060": m}) for u, m in uids] + self.extra

    def _instances(self, path: str) -> list[dict[str, Any]]:
        of = [d for d in self._headers() if f"/{d.SeriesInstanceUID}/" in path]
        rows = [row(**{"00080018": d.SOPInstanceUID, "00080016": d.SOPClassUID}) for d in of]
        named = [r for r in self.extra if f"/{r['0020000E']['Value'][0]}/" in path]
        return rows + [row(**{"00080018": "2.25.1", "00080016": r["class"]}) for r in named]

    def _store(self, body: bytes) -> tuple[int, str, bytes]:
        self.stored.append(body)
        kind = "application/dicom+json"
        if self.stow is not None:
            return self.stow[0], kind, json.dumps(self.stow[1]).encode()
        start = body.index(b"\r\n\r\n") + 4
        sent = pydicom.dcmread(
            pydicom.filebase.DicomBytesIO(body[start:]), specific_tags=["SOPInstanceUID"]
        )
        item = row(**{"00081155": sent.SOPInstanceUID})
        answer = {"00081199": {"vr": "SQ", "Value": [item]}}
        return 200, kind, json.dumps(answer).encode()


def row(**values: object) -> dict[str, Any]:
    """One answer in DICOM JSON."""
    told = {tag: {"vr": "UI", "Value": [str(value)]} for tag, value in values.items()}
    return {**told, "00100010": {"vr": "PN", "Value": [{"Alphabetic": GOSSIP}]}}


@contextlib.contextmanager
def web(fake: Web, context: Any = None) -> Iterator[Web]:
    """Serve it; ``fake.url`` says where."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            """Nothing."""

        def do_GET(self) -> None:
            self._do()

        def do_POST(self) -> None:
            self._do()

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            whole = b""
            while size := int(self.rfile.readline(), 16):
                whole += self.rfile.read(size)
                self.rfile.readline()
            return whole

        def _do(self) -> None:
            fake.seen.append((self.path, dict(self.headers)))
            status, kind, content = fake.answer(self.command, self.path, self._body())
            if fake.password and self.headers.get("Authorization") != fake.password:
                status, kind, content = 401, "text/plain", GOSSIP.encode()
            self.send_response(status)
            if fake.location:
                self.send_header("Location", fake.location)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with contextlib.suppress(OSError):
                for start in range(0, len(content), 4096):
                    self.wfile.write(content[start : start + 4096])
                    time.sleep(fake.pause_s)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    fake.url = f"http{'s' if context else ''}://127.0.0.1:{server.server_port}/dicom-web"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()


@dataclass
class Node:
    """A DICOM node; its fields say what it holds and how it errs.

    Args:
        files: Instances of one study.
        find: Status of C-FIND instead of answers.
        lost: Instances that it does not send.
        stranger: A file that was not asked for, sent first.
        store: Status of C-STORE.
        takes: Storage classes it accepts; all by default.
        title: Its AE title.
        knows: AE titles it talks to; empty for all.
        move: Where C-MOVE sends; None for a destination it does not know.
        tls: Context and host name of its own connections, for C-MOVE.
        before_move: Called before it connects for a C-MOVE.
    """

    files: list[Path] = field(default_factory=list)
    find: int | None = None
    lost: int = 0
    stranger: Path | None = None
    store: int = 0
    takes: list[str] | None = None
    title: str = "ARCHIVE"
    knows: list[str] = field(default_factory=list)
    move: tuple[str, int] | None = None
    tls: tuple[Any, str] | None = None
    before_move: Callable[[], None] = lambda: None
    stored: list[Dataset] = field(default_factory=list)
    url: str = ""

    def on_find(self, event: Any) -> Iterator[tuple[int, Dataset | None]]:
        """C-FIND."""
        asked = event.identifier
        if self.find is not None:
            status = Dataset()
            status.Status, status.ErrorComment = self.find, GOSSIP
            yield status, None
            return
        given = [pydicom.dcmread(file, stop_before_pixels=True) for file in self.files]
        given = [d for d in given if d.StudyInstanceUID == asked.StudyInstanceUID]
        if asked.QueryRetrieveLevel == "IMAGE":
            given = [d for d in given if d.SeriesInstanceUID == asked.SeriesInstanceUID]
        else:
            given = list({d.SeriesInstanceUID: d for d in given}.values())
        for dataset in given:
            found = Dataset()
            for element in asked:
                setattr(
                    found, element.keyword, dataset.get(element.keyword, asked.get(element.keyword))
                )
            found.PatientName = GOSSIP
            yield 0xFF00, found

    def _sent(self) -> list[Dataset]:
        files = [*([self.stranger] if self.stranger else []), *self.files[self.lost :]]
        return [pydicom.dcmread(file) for file in files]

    def on_get(self, event: Any) -> Iterator[Any]:
        """C-GET."""
        sent = self._sent()
        yield len(sent)
        for dataset in sent:
            yield 0xFF00, dataset

    def on_move(self, event: Any) -> Iterator[Any]:
        """C-MOVE."""
        if self.move is None:
            yield None, None
            return
        self.before_move()
        more = {"contexts": AllStoragePresentationContexts[:100], "tls_args": self.tls}
        yield (*self.move, more if self.tls else {"contexts": more["contexts"]})
        yield from self.on_get(event)

    def on_store(self, event: Any) -> int:
        """C-STORE."""
        self.stored.append(event.dataset)
        return self.store


@contextlib.contextmanager
def node(fake: Node, tls: Any = None) -> Iterator[Node]:
    """Serve it, over TLS if a context is given; ``fake.url`` says where."""
    entity = AE(fake.title)
    entity.require_called_aet = True
    entity.require_calling_aet = fake.knows
    for model in (Find, Get, Move):
        entity.add_supported_context(model)
    for context in AllStoragePresentationContexts:
        if fake.takes is None or context.abstract_syntax in fake.takes:
            entity.add_supported_context(context.abstract_syntax, scu_role=True, scp_role=True)
    port = free_port()
    handlers = [
        (evt.EVT_C_FIND, fake.on_find), (evt.EVT_C_GET, fake.on_get),
        (evt.EVT_C_MOVE, fake.on_move), (evt.EVT_C_STORE, fake.on_store),
    ]  # fmt: skip
    server = entity.start_server(
        ("127.0.0.1", port), block=False, evt_handlers=handlers, ssl_context=tls
    )
    fake.url = f"dicom{'s' if tls else ''}://{fake.title}@127.0.0.1:{port}"
    try:
        yield fake
    finally:
        server.shutdown()
