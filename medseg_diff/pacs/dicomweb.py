"""DICOMweb (PS3.18): QIDO-RS finds, WADO-RS fetches, STOW-RS stores."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pydicom
import requests
from dicomweb_client.web import DICOMwebClient

from medseg_diff.errors import InputError
from medseg_diff.pacs.address import WebAddress
from medseg_diff.pacs.archive import (
    Found,
    Instance,
    Limits,
    new_file,
    require_whole,
    silence,
    store_refused,
)
from medseg_diff.pacs.multipart import boundary_of, pieces
from medseg_diff.pacs.web_session import Session

Row = dict[str, Any]
SERIES_UID, SOP_UID, SOP_CLASS, MODALITY = "0020000E", "00080018", "00080016", "00080060"
FAILED, REASON = "00081198", "00081197"
_PAGE = 1000
# As stored: a lossless copy takes less time and room than what the server would unpack.
_ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*'


class WebArchive:
    """An archive behind DICOMweb, see `Archive`.

    Args:
        address: Root of the service.
        limits: What it may cost.
    """

    def __init__(self, address: WebAddress, limits: Limits) -> None:
        self._session = Session(address, limits)
        self._limits, self._address = limits, address
        timeout = (min(10.0, limits.timeout_s), limits.timeout_s)
        self._client = DICOMwebClient(address.url, session=self._session, timeout=timeout)
        self._client.set_http_retry_params(retry=False)
        self._timeout = timeout

    def series(self, study: str) -> list[Found]:
        """See `Archive.series`."""
        with self._conversation():
            rows = self._pages(
                SERIES_UID, lambda **page: self._client.search_for_series(study, **page)
            )
            return [self._found(study, row) for row in rows]

    def fetch(self, series: Found, folder: Path) -> None:
        """See `Archive.fetch`."""
        url = f"{self._address.url}/studies/{series.study}/series/{series.uid}"
        with self._conversation():
            self._session.budget.check_count(len(series.instances))
            response = self._session.get(
                url, headers={"Accept": _ACCEPT}, stream=True, timeout=self._timeout
            )
            response.raise_for_status()
            kind = response.headers.get("Content-Type", "")
            boundary = boundary_of(kind)
            body = self._session.chunks(response)
            if boundary is None and not kind.lower().startswith("application/dicom"):
                raise _not_dicomweb("the answer holds no DICOM instances")
            # Some servers send a single instance bare.
            parts = pieces(body, boundary) if boundary else ((0, chunk) for chunk in body)
            require_whole(series, self._write(parts, folder))

    def store(self, files: Sequence[Path]) -> None:
        """See `Archive.store`."""
        for number, file in enumerate(files):
            with self._conversation():
                dataset = pydicom.dcmread(file)
                try:
                    answer = self._client.store_instances([dataset]).to_json_dict()
                except requests.HTTPError as error:
                    status = f"HTTP {_status(error)}{_reasons(error.response)}"
                    raise store_refused(file, status, files[:number]) from None
                failed = f"status{_codes(answer)}" if answer.get(FAILED, {}).get("Value") else ""
                if failed or dataset.SOPInstanceUID not in _uids(answer):
                    status = failed or "no confirmation"
                    raise store_refused(file, status, files[:number])

    def _found(self, study: str, row: Row) -> Found:
        uid = _value(row, SERIES_UID)
        rows = self._pages(
            SOP_UID,
            lambda **page: self._client.search_for_instances(
                study, uid, fields=["SOPClassUID"], **page
            ),
        )
        instances = tuple(Instance(_value(r, SOP_UID), _value(r, SOP_CLASS)) for r in rows)
        return Found(study, uid, _value(row, MODALITY), instances)

    def _pages(self, key: str, ask: Callable[..., list[Row]]) -> list[Row]:
        """Rows of all pages, each once; a server that knows no pages sends the same ones again."""
        rows: dict[str, Row] = {}
        while True:
            try:
                page = ask(limit=_PAGE, offset=len(rows))
            except requests.HTTPError as error:
                if _status(error) != 404:
                    raise
                raise InputError(
                    "no such study, or not the root of a DICOMweb service",
                    field="--pacs",
                    found="HTTP 404",
                    remedy="check the address and the UID",
                ) from None
            except InputError:
                raise
            except ValueError:
                raise _not_dicomweb("the answer is not JSON") from None
            if not all(isinstance(row, dict) for row in page):
                raise _not_dicomweb("the answer is no list of instances")
            new = {_value(row, key): row for row in page}
            if not new.keys() - rows.keys():
                return list(rows.values())
            rows |= new
            self._session.budget.check_count(len(rows))

    def _write(self, parts: Iterable[tuple[int, bytes]], folder: Path) -> int:
        """Write parts to files; how many there were."""
        count = 0
        with contextlib.ExitStack() as stack:
            for number, data in parts:
                if number == count:
                    stack.close()
                    self._session.budget.check_count(count + 1)
                    stream = stack.enter_context(new_file(folder, number).open("wb"))
                    count += 1
                stream.write(data)
        for number in range(count):
            with (folder / f"{number:06d}.dcm").open("rb") as file:
                if file.read(132)[128:] != b"DICM":
                    raise _not_dicomweb("a part of the answer is not DICOM")
        return count

    @contextlib.contextmanager
    def _conversation(self) -> Iterator[None]:
        """A budget of its own, no word to any log, and refusals of our own."""
        self._session.restart()
        with silence():
            try:
                yield
            except InputError:
                raise
            except requests.HTTPError as error:
                raise InputError(
                    "the server refuses the request",
                    field="--pacs",
                    found=f"HTTP {_status(error)}",
                    remedy="check that the address is the root of the DICOMweb service",
                ) from None
            except OSError as error:
                raise InputError(
                    f"the scan cannot be kept: {error.strerror or type(error).__name__}",
                    remedy="let TMPDIR name a folder with room",
                ) from None


def _value(row: Row, tag: str) -> str:
    """First value of an element in DICOM JSON (PS3.18, F.2), as text; empty if absent."""
    element = row.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return str(values[0]) if isinstance(values, list) and values else ""


def _uids(answer: Row) -> set[str]:
    """Instances that a response to STOW calls stored."""
    items = answer.get("00081199", {}).get("Value", [])
    return {_value(item, "00081155") for item in items}


def _codes(answer: Row) -> str:
    """Failure reasons as PS3.7 numbers them."""
    items = answer.get(FAILED, {}).get("Value", [])
    codes = {_value(item, REASON) for item in items if isinstance(item, dict)}
    return "".join(f" 0x{int(code):04X}" for code in sorted(codes) if code.isdecimal())


def _status(error: requests.HTTPError) -> int:
    return 0 if error.response is None else error.response.status_code


def _reasons(response: requests.Response | None) -> str:
    try:
        answer = None if response is None else response.json()
    except ValueError:
        return ""
    codes = _codes(answer) if isinstance(answer, dict) else ""
    return f", status{codes}" if codes else ""


def _not_dicomweb(problem: str) -> InputError:
    return InputError(
        problem, field="--pacs", remedy="check that the address is the root of the DICOMweb service"
    )
