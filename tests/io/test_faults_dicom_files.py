"""Rows F58 to F66 of the fault table, DICOM pixels and files, and archives nobody vouches for."""

from __future__ import annotations

import io as buffers
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from medseg_diff import io
from medseg_diff.errors import InputError
from medseg_diff.io.dicom import pixels, sources
from tests.io.dicoms import (
    CANARY,
    CT,
    DATA,
    PHANTOM,
    SHAPE,
    assert_clean,
    planes,
    refused,
    save,
    write_dicomdir,
)  # fmt: skip
from tests.io.faults import peak_memory


def recode(ds: Dataset, syntax: UID, scratch: Path) -> Dataset:
    """Compress one slice without loss."""
    rows = np.frombuffer(ds.PixelData, np.uint16).reshape(ds.Rows, ds.Columns)
    if syntax == JPEG2000Lossless:
        out = buffers.BytesIO()
        Image.fromarray(rows).save(out, "JPEG2000", irreversible=False, no_jp2=True)
        ds.PixelData = encapsulate([out.getvalue()])
    elif syntax == JPEGLosslessSV1:
        writer = sitk.ImageFileWriter()
        writer.SetFileName(str(scratch / "jpeg.dcm"))
        writer.UseCompressionOn()
        writer.SetCompressor("JPEG")
        writer.Execute(sitk.GetImageFromArray(rows[None]))
        made = pydicom.dcmread(scratch / "jpeg.dcm")
        assert made.file_meta.TransferSyntaxUID in (JPEGLosslessSV1, "1.2.840.10008.1.2.4.57")
        syntax = made.file_meta.TransferSyntaxUID
        ds.PixelData = encapsulate(list(generate_frames(made.PixelData, number_of_frames=1)))
    else:
        ds.compress(syntax, generate_instance_uid=False)
        return ds
    ds["PixelData"].is_undefined_length = True
    ds["PixelData"].VR = "OB"
    ds.file_meta.TransferSyntaxUID = syntax
    return ds


@pytest.mark.parametrize(
    "syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless, JPEGLosslessSV1], ids=lambda s: s.name
)
def test_F58_compressed_equals_plain(tmp_path: Path, syntax: UID) -> None:
    series = [recode(ds, syntax, tmp_path) for ds in planes()]
    assert_clean(io.read_image(save(series, tmp_path / "s")))


def test_F58_plain_syntaxes(tmp_path: Path) -> None:
    for name, syntax in (("implicit", ImplicitVRLittleEndian),
                         ("deflated", DeflatedExplicitVRLittleEndian)):  # fmt: skip
        series = planes()
        for ds in series:
            ds.file_meta.TransferSyntaxUID = syntax
        assert_clean(io.read_image(save(series, tmp_path / name)))
    big = planes()
    for k, ds in enumerate(big):
        ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        ds.PixelData = DATA[..., k].T.astype(">u2").tobytes()
    folder = tmp_path / "big"
    folder.mkdir()
    for k, ds in enumerate(big):
        ds.save_as(folder / f"s{k:03d}", implicit_vr=False, little_endian=False)
    assert_clean(io.read_image(folder))


def test_F58_no_decoder(tmp_path: Path) -> None:
    series = planes()
    for ds in series:
        ds.PixelData = encapsulate([b"\xff\x4f" + bytes(50)])
        ds["PixelData"].is_undefined_length = True
        ds["PixelData"].VR = "OB"
        ds.file_meta.TransferSyntaxUID = HTJ2KLossless
    line = refused(save(series, tmp_path / "s"), "no decoder", "High-Throughput JPEG 2000")
    assert "pip install pylibjpeg-openjpeg" in line
    assert "1.2.840.10008.1.2.4.201" in line


