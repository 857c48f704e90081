"""DICOM answers, read back by highdicom and by hand: place, values, identity, names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medseg_diff.errors import InputError
from medseg_diff.io.dicom_reference import read_reference
from medseg_diff.io.dicom_seg import Algorithm, write_parametric_map, write_seg
from tests.io.dicom_series import IDENTITY, LPS, SHAPE, SPACING, Series, grid, make_labels, turned

ORIENTATIONS = {
    "axial": (1, 0, 0, 0, 1, 0),
    "axial, columns upward": (1, 0, 0, 0, -1, 0),
    "axial, rows leftward": (-1, 0, 0, 0, 1, 0),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "coronal": (1, 0, 0, 0, 0, -1),
    "oblique": turned((25, -40)),
}
STRUCTURES = {"hippocampus anterior": 1, "liver": 2}
ALGORITHM = Algorithm("9.9", ("ab" * 32,), 7)
LABELS = make_labels()
DOUBT = {"ENTROPY": "predictive entropy", "VARIANCE": "variance between draws"}


@pytest.fixture
def series() -> Series:
    rng = np.random.default_rng(0)
    return Series(rng.integers(0, 900, SHAPE), grid(ORIENTATIONS["oblique"]))


def by_hand(path: Path, affine: NDArray[Any]) -> dict[int, NDArray[Any]]:
    """Volume (I, J, K) of every channel, each pixel put where its frame says that it lies."""
    file = pydicom.dcmread(path)
    pixels = file.FloatPixelData if "FloatPixelData" in file else None
    frames = int(file.NumberOfFrames)
    if pixels is not None:
        values = np.frombuffer(pixels, "<f4").reshape(frames, file.Rows, file.Columns)
    else:
        values = file.pixel_array.reshape(frames, file.Rows, file.Columns)
    shared = file.SharedFunctionalGroupsSequence[0]
    to_index = np.linalg.inv(LPS @ affine)
    found: dict[int, NDArray[Any]] = {}
    names = list(DOUBT)
    for group, plane in zip(file.PerFrameFunctionalGroupsSequence, values, strict=True):

        def of(name: str, group: Dataset = group) -> Dataset:
            return (group if name in group else shared)[name].value[0]

        if "RealWorldValueMappingSequence" in group or "RealWorldValueMappingSequence" in shared:
            channel = names.index(of("RealWorldValueMappingSequence").LUTLabel)
        elif file.SegmentationType == "LABELMAP":
            channel = 0
        else:
            channel = int(of("SegmentIdentificationSequence").ReferencedSegmentNumber)
        origin = np.array(of("PlanePositionSequence").ImagePositionPatient, float)
        axes = np.reshape(
            np.array(of("PlaneOrientationSequence").ImageOrientationPatient, float), (2, 3)
        )
        rows_mm, columns_mm = map(float, of("PixelMeasuresSequence").PixelSpacing)
        volume = found.setdefault(channel, np.zeros(SHAPE, values.dtype))
        for row in range(file.Rows):
            for column in range(file.Columns):
                place = origin + column * columns_mm * axes[0] + row * rows_mm * axes[1]
                index = to_index @ [*place, 1]
                whole = np.rint(index[:3]).astype(int)
                assert np.abs(index[:3] - whole).max() < 1e-3
                volume[tuple(whole)] = plane[row, column]
    return found


def centroid(mask: NDArray[Any], affine: NDArray[Any]) -> NDArray[Any]:
    index = np.argwhere(mask).mean(axis=0)
    return (affine @ [*index, 1])[:3]


def save(series: Series, tmp_path: Path, labels: Any = LABELS, **words: Any) -> Path:
    like = series.like(series.write(tmp_path / "series"))
    path = tmp_path / "seg.dcm"
    given: dict[str, Any] = {"structures": STRUCTURES, "algorithm": ALGORITHM, **words}
    write_seg(path, np.asarray(labels)[None] if np.ndim(labels) == 3 else labels, like, **given)
    return path


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_F67_frames_lie_where_the_mask_lies(tmp_path: Path, name: str):
    affine = grid(ORIENTATIONS[name])
    path = save(Series(np.zeros(SHAPE), affine), tmp_path)
    found = by_hand(path, affine)
    assert sorted(found) == [1, 2]
    seg = hd.seg.segread(path)
    for number in (1, 2):
        np.testing.assert_array_equal(found[number], number == LABELS)
        volume = seg.get_volume(segment_numbers=[number])
        mask = volume.array.squeeze(-1)
        theirs = centroid(mask, volume.affine)
        ours = centroid(number == LABELS, LPS @ affine)
        assert mask.sum() == (number == LABELS).sum()
        assert np.linalg.norm(theirs - ours) < min(SPACING) / 2
        assert np.linalg.norm(theirs - ours) < 1e-3


def test_frames_point_at_the_slices_they_cover(tmp_path: Path, series: Series):
    path = save(series, tmp_path)
    source = {
        str(file.SOPInstanceUID): np.array(file.ImagePositionPatient, float)
        for file in map(pydicom.dcmread, (tmp_path / "series").iterdir())
    }
    file = pydicom.dcmread(path)
    assert file.NumberOfFrames == 4 + 3  # planes with structure 1, planes with structure 2
    for group in file.PerFrameFunctionalGroupsSequence:
        place = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        (origin,) = group.DerivationImageSequence[0].SourceImageSequence
        np.testing.assert_allclose(source[origin.ReferencedSOPInstanceUID], place, atol=1e-4)
    (referenced,) = file.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == "2.25.77.1"
    assert len(referenced.ReferencedInstanceSequence) == SHAPE[2]
    assert file.FrameOfReferenceUID == "2.25.78.1"
    assert file.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness == 2.0


def test_files_may_come_in_any_order(tmp_path: Path, series: Series):
    files = series.write(tmp_path / "series")
    for name, order in (("a", files), ("b", files[::-1])):
        write_seg(
            tmp_path / f"{name}.dcm",
            LABELS[None],
            series.like(list(order)),
            STRUCTURES,
            algorithm=ALGORITHM,
        )
    first, second = (pydicom.dcmread(tmp_path / f"{n}.dcm") for n in "ab")
    assert first.PixelData == second.PixelData
    assert first.SOPInstanceUID == second.SOPInstanceUID
    found = by_hand(tmp_path / "b.dcm", series.affine)
    np.testing.assert_array_equal(found[1], LABELS == 1)


def test_multi_frame_source(tmp_path: Path, series: Series):
    order = [3, 0, 7, 1, 2, 6, 5, 4]
    like = series.like(series.write_enhanced(tmp_path / "series", order))
    path = tmp_path / "seg.dcm"
    write_seg(path, LABELS[None], like, STRUCTURES, algorithm=ALGORITHM)
    found = by_hand(path, series.affine)
    np.testing.assert_array_equal(found[1], LABELS == 1)
    np.testing.assert_array_equal(found[2], LABELS == 2)
    to_index = np.linalg.inv(LPS @ series.affine)
    for group in pydicom.dcmread(path).PerFrameFunctionalGroupsSequence:
        place = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        k = round((to_index @ [*place, 1])[2])
        (origin,) = group.DerivationImageSequence[0].SourceImageSequence
        assert order[origin.ReferencedFrameNumber - 1] == k


def test_one_of_several_volumes_in_a_file(tmp_path: Path, series: Series):
    """Frames of the other volume lie at the same places; only those that were read are named."""
    order = [k for k in range(SHAPE[2]) for _ in range(2)]
    like = series.like(series.write_enhanced(tmp_path / "series", order))
    like.meta["dicom"]["frame_numbers"] = [2 * k + 2 for k in range(SHAPE[2])]
    path = tmp_path / "seg.dcm"
    write_seg(path, LABELS[None], like, STRUCTURES, algorithm=ALGORITHM)
    np.testing.assert_array_equal(by_hand(path, series.affine)[1], LABELS == 1)
    for group in pydicom.dcmread(path).PerFrameFunctionalGroupsSequence:
        (origin,) = group.DerivationImageSequence[0].SourceImageSequence
        assert origin.ReferencedFrameNumber % 2 == 0


def test_overlapping_structures_are_segments_of_their_own(tmp_path: Path, series: Series):
    path = save(series, tmp_path, structures={"whole": (1, 2), "core": 2})
    found = by_hand(path, series.affine)
    np.testing.assert_array_equal(found[1], LABELS > 0)
    np.testing.assert_array_equal(found[2], LABELS == 2)
    assert pydicom.dcmread(path).SegmentsOverlap == "YES"


def test_fractional_keeps_probabilities_within_a_step(tmp_path: Path, series: Series):
    rng = np.random.default_rng(1)
    probability = rng.random((2, *SHAPE), np.float32)
    probability[:, :, :, 0] = 0
    path = save(series, tmp_path, probability, kind="fractional")
    file = pydicom.dcmread(path)
    assert (file.SegmentationType, file.SegmentationFractionalType) == ("FRACTIONAL", "PROBABILITY")
    found = by_hand(path, series.affine)
    for number in (1, 2):
        stored = found[number].astype(float) / float(file.MaximumFractionalValue)
        assert np.abs(stored - probability[number - 1]).max() <= 1 / 255
    volume = hd.seg.segread(path).get_volume(segment_numbers=[1])
    index = np.linalg.inv(volume.affine) @ LPS @ series.affine @ [4, 3, 2, 1]
    value = volume.array[(*np.rint(index[:3]).astype(int), 0)]
    assert abs(value - probability[0, 4, 3, 2]) <= 1 / 255


def test_labelmap(tmp_path: Path, series: Series):
    path = save(series, tmp_path, kind="labelmap")
    np.testing.assert_array_equal(by_hand(path, series.affine)[0], LABELS)
    assert pydicom.dcmread(path).SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.7"
    assert hd.seg.segread(path).segment_numbers == [1, 2]


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_an_empty_mask_says_that_nothing_was_found(tmp_path: Path, series: Series, kind: str):
    path = save(series, tmp_path, np.zeros_like(LABELS), kind=kind)
    file = pydicom.dcmread(path)
    assert file.NumberOfFrames == SHAPE[2] * (2 if kind == "binary" else 1)
    assert not file.pixel_array.any()
    assert hd.seg.segread(path).segment_numbers == [1, 2]


def test_a_structure_that_is_absent_is_described_all_the_same(tmp_path: Path, series: Series):
    path = save(series, tmp_path, np.where(LABELS == 1, LABELS, 0))
    assert sorted(by_hand(path, series.affine)) == [1]
    assert [s.SegmentLabel for s in pydicom.dcmread(path).SegmentSequence] == list(STRUCTURES)


def test_parametric_map_is_exact(tmp_path: Path, series: Series):
    maps = np.random.default_rng(2).random((2, *SHAPE), np.float32)
    like = series.like(series.write(tmp_path / "series"))
    path = tmp_path / "doubt.dcm"
    write_parametric_map(path, maps, like, DOUBT, algorithm=ALGORITHM)
    found = by_hand(path, series.affine)
    for channel in (0, 1):
        np.testing.assert_array_equal(found[channel], maps[channel])
    file = hd.pm.ParametricMap.from_dataset(pydicom.dcmread(path))
    assert file.Modality == "OT"
    assert file.ContentQualification == "RESEARCH"
    assert file.FrameOfReferenceUID == "2.25.78.1"
    with pytest.raises(ValueError, match="finite"):
        write_parametric_map(path, maps * np.nan, like, DOUBT, algorithm=ALGORITHM)
    with pytest.raises(ValueError, match="names"):
        write_parametric_map(path, maps[:1], like, DOUBT, algorithm=ALGORITHM)
    constant = np.zeros_like(maps)
    write_parametric_map(path, constant, like, DOUBT, algorithm=ALGORITHM)
    assert not by_hand(path, series.affine)[0].any()


def test_segments_say_what_they_show_and_what_made_them(tmp_path: Path, series: Series):
    structures = {"hippocampus anterior": 1, "läsion \\ neu": 2}
    given = {"läsion \\ neu": "brain lesion"}
    file = pydicom.dcmread(save(series, tmp_path, structures=structures, codes=given))
    first, second = file.SegmentSequence
    kind = first.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("5366008", "SCT")
    (modifier,) = kind.SegmentedPropertyTypeModifierCodeSequence
    assert modifier.CodeMeaning == "Anterior"
    assert first.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "91723000"
    assert second.SegmentLabel == "läsion / neu"
    assert second.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Lesion"
    assert second.AnatomicRegionSequence[0].CodeMeaning == "Brain"
    (made_by,) = first.SegmentationAlgorithmIdentificationSequence
    assert (made_by.AlgorithmName, made_by.AlgorithmVersion) == ("medseg_diff", "9.9")
    assert "ab" * 32 in made_by.AlgorithmParameters
    assert first.SegmentAlgorithmType == "AUTOMATIC"
    assert (file.SeriesNumber, file.Modality) == (401, "SEG")
    assert not file.ContentCreatorName


def test_identity_is_the_sources_and_no_more(tmp_path: Path):
    more = {
        "PatientComments": "CANARYMORE",
        "InstitutionName": "CANARYMORE",
        "OperatorsName": "CANARYMORE",
        "OtherPatientIDs": "CANARYMORE",
        "PatientAddress": "CANARYMORE",
        "StudyDescription": "CANARYMORE",
        "PatientName": "Müller^Zoë",
        "AccessionNumber": None,
    }
    series = Series(np.zeros(SHAPE), grid(ORIENTATIONS["coronal"]), extra=more)
    path = save(series, tmp_path)
    file = pydicom.dcmread(path)
    for keyword, value in IDENTITY.items():
        wanted = {"PatientName": "Müller^Zoë", "AccessionNumber": ""}.get(keyword, value)
        assert str(file[keyword].value or "") == wanted, keyword
    assert b"CANARYMORE" not in path.read_bytes()
    assert file.StudyInstanceUID == "2.25.77"
    assert file.SpecificCharacterSet == "ISO_IR 192"
    assert path.read_bytes()[:128] == b"\0" * 128


def test_odd_identities_are_copied_without_a_word(tmp_path: Path, capfd, caplog):
    series = Series(np.zeros(SHAPE), grid(ORIENTATIONS["axial"]))
    files = series.write(tmp_path / "series")
    for file in files:
        raw = file.read_bytes()
        assert raw.count(b"19010203") == 1
        raw = raw.replace(b"19010203", b"CANARY!!").replace(b"Canary^Nightingale", b"CANARY" * 3)
        file.write_bytes(raw)
    path = tmp_path / "seg.dcm"
    write_seg(path, LABELS[None], series.like(files), STRUCTURES, algorithm=ALGORITHM)
    raw = path.read_bytes()
    assert b"CANARY!!" in raw
    assert b"CANARY" * 3 in raw
    shown = capfd.readouterr()
    assert "CANARY" not in shown.out + shown.err + caplog.text


def test_names_follow_from_what_the_answer_is_made_of(tmp_path: Path, series: Series):
    like = series.like(series.write(tmp_path / "series"))

    def uids(labels: Any = LABELS, seed: int = 7, model: str = "ab", **words: Any) -> tuple:
        path = tmp_path / "seg.dcm"
        write_seg(
            path,
            labels[None],
            like,
            STRUCTURES,
            algorithm=Algorithm("9.9", (model,), seed),
            **words,
        )
        file = pydicom.dcmread(path)
        dimension = file.DimensionOrganizationSequence[0].DimensionOrganizationUID
        assert {d.DimensionOrganizationUID for d in file.DimensionIndexSequence} == {dimension}
        return str(file.SeriesInstanceUID), str(file.SOPInstanceUID), str(dimension)

    once = uids()
    assert once == uids()
    assert len(set(once)) == 3
    assert all(len(uid) <= 64 and uid.startswith("2.25.") for uid in once)
    other_seed, other_model = uids(seed=8), uids(model="cd")
    assert len({once[0], other_seed[0], other_model[0]}) == 3
    other_mask, other_kind = uids(np.roll(LABELS, 1, 0)), uids(kind="labelmap")
    assert once[0] == other_mask[0] == other_kind[0]
    assert len({once[1], other_seed[1], other_mask[1], other_kind[1]}) == 4


def test_F68_another_series_is_refused(tmp_path: Path, series: Series):
    mine = series.write(tmp_path / "mine")
    moved = series.affine.copy()
    moved[:3, 3] += moved[:3, 2] * 0.8
    theirs = Series(series.values, moved, tail="2").write(tmp_path / "theirs")
    same_place = Series(series.values, series.affine, tail="3").write(tmp_path / "same")
    like = series.like(theirs)
    known = series.like(same_place)
    known.meta["dicom"]["frame_of_reference"] = "2.25.78.1"
    for image, word in (
        (like, "ImagePositionPatient"),
        (known, "FrameOfReferenceUID"),
        (series.like([*mine[:-1], same_place[-1]]), "SeriesInstanceUID"),
        (series.like(mine[:-1]), "ImagePositionPatient"),
        (series.like(mine[:1])[:, :, :, :1][:, ::2], "ImagePositionPatient"),
    ):
        with pytest.raises(InputError, match=word) as caught:
            write_seg(tmp_path / "s.dcm", LABELS[None], image, STRUCTURES, algorithm=ALGORITHM)
        assert "\n" not in str(caught.value)
        assert str(tmp_path) not in str(caught.value)
    assert not (tmp_path / "s.dcm").exists()


def test_half_a_voxel_is_the_limit(tmp_path: Path, series: Series):
    """Along the axis with the smallest spacing, the second."""
    like = series.like(series.write(tmp_path / "series"))
    for share, fits in ((0.45, True), (0.55, False)):
        moved = series.affine.copy()
        moved[:3, 3] += share * moved[:3, 1]
        image = like.clone()
        image.affine = torch.from_numpy(moved)
        if fits:
            assert len(read_reference(image).images) == SHAPE[2]
        else:
            with pytest.raises(InputError, match="ImagePositionPatient"):
                read_reference(image)


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        ({"FrameOfReferenceUID": None}, "FrameOfReferenceUID"),
        ({"SOPClassUID": "1.2.3"}, "SOPClass"),
    ],
)
def test_sources_that_cannot_be_pointed_at_are_refused(tmp_path: Path, extra: dict, word: str):
    with pytest.raises(InputError, match=word):
        save(Series(np.zeros(SHAPE), grid(ORIENTATIONS["axial"]), extra=extra), tmp_path)
    assert not (tmp_path / "seg.dcm").exists()


def test_wrong_use(tmp_path: Path, series: Series):
    like = series.like(series.write(tmp_path / "series"))

    def write(labels: Any, structures: Any = STRUCTURES, image: Any = like, **words: Any) -> None:
        write_seg(tmp_path / "s.dcm", labels, image, structures, algorithm=ALGORITHM, **words)

    with pytest.raises(ValueError, match="do not fit"):
        write(LABELS[None, 1:])
    with pytest.raises(ValueError, match="one channel"):
        write(np.stack([LABELS, LABELS]))
    with pytest.raises(ValueError, match="structure"):
        write(LABELS[None], {})
    with pytest.raises(ValueError, match="overlap"):
        write(LABELS[None], {"a": (1, 2), "b": 2}, kind="labelmap")
    with pytest.raises(ValueError, match="0, 1"):
        write(np.stack([LABELS, LABELS]).astype(float), kind="fractional")
    with pytest.raises(ValueError, match="probabilities for"):
        write(LABELS[None].astype(float) / 2, kind="fractional")
    with pytest.raises(ValueError, match="kind"):
        write(LABELS[None], kind="surface")
    shifted = torch.from_numpy(series.affine + np.eye(4)[:, [3, 3, 3, 0]] * 5)
    with pytest.raises(ValueError, match="another grid"):
        write(MetaTensor(torch.from_numpy(LABELS)[None], affine=shifted))
    nifti = series.like([tmp_path / "scan.nii"])
    nifti.meta["kind"] = "nifti"
    with pytest.raises(InputError, match="DICOM input"):
        write(LABELS[None], image=nifti)
    archive = series.like([tmp_path / "series.zip"])
    archive.meta["dicom"]["files"] = []
    with pytest.raises(InputError, match="archive"):
        write(LABELS[None], image=archive)
    gone = series.like([tmp_path / "gone.dcm"])
    with pytest.raises(InputError, match=r"gone\.dcm"):
        write(LABELS[None], image=gone)
    assert not (tmp_path / "s.dcm").exists()


def test_nothing_is_left_where_writing_fails(tmp_path: Path, series: Series):
    like = series.like(series.write(tmp_path / "series"))
    with pytest.raises(InputError, match="cannot be written"):
        write_seg(
            tmp_path / "missing" / "s.dcm", LABELS[None], like, STRUCTURES, algorithm=ALGORITHM
        )
    assert [p.name for p in tmp_path.iterdir()] == ["series"]
