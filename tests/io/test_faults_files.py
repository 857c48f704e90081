"""Rows F35 to F44 of the fault table, broken files and names: refused with file and field named, or
handled with a result equal to that of the clean file.
"""

from __future__ import annotations

import gzip
import os
import random
import tempfile
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg_diff import io
from medseg_diff.errors import InputError
from tests.io.faults import (
    CLEAN,
    PHANTOM,
    assert_equals_clean,
    peak_memory,
    refusal,
)
from tests.phantoms import (
    NiftiFile,
    grid_affine,
)


@pytest.mark.parametrize("share", [0.001, 0.25, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("name", ["s.nii.gz", "s.nii"])
def test_F35_cut_short(tmp_path: Path, share: float, name: str) -> None:
    path = CLEAN.write(tmp_path / name)
    whole = path.read_bytes()
    path.write_bytes(whole[: min(int(len(whole) * share), len(whole) - 2) + 1])
    refusal(path, "file ends early")


def test_F36_flipped_byte(tmp_path: Path) -> None:
    path = CLEAN.write(tmp_path / "s.nii.gz")
    whole = path.read_bytes()
    chosen = random.Random(0).sample(range(10, len(whole)), 150)
    # Always among them: the last data bytes, the checksum and the length.
    for at in [*chosen, *range(len(whole) - 12, len(whole))]:
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        path.write_bytes(damaged)
        refusal(path, "damaged" if at >= len(whole) - 8 else "")


def test_F36_checksum_alone(tmp_path: Path) -> None:
    """The voxels unpack without error; only the checksum tells that one of them changed."""
    raw = bytearray(CLEAN.tobytes())
    path = tmp_path / "s.nii.gz"
    packed = gzip.compress(bytes(raw), 0)  # stored, so bytes of the payload lie open
    at = packed.index(raw[5000:5100]) + 50
    path.write_bytes(packed[:at] + bytes([packed[at] ^ 1]) + packed[at + 1 :])
    refusal(path, "damaged", "CRC")


def test_F36_garbage_after_the_stream(tmp_path: Path) -> None:
    path = CLEAN.write(tmp_path / "s.nii.gz")
    path.write_bytes(path.read_bytes() + b"garbage")
    refusal(path, "damaged")


def test_F37_name_and_packing_disagree(tmp_path: Path) -> None:
    raw = CLEAN.tobytes()
    (tmp_path / "plain.nii.gz").write_bytes(raw)
    (tmp_path / "packed.nii").write_bytes(gzip.compress(raw))
    (tmp_path / "two.nii.gz").write_bytes(gzip.compress(raw[:999]) + gzip.compress(raw[999:]))
    for path in tmp_path.iterdir():
        assert_equals_clean(io.read_image(path))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty (0 bytes)"),
        (b"<!DOCTYPE html>\n<html><body>404</body></html>" * 20, "HTML page"),
        (b"\n <HTML><head></head></HTML>" + b" " * 400, "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
        (b"\x89PNG\r\n\x1a\n" + bytes(400), "a PNG image"),
        (bytes(128) + b"DICM" + bytes(400), "DICOM"),
        (b"PK\x03\x04" + bytes(400), "zip archive"),
        (b"NRRD0004\n" + bytes(400), "NRRD"),
        (bytes(4000), "not a NIfTI file"),
        (b"short", "file ends early"),
    ],
)
def test_F38_impostors(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "s.nii.gz"
    path.write_bytes(content)
    refusal(path, words)
    if content:
        path.write_bytes(gzip.compress(content))
        refusal(path, words)


def test_F38_header_of_a_pair(tmp_path: Path) -> None:
    path = replace(CLEAN, fields={"magic": b"ni1"}).write(tmp_path / "s.nii")
    refusal(path, "two-file NIfTI", "Convert")


@pytest.mark.parametrize("name", ["s.nii", "s.nii.gz"])
def test_F39_header_bomb(tmp_path: Path, name: str) -> None:
    file = NiftiFile(np.zeros((1, 1, 1), np.uint8), np.eye(4))
    for dims, datatype, words in (
        ([3, 32767, 32767, 32767, 1, 1, 1, 1], 64, "more voxels than allowed"),
        ([7] + [32767] * 7, 64, "more voxels than allowed"),
        ([3, 1024, 1024, 1024, 1, 1, 1, 1], 64, "file ends early"),
    ):
        path = replace(file, fields={"dim": dims, "datatype": datatype}).write(tmp_path / name)
        with peak_memory(2**22):
            refusal(path, "dim", words)
    small = CLEAN.write(tmp_path / name)
    n = PHANTOM.image.size
    refusal(small, "voxels", read=lambda: io.read_image(small, io.ReadOptions(max_voxels=n - 1)))
    assert_equals_clean(io.read_image(small, io.ReadOptions(max_voxels=n)))


def test_F40_deflate_bomb(tmp_path: Path) -> None:
    path = tmp_path / "s.nii.gz"
    raw = CLEAN.tobytes()
    path.write_bytes(gzip.compress(raw) + gzip.compress(bytes(2**27)))
    with peak_memory(2**23):
        refusal(path, "far more data than its header describes")
    # A little padding is no bomb, nor is an empty mask, which also packs 1000:1.
    path.write_bytes(gzip.compress(raw + bytes(1000)))
    assert_equals_clean(io.read_image(path))
    empty = NiftiFile(np.zeros((256, 256, 128), np.uint8), grid_affine(shape=(256, 256, 128)))
    size = empty.write(path).stat().st_size
    assert 256 * 256 * 128 / size > 900
    assert int(io.read_label(path, allowed=[0, 1]).max()) == 0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dim": [3, 30, -26, 22, 1, 1, 1, 1]}, ["dim[2]", "-26"]),
        ({"dim": [3, 30, 26, 0, 1, 1, 1, 1]}, ["dim[3]", "found 0"]),
        ({"dim": [0, 30, 26, 22, 1, 1, 1, 1]}, ["dim[0]", "found 0"]),
        ({"dim": [8, 30, 26, 22, 1, 1, 1, 1]}, ["dim[0]", "found 8"]),
        ({"dim": [-3, 30, 26, 22, 1, 1, 1, 1]}, ["dim[0]", "found -3"]),
        ({"sizeof_hdr": 349}, ["sizeof_hdr", "349"]),
        ({"vox_offset": 1e9}, ["file ends early"]),
        ({"vox_offset": 100}, ["vox_offset", "100"]),
        ({"vox_offset": np.nan}, ["vox_offset", "nan"]),
        ({"vox_offset": np.inf}, ["vox_offset", "inf"]),
    ],
)
@pytest.mark.parametrize("name", ["s.nii", "s.nii.gz"])
def test_F41_impossible_numbers(
    tmp_path: Path, fields: dict[str, object], words: list[str], name: str
) -> None:
    refusal(replace(CLEAN, fields=fields).write(tmp_path / name), *words)


