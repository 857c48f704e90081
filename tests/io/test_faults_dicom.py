"""Rows F45 to F57 of the fault table, geometry and values of DICOM: refused with file and element
named, or handled with a result equal to that of the clean series.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from medseg_diff import io
from tests.io import dicoms
from tests.io.dicoms import (
    AXIAL,
    CT,
    DATA,
    PHANTOM,
    SHAPE,
    assert_clean,
    enhanced,
    planes,
    refused,
    save,
)  # fmt: skip


def moved(ds: Dataset, by: tuple[float, float, float]) -> None:
    ds.ImagePositionPatient = dicoms.texts(np.array(ds.ImagePositionPatient, float) + by)


def test_F45_missing_slice(tmp_path: Path) -> None:
    series = planes()
    del series[4]
    line = refused(save(series, tmp_path / "s"), "1 slice missing between", "7.2 mm", "3.6 mm")
    assert "s003.dcm and s004.dcm" in line  # the files around the gap, as saved without it
    del series[6]
    refused(save(series, tmp_path / "t"), "1 slice missing", "1 more gap")


def test_F46_variable_distance(tmp_path: Path) -> None:
    series = planes()
    moved(series[5], (0, 0, 0.02))  # 0.6 % of 3.6 mm is within what scanners round
    assert io.read_image(save(series, tmp_path / "s")) is not None
    moved(series[5], (0, 0, 0.05))
    refused(save(series, tmp_path / "s"), "uneven distance", "ImagePositionPatient")

    def lies(ds: Dataset, _: int) -> None:
        ds.SliceThickness, ds.SpacingBetweenSlices = "1.0", "9.0"

    assert_clean(io.read_image(save(planes(edit=lies), tmp_path / "t")))


def test_F46_slow_drift(tmp_path: Path) -> None:
    """Each distance is within 1 % of the usual one, but the slices fall out of step."""
    series = planes()
    for k, ds in enumerate(series):
        moved(ds, (0, 0, 0.0015 * k * k))
    refused(save(series, tmp_path / "s"), "uneven distance")


def test_F47_gantry_tilt(tmp_path: Path) -> None:
    series = planes()
    for k, ds in enumerate(series):
        moved(ds, (0, 3.6 * np.tan(np.radians(12.5)) * k, 0))
    refused(save(series, tmp_path / "s"), "tilted gantry of 12.50 degrees")


def test_F48_duplicate_positions(tmp_path: Path) -> None:
    series = planes()
    save([*series, series[3]], tmp_path / "s")
    refused(tmp_path / "s", "up to 2 frames at one position", "s003.dcm and s011.dcm")
    save(series + planes(), tmp_path / "t")
    refused(tmp_path / "t", "2 frames at one position that nothing tells apart")


def test_F48_two_stacks_side_by_side(tmp_path: Path) -> None:
    series = planes()
    for ds in series:
        moved(ds, (50, 0, 0))
        ds.InstanceNumber += 100
    refused(save(planes() + series, tmp_path / "s"), "side by side", "50 mm")


def test_F49_several_series(tmp_path: Path) -> None:
    def other(ds: Dataset, _: int) -> None:
        ds.SeriesInstanceUID, ds.Modality = "2.25.2222222", "CT"

    save(planes() + planes(edit=other)[:6], tmp_path / "s")
    refused(
        tmp_path / "s", "several series", "--series", "...111111 MR, 11 slices, 3 x 3.2 x 3.6 mm",
        "...222222 CT, 6 slices",
    )  # fmt: skip
    assert len(list((tmp_path / "s").iterdir())) == 17


def test_F50_localizer(tmp_path: Path) -> None:
    def scout(ds: Dataset, _: int) -> None:
        ds.ImageType, ds.SeriesInstanceUID = ["ORIGINAL", "PRIMARY", "LOCALIZER"], "2.25.3333333"

    crossed = [planes(a)[5] for a in (AXIAL, dicoms.GRIDS["sagittal"], dicoms.GRIDS["coronal"])]
    refused(save(crossed, tmp_path / "a"), "looks like a localizer", "mixed orientations")
    refused(save(planes()[:3], tmp_path / "b"), "looks like a localizer", "found 3")
    refused(save(planes(edit=scout), tmp_path / "c"), "looks like a localizer", "LOCALIZER")
    both = save(planes() + planes(dicoms.GRIDS["sagittal"], edit=scout)[:2], tmp_path / "d")
    assert_clean(io.read_image(both), "left out: 2 localizer images")
    # Named in so many words, three slices are three slices.
    image = io.read_image(sorted((tmp_path / "b").iterdir()))
    np.testing.assert_array_equal(np.asarray(image)[0], PHANTOM.image[..., :3])


def test_F51_other_objects_beside_the_images(tmp_path: Path) -> None:
    folder = save(planes(), tmp_path / "s")
    report = dicoms.base(DATA[..., 0].T, "1.2.840.10008.5.1.4.1.1.88.11")
    for keyword in ("Rows", "Columns", "PixelData"):
        delattr(report, keyword)
    report.Modality = "SR"
    mask = dicoms.base(DATA[..., 0].T, "1.2.840.10008.5.1.4.1.1.66.4")
    save([report, report, mask], folder, "other{}")
    (folder / "thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0" + bytes(600))
    (folder / "notes.txt").write_text("CANARY")
    assert_clean(io.read_image(folder), "left out: 1 SEG, 2 SR, 2 not DICOM")
    refused(save([report], tmp_path / "t"), "holds no image", "1 SR")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "is a folder and holds no DICOM file")


def test_F52_enhanced(tmp_path: Path) -> None:
    save([enhanced(AXIAL, DATA)], tmp_path / "s")
    assert_clean(io.read_image(tmp_path / "s"))
    one = enhanced(AXIAL, DATA)
    for group in one.PerFrameFunctionalGroupsSequence:
        del group.PlanePositionSequence
    one.ImagePositionPatient = ["0", "0", "0"]  # a file's own level says nothing of single frames
    refused(save([one], tmp_path / "t"), "ImagePositionPatient", "missing in 11 of 11 frames")
    short = enhanced(AXIAL, DATA)
    short.PerFrameFunctionalGroupsSequence = short.PerFrameFunctionalGroupsSequence[:4]
    refused(save([short], tmp_path / "u"), "does not describe every frame", "found 4", "11")


def test_F52_missing_frame(tmp_path: Path) -> None:
    save([enhanced(AXIAL, DATA, np.delete(np.arange(SHAPE[2]), 5))], tmp_path / "s")
    refused(tmp_path / "s", "1 slice missing", "s000.dcm frame 5 and s000.dcm frame 6")


@pytest.mark.parametrize(
    "keyword", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"]
)
def test_F53_missing_place(tmp_path: Path, keyword: str) -> None:
    series = planes()
    delattr(series[2], keyword)
    setattr(series[7], keyword, None)
    refused(save(series, tmp_path / "s"), "s002.dcm", keyword, "missing in 2 of 11")


@pytest.mark.parametrize("value", ["0\\0", "1\\2\\nan", "1\\2\\x"])
def test_F53_broken_place(tmp_path: Path, value: str) -> None:
    series = planes()
    raw = value.encode()
    with pydicom.config.disable_value_validation():
        series[2][0x00200032] = pydicom.dataelem.RawDataElement(
            pydicom.tag.Tag(0x00200032), "DS", len(raw), raw, 0, False, True
        )
        save(series, tmp_path / "s")
    refused(tmp_path / "s", "s002.dcm", "ImagePositionPatient", "expected 3 finite numbers")


def test_F54_numbers_say_nothing(tmp_path: Path) -> None:
    for name, number in (("reversed", lambda k: 100 - k), ("same", lambda k: 1),
                         ("absent", lambda k: None)):  # fmt: skip
        series = planes()
        for k, ds in enumerate(series):
            ds.InstanceNumber = number(k)
        order = np.random.default_rng(1).permutation(len(series))
        assert_clean(io.read_image(save([series[i] for i in order], tmp_path / name)))


def test_F55_mixed_geometry(tmp_path: Path) -> None:
    def coarse(ds: Dataset, k: int) -> None:
        ds.PixelSpacing = ["3.2", "3.1"] if k > 6 else ["3.2", "3.0"]

    refused(save(planes(edit=coarse), tmp_path / "s"), "PixelSpacing", "7 of 15 x 13", "4 of")
    small = planes(data=DATA[:, :-1])[8:]
    refused(save(planes()[:8] + small, tmp_path / "t"), "mixed matrix", "15 x 13", "15 x 12")
    turned = planes(dicoms.GRIDS["sagittal"])[:5]
    refused(save(planes() + turned, tmp_path / "u"), "mixed orientations in one series")


def test_F56_slopes_differ(tmp_path: Path) -> None:
    slopes = ("1", "0.5", "0.25")

    def scaled(ds: Dataset, k: int) -> None:
        ds.RescaleSlope, ds.RescaleIntercept = slopes[k % 3], str(-k)
        stored = (DATA[..., k].T + k) * int(1 / float(slopes[k % 3]))
        ds.PixelData = stored.astype(np.uint16).tobytes()

    assert_clean(io.read_image(save(planes(edit=scaled), tmp_path / "s")))

    def flat(ds: Dataset, _: int) -> None:
        ds.RescaleSlope = "0"

    refused(save(planes(edit=flat), tmp_path / "t"), "RescaleSlope")


def test_F57_monochrome1(tmp_path: Path) -> None:
    def inverted(ds: Dataset, k: int) -> None:
        ds.PhotometricInterpretation, ds.BitsStored, ds.HighBit = "MONOCHROME1", 12, 11
        ds.PixelData = (4095 - DATA[..., k].T).astype(np.uint16).tobytes()

    image = io.read_image(save(planes(edit=inverted), tmp_path / "s"))
    assert_clean(image, "MONOCHROME1 was turned so that more is brighter (11 files)")

    def signed(ds: Dataset, k: int) -> None:
        ds.PhotometricInterpretation, ds.PixelRepresentation = "MONOCHROME1", 1
        ds.PixelData = (-1 - DATA[..., k].T.astype(np.int16)).tobytes()

    assert_clean(io.read_image(save(planes(edit=signed), tmp_path / "t")), "was turned")

    def hounsfield(ds: Dataset, _: int) -> None:
        ds.PhotometricInterpretation = "MONOCHROME1"

    image = io.read_image(save(planes(sop=CT, edit=hounsfield), tmp_path / "u"))
    assert_clean(image, "MONOCHROME1 was not turned: its values have units")
