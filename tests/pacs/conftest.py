"""Fixtures of the archive's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("pynetdicom", reason="the extra [pacs] is not installed")
pytest.importorskip("dicomweb_client", reason="the extra [pacs] is not installed")

from tests.pacs import orthanc

CREDENTIALS = ("TOKEN", "USER", "PASSWORD")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No credentials but the test's own, no proxy, one thread, a temporary folder to look into."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("none")
    for name in CREDENTIALS:
        monkeypatch.delenv(f"MEDSEG_DIFF_PACS_{name}", raising=False)
    monkeypatch.setenv("NETRC", str(folder / "netrc"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr("tempfile.tempdir", str(folder))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[orthanc.Orthanc]:
    """One Orthanc for the session."""
    if not orthanc.is_installed():
        pytest.skip(orthanc.MISSING)
    process, running = orthanc.start(tmp_path_factory.mktemp("orthanc"))
    yield running
    process.terminate()
    process.wait(30)


@pytest.fixture
def archive(server: orthanc.Orthanc, monkeypatch: pytest.MonkeyPatch) -> orthanc.Orthanc:
    """The server, empty, with its password in the environment."""
    server.empty()
    monkeypatch.setenv("MEDSEG_DIFF_PACS_USER", orthanc.USER)
    monkeypatch.setenv("MEDSEG_DIFF_PACS_PASSWORD", orthanc.PASSWORD)
    return server
