"""Instances that a DICOM node sends, written as they are: no dataset is parsed on the way."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from pydicom.uid import (
    JPEG2000,
    UID,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)
from pynetdicom import evt

from medseg_diff.errors import InputError
from medseg_diff.io.dicom.syntaxes import decoder_for
from medseg_diff.pacs.archive import Budget, new_file

UNCOMPRESSED: list[str | UID] = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
_COMPRESSED = (
    JPEGLosslessSV1, JPEGLossless, JPEGLSLossless, JPEG2000Lossless, RLELossless,
    JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000,
)  # fmt: skip
# What the reader decodes here, for archives that hold it so and do not unpack it themselves.
SYNTAXES = [syntax for syntax in _COMPRESSED if decoder_for(syntax)]
_NOT_AUTHORISED, _OUT_OF_RESOURCES = 0x0124, 0xA700


class Receiver:
    """Takes the expected instances and no other, up to the limits.

    Handlers run in pynetdicom's threads, which swallow exceptions: what goes wrong is kept for
    `check`, and the association aborted.

    Args:
        folder: Where the files go.
        expected: SOP instance UIDs.
        budget: Counts every byte that comes in.
    """

    def __init__(self, folder: Path, expected: set[str], budget: Budget) -> None:
        self.folder, self.expected, self.budget = folder, expected, budget
        self.arrived: set[str] = set()
        self.problem: InputError | None = None
        self._lock = threading.Lock()

    def handlers(self) -> list[Any]:
        """For an association or a server."""
        return [(evt.EVT_DATA_RECV, self._count), (evt.EVT_C_STORE, self._keep)]

    def check(self) -> None:
        """Raise what went wrong, in the caller's thread.

        Raises:
            InputError: if a limit was exceeded, or a file could not be written.
        """
        if self.problem is not None:
            raise self.problem

    def _count(self, event: Any) -> None:
        with self._lock:
            try:
                self.budget.take(len(event.data))
            except InputError as error:
                self.problem = self.problem or error
                event.assoc.abort(block=False)
                # As pynetdicom does when the peer aborts: wakes who waits for the next message.
                event.assoc.dimse.msg_queue.put((None, None))

    def _keep(self, event: Any) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        with self._lock:
            if self.problem is not None:
                return _OUT_OF_RESOURCES
            if uid not in self.expected:
                return _NOT_AUTHORISED
            if uid in self.arrived:
                return 0
            try:
                path = new_file(self.folder, len(self.arrived))
                path.write_bytes(event.encoded_dataset())
            except OSError as error:
                self.problem = InputError(
                    f"the scan cannot be kept: {error.strerror or 'error'}",
                    remedy="let TMPDIR name a folder with room",
                )
                return _OUT_OF_RESOURCES
            self.arrived.add(uid)
        return 0
