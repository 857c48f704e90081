"""DICOM series on every usual plane: each voxel where the phantom has it, masks on its grid."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from pydicom.dataset import Dataset

from medseg_diff import io
from medseg_diff.cli.describe import describe
from medseg_diff.errors import InputError
from tests.io import dicoms
from tests.io.dicoms import GRIDS, PHANTOM, SHAPE, enhanced, planes, save, write_dicomdir
from tests.io.faults import refusal
from tests.phantoms import BALLS, centroid, grid_affine, make_phantom, turn

RANDOM = np.random.default_rng(0)
on_every_grid = pytest.mark.parametrize("affine", GRIDS.values(), ids=GRIDS.keys())


def assert_in_place(image) -> None:
    """Every voxel holds what the phantom has at the world position its affine gives it."""
    expected = make_phantom(np.asarray(image.affine), tuple(image.shape[1:]))
    np.testing.assert_array_equal(np.asarray(image)[0], expected.image)
    for label in BALLS:  # all of the anatomy is there
        assert (expected.labels == label).any()


@on_every_grid
def test_every_voxel_lies_where_it_was(tmp_path: Path, affine):
    """File names and InstanceNumbers say nothing of the order."""
    shuffled = planes(affine)
    RANDOM.shuffle(shuffled)
    image = io.read_image(save(shuffled, tmp_path / "s"))
    assert image.dtype == torch.float32
    assert image.meta["kind"] == "dicom"
    assert tuple(image.shape) == (1, *SHAPE)
    assert_in_place(image)
    np.testing.assert_allclose(io.read_spacing(tmp_path / "s"), dicoms.SPACING, atol=1e-8)
    # Slices ascend along the normal of rows and columns: [i, j, k] is right-handed in LPS.
    assert np.linalg.det(np.asarray(image.affine)[:3, :3]) > 0


@on_every_grid
def test_enhanced_frames_lie_where_they_were(tmp_path: Path, affine):
    data = make_phantom(affine, SHAPE).image.astype(np.uint16)
    order = RANDOM.permutation(SHAPE[2])
    save([enhanced(affine, data, order)], tmp_path / "s", "one{}.dcm")
    image = io.read_image(tmp_path / "s" / "one0.dcm")
    assert_in_place(image)
    meta = image.meta["dicom"]
    assert meta["files"] == [str(tmp_path / "s" / "one0.dcm")]
    here = [int(order[number - 1]) for number in meta["frame_numbers"]]
    assert here in (list(range(SHAPE[2])), list(range(SHAPE[2]))[::-1])


def test_affine_by_hand(tmp_path: Path):
    """Rows to the left, columns to the back: LPS axes, so RAS flips the first two."""
    data = np.arange(2 * 3 * 4, dtype=np.uint16).reshape(2, 3, 4)
    affine = np.array([[-2.0, 0, 0, 10], [0, -3.0, 0, 20], [0, 0, 5.0, -7], [0, 0, 0, 1]])
    folder = save(planes(affine, data), tmp_path / "s")
    first = pydicom.dcmread(folder / "s000.dcm")
    assert list(first.ImagePositionPatient) == [-10, -20, -7]
    assert list(first.ImageOrientationPatient) == [1, 0, 0, 0, 1, 0]
    assert list(first.PixelSpacing) == [3, 2]
    assert (first.Rows, first.Columns) == (3, 2)
    image = io.read_image(folder)
    np.testing.assert_array_equal(np.asarray(image)[0], data)
    np.testing.assert_allclose(np.asarray(image.affine), affine, atol=1e-9)


def test_columns_towards_the_front_by_hand(tmp_path: Path):
    """With the column cosine [0, -1, 0] the normal points to the feet, and slices run that way."""
    data = np.arange(2 * 3 * 4, dtype=np.uint16).reshape(2, 3, 4)
    affine = np.array([[-2.0, 0, 0, 10], [0, 3.0, 0, 20], [0, 0, 5.0, -7], [0, 0, 0, 1]])
    image = io.read_image(save(planes(affine, data), tmp_path / "s"))
    np.testing.assert_array_equal(np.asarray(image)[0], data[..., ::-1])
    np.testing.assert_allclose(np.asarray(image.affine)[:3, 2], [0, 0, -5], atol=1e-9)
    assert np.asarray(image.affine)[2, 3] == pytest.approx(-7 + 3 * 5)


def test_files_are_named_in_the_order_of_slices(tmp_path: Path):
    shuffled = planes()
    RANDOM.shuffle(shuffled)
    image = io.read_image(save(shuffled, tmp_path / "s"))
    meta = image.meta["dicom"]
    heights = [
        float(pydicom.dcmread(name, stop_before_pixels=True).ImagePositionPatient[2])
        for name in meta["files"]
    ]
    affine = np.asarray(image.affine)
    np.testing.assert_allclose(heights, affine[2, 3] + np.arange(SHAPE[2]) * affine[2, 2])
    assert meta["frame_of_reference"] == dicoms.FRAME
    assert meta["series"] == dicoms.SERIES
    assert (meta["modality"], set(meta["frame_numbers"])) == ("MR", {1})


@on_every_grid
def test_a_mask_is_written_where_the_scan_lies(tmp_path: Path, affine):
    image = io.read_image(save(planes(affine), tmp_path / "s"))
    labels = make_phantom(np.asarray(image.affine), SHAPE).labels
    out = tmp_path / f"mask{io.label_suffix(image)}"
    io.write_label(out, labels[None], image, n_classes=4)
    written = nib.load(out)
    assert written.get_data_dtype() == np.uint8
    for label in BALLS:
        expected = centroid(make_phantom(affine, SHAPE).labels, label, affine)
        found = centroid(np.asarray(written.dataobj), label, written.affine)
        np.testing.assert_allclose(found, expected, atol=1e-4)
    again = io.read_label(out, like=image)
    np.testing.assert_array_equal(np.asarray(again)[0], labels)


def test_one_file_list_and_zip_are_the_folder(tmp_path: Path):
    folder = save(planes(), tmp_path / "s")
    whole = io.read_image(folder)
    listed = io.read_image(sorted(folder.iterdir(), reverse=True))
    archive = tmp_path / "scan.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        for path in folder.iterdir():
            out.write(path, f"export/a/{path.name}")
    zipped = io.read_image(archive)
    for other in (listed, zipped):
        np.testing.assert_array_equal(np.asarray(other), np.asarray(whole))
        np.testing.assert_array_equal(np.asarray(other.affine), np.asarray(whole.affine))
    assert listed.meta["dicom"] == whole.meta["dicom"]
    assert zipped.meta["dicom"]["files"] == []
    assert io.case_stem(archive) == "scan"


def test_a_dicomdir_names_its_files(tmp_path: Path):
    save(planes(), tmp_path / "IMAGES", "S{:03d}")
    write_dicomdir(tmp_path, [["IMAGES", f"S{k:03d}"] for k in range(SHAPE[2])])
    for source in (tmp_path, tmp_path / "DICOMDIR"):
        assert_in_place(io.read_image(source))


def test_several_volumes_are_chosen_by_echo(tmp_path: Path):
    data = PHANTOM.image.astype(np.uint16)

    def echo(time: str, number: int):
        def edit(ds: Dataset, k: int) -> None:
            ds.EchoTime, ds.InstanceNumber = time, number + k

        return edit  # fmt: skip

    # The later echo comes first by number and by name: the time orders volumes.
    both = planes(data=data * 2, edit=echo("9.25", 1)) + planes(data=data, edit=echo("4.5", 100))
    folder = save(both, tmp_path / "s")
    refusal(folder, "2 volumes; choose --volume k", "EchoTime 4.5, 9.25", "11 positions")
    for volume in (0, 1):
        image = io.read_image(folder, io.ReadOptions(volume=volume))
        np.testing.assert_array_equal(np.asarray(image)[0], PHANTOM.image * (volume + 1))
    image = io.read_image(folder, io.ReadOptions(volume="all"))
    assert tuple(image.shape) == (2, *SHAPE)
    refusal(folder, "volume 2 asked for", read=lambda: io.read_image(
        folder, io.ReadOptions(volume=2)))  # fmt: skip


def test_series_is_chosen_by_the_end_of_its_uid(tmp_path: Path):
    def other(ds: Dataset, _: int) -> None:
        ds.SeriesInstanceUID = "2.25.2222222"

    save(planes(), tmp_path / "s", "a{}")
    save(planes(data=PHANTOM.image.astype(np.uint16) + 1, edit=other), tmp_path / "s", "b{}")
    for ending in ("222222", ".2222222", "2.25.2222222"):
        image = io.read_image(tmp_path / "s", io.ReadOptions(series=ending))
        np.testing.assert_array_equal(np.asarray(image)[0], PHANTOM.image + 1)
        assert image.meta["dicom"]["series"] == "2.25.2222222"
    for ending, words in (("3", "no series ends in"), ("", "no series")):
        chosen = io.ReadOptions(series=ending)
        refusal(tmp_path / "s", words, read=lambda o=chosen: io.read_image(tmp_path / "s", o))
    infos = io.list_series(tmp_path / "s")
    assert [(i.tail, i.frames) for i in infos] == [("111111", 11), ("222222", 11)]
    text = describe(str(tmp_path / "s"))
    assert "2 series" in text
    assert "...222222 MR, 11 slices, 3 x 3.2 x 3.6 mm" in text


def test_info_describes_one_series(tmp_path: Path):
    text = describe(str(save(planes(), tmp_path / "knee")))
    assert "knee" in text
    assert "15 x 13 x 11" in text
    assert "3 x 3.2 x 3.6" in text
    assert "CANARY" not in text


def test_pictures_without_place_are_raster_images(tmp_path: Path):
    rows = np.arange(6 * 4, dtype=np.uint8).reshape(6, 4)
    ds = dicoms.base(rows, "1.2.840.10008.5.1.4.1.1.1")
    ds.Modality = "CR"
    save([ds], tmp_path / "s", "p{}.dcm")
    image = io.read_image(tmp_path / "s" / "p0.dcm")
    assert image.meta["kind"] == "raster"
    np.testing.assert_array_equal(np.asarray(image)[0], rows)
    assert io.label_suffix(image) == ".png"
    io.write_label(tmp_path / "m.png", (rows > 3)[None].astype(int), image, n_classes=2)
    ds.Modality = "CT"
    save([ds], tmp_path / "s", "p{}.dcm")
    refusal(tmp_path / "s" / "p0.dcm", "ImagePositionPatient", "missing in 1 of 1")


@pytest.mark.parametrize("planar", [0, 1])
def test_colour_pictures_keep_their_channels(tmp_path: Path, planar):
    rgb = RANDOM.integers(0, 255, (6, 4, 3), dtype=np.uint8)
    ds = dicoms.base(rgb[..., 0], "1.2.840.10008.5.1.4.1.1.6.1")
    ds.Modality, ds.SamplesPerPixel, ds.PhotometricInterpretation = "US", 3, "RGB"
    ds.PlanarConfiguration = planar
    ds.PixelData = (np.moveaxis(rgb, -1, 0) if planar else rgb).tobytes()
    save([ds], tmp_path / "s", "p{}.dcm")
    image = io.read_image(tmp_path / "s" / "p0.dcm")
    np.testing.assert_array_equal(np.asarray(image), np.moveaxis(rgb, -1, 0))


def test_dicom_is_no_label_map(tmp_path: Path):
    folder = save(planes(), tmp_path / "s")
    refusal(folder, "no label maps", read=lambda: io.read_label(folder))


def test_series_of_one_frame_of_reference_become_channels(tmp_path: Path):
    """A ramp in the world is the same ramp after linear resampling."""
    fine = grid_affine("LPS", (2.0, 2.0, 2.0), (20, 20, 20), rotation=turn(20, 2))
    coarse = grid_affine("LIP", (4.0, 5.0, 6.0), (20, 18, 16))

    def ramp(affine, shape):
        index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
        return (index @ affine[:3, :3].T + affine[:3, 3]) @ [3.0, 5.0, -7.0] + 1000

    def series(uid: str, frame: str = dicoms.FRAME):
        def edit(ds: Dataset, _: int) -> None:
            ds.SeriesInstanceUID, ds.FrameOfReferenceUID = uid, frame
            ds.RescaleSlope, ds.RescaleIntercept = "0.01", "0"

        return edit  # fmt: skip

    def write(name: str, affine, shape, edit) -> Path:
        stored = np.rint(ramp(affine, shape) * 100).astype(np.uint32)
        return save(planes(affine, stored, edit=edit), tmp_path / name)

    first = write("a", fine, (20, 20, 20), series("2.25.1"))
    second = write("b", coarse, (20, 18, 16), series("2.25.2"))
    image = io.read_channels({"T1": first, "T2": second})
    assert tuple(image.shape) == (2, 20, 20, 20)
    expected = ramp(np.asarray(image.affine), (20, 20, 20))
    np.testing.assert_allclose(np.asarray(image[0]), expected, atol=0.011)
    np.testing.assert_allclose(np.asarray(image[1]), expected, atol=0.02)
    assert image.meta["warnings"] == ["T2: resampled onto the grid of the first channel"]
    assert image.meta["channels"] == ["T1", "T2"]
    far = coarse.copy()
    far[0, 3] += 45
    third = write("c", far, (20, 18, 16), series("2.25.3"))
    assert "lie outside" in io.read_channels({"T1": first, "T2": third}).meta["warnings"][0]
    strange = write("d", coarse, (20, 18, 16), series("2.25.4", "2.25.98"))
    with pytest.raises(InputError, match="shape differs"):
        io.read_channels({"T1": first, "T2": strange})


def test_nothing_says_whose_scan_it_is(tmp_path: Path):
    """Canaries in every identifying element stay out of meta, messages and descriptions."""
    image = io.read_image(save(planes(), tmp_path / "s"))
    assert "CANARY" not in repr(image.meta)
    assert "1900" not in repr(image.meta)
    broken = planes()
    del broken[4]
    with pytest.raises(InputError, match="1 slice missing") as caught:
        io.read_image(save(broken, tmp_path / "gap"))
    assert "CANARY" not in str(caught.value)


def test_zip_leaves_nothing_behind(tmp_path: Path, monkeypatch):
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    folder = save(planes(), tmp_path / "s")
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for path in folder.iterdir():
            out.write(path, path.name)
    seen = []
    with io.dicom_files(archive) as (files, others):
        seen = [p.stat().st_mode & 0o777 for p in files]
        assert all(p.is_relative_to(place) for p in files)
        assert others == 0
    assert set(seen) == {0o600}
    assert list(place.iterdir()) == []
