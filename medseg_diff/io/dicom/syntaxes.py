"""Transfer syntaxes, and how their pixels come out."""

from __future__ import annotations

from typing import Any

from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLossless,
    JPEGLosslessSV1,
)

# Little-endian numbers as they are: read here, in this process.
PLAIN = {ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian}
# SimpleITK carries GDCM, which reads what pydicom's usual helpers do not.
BY_SIMPLEITK = {JPEGLossless, JPEGLosslessSV1}
# What a user may install where no decoder is there; GDCM's package covers the rest.
_PACKAGES = {
    "RLE": "pylibjpeg-rle",
    "JPEG 2000": "pylibjpeg-openjpeg",
    "JPEG-LS": "pyjpegls",
    "JPEG": "pylibjpeg-libjpeg",
}


def decoder_for(syntax: str) -> str | None:
    """``"plain"``, ``"pydicom"`` or ``"simpleitk"``; None where nothing here decodes it."""
    uid = UID(syntax)
    if uid in PLAIN:
        return "plain"
    if _pydicom_decodes(uid):
        return "pydicom"
    return "simpleitk" if uid in BY_SIMPLEITK else None


def syntax_name(syntax: str) -> str:
    """Name and UID, as a user may search for them."""
    uid = UID(syntax)
    return f"{uid.name} ({uid})" if uid.name != uid else str(uid)


def package_for(syntax: str) -> str:
    """Package on PyPI that brings a decoder."""
    name = UID(syntax).name
    return next((p for word, p in _PACKAGES.items() if word in name), "python-gdcm")


def _pydicom_decodes(uid: Any) -> bool:
    from pydicom.pixels.decoders.base import get_decoder

    try:
        return bool(get_decoder(uid).is_available)
    except NotImplementedError:
        return False
