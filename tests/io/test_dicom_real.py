"""Real series of several vendors, beside what SimpleITK's own reader makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from medseg_diff import io
from medseg_diff.errors import InputError


@pytest.fixture
def real(shared_data: Path) -> Path:
    folder = shared_data / "robust" / "dicom"
    if not folder.is_dir():
        pytest.skip("the robustness files are not here")
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "ge_anatomical_001", "siemens_anatomical_001", "philips_anatomical_001",
        "hitachi_anatomical_001", "generic_anatomical_002_non_isotropic",
        "generic_compressed_jpegls_001",
    ],
)  # fmt: skip
def test_values_and_places_are_those_of_simpleitk(real: Path, name: str) -> None:
    image = io.read_image(real / name)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(real / name)))
    other = reader.Execute()
    # Same voxel, by its place in the world: SimpleITK may stack the other way round.
    affine = np.diag([-1.0, -1, 1, 1]) @ np.asarray(image.affine)
    shape = tuple(image.shape[1:])
    rng = np.random.default_rng(0)
    for index in rng.integers(0, shape, (200, 3)):
        place = affine[:3, :3] @ index + affine[:3, 3]
        at = other.TransformPhysicalPointToIndex(place.tolist())
        back = np.array(other.TransformIndexToPhysicalPoint(at))
        np.testing.assert_allclose(back, place, atol=0.02)
        np.testing.assert_allclose(float(image[0][tuple(index)]), other[at], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "shape", "spacing"),
    [
        ("hyperfine_anatomical_001", (112, 138, 8), (1.59, 1.61, 5.0)),
        ("siemens_multiframe_anatomical_001", (256, 256, 8), (0.9375, 0.9375, 0.9)),
    ],
)
def test_enhanced_files(real: Path, name: str, shape, spacing) -> None:
    image = io.read_image(real / name)
    assert tuple(image.shape) == (1, *shape)
    np.testing.assert_allclose(io.read_spacing(real / name), spacing, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("failing_slicecount_001", "looks like a localizer"),
        ("ge_dti_001", "2 volumes; choose --volume k"),
        ("philips_fmri_001", "4 volumes; choose --volume k"),
        ("generic_rgb_001", "colour"),
        ("pydicom_emri_small.dcm", "ImagePositionPatient: missing in 10 of 10 frames"),
    ],
)
def test_refusals(real: Path, name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        io.read_image(real / name)


def test_volumes_of_a_diffusion_series(real: Path) -> None:
    both = io.read_image(real / "ge_dti_001", io.ReadOptions(volume="all"))
    assert tuple(both.shape) == (2, 128, 128, 4)
    one = io.read_image(real / "ge_dti_001", io.ReadOptions(volume=1))
    np.testing.assert_array_equal(np.asarray(one)[0], np.asarray(both)[1])


def test_a_radiograph_and_an_ultrasound(real: Path) -> None:
    film = io.read_image(real / "pydicom_RG3_J2KI.dcm")
    assert tuple(film.shape) == (1, 1760, 1760)
    assert any("MONOCHROME1 was turned" in sentence for sentence in film.meta["warnings"])
    assert tuple(io.read_image(real / "pydicom_US1_J2KR.dcm").shape) == (3, 480, 640)
