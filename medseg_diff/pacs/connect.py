"""From an address to the archive behind it; the protocols' libraries load here."""

from __future__ import annotations

from medseg_diff.errors import UsageError
from medseg_diff.pacs.address import DicomAddress, Own, WebAddress
from medseg_diff.pacs.archive import Archive, Limits
from medseg_diff.pacs.tls import Certificates


def open_archive(
    address: WebAddress | DicomAddress, *, own: Own | None = None, limits: Limits | None = None
) -> Archive:
    """The archive at an address; nothing is sent yet.

    Args:
        address: From `parse_address`.
        own: How to present oneself to a DICOM node.
        limits: What it may cost.

    Raises:
        UsageError: if the extra is not installed, a password would go unprotected, or there are
            certificates that cannot be read or have no use.
    """
    given, own = limits or Limits(), own or Own()
    if own.certificates != Certificates() and not (
        isinstance(address, DicomAddress) and address.secure
    ):
        raise UsageError(
            "certificates are for dicoms:// alone",
            field="--pacs-ca, --pacs-cert",
            remedy="for https set REQUESTS_CA_BUNDLE; see docs/pacs.md",
        )
    try:
        if isinstance(address, WebAddress):
            from medseg_diff.pacs.dicomweb import WebArchive

            return WebArchive(address, given)
        from medseg_diff.pacs.dimse import DimseArchive

        return DimseArchive(address, own, given)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in ("pynetdicom", "dicomweb_client", "requests", "urllib3"):
            raise
        raise UsageError(
            "needs a package that is not installed",
            field="--pacs",
            found=missing,
            remedy="pip install 'medseg-diff[pacs]'",
        ) from None
