"""TLS for DIMSE (PS3.15, annex B): whom to trust, and how to show who one is."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg_diff.errors import UsageError


@dataclass(frozen=True)
class Certificates:
    """Files for ``dicoms://``.

    Args:
        authority: PEM of whoever vouches for the node; None trusts the system's authorities.
        own: PEM of one's own certificate and its key, for nodes that ask and for C-MOVE.
    """

    authority: Path | None = None
    own: Path | None = None

    def client(self) -> ssl.SSLContext:
        """For connections to the node: TLS 1.2 or later, its certificate and name verified.

        Raises:
            UsageError: if a file cannot be read or is none.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        return self._filled(context, ssl.Purpose.SERVER_AUTH)

    def server(self) -> ssl.SSLContext:
        """For connections that a C-MOVE opens to us: the node's certificate is verified, too.

        Raises:
            UsageError: as `client`, or if there is no certificate of our own.
        """
        if self.own is None:
            raise UsageError(
                "C-MOVE over TLS needs a certificate of our own",
                field="--move-port",
                remedy="give it with --pacs-cert, or fetch by C-GET",
            )
        context = Listening(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_REQUIRED
        return self._filled(context, ssl.Purpose.CLIENT_AUTH)

    def _filled(self, context: ssl.SSLContext, purpose: ssl.Purpose) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.authority is None:
            context.load_default_certs(purpose)
        else:
            _with_file(self.authority, "--pacs-ca", context.load_verify_locations)
        if self.own is not None:
            # A password is never asked for: a key that has one is refused.
            _with_file(self.own, "--pacs-cert", lambda f: context.load_cert_chain(f, password=""))
        return context


class Listening(ssl.SSLContext):
    """Shakes hands when the first bytes are read, in the connection's own thread.

    pynetdicom would do so in the thread that listens, where a caller that says nothing holds up
    the others and the end.
    """

    timeout_s = 10.0

    def wrap_socket(self, sock: socket.socket, *args: Any, **words: Any) -> ssl.SSLSocket:
        """As `ssl.SSLContext.wrap_socket`, without waiting."""
        sock.settimeout(self.timeout_s)
        return super().wrap_socket(sock, *args, **{**words, "do_handshake_on_connect": False})


def _with_file(file: Path, field: str, load: Callable[[str], None]) -> None:
    """Load a PEM file, or refuse it by its name."""
    try:
        load(str(file))
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        raise UsageError(
            "no such file" if missing else "not what it must be",
            file=file,
            field=field,
            expected="PEM" + (" with a key without password" if field == "--pacs-cert" else ""),
        ) from None


def why_not(context: ssl.SSLContext, host: str, port: int, timeout_s: float) -> str:
    """What keeps a TLS connection from coming about, in a few words of our own or OpenSSL's."""
    try:
        with (
            socket.create_connection((host, port), timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return "no DICOM association"
    except ssl.SSLCertVerificationError as error:
        return f"its certificate is not trusted ({error.verify_message})"
    except ssl.SSLError:
        return "no TLS connection"
    except OSError:
        return "no connection"
