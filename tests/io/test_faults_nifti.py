"""Rows F01 to F14 of the fault table, geometry of NIfTI: refused with the file and field named, or
handled with a result equal to that of the clean file.
"""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation

from medseg_diff import io
from tests.io.faults import (
    AFFINE,
    AXIS_LABELS,
    CLEAN,
    CLEAN_LABEL,
    PHANTOM,
    assert_equals_clean,
    refusal,
)
from tests.phantoms import (
    BALLS,
    BRIGHTNESS,
    NiftiFile,
    all_axcodes,
    centroid,
    grid_affine,
    make_phantom,
    turn,
)


@pytest.mark.parametrize(
    ("qform", "words"),
    [
        (grid_affine("RPS", (1.5, 1.6, 1.8), rotation=turn(10, 2)), ["LPS", "RPS", "mirrored"]),
        (grid_affine("LAS", (1.5, 1.6, 1.8), rotation=turn(10, 2)), ["LPS", "LAS", "mirrored"]),
        (grid_affine("LPI", (1.5, 1.6, 1.8), rotation=turn(10, 2)), ["LPS", "LPI", "mirrored"]),
        (grid_affine("RAS", (1.5, 1.6, 1.8), rotation=turn(10, 2)), ["LPS", "RAS", "180"]),
        (grid_affine("LPS", (1.5, 1.6, 2.0), rotation=turn(10, 2)), ["1.8", "2"]),
        (grid_affine("LPS", (1.5, 1.6, 1.8), rotation=turn(12, 2)), ["2 degrees"]),
        (AFFINE + np.outer([0.5, 0, 0, 0], [0, 0, 0, 1]), ["0.5 mm"]),
    ],
)
def test_F01_contradicting_forms_refused(
    tmp_path: Path, qform: np.ndarray, words: list[str]
) -> None:
    header = nib.Nifti1Header()
    header.set_qform(qform, 1)
    names = ["quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z", "pixdim"]
    fields = {name: header.structarr[name] for name in names}
    path = replace(CLEAN, fields=fields).write(tmp_path / "s.nii")
    # A wrong spacing also contradicts pixdim; it must be named as F01, which comes first.
    refusal(path, "sform", "qform", "contradict", "--affine", *words)
    chosen = io.read_image(path, io.ReadOptions(affine="qform"))
    np.testing.assert_allclose(np.asarray(chosen.affine), qform, atol=1e-4)
    chosen = io.read_image(path, io.ReadOptions(affine="sform"))
    assert_equals_clean(chosen)


@pytest.mark.parametrize("mirrored", ["LAS", "RPS", "RAI", "LPI"])
def test_F01_mirrored_upright(tmp_path: Path, mirrored: str) -> None:
    """Mirrored about the volume's centre: spacing and centre agree, and no rotation is defined."""
    header = nib.Nifti1Header()
    header.set_qform(grid_affine(mirrored), 1)
    names = ["quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z", "pixdim"]
    file = NiftiFile(PHANTOM.image, grid_affine("RAS"), fields={n: header[n] for n in names})
    refusal(file.write(tmp_path / "s.nii"), "mirrored", "RAS", mirrored)


