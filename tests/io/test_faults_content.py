"""Rows F15 to F34 of the fault table, content of NIfTI: refused with the file and field named, or
handled with a result equal to that of the clean file.
"""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg_diff import io
from tests.io.faults import (
    CLEAN,
    CLEAN_LABEL,
    PHANTOM,
    assert_equals_clean,
    refusal,
)
from tests.phantoms import (
    NiftiFile,
    grid_affine,
)


def test_F15_trailing_axes_of_one(tmp_path: Path) -> None:
    for n in (1, 2, 4):
        data = PHANTOM.image.reshape(*PHANTOM.image.shape, *[1] * n)
        image = io.read_image(replace(CLEAN, data=data).write(tmp_path / "s.nii.gz"))
        assert_equals_clean(image)
        assert image.shape == (1, 30, 26, 22)
        io.write_label(tmp_path / "o.nii.gz", PHANTOM.labels[None], image, n_classes=4)
        assert nib.load(tmp_path / "o.nii.gz").shape == (30, 26, 22)


def test_F16_several_volumes(tmp_path: Path) -> None:
    data = np.stack([PHANTOM.image * k for k in range(6)], axis=-1)
    path = replace(CLEAN, data=data).write(tmp_path / "s.nii.gz")
    refusal(path, "6 volumes; choose --volume k", "30 x 26 x 22 x 6")
    assert_equals_clean(io.read_image(path, io.ReadOptions(volume=1)))
    everything = io.read_image(path, io.ReadOptions(volume="all"))
    np.testing.assert_array_equal(everything.numpy(), np.moveaxis(data, -1, 0))
    for k in (6, -1):
        refusal(
            path, str(k), "0 to 5", read=lambda k=k: io.read_image(path, io.ReadOptions(volume=k))
        )


def test_F17_flat_image(tmp_path: Path) -> None:
    for name, data in (("two.nii", PHANTOM.image[:, :, 9]), ("one.nii", PHANTOM.image[:, :, 9:10])):
        path = replace(CLEAN, data=data).write(tmp_path / name)
        image = io.read_image(path)
        assert image.shape == (1, 30, 26, 1)
        np.testing.assert_array_equal(image[0, :, :, 0].numpy(), PHANTOM.image[:, :, 9])
        refusal(path, "too flat", "30 x 26 x 1", read=lambda image=image: io.require_volume(image))
        io.write_label(tmp_path / "o.nii", np.zeros(image.shape, int), image, n_classes=2)
        assert nib.load(tmp_path / "o.nii").shape == data.shape
    io.require_volume(io.read_image(CLEAN.write(tmp_path / "s.nii")))


@pytest.mark.parametrize("code", [128, 2304])
def test_F19_colour(tmp_path: Path, code: int) -> None:
    path = replace(CLEAN, fields={"datatype": code}).write(tmp_path / "s.nii")
    refusal(path, "colour image", "datatype", str(code))


@pytest.mark.parametrize(
    ("code", "word"), [(32, "complex"), (1792, "complex"), (2048, "complex"), (1, "1-bit"),
                       (1536, "128-bit"), (0, "unknown data type"), (77, "unknown data type")],
)  # fmt: skip
def test_F20_numbers_that_are_no_grey_values(tmp_path: Path, code: int, word: str) -> None:
    path = replace(CLEAN, fields={"datatype": code}).write(tmp_path / "s.nii")
    refusal(path, word, "datatype")


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4", "f8", "i1", "u2", "u4", "i8", "u8"])
def test_F21_big_endian(tmp_path: Path, dtype: str) -> None:
    # i1 cannot hold the phantom's 300.
    data = (PHANTOM.image / (10 if dtype in ("i1", "u1") else 1)).astype(dtype)
    big = io.read_image(replace(CLEAN, data=data, endian=">").write(tmp_path / "b.nii.gz"))
    little = io.read_image(replace(CLEAN, data=data).write(tmp_path / "l.nii.gz"))
    np.testing.assert_array_equal(little[0].numpy(), data.astype(np.float32))
    assert big.numpy().tobytes() == little.numpy().tobytes()
    np.testing.assert_array_equal(big.affine.numpy(), little.affine.numpy())


@pytest.mark.parametrize("intercept", [0.0, 7.0, np.inf])
@pytest.mark.parametrize("slope", [0.0, np.nan])
def test_F22_no_slope(tmp_path: Path, slope: float, intercept: float) -> None:
    fields = {"scl_slope": slope, "scl_inter": intercept}
    assert_equals_clean(io.read_image(replace(CLEAN, fields=fields).write(tmp_path / "s.nii")))


@pytest.mark.parametrize(
    ("slope", "intercept", "name"),
    [(2.0, np.inf, "scl_inter"), (2.0, np.nan, "scl_inter"), (np.inf, 0.0, "scl_slope")],
)
def test_F23_infinite_scaling(tmp_path: Path, slope: float, intercept: float, name: str) -> None:
    fields = {"scl_slope": slope, "scl_inter": intercept}
    refusal(replace(CLEAN, fields=fields).write(tmp_path / "s.nii"), name)


def test_F24_wide_integers(tmp_path: Path) -> None:
    values = np.array([0, 32767, 32768, 65535], np.uint16).reshape(2, 2, 1)
    affine = grid_affine(shape=(2, 2, 1))
    # uint16 values stored as int16 with intercept 32768, as nibabel and ITK do.
    shifted = NiftiFile((values.astype(int) - 32768).astype(np.int16), affine,
                        fields={"scl_slope": 1, "scl_inter": 32768})  # fmt: skip
    image = io.read_image(shifted.write(tmp_path / "s.nii"))
    np.testing.assert_array_equal(image[0].numpy(), values)
    for dtype in (np.uint16, np.int64, np.uint64):
        path = NiftiFile(values.astype(dtype), affine).write(tmp_path / "w.nii")
        np.testing.assert_array_equal(io.read_image(path)[0].numpy(), values)
        label = io.read_label(path)
        np.testing.assert_array_equal(label[0].numpy(), values)
        assert label.dtype.is_signed
    huge = NiftiFile(np.full((2, 2, 2), 2**40 + 1), affine).write(tmp_path / "h.nii")
    image = io.read_image(huge)
    assert float(image.max()) == 2.0**40
    assert "float32" in image.meta["warnings"][0]
    refusal(huge, "1099511627777", read=lambda: io.read_label(huge))


