"""DIMSE (PS3.4 and PS3.7): C-FIND finds, C-GET or C-MOVE fetches, C-STORE stores.

C-GET brings the images over the connection that asks for them and needs nothing but its own
permission. C-MOVE makes the node call back: it must know this program's AE title, address and
port, and this program listens while it lasts. With ``dicoms://`` TLS protects both ways.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import (
    AE,
    AllStoragePresentationContexts,
    _config,
    build_context,
    build_role,
    evt,
)
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext

from medseg_diff.errors import InputError
from medseg_diff.pacs.address import DicomAddress, Own
from medseg_diff.pacs.archive import (
    Budget,
    Found,
    Instance,
    Limits,
    require_whole,
    silence,
    store_refused,
    unreachable,
)
from medseg_diff.pacs.receiver import SYNTAXES, UNCOMPRESSED, Receiver
from medseg_diff.pacs.tls import why_not

IMAGES = [
    str(context.abstract_syntax)
    for context in AllStoragePresentationContexts
    if "ImageStorage" in UID(str(context.abstract_syntax)).keyword
]
# Study Root Query/Retrieve Information Model (PS3.4, C.6.2).
Find, Move, Get = (UID(f"1.2.840.10008.5.1.4.1.2.2.{n}") for n in (1, 2, 3))
_SUCCESS, _PENDING = 0x0000, (0xFF00, 0xFF01)
_MOST_CONTEXTS = 128


class DimseArchive:
    """A DICOM node, see `Archive`.

    Args:
        address: The node.
        own: How to present oneself to it.
        limits: What it may cost.

    Raises:
        UsageError: if a certificate for ``dicoms://`` is missing or cannot be read.
    """

    def __init__(self, address: DicomAddress, own: Own, limits: Limits) -> None:
        self._address, self._own, self._limits = address, own, limits
        self._tls = own.certificates.client() if address.secure else None
        moves = address.secure and own.move_port is not None
        self._listening_tls = own.certificates.server() if moves else None
        # Identifiers and datasets must not reach any log, and stay out of memory's way there.
        _config.LOG_HANDLER_LEVEL = "none"

    def series(self, study: str) -> list[Found]:
        """See `Archive.series`."""
        budget = Budget(self._limits)
        with self._associate([build_context(Find)]) as association:
            found = []
            for row in self._find(association, budget, "SERIES", ["Modality"], study):
                uid = _text(row, "SeriesInstanceUID")
                rows = self._find(association, budget, "IMAGE", ["SOPClassUID"], study, uid)
                instances = [
                    Instance(_text(r, "SOPInstanceUID"), _text(r, "SOPClassUID")) for r in rows
                ]
                found.append(Found(study, uid, _text(row, "Modality"), tuple(instances)))
        return found

    def fetch(self, series: Found, folder: Path) -> None:
        """See `Archive.fetch`."""
        budget = Budget(self._limits)
        budget.check_count(len(series.instances))
        receiver = Receiver(folder, {one.uid for one in series.instances}, budget)
        if self._own.move_port is None:
            status = self._get(series, receiver, budget)
        else:
            status = self._move(series, receiver, budget, self._own.move_port)
        receiver.check()
        require_whole(series, len(receiver.arrived), f"status 0x{status:04X}" if status else "")

    def store(self, files: Sequence[Path]) -> None:
        """See `Archive.store`."""
        budget = Budget(self._limits)
        datasets = [pydicom.dcmread(file) for file in files]
        classes = dict.fromkeys(str(dataset.SOPClassUID) for dataset in datasets)
        contexts = [build_context(uid, UNCOMPRESSED) for uid in classes]
        with self._associate(contexts) as association:
            taken = {str(c.abstract_syntax) for c in association.accepted_contexts}
            for number, (file, dataset) in enumerate(zip(files, datasets, strict=True)):
                if str(dataset.SOPClassUID) not in taken:
                    status = f"it takes no {UID(dataset.SOPClassUID).name}"
                    raise store_refused(file, status, files[:number])
                budget.check_time()
                if not association.is_established:
                    raise store_refused(file, "connection broken", files[:number])
                answer = association.send_c_store(dataset)
                code = answer.get("Status")
                # 0xB000 and its like: stored, with elements coerced.
                if code is None or (code != _SUCCESS and code >> 12 != 0xB):
                    status = "no answer" if code is None else f"status 0x{code:04X}"
                    raise store_refused(file, status, files[:number])

    def _find(
        self,
        association: Association,
        budget: Budget,
        level: str,
        wanted: Sequence[str],
        study: str,
        series: str = "",
    ) -> list[Dataset]:
        """Answers to one question; of each only UIDs and what is ``wanted``."""
        key = "SeriesInstanceUID" if level == "SERIES" else "SOPInstanceUID"
        query = _identifier(level, study, series)
        for keyword in (key, *wanted):
            setattr(query, keyword, "")
        rows: list[Dataset] = []
        if not association.is_established:
            raise self._broken()
        for status, row in association.send_c_find(query, Find):
            budget.check_time()
            code = status.get("Status")
            if code is None:
                raise self._broken()
            if code in _PENDING and row is not None:
                rows.append(row)
                budget.check_count(len(rows))
            elif code != _SUCCESS:
                raise self._refused("the search", code)
        return rows

    def _get(self, series: Found, receiver: Receiver, budget: Budget) -> int:
        classes = sorted({one.sop_class or "" for one in series.instances})
        known = classes if "" not in classes else IMAGES
        contexts = [build_context(Get), *(build_context(uid, UNCOMPRESSED) for uid in known)]
        packed = [build_context(uid, syntax) for uid in known for syntax in SYNTAXES]
        if len(contexts) + len(packed) <= _MOST_CONTEXTS:
            contexts += packed
        roles = [build_role(uid, scp_role=True) for uid in known]
        with self._associate(contexts, roles, receiver.handlers()) as association:
            return self._transfer(
                association.send_c_get(self._whole(series), Get), receiver, budget, association
            )

    def _move(self, series: Found, receiver: Receiver, budget: Budget, port: int) -> int:
        """C-MOVE to a server of our own, open only to this node and only for this series."""
        listener = self._entity()
        listener.require_called_aet = True
        listener.require_calling_aet = [self._address.title]
        for uid in IMAGES:
            listener.add_supported_context(uid, [*UNCOMPRESSED, *SYNTAXES])
        with silence():
            try:
                server = listener.start_server(
                    (self._facing(), port),
                    block=False,
                    evt_handlers=receiver.handlers(),
                    ssl_context=self._listening_tls,
                )
            except OSError as error:
                raise InputError(
                    f"cannot listen: {error.strerror or 'error'}",
                    field="--move-port",
                    found=port,
                    remedy="give the port under which the node knows this program",
                ) from None
        try:
            with self._associate([build_context(Move)]) as association:
                # The node need not say a word before it is done.
                association.dimse_timeout = association.network_timeout = self._limits.seconds
                answers = association.send_c_move(self._whole(series), self._own.title, Move)
                return self._transfer(answers, receiver, budget, association)
        finally:
            if server is not None:
                with silence():
                    server.shutdown()

    def _transfer(
        self,
        answers: Iterator[tuple[Dataset, Dataset | None]],
        receiver: Receiver,
        budget: Budget,
        association: Association,
    ) -> int:
        """Follow a C-GET or C-MOVE to its end; its status, 0 for success.

        What is missing after a failure of single images is found by counting.
        """
        code = _SUCCESS
        for status, _ in answers:
            receiver.check()
            budget.check_time()
            last = status.get("Status")
            if last is None:
                receiver.check()
                raise self._broken()
            code = int(last) if last not in _PENDING else code
        if code >> 12 in (0xA, 0xC) or code in (0x0122, 0x0124, 0x0211):
            raise self._refused("the transfer", code)
        return code

    def _whole(self, series: Found) -> Dataset:
        return _identifier("SERIES", series.study, series.uid)

    def _entity(self) -> AE:
        entity = AE(self._own.title)
        entity.maximum_pdu_size = 1 << 17
        entity.connection_timeout = min(10.0, self._limits.timeout_s)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = self._limits.timeout_s
        return entity

    def _facing(self) -> str:
        """Our address on the way to the node: no other interface listens."""
        family = socket.AF_INET6 if ":" in self._address.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((self._address.host, self._address.port))
            except OSError:
                raise unreachable(self._address.shown, "no way to it") from None
            return str(probe.getsockname()[0])

    @contextlib.contextmanager
    def _associate(
        self,
        contexts: list[PresentationContext],
        roles: Sequence[Any] = (),
        handlers: Sequence[Any] = (),
    ) -> Iterator[Association]:
        """An association with at least the first context accepted; nothing is logged within."""
        opened: list[bool] = []

        def watch(event: Any) -> None:
            opened.append(True)
            # pynetdicom waits without end for the rest of a message that has begun.
            event.assoc.dul.socket.socket.settimeout(self._limits.timeout_s)

        with silence():
            try:
                association = self._entity().associate(
                    self._address.host,
                    self._address.port,
                    contexts=contexts,
                    ae_title=self._address.title,
                    ext_neg=list(roles),
                    evt_handlers=[(evt.EVT_CONN_OPEN, watch), *handlers],
                    tls_args=None if self._tls is None else (self._tls, self._address.host),
                )
            except OSError:
                raise unreachable(self._address.shown, "no such host") from None
            if not association.is_established:
                raise self._not_associated(association, bool(opened))
            try:
                accepted = {c.abstract_syntax for c in association.accepted_contexts}
                if contexts[0].abstract_syntax in {Get, Move} - accepted:
                    raise _not_offered([contexts[0]])
                yield association
                association.release()
            finally:
                if not association.is_released and not association.is_aborted:
                    association.abort()

    def _not_associated(self, association: Association, opened: bool) -> InputError:
        if not opened:
            return unreachable(self._address.shown, self._why_not())
        if not association.is_rejected and association.rejected_contexts:
            return _not_offered(association.rejected_contexts)
        if not association.is_rejected:
            return unreachable(self._address.shown, "no DICOM association")
        answer = association.acceptor.primitive
        why = (getattr(answer, "result_source", None), getattr(answer, "diagnostic", None))
        return InputError(
            "the node refuses the association",
            field="--pacs",
            found=_REJECTIONS.get(why, f"source {why[0]}, reason {why[1]}"),  # type: ignore[arg-type]
            remedy=f"let the node know AE title {self._own.title} of this computer (--own-aet)",
        )

    def _why_not(self) -> str:
        if self._tls is None:
            return "no connection"
        patience = min(10.0, self._limits.timeout_s)
        return why_not(self._tls, self._address.host, self._address.port, patience)

    def _refused(self, what: str, code: int) -> InputError:
        return InputError(
            f"the node refuses {what}",
            field="--pacs",
            found=f"status 0x{code:04X}{_MEANINGS.get(code, '')}",
            remedy=f"see the node's log, and that it lets AE title {self._own.title} do this",
        )

    def _broken(self) -> InputError:
        return InputError(
            "the node broke off, or said nothing in time",
            field="--pacs",
            found=self._address.shown,
            remedy=f"let the node know AE title {self._own.title} of this computer (--own-aet), "
            "and see its log",
        )


def _not_offered(contexts: Sequence[PresentationContext]) -> InputError:
    names = dict.fromkeys(str(context.abstract_syntax) for context in contexts)
    return InputError(
        "the node does not offer it",
        field="--pacs",
        found=", ".join(UID(name).name for name in list(names)[:3]),
        remedy=next((_OTHER_WAY[name] for name in names if name in _OTHER_WAY), None),
    )


_OTHER_WAY = {
    str(Get): "fetch by C-MOVE, with --move-port",
    str(Move): "fetch by C-GET, without --move-port",
}
# PS3.8, table 9-21.
_REJECTIONS = {
    (1, 3): "calling AE title not known to it",
    (1, 7): "called AE title not its own",
    (3, 1): "too busy",
    (3, 2): "too many connections",
}
# PS3.4, C.4.2.1.5 and C.4.3.1.4; PS3.7, annex C.
_MEANINGS = {
    0xA701: ", out of resources",
    0xA702: ", it could not perform the sub-operations",
    0xA801: ", move destination unknown",
    0x0122: ", SOP class not supported",
    0x0124: ", not authorised",
}


def _identifier(level: str, study: str, series: str = "") -> Dataset:
    query = Dataset()
    query.QueryRetrieveLevel = level
    query.StudyInstanceUID = study
    if series:
        query.SeriesInstanceUID = series
    return query


def _text(row: Dataset, keyword: str) -> str:
    return str(row.get(keyword) or "")