def test_F01_nearly_equal_forms_warn(tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_qform(grid_affine("LPS", (1.5, 1.6, 1.8), rotation=turn(10.08, 2)), 1)
    fields = {f"quatern_{k}": header.structarr[f"quatern_{k}"] for k in "bcd"}
    near = io.read_image(replace(CLEAN, fields=fields).write(tmp_path / "s.nii"))
    assert_equals_clean(near)
    assert len(near.meta["warnings"]) == 1
    assert "0.08 degrees" in near.meta["warnings"][0]
    fields = {"qoffset_x": AFFINE[0, 3] + 0.09}
    near = io.read_image(replace(CLEAN, fields=fields).write(tmp_path / "t.nii"))
    assert "0.09 mm" in near.meta["warnings"][0]


def test_F02_singular_sform(tmp_path: Path) -> None:
    zero = {f"srow_{k}": np.zeros(4) for k in "xyz"}
    path = replace(CLEAN, fields=zero).write(tmp_path / "s.nii.gz")
    refusal(path, "singular sform, qform looks valid", "--affine qform")
    assert_equals_clean(io.read_image(path, io.ReadOptions(affine="qform")))
    path = replace(CLEAN, fields=zero, qform_code=0).write(tmp_path / "t.nii.gz")
    assert "qform" not in str(refusal(path, "singular sform"))


def test_F02_dependent_columns(tmp_path: Path) -> None:
    path = replace(CLEAN, fields={"srow_z": [0, 0, 0, 5]}).write(tmp_path / "s.nii")
    refusal(path, "singular sform", "dependent columns")


def test_F03_unknown_orientation(tmp_path: Path) -> None:
    path = replace(CLEAN, sform_code=0, qform_code=0).write(tmp_path / "s.nii")
    refusal(path, "orientation unknown", "--assume-axcodes")
    image = io.read_image(path, io.ReadOptions(assume_axcodes="LPS"))
    expected = grid_affine("LPS", (1.5, 1.6, 1.8))
    np.testing.assert_allclose(np.asarray(image.affine), expected, atol=1e-5)
    assert "LPS was assumed" in image.meta["warnings"][0]
    # Where the file does say, the option has no say.
    known = io.read_image(CLEAN.write(tmp_path / "k.nii"), io.ReadOptions(assume_axcodes="RAS"))
    assert_equals_clean(known)
    assert known.meta["warnings"] == []


def test_F03_axcodes_that_mean_nothing() -> None:
    for codes in ("RA", "RRS", "RAX", "RASR"):
        with pytest.raises(ValueError, match="assume_axcodes"):
            io.ReadOptions(assume_axcodes=codes)


def sheared(amount: float) -> np.ndarray:
    """AFFINE with the second axis leaning towards the first."""
    affine = AFFINE.copy()
    affine[:3, 1] += AFFINE[:3, 0] / 1.5 * 1.6 * amount
    return affine


def test_F04_rounding_size_shear(tmp_path: Path) -> None:
    affine = sheared(5e-4)
    file = replace(CLEAN, affine=affine, qform_code=0)
    path = file.write(tmp_path / "s.nii.gz")
    image = io.read_image(path)
    inside = np.asarray(image.affine)
    directions = inside[:3, :3] / np.linalg.norm(inside[:3, :3], axis=0)
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-12)
    # Half the shear on each of the two axes, over half the volume's 48 x 42 mm.
    assert_equals_clean(image, tolerance_mm=0.02)
    centre = [14.5, 12.5, 10.5, 1]
    np.testing.assert_allclose(inside @ centre, affine @ centre, atol=1e-5)
    io.write_label(tmp_path / "o.nii.gz", PHANTOM.labels[None], image, n_classes=4)
    ours, theirs = (nib.load(tmp_path / n).header for n in ("o.nii.gz", "s.nii.gz"))
    for row in ("srow_x", "srow_y", "srow_z"):
        assert ours[row].tobytes() == theirs[row].tobytes()


def test_F05_true_shear(tmp_path: Path) -> None:
    path = replace(CLEAN, affine=sheared(0.1), qform_code=0).write(tmp_path / "s.nii")
    # tan(shear) = 0.1; pixdim still fits within 1 %.
    refusal(path, "sheared", "axes 1 and 2", "84.29 degrees", "5.71", "sform")
    just = replace(CLEAN, affine=sheared(1.1e-3), qform_code=0).write(tmp_path / "t.nii")
    refusal(just, "sheared")


@pytest.mark.parametrize("value", [0.0, -1.6, np.nan, np.inf])
def test_F06_impossible_spacing(tmp_path: Path, value: float) -> None:
    pixdim = [1, 1.5, value, 1.8, 0, 0, 0, 0]
    path = replace(CLEAN, fields={"pixdim": pixdim}).write(tmp_path / "s.nii")
    refusal(path, "axis 2", "pixdim[2]", str(value))


@pytest.mark.parametrize(("column", "name"), [(1, "axis 2"), (3, "origin")])
def test_F06_affine_not_finite(tmp_path: Path, column: int, name: str) -> None:
    row = AFFINE[0].copy()
    row[column] = np.nan
    path = replace(CLEAN, fields={"srow_x": row}).write(tmp_path / "s.nii")
    refusal(path, name, "sform")
    path = replace(CLEAN, sform_code=0, fields={"quatern_c": np.nan}).write(tmp_path / "q.nii")
    refusal(path, "qform is not a rotation")
    path = replace(CLEAN, sform_code=0, fields={"quatern_c": 2.0}).write(tmp_path / "r.nii")
    refusal(path, "qform is not a rotation")


def test_F06_zero_column(tmp_path: Path) -> None:
    affine = AFFINE.copy()
    affine[:3, 2] = 0
    rows = {f"srow_{k}": affine[i] for i, k in enumerate("xyz")}
    path = replace(CLEAN, fields=rows).write(tmp_path / "s.nii")
    refusal(path, "singular", "axis 3")