def test_F41_offset_behind_extensions(tmp_path: Path) -> None:
    raw = CLEAN.tobytes()
    path = tmp_path / "s.nii.gz"
    moved = replace(CLEAN, fields={"vox_offset": 400}).tobytes()
    path.write_bytes(gzip.compress(moved[:348] + b"\1\0\0\0" + b"secret" + bytes(42) + raw[352:]))
    image = io.read_image(path)
    assert_equals_clean(image)
    io.write_map(tmp_path / "o.nii", image, image)
    assert b"secret" not in (tmp_path / "o.nii").read_bytes()
    unset = replace(CLEAN, fields={"vox_offset": 0}).write(tmp_path / "z.nii")
    assert_equals_clean(io.read_image(unset))


def test_F42_directory(tmp_path: Path) -> None:
    (tmp_path / "s.nii.gz").mkdir()
    refusal(tmp_path / "s.nii.gz", "is a folder")


def test_F42_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "s.nii.gz")
    refusal(tmp_path / "s.nii.gz", "pipe")


def test_F42_broken_link_and_missing_file(tmp_path: Path) -> None:
    (tmp_path / "s.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    refusal(tmp_path / "s.nii.gz", "link points to a file that is not there")
    refusal(tmp_path / "gone.nii.gz", "no such file")
    CLEAN.write(tmp_path / "gone.nii.gz")
    assert_equals_clean(io.read_image(tmp_path / "s.nii.gz"))


def test_F42_no_permission() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = CLEAN.write(Path(folder) / "s.nii.gz")
        path.chmod(0)
        root = os.geteuid() == 0
        try:
            if root:  # the superuser may read anything
                os.seteuid(65534)
            refusal(path, "no permission")
        finally:
            if root:
                os.seteuid(0)


def test_F42_names_no_file_can_have(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a file name"):
        io.read_image(tmp_path / "a\0b.nii")
    with pytest.raises(InputError, match="cannot be opened"):
        io.read_image(tmp_path / ("x" * 300 + ".nii"))


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("my scan.nii.gz", "my scan"),
        ("Größe_μ_脳.nii.gz", "Größe_μ_脳"),
        ("two\nlines.nii.gz", "two_lines"),
        ("-rf.nii.gz", "-rf"),
        ("SCAN.NII.GZ", "SCAN"),
        ("a.b.c.Nii", "a.b.c"),
        ("CON.nii.gz", "CON_"),
    ],
)
def test_F43_names(tmp_path: Path, name: str, stem: str) -> None:
    path = CLEAN.write(tmp_path / name)
    image = io.read_image(path)
    assert_equals_clean(image)
    assert io.output_names([path]) == {path: stem}
    out = tmp_path / f"{stem}_out{io.label_suffix(image)}"
    io.write_label(out, PHANTOM.labels[None], image, n_classes=4)
    np.testing.assert_array_equal(np.asarray(nib.load(out).dataobj), PHANTOM.labels)


@pytest.mark.parametrize("name", ["../../x", "..", "", " ", "a/b", "a\\b", "x" * 300, "μ" * 150])
def test_F43_names_refused(name: str) -> None:
    with pytest.raises(InputError, match="output name"):
        io.safe_stem(name)


@pytest.mark.parametrize(
    "pair",
    [
        ("a/x.nii", "b/x.nii.gz"),
        ("a/x.nii", "a/X.NII"),
        ("x.png", "x.tif"),
        ("caf\u00e9.nii", "cafe\u0301.nii"),
        ("x.nii.gz", "x.nii.gz"),
        ("x.nii.gz", "x_prob.nii.gz"),
        ("x_doubt.nii.gz", "x.nii.gz"),
    ],
)
def test_F44_one_output_name(pair: tuple[str, str]) -> None:
    with pytest.raises(InputError, match="one output name") as caught:
        io.output_names(["other.nii", *pair])
    assert all(Path(name).name in str(caught.value) for name in pair)


def test_F44_different_names() -> None:
    paths = [Path("a/x.nii"), Path("y.nii.gz"), Path("x_1.png")]
    assert io.output_names(map(str, paths)) == dict(zip(paths, ["x", "y", "x_1"], strict=True))
