"""Hospital archives (PACS): find a series, fetch it, store what was made of it.

`address` reads what the user typed, `archive` holds what both protocols share, `private` the
folder that scans wait in, `dicomweb` speaks QIDO, WADO and STOW, `dimse` C-FIND, C-GET, C-MOVE
and C-STORE, `tls` holds its certificates. Needs the extra ``[pacs]``; imported only when an
archive is asked for.
"""

from medseg_diff.pacs.address import DicomAddress, Own, WebAddress, parse_address, require_uid
from medseg_diff.pacs.archive import Archive, Found, Limits, choose_series
from medseg_diff.pacs.connect import open_archive
from medseg_diff.pacs.private import private_folder
from medseg_diff.pacs.tls import Certificates

__all__ = [
    "Archive",
    "Certificates",
    "DicomAddress",
    "Found",
    "Limits",
    "Own",
    "WebAddress",
    "choose_series",
    "open_archive",
    "parse_address",
    "private_folder",
    "require_uid",
]