def test_F07_pixdim_differs(tmp_path: Path) -> None:
    far = {"pixdim": [1, 1.5, 1.6, 1.85, 0, 0, 0, 0]}
    path = replace(CLEAN, qform_code=0, fields=far).write(tmp_path / "s.nii")
    refusal(path, "axis 3", "pixdim[3]", "1.85", "1.8")
    asked = io.read_image(path, io.ReadOptions(affine="sform"))
    assert_equals_clean(asked)
    assert "1.85" in asked.meta["warnings"][0]
    near = {"pixdim": [1, 1.5, 1.6, 1.809, 0, 0, 0, 0]}
    image = io.read_image(replace(CLEAN, qform_code=0, fields=near).write(tmp_path / "n.nii"))
    assert_equals_clean(image)
    assert len(image.meta["warnings"]) == 1
    assert "1.809" in image.meta["warnings"][0]


@pytest.mark.parametrize(("code", "per_mm"), [(1, 0.001), (3, 1000.0), (2, 1.0), (0, 1.0)])
def test_F08_units(tmp_path: Path, code: int, per_mm: float) -> None:
    affine = AFFINE.copy()
    affine[:3] *= per_mm
    file = replace(CLEAN, affine=affine, fields={"xyzt_units": code | 8})
    image = io.read_image(file.write(tmp_path / "s.nii"))
    assert_equals_clean(image)
    np.testing.assert_allclose(io.read_spacing(tmp_path / "s.nii"), (1.5, 1.6, 1.8), rtol=1e-6)
    io.write_label(tmp_path / "o.nii", PHANTOM.labels[None], image, n_classes=4)
    written = nib.load(tmp_path / "o.nii").header
    assert written["xyzt_units"] == code | 8
    np.testing.assert_allclose(written.get_zooms(), np.array([1.5, 1.6, 1.8]) * per_mm, rtol=1e-6)


def test_F08_implausible_spacing(tmp_path: Path) -> None:
    for factor, size in ((1000.0, "1500 mm"), (0.001, "0.0015 mm")):
        affine = AFFINE.copy()
        affine[:3] *= factor
        refusal(replace(CLEAN, affine=affine).write(tmp_path / "s.nii"), "axis 1", size, "0.01")
    path = replace(CLEAN, fields={"xyzt_units": 5}).write(tmp_path / "u.nii")
    refusal(path, "xyzt_units", "found 5")


@pytest.mark.parametrize("axcodes", all_axcodes())
def test_F09_all_axis_orders(tmp_path: Path, axcodes: str) -> None:
    """One scan stored in 48 ways: the same array in canonical order, the same mask coming back."""
    upright = make_phantom(grid_affine("RAS"))
    codes = nib.orientations.axcodes2ornt
    order = nib.orientations.ornt_transform(codes("RAS"), codes(axcodes))
    affine = upright.affine @ nib.orientations.inv_ornt_aff(order, upright.image.shape)
    stored = nib.orientations.apply_orientation(upright.image, order)
    image = io.read_image(NiftiFile(stored, affine).write(tmp_path / "s.nii"))
    canonical = Orientation(axcodes="RAS", labels=AXIS_LABELS)
    moved = canonical(image)
    np.testing.assert_array_equal(moved[0].numpy(), upright.image)
    # A "model" that knows directions: ball 2, plus 4 on the right side of the head.
    right = torch.arange(30)[:, None, None] >= 15
    answer = (moved.as_tensor()[0] == BRIGHTNESS[2]) + 4 * right
    mask = moved.clone()
    mask[0] = MetaTensor(answer.float())
    io.write_label(tmp_path / "o.nii.gz", canonical.inverse(mask), image, n_classes=6)
    written = nib.load(tmp_path / "o.nii.gz")
    assert nib.aff2axcodes(written.affine) == tuple(axcodes)
    np.testing.assert_array_equal(written.affine, nib.load(tmp_path / "s.nii").affine)
    expected = nib.orientations.apply_orientation(answer.numpy(), order)
    np.testing.assert_array_equal(np.asarray(written.dataobj), expected)


@pytest.mark.parametrize("degrees", [10, 30, 44, 46])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_F10_oblique(tmp_path: Path, degrees: float, axis: int) -> None:
    affine = grid_affine("PSR", (1.2, 1.2, 2.5), (34, 32, 18), turn(degrees, axis))
    phantom = make_phantom(affine, (34, 32, 18))
    image = io.read_image(NiftiFile(phantom.image, affine).write(tmp_path / "s.nii.gz"))
    canonical = Orientation(axcodes="RAS", labels=AXIS_LABELS)
    moved = canonical(image)
    mask = moved.clone()
    for label, brightness in BRIGHTNESS.items():
        mask[moved == brightness] = label
    io.write_label(tmp_path / "o.nii.gz", canonical.inverse(mask), image, n_classes=4)
    written = nib.load(tmp_path / "o.nii.gz")
    for label, (centre, _) in BALLS.items():
        found = centroid(np.asarray(written.dataobj), label, written.affine)
        np.testing.assert_allclose(found, phantom.centroid(label), atol=1e-4)
        assert np.linalg.norm(found - centre) < 0.5 * 2.5


