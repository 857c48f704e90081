"""DICOMweb against a server that errs on demand: one line each, and nothing it said in words."""

from __future__ import annotations

import logging
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from medseg_diff.errors import InputError, UsageError
from medseg_diff.pacs import Archive, Limits, choose_series, open_archive, parse_address
from tests.io.dicoms import AXIAL, CT, DATA, planes, save
from tests.pacs.fakes import BOUNDARY, Web, row, web
from tests.pacs.orthanc import free_port

STUDY = "2.25.5"
SEG = "1.2.840.10008.5.1.4.1.1.66.4"


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return sorted(save(planes(AXIAL, DATA), tmp_path / "source").iterdir())


@pytest.fixture
def server(files: list[Path]) -> Iterator[Web]:
    with web(Web(files)) as running:
        yield running


def archive(server: Web, **limits: float) -> Archive:
    return open_archive(parse_address(server.url), limits=Limits(**limits))


def fetch(server: Web, folder: Path, **limits: float) -> list[Path]:
    one = archive(server, **limits)
    folder.mkdir()
    one.fetch(choose_series(one.series(STUDY), None), folder)
    return sorted(folder.iterdir())


def refused(act, *words: str, kind: type[InputError] = InputError) -> str:
    with pytest.raises(kind) as caught:
        act()
    line = str(caught.value)
    for word in words:
        assert word in line, line
    assert "CANARY" not in line
    assert "\n" not in line
    return line


