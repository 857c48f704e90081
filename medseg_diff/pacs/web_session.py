"""HTTP with a leash: one server, its credentials for it alone, limits on bytes and seconds.

Credentials come from ``MEDSEG_DIFF_PACS_TOKEN`` (bearer), from ``MEDSEG_DIFF_PACS_USER`` and
``MEDSEG_DIFF_PACS_PASSWORD``, or from ``~/.netrc``, in this order.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import requests
import urllib3
from requests.auth import AuthBase, HTTPBasicAuth

from medseg_diff.errors import InputError, UsageError
from medseg_diff.pacs.address import WebAddress, is_loopback
from medseg_diff.pacs.archive import Budget, Limits, unreachable

TOKEN, USER, PASSWORD = (f"MEDSEG_DIFF_PACS_{n}" for n in ("TOKEN", "USER", "PASSWORD"))
_CHUNK = 1 << 16
# Lists of instances and confirmations of storage, not images.
_TEXT_LIMIT = 64 << 20


class Bearer(AuthBase):
    """A token, or nothing at all: the session must not look for credentials by itself."""

    def __init__(self, token: str = "") -> None:
        self.token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the header."""
        if self.token:
            request.headers["Authorization"] = f"Bearer {self.token}"
        return request


class Session(requests.Session):
    """A session of one archive; every answer is read under its budget.

    Args:
        address: The only server it talks to.
        limits: For the budget, which `restart` renews.
    """

    def __init__(self, address: WebAddress, limits: Limits) -> None:
        super().__init__()
        self.address, self.budget = address, Budget(limits)
        self.auth = _credentials(address)
        # A packed answer could unpack to anything.
        self.headers["Accept-Encoding"] = "identity"

    @property
    def has_credentials(self) -> bool:
        """Whether any are sent."""
        return not (isinstance(self.auth, Bearer) and not self.auth.token)

    def restart(self) -> None:
        """Begin a new budget."""
        self.budget = Budget(self.budget.limits)

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Send one request; refuse every redirect, whoever asked to follow it.

        Raises:
            InputError: if the server cannot be reached, sends elsewhere, refuses the credentials
                or exceeds a limit.
        """
        self.budget.check_time()
        # dicomweb-client names the host without its port.
        request.headers.pop("Host", None)
        streamed = bool(options.get("stream"))
        options |= {"allow_redirects": False, "stream": True}
        try:
            response = super().send(request, **options)
        except requests.RequestException as error:
            raise unreachable(self.address.shown, _reason(error)) from None
        if 300 <= response.status_code < 400:
            response.close()
            raise InputError(
                "the server sends on to another address, which is not followed",
                field="--pacs",
                found=f"HTTP {response.status_code}",
                remedy="give the final address of the DICOMweb service itself",
            )
        if response.status_code in (401, 403):
            response.close()
            raise self._unwelcome(response.status_code)
        if not streamed:
            response._content = b"".join(self.chunks(response, _TEXT_LIMIT))
        return response

    def chunks(self, response: requests.Response, limit: int | None = None) -> Iterator[bytes]:
        """The body as it arrives, counted.

        Args:
            response: Streamed.
            limit: Bytes of this body alone.
        """
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise InputError(
                "the answer is compressed, which was not asked for",
                field="--pacs",
                remedy="switch compression off for DICOMweb in the server or its proxy",
            )
        total = 0
        with response:
            while True:
                try:
                    # Returns with what there is: a slow server cannot hold it past the limit.
                    chunk = response.raw.read1(_CHUNK)
                except (urllib3.exceptions.HTTPError, OSError) as error:
                    raise unreachable(self.address.shown, _reason(error)) from None
                if not chunk:
                    return
                total += len(chunk)
                self.budget.take(len(chunk))
                if limit is not None and total > limit:
                    raise InputError(
                        "the answer is too long",
                        field="--pacs",
                        found=f"more than {limit >> 20} MiB",
                    )
                yield chunk

    def _unwelcome(self, status: int) -> InputError:
        what = "refuses the credentials" if self.has_credentials else "asks for credentials"
        return InputError(
            f"the server {what}",
            field="--pacs",
            found=f"HTTP {status}",
            remedy=f"set {USER} and {PASSWORD}, or {TOKEN}, or use ~/.netrc; see docs/pacs.md",
        )


def _credentials(address: WebAddress) -> AuthBase:
    """From the environment or netrc, never over an open line to another computer."""
    token, user, password = (os.environ.get(name, "") for name in (TOKEN, USER, PASSWORD))
    pair = (user, password) if user else requests.utils.get_netrc_auth(address.url)
    if not token and pair is None:
        return Bearer()
    if not address.secure and not is_loopback(address.host):
        raise UsageError(
            "credentials would cross the network unprotected",
            field="--pacs",
            found="http",
            expected="https",
            remedy="use the server's https address, or unset the credentials",
        )
    # requests takes text as Latin-1 here; passwords may hold more.
    return Bearer(token) if token else HTTPBasicAuth(*(part.encode() for part in pair or ()))


def _reason(error: Exception) -> str:
    """A few words of our own; a library's text repeats the address and more."""
    kinds = {type(e) for e in _chain(error)}
    if any(
        issubclass(k, requests.exceptions.SSLError | urllib3.exceptions.SSLError) for k in kinds
    ):
        return "its certificate is not trusted (REQUESTS_CA_BUNDLE names a file of further ones)"
    if any(issubclass(k, urllib3.exceptions.NameResolutionError) for k in kinds):
        return "no such host"
    if any(issubclass(k, ConnectionRefusedError) for k in kinds):
        return "connection refused"
    # urllib3 counts connections that were never made among its timeouts: those come first.
    if any(issubclass(k, requests.Timeout | urllib3.exceptions.TimeoutError) for k in kinds):
        return "no answer in time"
    return "connection broken"


def _chain(error: object) -> Iterator[BaseException]:
    """An exception, its causes, and those that requests and urllib3 hide in arguments."""
    seen: list[BaseException] = []
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if isinstance(one, BaseException) and one not in seen:
            seen.append(one)
            waiting += [*one.args, one.__cause__, one.__context__, getattr(one, "reason", None)]
    yield from seen