def test_F59_pixel_data_too_short_or_long(tmp_path: Path) -> None:
    series = planes()
    whole = series[3].PixelData
    series[3].PixelData = whole[:-2]
    refused(save(series, tmp_path / "s"), "s003.dcm", "PixelData", "388 bytes", "390 bytes")
    del series[3].PixelData
    refused(save(series, tmp_path / "s"), "s003.dcm", "holds no pixel data")
    series[3].PixelData = whole + b"\1" * 10
    series[3]["PixelData"].VR = "OW"
    assert_clean(io.read_image(save(series, tmp_path / "s")), "1 files hold more pixel data")


def test_F59_file_cut_short(tmp_path: Path) -> None:
    folder = save(planes(), tmp_path / "s")
    for name in ("s004.dcm", "s010.dcm"):  # without the last, the others are still a volume
        whole = (folder / name).read_bytes()
        for share in (0.2, 0.35, 0.5, 0.9, 0.999):
            (folder / name).write_bytes(whole[: int(len(whole) * share)])
            refused(folder, name)
        (folder / name).write_bytes(whole)


def deflate_bomb(path: Path, size: int) -> None:
    ds = planes()[0]
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    ds.save_as(path, enforce_file_format=True)
    raw = path.read_bytes()
    start = 128 + 4 + 12 + struct.unpack("<I", raw[140:144])[0]
    engine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = [engine.compress(b"\x09\0\x01\x10UN\0\0" + struct.pack("<I", size))]
    body += [engine.compress(bytes(1 << 20)) for _ in range(size >> 20)]
    path.write_bytes(raw[:start] + b"".join(body) + engine.flush())