def test_a_series_arrives_byte_by_byte_and_private(server: Web, files, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    found = fetch(server, tmp_path / "in")
    assert [f.read_bytes() for f in found] == [f.read_bytes() for f in files]
    assert {f.stat().st_mode & 0o777 for f in found} == {0o600}
    assert caplog.text == ""


@pytest.mark.parametrize("page", [3, 0])
def test_servers_with_short_pages_and_with_none(server: Web, files, tmp_path, page: int):
    server.page = page
    assert len(fetch(server, tmp_path / "in")) == len(files)


def test_several_series_are_listed_as_the_option_wants_them(server: Web):
    server.extra = [
        row(**{"0020000E": "1.2.3.4567890", "00080060": "CT"}) | {"class": CT},
        row(**{"0020000E": "1.2.3.999", "00080060": "SEG"}) | {"class": SEG},
    ]
    found = archive(server).series(STUDY)
    line = refused(lambda: choose_series(found, None), "several series", "--series", "567890 CT")
    assert "SEG" not in line
    assert choose_series(found, "567890").uid == "1.2.3.4567890"
    assert choose_series(found, found[0].uid) is found[0]
    refused(lambda: choose_series(found, "4711"), "no series ends in", "--series")
    refused(lambda: choose_series(found, "999"), "no series ends in")


def test_a_segmentation_beside_the_scan_is_no_second_series(server: Web):
    server.extra = [row(**{"0020000E": "1.2.3.999", "00080060": "SEG"}) | {"class": SEG}]
    found = archive(server).series(STUDY)
    assert choose_series(found, None) is found[0]
    refused(lambda: choose_series(found[1:], None), "no series of images", "1 SEG")


def test_no_such_study(server: Web):
    server.files = []
    found = archive(server).series(STUDY)
    refused(lambda: choose_series(found, None), "no such study", "--study")
    server.status = 404
    refused(lambda: archive(server).series(STUDY), "no such study", "HTTP 404")


def test_an_unreachable_server():
    gone = Web(url=f"http://127.0.0.1:{free_port()}/dicom-web")
    refused(lambda: archive(gone).series(STUDY), "cannot be reached", "refused", "127.0.0.1")
    nowhere = Web(url="https://no-such-host.invalid/dicom-web")
    refused(lambda: archive(nowhere).series(STUDY), "cannot be reached", "no-such-host.invalid")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(server: Web, monkeypatch, status: int):
    monkeypatch.setenv("MEDSEG_DIFF_PACS_TOKEN", "secret")
    with web(Web()) as thief:
        server.status, server.location = status, thief.url.replace("127.0.0.1", "localhost")
        line = refused(lambda: archive(server).series(STUDY), "sends on", str(status))
        assert thief.seen == []
    assert "localhost" not in line


def test_credentials_come_from_the_environment_or_netrc(server: Web, monkeypatch, tmp_path):
    server.password = "Basic cmVhZGVyOnNlY3JldMOk"  # reader:secretä, UTF-8
    refused(lambda: archive(server).series(STUDY), "asks for credentials", "401")
    monkeypatch.setenv("MEDSEG_DIFF_PACS_USER", "reader")
    monkeypatch.setenv("MEDSEG_DIFF_PACS_PASSWORD", "wrong")
    line = refused(lambda: archive(server).series(STUDY), "refuses the credentials", "401")
    assert "wrong" not in line.replace("wrong credentials", "")
    monkeypatch.setenv("MEDSEG_DIFF_PACS_PASSWORD", "secretä")
    assert archive(server).series(STUDY)
    monkeypatch.delenv("MEDSEG_DIFF_PACS_USER")
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login reader password secretä\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert archive(server).series(STUDY)
    server.password = "Bearer t0ken"
    monkeypatch.setenv("MEDSEG_DIFF_PACS_TOKEN", "t0ken")
    assert archive(server).series(STUDY), "a token goes before netrc"


def test_credentials_never_cross_the_network_in_the_open(monkeypatch):
    monkeypatch.setenv("MEDSEG_DIFF_PACS_USER", "reader")
    monkeypatch.setenv("MEDSEG_DIFF_PACS_PASSWORD", "CANARY")
    refused(
        lambda: open_archive(parse_address("http://pacs.example/dicom-web")), "https",
        kind=UsageError,
    )  # fmt: skip
    open_archive(parse_address("https://pacs.example/dicom-web"))


def test_a_certificate_nobody_vouches_for_is_refused(files, tmp_path, monkeypatch):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj",
         "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out",
         certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with web(Web(files), context) as secure:
        refused(lambda: archive(secure).series(STUDY), "certificate", "REQUESTS_CA_BUNDLE")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        assert len(archive(secure).series(STUDY)) == 1


@pytest.mark.parametrize(("cut", "words"), [(3, "ends early"), (5000, "ends early")])
def test_an_answer_cut_short_is_refused(server: Web, tmp_path, cut: int, words: str):
    server.cut = cut
    refused(lambda: fetch(server, tmp_path / "in"), words)


def test_missing_instances_are_refused(server: Web, tmp_path):
    server.lost = 2
    refused(lambda: fetch(server, tmp_path / "in"), "whole", "found 9", "expected 11")


def test_parts_that_are_not_dicom_are_refused(server: Web, tmp_path, files):
    listed = archive(server).series(STUDY)[0]
    files[4].write_bytes(b"<html>CANARY</html>" + b" " * 200)
    (tmp_path / "in").mkdir()
    refused(lambda: archive(server).fetch(listed, tmp_path / "in"), "not DICOM")


def test_bytes_are_capped_while_they_come(server: Web, tmp_path):
    server.padding = 64 << 20
    refused(lambda: fetch(server, tmp_path / "in", bytes=1 << 20), "more than 1 MiB", "--pacs-gib")
    assert sum(f.stat().st_size for f in (tmp_path / "in").iterdir()) < 1 << 20


def test_instances_are_capped(server: Web, tmp_path):
    refused(lambda: fetch(server, tmp_path / "in", instances=5), "more than 5")


def test_seconds_are_capped_however_slowly_bytes_come(server: Web, tmp_path):
    server.padding, server.pause_s = 4 << 20, 0.1
    refused(lambda: fetch(server, tmp_path / "in", seconds=0.5), "0.5 s", "--pacs-seconds")


def test_a_server_that_says_nothing_is_given_up(server: Web, tmp_path):
    server.pause_s = 3
    server.padding = 1 << 20
    refused(lambda: fetch(server, tmp_path / "in", timeout_s=0.5), "no answer in time")


def test_an_address_that_is_no_dicomweb_is_said_so(server: Web, monkeypatch):
    monkeypatch.setattr(Web, "answer", lambda *a: (200, "text/html", b"<html>CANARY</html>"))
    refused(lambda: archive(server).series(STUDY), "not JSON", "root of the DICOMweb service")
    monkeypatch.setattr(Web, "answer", lambda *a: (200, "application/json", b'["CANARY"]'))
    refused(lambda: archive(server).series(STUDY), "no list", "root of the DICOMweb service")
    monkeypatch.setattr(Web, "answer", lambda *a: (500, "text/html", b"CANARY"))
    refused(lambda: archive(server).series(STUDY), "HTTP 500")


def test_stored_files_arrive(server: Web, files, caplog):
    caplog.set_level(logging.DEBUG)
    archive(server).store(files[:2])
    assert len(server.stored) == 2
    assert all(BOUNDARY.encode() not in body and b"DICM" in body for body in server.stored)
    assert caplog.text == ""


@pytest.mark.parametrize("status", [200, 202, 409])
def test_a_refused_instance_is_named_with_its_status(server: Web, files, status: int):
    archive(server).store(files[:1])
    item = row(**{"00081155": "2.25.1"}) | {"00081197": {"vr": "US", "Value": [0xA900]}}
    server.stow = (status, {"00081198": {"vr": "SQ", "Value": [item]}})
    line = refused(lambda: archive(server).store(files[1:3]), files[1].name, "0xA900")
    assert ("HTTP 409" in line) == (status == 409)
    server.stow = (503, {})
    refused(lambda: archive(server).store(files[1:3]), files[1].name, "HTTP 503")


def test_storage_without_confirmation_is_none(server: Web, files):
    server.stow = (200, {})
    refused(lambda: archive(server).store(files[:1]), files[0].name, "no confirmation")
