"""DIMSE over TLS against a node with a certificate made for the test."""

from __future__ import annotations

import gc
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from medseg_diff.errors import UsageError
from medseg_diff.pacs import (
    Archive,
    Certificates,
    Limits,
    Own,
    choose_series,
    open_archive,
    parse_address,
)
from medseg_diff.pacs.tls import Listening
from tests.io.dicoms import AXIAL, DATA, planes, save
from tests.pacs.fakes import Node, node
from tests.pacs.orthanc import free_port
from tests.pacs.test_dicomweb import refused

STUDY = "2.25.5"
pytestmark = [
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed"),
    # pynetdicom does not close a socket whose peer is gone before it hangs up.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]


@pytest.fixture(autouse=True)
def no_sockets_left() -> Iterator[None]:
    """They go here, and not in the midst of another file's test."""
    yield
    gc.collect()


def certificate(folder: Path, name: str, host: str = "IP:127.0.0.1", *more: str) -> Path:
    """A self-signed certificate and its key in one PEM file."""
    key, pem = folder / f"{name}.key", folder / f"{name}.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-days", "1", "-subj", f"/CN={name}",
         "-addext", f"subjectAltName={host}", "-keyout", key, "-out", pem, *(more or ["-nodes"])],
        check=True, capture_output=True,
    )  # fmt: skip
    pem.write_text(key.read_text() + pem.read_text())
    return pem


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pems")
    found = {name: certificate(folder, name) for name in ("node", "own")}
    found["elsewhere"] = certificate(folder, "elsewhere", "DNS:pacs.example")
    found["locked"] = certificate(folder, "locked", "IP:127.0.0.1", "-passout", "pass:CANARY")
    return found


def serving(pem: Path, wants: Path | None = None) -> ssl.SSLContext:
    """A node's context; ``wants`` is the client's certificate that it asks for."""
    context = Listening(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    if wants is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(wants)
    return context


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return sorted(save(planes(AXIAL, DATA), tmp_path / "source").iterdir())


@pytest.fixture
def server(files: list[Path], pems: dict[str, Path]) -> Iterator[Node]:
    with node(Node(files), serving(pems["node"])) as running:
        yield running


def archive(
    url: str, authority: Path | None, own: Path | None = None, move: int | None = None
) -> Archive:
    presented = Own("TESTS", move, Certificates(authority, own))
    return open_archive(parse_address(url), own=presented, limits=Limits(timeout_s=5))


def fetch(one: Archive, folder: Path) -> int:
    folder.mkdir()
    one.fetch(choose_series(one.series(STUDY), None), folder)
    return len(list(folder.iterdir()))


def test_a_series_comes_and_an_answer_goes(server: Node, files, pems, tmp_path: Path) -> None:
    one = archive(server.url, pems["node"])
    assert fetch(one, tmp_path / "in") == len(files)
    one.store(files[:1])
    assert len(server.stored) == 1


def test_a_node_that_asks_for_our_certificate(files, pems, tmp_path: Path) -> None:
    with node(Node(files), serving(pems["node"], wants=pems["own"])) as strict:
        assert fetch(archive(strict.url, pems["node"], pems["own"]), tmp_path / "in") == len(files)
        refused(lambda: archive(strict.url, pems["node"]).series(STUDY), "cannot be reached")


def test_a_certificate_nobody_vouches_for_is_refused(server: Node, pems) -> None:
    for authority in (None, pems["own"]):
        line = refused(
            lambda authority=authority: archive(server.url, authority).series(STUDY),
            "its certificate is not trusted",
        )
        assert "127.0.0.1" in line


def test_a_certificate_of_another_host_is_refused(files, pems) -> None:
    with node(Node(files), serving(pems["elsewhere"])) as other:
        refused(
            lambda: archive(other.url, pems["elsewhere"]).series(STUDY),
            "its certificate is not trusted",
            "127.0.0.1",
        )


def test_plain_and_tls_do_not_meet(server: Node, files, pems) -> None:
    """A node without TLS is no node for dicoms://, and the other way round."""
    with node(Node(files)) as plain:
        secure = plain.url.replace("dicom:", "dicoms:")
        refused(lambda: archive(secure, pems["node"]).series(STUDY), "no TLS connection")
    bare = server.url.replace("dicoms:", "dicom:")
    refused(lambda: archive(bare, None).series(STUDY), "cannot be reached")


def test_a_move_comes_back_over_tls(files, pems, tmp_path: Path) -> None:
    """Both sides show their certificates; a node that shows none delivers nothing."""
    back = ssl.create_default_context(cafile=str(pems["own"]))
    port = free_port()
    moving = Node(files, move=("127.0.0.1", port), tls=(back, "127.0.0.1"))
    with node(moving, serving(pems["node"])) as running:
        one = archive(running.url, pems["node"], pems["own"], port)
        refused(lambda: fetch(one, tmp_path / "anonymous"), "0xA801")
        back.load_cert_chain(pems["node"])
        assert fetch(one, tmp_path / "in") == len(files)
        running.tls = None
        refused(lambda: fetch(one, tmp_path / "open"), "0xA801")
    assert not [*(tmp_path / "anonymous").iterdir(), *(tmp_path / "open").iterdir()]


def test_a_caller_that_says_nothing_does_not_hold_up_the_node(files, pems, tmp_path: Path) -> None:
    """Nor the end of the listening."""
    back = ssl.create_default_context(cafile=str(pems["own"]))
    back.load_cert_chain(pems["node"])
    port = free_port()
    moving = Node(files, move=("127.0.0.1", port), tls=(back, "127.0.0.1"))
    with (
        socket.socket() as silent,
        node(moving, serving(pems["node"])) as running,
    ):
        moving.before_move = lambda: silent.connect(("127.0.0.1", port))
        one = archive(running.url, pems["node"], pems["own"], port)
        # It hangs up in the end, so that a node that waits for it ends this test, too.
        hangs_up = threading.Timer(30, silent.close)
        hangs_up.start()
        began = time.monotonic()
        assert fetch(one, tmp_path / "in") == len(files)
        assert time.monotonic() - began < 25
        hangs_up.cancel()


def test_certificates_that_are_none(pems, tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("no certificate")
    url, gone = "dicoms://ARCHIVE@127.0.0.1:2762", tmp_path / "gone.pem"
    for given, words in (
        ((gone, None), ("gone.pem", "--pacs-ca", "no such file")),
        ((tmp_path / "no.pem", None), ("no.pem", "--pacs-ca")),
        ((pems["node"], tmp_path / "no.pem"), ("no.pem", "--pacs-cert")),
        ((pems["node"], pems["locked"]), ("locked.pem", "without password")),
        ((pems["node"], None, 11112), ("--move-port", "--pacs-cert")),
    ):
        refused(lambda given=given: archive(url, *given), *words, kind=UsageError)
    for other in ("dicom://ARCHIVE@127.0.0.1:104", "https://127.0.0.1/dicom-web"):
        refused(
            lambda other=other: archive(other, pems["node"]), "dicoms:// alone", kind=UsageError
        )
