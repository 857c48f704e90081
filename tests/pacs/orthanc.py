"""An Orthanc server of the tests' own: loopback, free ports, a storage folder that goes away."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

TITLE, OWN, USER, PASSWORD = "ORTHANC", "MEDSEGDIFF", "reader", "tests-only"
# Debian's packages `orthanc` and `orthanc-dicomweb`.
PROGRAM = os.environ.get("ORTHANC", "Orthanc")
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
MISSING = "Orthanc is not installed (apt-get install orthanc orthanc-dicomweb, or make test-pacs)"


def is_installed() -> bool:
    """Whether server and plugin are here."""
    return shutil.which(PROGRAM) is not None and PLUGIN.exists()


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Orthanc:
    """A running server."""

    http: int
    dicom: int
    move: int

    @property
    def web(self) -> str:
        """``--pacs`` for DICOMweb."""
        return f"http://127.0.0.1:{self.http}/dicom-web"

    @property
    def node(self) -> str:
        """``--pacs`` for DIMSE."""
        return f"dicom://{TITLE}@127.0.0.1:{self.dicom}"

    def rest(self, method: str, path: str, **more: Any) -> Any:
        """Orthanc's own interface, for what a test needs to set up or to look at."""
        url = f"http://127.0.0.1:{self.http}{path}"
        answer = requests.request(method, url, auth=(USER, PASSWORD), timeout=30, **more)
        answer.raise_for_status()
        return answer.json() if "json" in answer.headers["Content-Type"] else answer.content

    def fill(self, folder: Path) -> None:
        """Upload every file of a folder."""
        for file in sorted(folder.iterdir()):
            self.rest("POST", "/instances", data=file.read_bytes())

    def empty(self) -> None:
        """Remove all patients."""
        for patient in self.rest("GET", "/patients"):
            self.rest("DELETE", f"/patients/{patient}")


def configuration(folder: Path, server: Orthanc) -> dict[str, Any]:
    """Configuration of a server that keeps all it has below ``folder``."""
    return {
        "Name": "tests",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "index"),
        "Plugins": [str(PLUGIN)],
        "HttpPort": server.http,
        "DicomPort": server.dicom,
        "DicomAet": TITLE,
        "DicomCheckCalledAet": True,
        "DicomModalities": {"tests": [OWN, "127.0.0.1", server.move]},
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: PASSWORD},
        "SaveJobs": False,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }


def start(folder: Path) -> tuple[subprocess.Popen[bytes], Orthanc]:
    """Start a server and wait until it answers."""
    server = Orthanc(free_port(), free_port(), free_port())
    config = folder / "orthanc.json"
    config.write_text(json.dumps(configuration(folder, server)))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([PROGRAM, str(config)], stdout=log, stderr=log)
    until = time.monotonic() + 60
    while True:
        try:
            server.rest("GET", "/system")
            server.rest("GET", "/dicom-web/studies")
            return process, server
        except requests.RequestException:
            if process.poll() is not None or time.monotonic() > until:
                process.kill()
                raise RuntimeError((folder / "log").read_text()[-2000:]) from None
            time.sleep(0.2)
