"""Where an archive is, as the user typed it: checked before anything is sent.

A refusal never repeats the address itself, which may hold a password or a token.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from medseg_diff.errors import UsageError
from medseg_diff.pacs.tls import Certificates

FORMS = "http(s)://HOST[:PORT]/PATH for DICOMweb, dicom(s)://AET@HOST:PORT for DIMSE"


@dataclass(frozen=True)
class WebAddress:
    """A DICOMweb service.

    Args:
        url: Root of the service, without a slash at its end.
        host: Name or address of the server.
        shown: Host and port, for messages.
        secure: Whether TLS protects the way.
    """

    url: str
    host: str
    shown: str
    secure: bool


@dataclass(frozen=True)
class DicomAddress:
    """A DICOM node.

    Args:
        title: Its AE title.
        host: Name or address.
        port: TCP port.
        secure: Whether TLS protects the way.
    """

    title: str
    host: str
    port: int
    secure: bool = False

    @property
    def shown(self) -> str:
        """Host and port, for messages."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Own:
    """How this program presents itself to a DICOM node.

    Args:
        title: Own AE title.
        move_port: Port on which a C-MOVE delivers; None fetches by C-GET instead.
        certificates: For ``dicoms://``.
    """

    title: str = "MEDSEGDIFF"
    move_port: int | None = None
    certificates: Certificates = field(default_factory=Certificates)

    def __post_init__(self) -> None:
        """Refuse a title that DICOM does not allow."""
        _require_title(self.title, "--own-aet")


def parse_address(text: str) -> WebAddress | DicomAddress:
    """Read ``--pacs``.

    Raises:
        UsageError: for another scheme, a missing part, or credentials in the address.
    """
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise _malformed("cannot be read") from None
    if not host or any(c.isspace() or not c.isprintable() for c in text):
        raise _malformed("names no server")
    if parts.query or parts.fragment:
        raise _malformed("has a query or a fragment")
    if parts.scheme in ("dicom", "dicoms"):
        return _dicom_address(parts, host, port)
    if parts.scheme not in ("http", "https"):
        raise _malformed("is of no known kind")
    if "@" in parts.netloc:
        raise UsageError(
            "the address holds a user name or a password",
            field="--pacs",
            expected="credentials in environment variables or ~/.netrc",
            remedy="take them out of the address; see docs/pacs.md",
        )
    shown = f"{host}:{port or (443 if parts.scheme == 'https' else 80)}"
    return WebAddress(text.rstrip("/"), host, shown, parts.scheme == "https")


def _dicom_address(parts: SplitResult, host: str, port: int | None) -> DicomAddress:
    title = parts.netloc.rpartition("@")[0]
    if port is None or not title or parts.path.strip("/"):
        raise _malformed("lacks its AE title or its port, or has a path")
    _require_title(title, "--pacs")
    return DicomAddress(title, host, port, parts.scheme == "dicoms")


def _malformed(why: str) -> UsageError:
    return UsageError(f"the address {why}", field="--pacs", expected=FORMS)


def _require_title(title: str, field: str) -> None:
    fits = title.strip() and len(title) <= 16
    if not fits or not title.isascii() or not title.isprintable() or "\\" in title:
        raise UsageError(
            "not an AE title", field=field, expected="1 to 16 ASCII characters, no backslash"
        )


def require_uid(text: str, field: str) -> str:
    """A UID as it is, or a refusal (PS3.5, 9.1).

    Raises:
        UsageError: if ``text`` is none; it would otherwise become part of a request's path.
    """
    # Leading zeros are against the standard, but archives hold such UIDs.
    if len(text) > 64 or not re.fullmatch(r"[0-9]+(\.[0-9]+)*", text):
        raise UsageError(
            "not a UID", field=field, expected="digits and dots, at most 64 characters"
        )
    return text


def is_loopback(host: str) -> bool:
    """Whether a host is this computer itself."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
