"""DIMSE against a node that errs on demand."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from medseg_diff.pacs import (
    DicomAddress,
    Limits,
    Own,
    choose_series,
    open_archive,
    parse_address,
)
from tests.io.dicoms import AXIAL, CT, DATA, planes, save
from tests.pacs.fakes import Node, node
from tests.pacs.orthanc import free_port
from tests.pacs.test_dicomweb import refused

STUDY = "2.25.5"


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return sorted(save(planes(AXIAL, DATA), tmp_path / "source").iterdir())


@pytest.fixture
def server(files: list[Path]) -> Iterator[Node]:
    with node(Node(files)) as running:
        yield running


def archive(server: Node, move: int | None = None, **limits: float):
    return open_archive(
        parse_address(server.url), own=Own("TESTS", move), limits=Limits(**limits)
    )  # fmt: skip


def fetch(server: Node, folder: Path, move: int | None = None, **limits: float) -> list[Path]:
    one = archive(server, move, **limits)
    folder.mkdir()
    one.fetch(choose_series(one.series(STUDY), None), folder)
    return sorted(folder.iterdir())


def by_move(server: Node) -> int:
    port = free_port()
    server.move = ("127.0.0.1", port)
    return port


@pytest.mark.parametrize("way", ["get", "move"])
def test_a_series_arrives_whole_and_private(server: Node, files, tmp_path, caplog, capfd, way):
    caplog.set_level(logging.DEBUG)
    server.stranger = save(planes(AXIAL, DATA)[:1], tmp_path / "stranger") / "s000.dcm"
    found = fetch(server, tmp_path / "in", by_move(server) if way == "move" else None)
    assert {f.stat().st_mode & 0o777 for f in found} == {0o600}
    sent, came = ({pydicom.dcmread(f).SOPInstanceUID for f in some} for some in (files, found))
    assert sent == came, "and the instance that nobody asked for is left out"
    same = {d.SOPInstanceUID: d for d in map(pydicom.dcmread, files)}
    for file in found:
        dataset = pydicom.dcmread(file)
        assert dataset == same[dataset.SOPInstanceUID]
    # The fake node logs in this process, too; of ours nothing may come.
    assert "CANARY" not in caplog.text + "".join(capfd.readouterr())


def test_no_such_study(server: Node):
    refused(lambda: choose_series(archive(server).series("1.2.3"), None), "no such study")


def test_an_unreachable_node():
    gone = DicomAddress("X", "127.0.0.1", free_port())
    refused(lambda: open_archive(gone).series(STUDY), "cannot be reached", "127.0.0.1")
    nowhere = DicomAddress("X", "no-such-host.invalid", 104)
    refused(lambda: open_archive(nowhere).series(STUDY), "cannot be reached")


def test_a_refused_association_says_whose_title_is_wrong(server: Node, files):
    wrong = Node(url=server.url.replace("ARCHIVE", "OTHER"))
    refused(lambda: archive(wrong).series(STUDY), "refuses the association", "called AE title")
    with node(Node(files, knows=["FRIEND"])) as strict:
        line = refused(
            lambda: archive(strict).series(STUDY), "refuses the association", "calling AE title"
        )
        assert "--own-aet" in line


@pytest.mark.parametrize(("status", "words"), [(0xA700, "0xA700"), (0xC123, "0xC123")])
def test_a_refused_search(server: Node, status: int, words: str):
    server.find = status
    refused(lambda: archive(server).series(STUDY), "refuses the search", words)


@pytest.mark.parametrize("way", ["get", "move"])
def test_missing_instances_are_refused(server: Node, tmp_path, way: str):
    server.lost = 2
    port = by_move(server) if way == "move" else None
    refused(lambda: fetch(server, tmp_path / "in", port), "whole", "found 9", "expected 11")


@pytest.mark.parametrize("way", ["get", "move"])
def test_bytes_are_capped_within_an_instance(server: Node, files, tmp_path, way: str):
    big = pydicom.dcmread(files[0])
    big.add_new(0x00091002, "OB", bytes(8 << 20))
    big.save_as(files[0])
    port = by_move(server) if way == "move" else None
    refused(lambda: fetch(server, tmp_path / "in", port, bytes=1 << 20), "more than 1 MiB")
    assert sum(f.stat().st_size for f in (tmp_path / "in").iterdir()) < 1 << 20


def test_instances_are_capped(server: Node):
    refused(lambda: archive(server, instances=5).series(STUDY), "more than 5")


def test_a_destination_the_node_does_not_know(server: Node, tmp_path):
    refused(lambda: fetch(server, tmp_path / "in", free_port()), "0xA801", "destination unknown")


def test_a_port_in_use(server: Node, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(lambda: fetch(server, tmp_path / "in", port), "cannot listen", "--move-port")


def test_the_listener_is_closed_afterwards(server: Node, tmp_path):
    port = by_move(server)
    fetch(server, tmp_path / "in", port)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize("answer", [b"", b"\x02\x00\x00\x00\x10\x00partial"])
def test_a_node_that_falls_silent_is_given_up(answer: bytes):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            connection.recv(1 << 16)
            connection.sendall(answer)
            time.sleep(4)
            connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        silent = DicomAddress("X", "127.0.0.1", listener.getsockname()[1])
        began = time.monotonic()
        one = open_archive(silent, limits=Limits(timeout_s=0.5))
        refused(lambda: one.series(STUDY), "cannot be reached")
        assert time.monotonic() - began < 3.5
        thread.join()


def test_stored_files_arrive(server: Node, files):
    archive(server).store(files[:2])
    sent = [pydicom.dcmread(file).SOPInstanceUID for file in files[:2]]
    assert [dataset.SOPInstanceUID for dataset in server.stored] == sent


def test_a_refused_instance_is_named_with_its_status(server: Node, files):
    server.store = 0xA900
    refused(lambda: archive(server).store(files[:2]), files[0].name, "0xA900", "--store")
    server.store = 0xB000  # stored, with elements coerced
    archive(server).store(files[:2])


def test_a_node_that_takes_no_such_class(files):
    with node(Node(takes=[CT])) as strict:
        refused(lambda: archive(strict).store(files[:1]), "does not offer", "MR Image Storage")
        other = pydicom.dcmread(files[1])
        other.SOPClassUID = other.file_meta.MediaStorageSOPClassUID = CT
        other.save_as(files[1])
        line = refused(lambda: archive(strict).store(files[1::-1]), files[0].name, "takes no MR")
        assert f"stored before it: {files[1].name}" in line
