"""What the user typed, before anything is sent."""

from __future__ import annotations

import pytest

from medseg_diff.errors import UsageError
from medseg_diff.pacs.address import (
    DicomAddress,
    Own,
    WebAddress,
    is_loopback,
    parse_address,
    require_uid,
)


def test_both_kinds_are_told_by_their_scheme():
    web = parse_address("https://pacs.example/dicom-web/")
    assert web == WebAddress(
        "https://pacs.example/dicom-web", "pacs.example", "pacs.example:443", True
    )
    assert parse_address("http://[::1]:8042/dicom-web").host == "::1"
    node = parse_address("dicom://ORTHANC@10.0.0.1:4242")
    assert node == DicomAddress("ORTHANC", "10.0.0.1", 4242)
    assert parse_address("dicoms://A@h:2762") == DicomAddress("A", "h", 2762, secure=True)
    hyphened = parse_address("dicom://MY-AE@h:1")
    assert (hyphened.title, hyphened.shown) == ("MY-AE", "h:1")


@pytest.mark.parametrize(
    "text",
    [
        "", "pacs.example", "ftp://pacs.example/x", "file:///etc/passwd", "http:///x",
        "http://h/x?token=CANARY", "http://h/x#CANARY", "http://h:99999/x", "http://h/a b",
        "dicom://h:104", "dicom://AET@h", "dicom://AET@h:104/path",
        "dicom://ATITLELONGERTHANALLOWED@h:104", "dicom://A\\B@h:104",
        "http://jane:CANARY@h/dicom-web", "https://CANARY@h/dicom-web",
    ],
)  # fmt: skip
def test_others_are_refused_without_repeating_them(text: str):
    with pytest.raises(UsageError) as caught:
        parse_address(text)
    assert "--pacs" in str(caught.value)
    assert "CANARY" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("title", ["", "   ", "x" * 17, "A\\B", "Ä", "A\nB"])
def test_own_title(title: str):
    with pytest.raises(UsageError, match="--own-aet"):
        Own(title)


@pytest.mark.parametrize("uid", ["", "1..2", ".1", "1.2/../3", "1.2?x", "1." * 33 + "1", "1.2\n"])
def test_a_uid_cannot_leave_its_place_in_a_path(uid: str):
    with pytest.raises(UsageError, match="--study"):
        require_uid(uid, "--study")


def test_uids_and_loopback():
    assert require_uid("1.2.840.0.017", "--study") == "1.2.840.0.017"
    assert is_loopback("localhost")
    assert is_loopback("127.8.8.8")
    assert is_loopback("::1")
    assert not is_loopback("localhost.example")
    assert not is_loopback("10.0.0.1")
