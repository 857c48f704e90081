"""NIfTI in and out, compared with nibabel, through our functions and through MONAI's."""

from __future__ import annotations

import errno
import gzip
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import IO

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor, list_data_collate
from monai.transforms import LoadImage, LoadImaged, Orientation, SaveImage, SaveImaged
from numpy.random import default_rng

from medseg_diff import io
from medseg_diff.errors import InputError
from medseg_diff.files import atomic_file, file_sha256
from medseg_diff.io import grid as grids
from medseg_diff.io.header import parse_header
from tests.io.faults import AFFINE, AXIS_LABELS, CLEAN, CLEAN_LABEL, PHANTOM
from tests.phantoms import NiftiFile, all_axcodes, grid_affine, turn

# `LoadImage` registers all of MONAI's readers, one of which looks for a codec of GPUs.
pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return CLEAN.write(tmp_path / "scan.nii.gz")


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    return CLEAN_LABEL.write(tmp_path / "mask.nii.gz")


def test_image_is_float32_with_everything_in_meta(scan: Path) -> None:
    image = io.read_image(scan)
    assert image.dtype == torch.float32
    assert image.is_contiguous()
    assert image.affine.dtype == torch.float64
    assert image.meta["kind"] == "nifti"
    assert image.meta["filename_or_obj"] == str(scan)
    assert image.meta["warnings"] == []
    assert tuple(image.meta["header"]["shape"]) == PHANTOM.image.shape