def test_F11_label_at_another_place(tmp_path: Path) -> None:
    image = io.read_image(CLEAN.write(tmp_path / "scan.nii.gz"))
    shift = np.zeros((4, 4))
    shift[2, 3] = 2e-3
    path = replace(CLEAN_LABEL, affine=AFFINE + shift).write(tmp_path / "mask.nii.gz")
    refusal(path, "affine", "0.001999 mm", "scan.nii.gz", "LPS",
            read=lambda: io.read_label(path, like=image))  # fmt: skip
    near = replace(CLEAN_LABEL, affine=AFFINE + shift / 4).write(tmp_path / "near.nii.gz")
    np.testing.assert_array_equal(io.read_label(near, like=image)[0], PHANTOM.labels)
    flipped = grid_affine("RPS", (1.5, 1.6, 1.8), rotation=turn(10, 2))
    path = replace(CLEAN_LABEL, affine=flipped).write(tmp_path / "flip.nii.gz")
    refusal(path, "affine", "RPS", read=lambda: io.read_label(path, like=image))


def test_F12_label_of_another_shape(tmp_path: Path) -> None:
    image = io.read_image(CLEAN.write(tmp_path / "scan.nii.gz"))
    path = replace(CLEAN_LABEL, data=PHANTOM.labels[1:]).write(tmp_path / "mask.nii.gz")
    refusal(path, "(29, 26, 22)", "(30, 26, 22)", "scan.nii.gz",
            read=lambda: io.read_label(path, like=image))  # fmt: skip


def test_F13_channels_on_different_grids(tmp_path: Path) -> None:
    first = CLEAN.write(tmp_path / "t1.nii.gz")
    second = replace(CLEAN, data=PHANTOM.image * 2).write(tmp_path / "t2.nii.gz")
    both = io.read_channels({"T1": first, "T2": second})
    np.testing.assert_array_equal(both.numpy(), [PHANTOM.image, PHANTOM.image * 2])
    assert both.meta["channels"] == ["T1", "T2"]
    moved = replace(CLEAN, affine=grid_affine("LPS")).write(tmp_path / "t3.nii.gz")
    refusal(moved, "affine", "t1.nii.gz", read=lambda: io.read_channels({"T1": first, "T3": moved}))
    small = replace(CLEAN, data=PHANTOM.image[:, 1:]).write(tmp_path / "t4.nii.gz")
    refusal(small, "shape", "t1.nii.gz", read=lambda: io.read_channels({"T1": first, "T4": small}))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize(
    ("axcodes", "codes"), [("LPS", (1, 0)), ("LAS", (0, 1)), ("IRP", (2, 3)), ("LPS", (4, 1))]
)
def test_F14_output_grid(
    tmp_path: Path, version: int, endian: str, axcodes: str, codes: tuple[int, int]
) -> None:
    file = replace(
        CLEAN, version=version, endian=endian, sform_code=codes[0], qform_code=codes[1],
        affine=grid_affine(axcodes, (1.5, 1.6, 1.8), rotation=turn(10, 2)),
        fields={"xyzt_units": 10, "descrip": b"DOE^JANE", "aux_file": b"doe.txt",
                "intent_name": b"Jane"},
    )  # fmt: skip
    image = io.read_image(file.write(tmp_path / "s.nii.gz"))
    io.write_label(tmp_path / "o.nii.gz", PHANTOM.labels[None], image, n_classes=4)
    ours, theirs = nib.load(tmp_path / "o.nii.gz"), nib.load(tmp_path / "s.nii.gz")
    assert ours.shape == theirs.shape
    assert type(ours.header) is type(theirs.header)
    names = ["srow_x", "srow_y", "srow_z", "sform_code", "qform_code", "xyzt_units"]
    names += ["quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"]
    for name in names:
        np.testing.assert_array_equal(ours.header[name], theirs.header[name], err_msg=name)
    np.testing.assert_array_equal(ours.header["pixdim"][:4], theirs.header["pixdim"][:4])
    np.testing.assert_array_equal(ours.affine, theirs.affine)
    assert ours.get_data_dtype() == np.uint8
    assert b"Jane" not in gzip.decompress((tmp_path / "o.nii.gz").read_bytes())
    assert b"DOE" not in gzip.decompress((tmp_path / "o.nii.gz").read_bytes())