@pytest.mark.parametrize("value", [np.nan])
def test_F25_nan(tmp_path: Path, value: float) -> None:
    check_not_finite(tmp_path, value, "3 NaN and 0 infinite")


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_F26_infinity(tmp_path: Path, value: float) -> None:
    check_not_finite(tmp_path, value, "0 NaN and 3 infinite")


def check_not_finite(tmp_path: Path, value: float, counts: str) -> None:
    data = PHANTOM.image.copy()
    data[[4, 4, 9], [5, 6, 0], [7, 1, 2]] = value
    path = replace(CLEAN, data=data).write(tmp_path / "s.nii.gz")
    refusal(path, counts, "(4, 5, 7)" if data.flags.f_contiguous else "first at voxel (4, 5, 7)")
    filled = io.read_image(path, io.ReadOptions(nan_fill=-1.0))
    expected = PHANTOM.image.copy()
    expected[[4, 4, 9], [5, 6, 0], [7, 1, 2]] = -1.0
    np.testing.assert_array_equal(filled[0].numpy(), expected)
    assert filled.meta["warnings"][0].startswith("3 ")
    refusal(path, counts, read=lambda: io.read_label(path, options=io.ReadOptions(nan_fill=0.0)))


def test_F26_float64_beyond_float32(tmp_path: Path) -> None:
    data = PHANTOM.image.astype(np.float64)
    data[3, 2, 1] = 1e300
    refusal(replace(CLEAN, data=data).write(tmp_path / "s.nii"), "1 infinite", "(3, 2, 1)")


@pytest.mark.parametrize(("factor", "accepted"), [(1.000035, True), (1.02, False)])
def test_F30_scaled_labels(tmp_path: Path, factor: float, accepted: bool) -> None:
    path = replace(CLEAN_LABEL, fields={"scl_slope": factor}).write(tmp_path / "s.nii.gz")
    if accepted:
        label = io.read_label(path, allowed=range(4))
        np.testing.assert_array_equal(label[0].numpy(), PHANTOM.labels)
    else:
        refusal(path, "fractions", "1.02, 2.04, 3.06", read=lambda: io.read_label(path))


def test_F31_interpolated_labels(tmp_path: Path) -> None:
    data = PHANTOM.labels.astype(np.float32)
    data[0, 0, :3] = [0.5, 0.25, 0.5]
    path = replace(CLEAN, data=data).write(tmp_path / "s.nii.gz")
    refusal(path, "3 voxels", "0.25, 0.5", "nearest", read=lambda: io.read_label(path))


@pytest.mark.parametrize("odd", [4, -1, 255])
def test_F32_labels_outside_the_class_map(tmp_path: Path, odd: int) -> None:
    data = PHANTOM.labels.astype(np.int16)
    data[0, 0, 0] = odd
    path = replace(CLEAN, data=data).write(tmp_path / "s.nii.gz")
    refusal(path, f"found {odd};", "0, 1, 2, 3", read=lambda: io.read_label(path, allowed=range(4)))
    label = io.read_label(path, allowed=[*range(4), odd])
    np.testing.assert_array_equal(label[0].numpy(), data)
    if odd < 0:
        refusal(path, str(odd), read=lambda: io.read_label(path))


@pytest.mark.parametrize(("n_classes", "dtype"), [(2, "u1"), (255, "u1"), (256, "u2"), (300, "u2")])
def test_F33_type_follows_class_map(tmp_path: Path, n_classes: int, dtype: str) -> None:
    image = io.read_image(CLEAN.write(tmp_path / "s.nii.gz"))
    labels = np.where(PHANTOM.labels > 0, n_classes - 1, 0)[None]
    for values in (labels, labels * 0):
        io.write_label(tmp_path / "o.nii.gz", values, image, n_classes=n_classes)
        written = nib.load(tmp_path / "o.nii.gz")
        assert written.get_data_dtype() == np.dtype(dtype)
        np.testing.assert_array_equal(np.asarray(written.dataobj), values[0])


def test_F33_labels_that_do_not_fit(tmp_path: Path) -> None:
    image = io.read_image(CLEAN.write(tmp_path / "s.nii.gz"))
    for bad in (256, -1, 0.5, np.nan):
        with pytest.raises(ValueError, match=r"fit|whole"):
            io.write_label(tmp_path / "o.nii.gz", PHANTOM.image[None] * 0 + bad, image, n_classes=9)
    assert not (tmp_path / "o.nii.gz").exists()


def test_F34_written_label_file(tmp_path: Path) -> None:
    image = io.read_image(replace(CLEAN, fields={"scl_slope": 2.5, "scl_inter": -7}).write(
        tmp_path / "s.nii.gz"))  # fmt: skip
    io.write_label(tmp_path / "o.nii.gz", PHANTOM.labels[None], image, n_classes=4)
    raw = gzip.decompress((tmp_path / "o.nii.gz").read_bytes())
    header = nib.Nifti1Header(raw[:348])
    assert (header["scl_slope"], header["scl_inter"]) == (1, 0)
    assert header["datatype"] == 2
    assert raw[352:] == PHANTOM.labels.tobytes(order="F")