def test_scaling_and_values_match_nibabel(tmp_path: Path) -> None:
    data = default_rng(0).integers(-3000, 3000, (5, 6, 7)).astype(np.int16)
    fields = {"scl_slope": 0.37, "scl_inter": -1024}
    path = NiftiFile(data, grid_affine(shape=(5, 6, 7)), fields=fields).write(tmp_path / "s.nii")
    expected = nib.load(path).get_fdata()
    np.testing.assert_allclose(io.read_image(path)[0].numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("axcodes", all_axcodes()[::5])
@pytest.mark.parametrize("codes", [(1, 0), (0, 1)])
def test_affine_matches_nibabel(tmp_path: Path, axcodes: str, codes: tuple[int, int]) -> None:
    affine = grid_affine(axcodes, rotation=turn(37, 0) @ turn(21, 1))
    file = replace(CLEAN, affine=affine, sform_code=codes[0], qform_code=codes[1])
    path = file.write(tmp_path / "s.nii")
    found = io.read_image(path).affine.numpy()
    np.testing.assert_allclose(found, nib.load(path).affine, atol=1e-6)
    assert grids.axcodes(found) == "".join(nib.aff2axcodes(affine))


def test_quaternion_of_half_a_turn() -> None:
    """b, c, d a little too long for a rotation leave a = 0, and must not stretch the voxels."""
    quaternion = np.array([0.6, 0.8, 0.0]) * 1.0004
    fields = {f"quatern_{k}": v for k, v in zip("bcd", quaternion, strict=True)}
    header = parse_header(
        replace(CLEAN, fields=fields).tobytes()[:540], Path("s.nii"), max_voxels=2**31
    )
    found = grids.qform_affine(header.grid, Path("s.nii"))[:3, :3] / [1.5, 1.6, 1.8]
    np.testing.assert_allclose(found @ found.T, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(found[:2, :2], [[-0.28, 0.96], [0.96, 0.28]], atol=1e-6)


def test_grid_distance_is_the_farthest_corner() -> None:
    spread = np.diag([1.01, 1, 1, 1])
    assert grids.grid_distance(np.eye(4), spread, (101, 5, 5)) == pytest.approx(1.0)
    assert grids.grid_distance(AFFINE, AFFINE, (9, 9, 9)) == 0


def test_spacing(scan: Path) -> None:
    np.testing.assert_allclose(io.read_spacing(scan), (1.5, 1.6, 1.8), rtol=1e-6)


def test_label(mask: Path, scan: Path) -> None:
    label = io.read_label(mask, allowed=range(4), like=io.read_image(scan))
    assert label.dtype == torch.int16
    np.testing.assert_array_equal(label[0].numpy(), PHANTOM.labels)


def test_label_type_follows_the_class_map(mask: Path) -> None:
    assert io.read_label(mask, allowed=[*range(4), 40000]).dtype == torch.int32
    assert io.read_label(mask, allowed=[*range(4), 32767]).dtype == torch.int16


def test_label_with_several_volumes_is_refused(tmp_path: Path) -> None:
    data = np.stack([PHANTOM.labels] * 2, axis=-1)
    path = replace(CLEAN_LABEL, data=data).write(tmp_path / "m.nii")
    with pytest.raises(InputError, match="one channel"):
        io.read_label(path, options=io.ReadOptions(volume="all"))


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("name", ["o.nii.gz", "o.nii"])
def test_maps_come_back(tmp_path: Path, scan: Path, k: int, name: str) -> None:
    image = io.read_image(scan)
    maps = default_rng(k).random((k, *PHANTOM.image.shape), np.float32)
    io.write_map(tmp_path / name, maps, image)
    written = nib.load(tmp_path / name)
    assert written.get_data_dtype() == np.float32
    assert written.shape == PHANTOM.image.shape + ((k,) if k > 1 else ())
    np.testing.assert_array_equal(written.affine, nib.load(scan).affine)
    again = io.read_image(tmp_path / name, io.ReadOptions(volume="all"))
    np.testing.assert_array_equal(again.numpy(), maps)


def test_same_input_same_bytes(tmp_path: Path, scan: Path) -> None:
    image = io.read_image(scan)
    for name in ("a.nii.gz", "b.nii.gz"):
        io.write_label(tmp_path / name, PHANTOM.labels[None], image, n_classes=4)
    first, second = ((tmp_path / name).read_bytes() for name in ("a.nii.gz", "b.nii.gz"))
    assert first == second
    # Neither a name (flag 8) nor a time stands in the gzip header.
    assert first[3] == 0
    assert first[4:8] == bytes(4)
    assert file_sha256(tmp_path / "a.nii.gz") == hashlib.sha256(first).hexdigest()


def test_written_elsewhere_is_refused(tmp_path: Path, scan: Path) -> None:
    image = io.read_image(scan)
    moved = Orientation(axcodes="RAS", labels=AXIS_LABELS)(image)
    assert moved.shape == image.shape
    out = tmp_path / "o.nii.gz"
    with pytest.raises(ValueError, match="mm off the image's file grid"):
        io.write_label(out, moved * 0, image, n_classes=2)
    with pytest.raises(ValueError, match="do not fit the image"):
        io.write_map(out, image[:, 1:], image)
    with pytest.raises(ValueError, match="one channel"):
        io.write_label(out, np.zeros((2, *PHANTOM.image.shape)), image, n_classes=2)
    with pytest.raises(InputError, match="not a name for NIfTI"):
        io.write_map(tmp_path / "o.png", image, image)
    assert [p.name for p in tmp_path.iterdir()] == ["scan.nii.gz"]
    # `like` may have moved on; its header still knows the file's grid.
    io.write_label(out, PHANTOM.labels[None], moved, n_classes=4)
    np.testing.assert_array_equal(nib.load(out).affine, nib.load(scan).affine)


class _FullDisk(gzip.GzipFile):
    def write(self, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_failed_write_leaves_the_old_file(
    tmp_path: Path, scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = io.read_image(scan)
    out = tmp_path / "o.nii.gz"
    io.write_label(out, PHANTOM.labels[None], image, n_classes=4)
    before = out.read_bytes()
    monkeypatch.setattr(gzip, "GzipFile", _FullDisk)
    with pytest.raises(InputError, match="No space left"):
        io.write_label(out, PHANTOM.labels[None] * 0, image, n_classes=4)
    assert out.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.nii.gz", "scan.nii.gz"]


def test_name_appears_only_when_the_file_is_whole(tmp_path: Path) -> None:
    target = tmp_path / ("n" * 250)

    def interrupted(stream: IO[bytes]) -> None:
        stream.write(b"half")
        stream.flush()
        assert not target.exists()
        (hidden,) = tmp_path.iterdir()
        assert hidden.name.startswith(".")
        assert hidden.stat().st_mode & 0o777 == 0o600
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), atomic_file(target) as stream:
        interrupted(stream)
    assert list(tmp_path.iterdir()) == []
    with atomic_file(target) as stream:
        stream.write(b"whole")
    assert target.read_bytes() == b"whole"
    (tmp_path / "other").touch()
    assert target.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_missing_output_folder(tmp_path: Path, scan: Path) -> None:
    image = io.read_image(scan)
    for folder in (tmp_path / "none", scan):
        with pytest.raises(InputError, match="cannot be written") as caught:
            io.write_map(folder / "o.nii.gz", image, image)
        assert str(tmp_path) not in str(caught.value)


def test_channels_need_a_file() -> None:
    with pytest.raises(ValueError, match="at least one"):
        io.read_channels({})


def test_channel_warnings_name_the_channel(tmp_path: Path, scan: Path) -> None:
    fields = {"qoffset_x": AFFINE[0, 3] + 0.05}
    other = replace(CLEAN, fields=fields).write(tmp_path / "t2.nii.gz")
    both = io.read_channels({"T1": scan, "T2": other})
    assert len(both.meta["warnings"]) == 1
    assert both.meta["warnings"][0].startswith("T2: sform and qform differ")


def test_monai_loads_what_we_read(scan: Path, mask: Path) -> None:
    load = LoadImaged(["image"], reader=io.NiftiReader())
    image = load({"image": scan})["image"]
    ours = io.read_image(scan)
    np.testing.assert_array_equal(image.numpy(), ours.numpy())
    np.testing.assert_array_equal(image.affine.numpy(), ours.affine.numpy())
    first = LoadImage(io.NiftiReader, ensure_channel_first=True)(scan)
    np.testing.assert_array_equal(first.numpy(), ours.numpy())
    label = LoadImage(io.NiftiReader(label=True), dtype=None)(mask)
    assert label.dtype == torch.int16
    np.testing.assert_array_equal(label[0].numpy(), PHANTOM.labels)
    several = LoadImage(io.NiftiReader)([scan, mask])
    np.testing.assert_array_equal(several.numpy(), [PHANTOM.image, PHANTOM.labels])


def test_monai_cannot_load_what_we_refuse(tmp_path: Path) -> None:
    """`LoadImage` falls back to nibabel when a reader's `read` raises; ours must not let it."""
    path = replace(CLEAN, sform_code=0, qform_code=0).write(tmp_path / "s.nii.gz")
    assert LoadImage()(path).shape == PHANTOM.image.shape
    with pytest.raises(InputError, match="orientation unknown"):
        LoadImage(io.NiftiReader)(path)
    other = replace(CLEAN, affine=grid_affine()).write(tmp_path / "o.nii.gz")
    with pytest.raises(InputError, match="another place"):
        LoadImage(io.NiftiReader)([CLEAN.write(tmp_path / "c.nii.gz"), other])
    with pytest.raises(InputError, match="another kind"):
        LoadImage(io.RasterReader)(path)


def test_meta_survives_collation(scan: Path, tmp_path: Path) -> None:
    other = replace(CLEAN, qform_code=0).write(tmp_path / "b.nii.gz")
    batch = list_data_collate([{"image": io.read_image(path)} for path in (scan, other)])
    assert batch["image"].shape == (2, 1, *PHANTOM.image.shape)
    assert batch["image"].meta["header"]["qform_code"].tolist() == [1, 0]


def test_monai_saves_on_the_file_grid(tmp_path: Path, scan: Path) -> None:
    image = io.read_image(scan)
    canonical = Orientation(axcodes="RAS", labels=AXIS_LABELS)
    moved = canonical(image)
    save = SaveImaged(
        "image", output_dir=tmp_path, output_postfix="out", separate_folder=False,
        writer=io.NiftiWriter, output_dtype=np.int16, print_log=False,
    )  # fmt: skip
    save({"image": canonical.inverse(moved)})
    written = nib.load(tmp_path / "scan_out.nii.gz")
    original = nib.load(scan)
    assert written.get_data_dtype() == np.int16
    np.testing.assert_array_equal(np.asarray(written.dataobj), PHANTOM.image)
    for name in ("srow_x", "quatern_b", "qoffset_x", "sform_code", "qform_code", "xyzt_units"):
        assert written.header[name] == pytest.approx(original.header[name], abs=0)


@pytest.mark.parametrize("resample", [False, True])
def test_monai_saves_moved_data(tmp_path: Path, scan: Path, resample: bool) -> None:
    """Without resampling the new grid is written, with it the file's own; the place is the same."""
    moved = Orientation(axcodes="SRA", labels=AXIS_LABELS)(io.read_image(scan))
    save = SaveImage(
        tmp_path, output_postfix="out", separate_folder=False, writer=io.NiftiWriter,
        resample=resample, print_log=False,
    )  # fmt: skip
    save(moved)
    written = nib.load(tmp_path / "scan_out.nii.gz")
    back = nib.as_closest_canonical(written)
    expected = nib.as_closest_canonical(nib.load(scan))
    np.testing.assert_allclose(back.affine, expected.affine, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(back.dataobj), np.asarray(expected.dataobj))
    same = nib.aff2axcodes(written.affine) == nib.aff2axcodes(AFFINE)
    assert same is resample


def test_monai_writer_never_wraps_around(tmp_path: Path, scan: Path) -> None:
    save = SaveImage(tmp_path, writer=io.NiftiWriter, output_dtype=np.uint8, print_log=False)
    with pytest.raises(RuntimeError, match="do not fit uint8"):
        save(io.read_image(scan))
    stretch = SaveImage(
        tmp_path, output_postfix="s", separate_folder=False, writer=io.NiftiWriter,
        output_dtype=np.uint8, scale=255, print_log=False,
    )  # fmt: skip
    stretch(io.read_image(scan) / 300)
    stored = np.asarray(nib.load(tmp_path / "scan_s.nii.gz").dataobj)
    np.testing.assert_array_equal(stored, np.rint(PHANTOM.image / 300 * 255))


def test_monai_writer_without_meta(tmp_path: Path) -> None:
    """Plain tensors go to an identity grid, 2-D ones as a single slice."""
    save = SaveImage(
        tmp_path, separate_folder=False, writer=io.NiftiWriter, output_postfix="",
        print_log=False,
    )  # fmt: skip
    values = torch.arange(12.0).reshape(1, 3, 4)
    save(MetaTensor(values))
    written = nib.load(tmp_path / "0.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj)[..., 0], values[0].numpy())
    np.testing.assert_array_equal(written.affine, np.eye(4))


def test_real_scans_match_nibabel(shared_data: Path) -> None:
    """Vendors' and toolboxes' own files: voxels bitwise, affine within rounding."""
    folder = shared_data / "robust" / "nifti"
    paths = sorted(folder.glob("*.nii*"))
    assert len(paths) > 15
    for path in paths:
        expected = nib.load(path)
        image = io.read_image(path, io.ReadOptions(volume="all"))
        values = np.asarray(expected.dataobj, np.float32)
        values = values[..., None] if values.ndim == 3 else values
        np.testing.assert_array_equal(image.numpy(), np.moveaxis(values, -1, 0), err_msg=path.name)
        np.testing.assert_allclose(image.affine.numpy(), expected.affine, atol=1e-4)


def test_real_scan_round_trip(shared_data: Path, tmp_path: Path) -> None:
    for path in sorted(shared_data.glob("ms_longitudinal*/imagesTr/*.nii.gz"))[:3]:
        image = io.read_image(path)
        io.write_label(tmp_path / "o.nii.gz", image > 100, image, n_classes=2)
        ours, theirs = nib.load(tmp_path / "o.nii.gz").header, nib.load(path).header
        for name in ("srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d",
                     "qoffset_x", "sform_code", "qform_code", "xyzt_units"):  # fmt: skip
            assert ours[name].tobytes() == theirs[name].tobytes(), name
        assert ours["pixdim"][:4].tobytes() == theirs["pixdim"][:4].tobytes()