def test_F60_deflate_bomb(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    deflate_bomb(folder / "bomb", 200 << 20)
    assert (folder / "bomb").stat().st_size < 1 << 20
    with peak_memory(150 << 20):
        refused(folder, "bomb", "deflated data grows beyond reason")


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless], ids=lambda s: s.name)
def test_F61_broken_fragments(tmp_path: Path, syntax: UID) -> None:
    series = [recode(ds, syntax, tmp_path) for ds in planes()]
    frame = next(generate_frames(series[6].PixelData, number_of_frames=1))
    series[6].PixelData = encapsulate([frame[: len(frame) // 3]])
    series[6]["PixelData"].is_undefined_length = True
    refused(save(series, tmp_path / "s"), "s006.dcm", "PixelData", "damaged")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os, signal; print(1, flush=True); os.kill(os.getpid(), signal.SIGSEGV)", "crash"),
        ("import time; print(1, flush=True); time.sleep(60)", "took longer than"),
        ("print(1); print('MemoryError'); raise SystemExit(3)", "more memory"),
    ],
)
def test_F61_a_child_that_dies_is_only_a_refusal(
    tmp_path: Path, monkeypatch, code: str, words: str
) -> None:
    series = [recode(ds, RLELossless, tmp_path) for ds in planes()]
    folder = save(series, tmp_path / "s")
    real = subprocess.run

    def run(_: object, **options: object):
        return real([sys.executable, "-c", code], **options)

    monkeypatch.setattr(pixels.subprocess, "run", run)
    monkeypatch.setattr(pixels, "CHILD_SECONDS", 3.0)
    began = time.monotonic()
    refused(folder, "s001.dcm", words)
    assert time.monotonic() - began < 30


def test_K16_a_killed_decoder_is_named(tmp_path: Path, monkeypatch) -> None:
    """The kernel's own signal, and the file that was being decoded."""
    code = "import os, signal; print(1, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    folder = save([recode(ds, RLELossless, tmp_path) for ds in planes()], tmp_path / "s")
    real = subprocess.run
    monkeypatch.setattr(
        pixels.subprocess, "run", lambda _, **o: real([sys.executable, "-c", code], **o)
    )
    refused(folder, "s001.dcm", "killed by the operating system, probably memory")


def test_F61_memory_of_the_child_is_limited(tmp_path: Path, monkeypatch) -> None:
    series = [recode(ds, RLELossless, tmp_path) for ds in planes()]
    monkeypatch.setattr(pixels, "CHILD_BYTES", 40 << 20)  # less than NumPy needs
    refused(save(series, tmp_path / "s"), "s000.dcm", "PixelData")


def test_F62_without_preamble_meta_or_suffix(tmp_path: Path) -> None:
    for name, implicit in (("implicit", True), ("explicit", False)):
        folder = tmp_path / name
        folder.mkdir()
        for k, ds in enumerate(planes()):
            del ds.file_meta
            ds.save_as(folder / f"{k}.jpg.bak", implicit_vr=implicit, little_endian=True)
        assert (folder / "0.jpg.bak").read_bytes()[128:132] != b"DICM"
        assert_clean(io.read_image(folder))
    noise = np.random.default_rng(0)
    for n in (10, 200, 5000):
        (tmp_path / "noise").write_bytes(noise.bytes(n))
        with pytest.raises(InputError):
            io.read_image(tmp_path / "noise")


def test_F63_program_in_the_preamble(tmp_path: Path) -> None:
    folder = save(planes(), tmp_path / "s")
    for name, magic in (("s002.dcm", b"MZ"), ("s003.dcm", b"\x7fELF")):
        raw = (folder / name).read_bytes()
        (folder / name).write_bytes(magic + bytes(128 - len(magic)) + raw[128:])
    image = io.read_image(folder)
    assert_clean(image, "its preamble is that of a program; it was ignored and is never copied")
    io.write_label(tmp_path / "m.nii", PHANTOM.labels[None], image, n_classes=4)
    assert b"ELF" not in (tmp_path / "m.nii").read_bytes()


def test_F64_twelve_bits_signed_with_overlay(tmp_path: Path) -> None:
    """Bits above the stored ones carry an overlay; the sign is the twelfth bit."""

    def packed(ds: Dataset, k: int) -> None:
        values = DATA[..., k].T.astype(np.int16) - 200
        noise = np.random.default_rng(k).integers(0, 16, values.shape) << 12
        ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 12, 11, 1
        ds.RescaleIntercept, ds.RescaleSlope = "200", "1"
        ds.PixelData = ((values & 0xFFF) | noise).astype(np.uint16).tobytes()

    assert_clean(io.read_image(save(planes(edit=packed), tmp_path / "s")))

    def shifted(ds: Dataset, k: int) -> None:
        ds.BitsStored, ds.HighBit = 12, 13
        ds.PixelData = ((DATA[..., k].T << 2) | 3).astype(np.uint16).tobytes()

    assert_clean(io.read_image(save(planes(edit=shifted), tmp_path / "t")))


def test_F64_padding_of_a_ct(tmp_path: Path) -> None:
    """Padding takes the lowest measured value; it must not drag the intensities down."""
    data = DATA.astype(np.int16)
    data[:2], data[-1] = -2000, -1999

    def ct(ds: Dataset, _: int) -> None:
        ds.RescaleIntercept, ds.RescaleSlope = "-1024", "1"
        ds.add_new("PixelPaddingValue", "SS", -2000)
        ds.add_new("PixelPaddingRangeLimit", "SS", -1999)

    image = io.read_image(save(planes(data=data, sop=CT, edit=ct), tmp_path / "s"))
    expected = PHANTOM.image - 1024
    expected[:2] = expected[-1] = 10 - 1024
    np.testing.assert_array_equal(np.asarray(image)[0], expected)
    n = 3 * SHAPE[1] * SHAPE[2]
    assert image.meta["warnings"] == [f"{n} padding voxels were set to -1014"]
    # In MR the padding value is one that tissue has too, and stays.
    image = io.read_image(save(planes(data=data, edit=ct), tmp_path / "t"))
    assert float(image.min()) == -2000 - 1024


def test_F65_blank_elements(tmp_path: Path) -> None:
    def blank(ds: Dataset, _: int) -> None:
        for keyword in ("SliceThickness", "StudyDate", "AcquisitionDate", "RescaleSlope",
                        "PatientName", "AcquisitionNumber", "EchoTime", "ImageType"):  # fmt: skip
            setattr(ds, keyword, None)

    assert_clean(io.read_image(save(planes(edit=blank), tmp_path / "s")))


@pytest.mark.parametrize(
    "parts", [["..", "S000"], ["..", "..", "S000"], ["A/../../S000"], ["LINK"]]
)
def test_F66_dicomdir_points_outside(tmp_path: Path, parts: list[str]) -> None:
    save(planes(), tmp_path, "S{:03d}")
    disc = tmp_path / "disc"
    disc.mkdir()
    (disc / "LINK").symlink_to(tmp_path / "S000")
    with pydicom.config.disable_value_validation():
        write_dicomdir(disc, [parts])
    refused(disc / "DICOMDIR", "DICOMDIR", "names a file outside its own folder")


def archive(path: Path, *members: tuple[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in members:
            out.writestr(name, content)
    return path


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "\\\\host\\x", "C:/x", "a\\..\\x"])
def test_archive_with_a_path_outside(tmp_path: Path, name: str) -> None:
    path = archive(tmp_path / "a.zip", ("x", b""), (name, b"x"))
    refused(path, "a.zip", "is not to be trusted", "a link or a path outside")
    assert {p.name for p in tmp_path.iterdir()} == {"a.zip"}


def test_archive_with_a_link(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("x")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as out:
        out.writestr(link, "/etc/passwd")
    refused(tmp_path / "a.zip", "a link or a path outside")


def test_archive_beyond_its_caps(tmp_path: Path, monkeypatch) -> None:
    bomb = archive(tmp_path / "a.zip", ("x", bytes(70 << 20)))
    refused(bomb, "unpacks to too much", "archive")
    monkeypatch.setattr(sources, "MOST_FILES", 2)
    refused(archive(tmp_path / "b.zip", *((str(n), b"") for n in range(3))), "too many files")
    monkeypatch.setattr(sources, "MOST_BYTES", 10)
    refused(archive(tmp_path / "c.zip", ("x", bytes(11))), "unpacks to too much")


def test_archive_that_lies_about_its_size(tmp_path: Path, monkeypatch) -> None:
    path = archive(tmp_path / "a.zip", ("x", bytes(5000)))
    raw = bytearray(path.read_bytes())
    at = raw.index(b"PK\x01\x02")
    raw[at + 24 : at + 28] = struct.pack("<I", 10)
    path.write_bytes(raw)
    monkeypatch.setattr(sources, "MOST_BYTES", 100)
    refused(path, "a.zip")
    archive(path, ("x", b"y" * 500))
    path.write_bytes(path.read_bytes()[:40])
    refused(path, "damaged")


def test_sizes_are_checked_before_memory_is_taken(tmp_path: Path) -> None:
    series = planes()
    for ds in series:
        ds.Rows = ds.Columns = 65535
    folder = save(series, tmp_path / "s")
    with peak_memory(50 << 20):
        refused(folder, "s000.dcm", "impossible size", "65535 x 65535")


def test_odd_pixels_are_named(tmp_path: Path) -> None:
    for keyword, value, words in (
        ("BitsStored", 17, "impossible depth"),
        ("SamplesPerPixel", 2, "unsupported pixels"),
        ("PhotometricInterpretation", "PALETTE COLOR", "unsupported colour model"),
        ("ImageOrientationPatient", ["1", "0", "0", "0.1", "1", "0"], "not unit vectors"),
        ("PixelSpacing", ["0", "1"], "implausible spacing"),
        ("ModalityLUTSequence", Sequence([Dataset()]), "follow a table"),
    ):
        series = planes()
        for ds in series:
            setattr(ds, keyword, value)
        refused(save(series, tmp_path / keyword), keyword, words)


def test_canaries_reach_no_refusal(tmp_path: Path) -> None:
    """A name where a number or a code should be is not quoted."""
    for keyword in ("PhotometricInterpretation", "Modality"):
        series = planes()
        with pydicom.config.disable_value_validation():
            for ds in series:
                delattr(ds, keyword)
                setattr(ds, keyword, CANARY)
            folder = save(series, tmp_path / keyword)
        try:
            text = repr(io.read_image(folder).meta)
        except InputError as error:
            text = str(error)
        assert CANARY not in text
