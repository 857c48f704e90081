"""crossMoDA from fake files: which scans have masks, what both lists hold, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from medseg_diff.adaptation.definition import Domain
from medseg_diff.adaptation.experiment import domain_cases
from medseg_diff.data.caselist import load_caselist, save_caselist
from medseg_diff.data.crossmoda import from_crossmoda
from medseg_diff.data.prepare import prepare
from medseg_diff.errors import InputError, UsageError
from medseg_diff.io import read_image
from tests.data.test_domains import label_of
from tests.data.test_layouts import check, nifti, volume
from tests.unpaired_fixtures import tiny_unpaired


def download(folder: Path, year: str = "2022") -> None:
    """Four source scans with masks, two target scans to train on and one to validate on."""
    top = 3 if year == "2023" else 2
    source, target = folder / "training_source", folder / "training_target"
    end = "T2" if year == "2023" else "hrT2"
    for n in range(1, 5):
        stem = f"crossmoda{year}_etz_{n}" if year else f"crossmoda_{n}"
        nifti(source / f"{stem}_ceT1.nii.gz", volume(n, 3, 2, 2))
        nifti(source / f"{stem}_Label.nii.gz", mask(n, top))
    for n, home in ((106, target), (107, target), (211, folder / f"crossmoda{year}_validation")):
        stem = f"crossmoda{year}_etz_{n}" if year else f"crossmoda_{n}"
        nifti(home / f"{stem}_{end}.nii.gz", volume(n, 3, 2, 2))


def mask(seed: int, top: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, top + 1, (3, 2, 2))


def test_target_scans_are_test_cases_without_masks(tmp_path: Path):
    download(tmp_path / "in")
    caselist = from_crossmoda(tmp_path / "in", tmp_path / "out")
    check(caselist)
    source = [c for c in caselist.cases if c.site == "ceT1"]
    target = sorted((c for c in caselist.cases if c.site == "hrT2"), key=lambda c: c.case)
    assert {c.part for c in source} == {"train", "validation", "test"}
    assert all(len(c.references) == 1 for c in source)
    assert [(c.case, c.part, c.references) for c in target] == [
        (f"crossmoda2022_etz_{n}", "test", ()) for n in (106, 107, 211)
    ]
    for n in range(1, 5):
        np.testing.assert_array_equal(label_of(caselist, f"crossmoda2022_etz_{n}"), mask(n, 2))
    image = read_image(caselist.channel_paths(target[0])["image"])
    np.testing.assert_array_equal(np.asarray(image)[0], volume(106, 3, 2, 2))


def test_a_second_list_has_target_scans_to_train_on(tmp_path: Path):
    download(tmp_path / "in")
    caselist = from_crossmoda(tmp_path / "in", tmp_path / "out")
    save_caselist(caselist, tmp_path / "out" / "cases.json")
    target = load_caselist(tmp_path / "out" / "target.json", verify=True)
    assert sorted((c.case[-3:], c.part) for c in target.cases) == [
        ("106", "train"), ("107", "train"), ("211", "validation"),
    ]  # fmt: skip
    assert target.structures == {}
    assert not any(c.references for c in target.cases)


def test_scored_target_scans_are_in_no_training(tmp_path: Path):
    """With masks of one's own target scans are dealt; the test part is left out of the images."""
    download(tmp_path / "in")
    target = tmp_path / "in" / "training_target"
    for n, home in ((106, target), (107, target), (211, tmp_path / "in/crossmoda2022_validation")):
        nifti(home / f"crossmoda2022_etz_{n}_Label.nii.gz", mask(n, 2))
    caselist = from_crossmoda(tmp_path / "in", tmp_path / "out")
    images = load_caselist(tmp_path / "out" / "target.json", verify=True)
    scored = {c.case for c in caselist.cases if c.site == "hrT2" and c.references}
    scored &= {c.case for c in caselist.part("test")}
    others = {c.case for c in caselist.cases if c.site == "hrT2"} - scored
    assert scored
    assert {c.case for c in images.cases} == others


def test_both_lists_go_into_an_unpaired_training_and_none_into_a_score(tmp_path: Path):
    download(tmp_path / "in")
    listed = tmp_path / "out" / "cases.json"
    save_caselist(from_crossmoda(tmp_path / "in", tmp_path / "out"), listed)
    config, _, _ = prepare(tiny_unpaired(listed, listed.with_name("target.json"), 3))
    assert config.known_task.target_planes == 1
    experiment = SimpleNamespace(part="test", scored_cases=None, train_cases=None)
    target = Domain(cases=str(listed), sites=("hrT2",))
    with pytest.raises(UsageError, match=r"cases.json: site hrT2.*cases to score.*found 0 and 0"):
        domain_cases(experiment, target, tmp_path)
    source = domain_cases(experiment, Domain(cases=str(listed), sites=("ceT1",)), tmp_path)
    assert len(source.cases) == 4


@pytest.mark.parametrize(("year", "meaning"), [("", [0, 1, 2]), ("2023", [0, 1, 1, 2])])
def test_other_years_have_other_names_and_values(tmp_path: Path, year: str, meaning: list[int]):
    download(tmp_path / "in", year)
    caselist = from_crossmoda(tmp_path / "in", tmp_path / "out")
    assert caselist.labels == {"background": 0, "vestibular_schwannoma": 1, "cochlea": 2}
    assert sum(c.site == "hrT2" for c in caselist.cases) == 3
    name = f"crossmoda{year}_etz_3" if year else "crossmoda_3"
    expected = np.array(meaning)[mask(3, len(meaning) - 1)]
    np.testing.assert_array_equal(label_of(caselist, name), expected)


def test_target_scans_with_masks_of_ones_own_are_dealt(tmp_path: Path):
    download(tmp_path / "in")
    for n in (106, 107, 108, 109):
        stem = tmp_path / "in" / "training_target" / f"crossmoda2022_etz_{n}"
        nifti(stem.with_name(f"{stem.name}_hrT2.nii.gz"), volume(n, 3, 2, 2))
        nifti(stem.with_name(f"{stem.name}_Label.nii.gz"), mask(n, 2))
    caselist = from_crossmoda(tmp_path / "in", tmp_path / "out")
    known = [c.part for c in caselist.cases if c.site == "hrT2" and c.references]
    assert sorted(known) == ["test", "train", "train", "validation"]
    np.testing.assert_array_equal(label_of(caselist, "crossmoda2022_etz_109"), mask(109, 2))


def test_bad_downloads_are_refused(tmp_path: Path):
    home = tmp_path / "in"
    download(home)
    label = home / "training_source" / "crossmoda2022_etz_2_Label.nii.gz"
    nifti(label, np.full((3, 2, 2), 3))
    with pytest.raises(InputError, match=r"etz_2_Label.*unknown mask values.*\[3\].*0, 1, 2"):
        from_crossmoda(home, tmp_path / "1")
    nifti(label, np.zeros((3, 2, 1)))
    with pytest.raises(InputError, match=r"etz_2_Label.*shape differs.*etz_2_ceT1"):
        from_crossmoda(home, tmp_path / "2")
    label.unlink()
    with pytest.raises(InputError, match=r"source scans without a mask.*etz_2\). Unpack"):
        from_crossmoda(home, tmp_path / "3")
    (home / "training_source").rename(tmp_path / "away")
    with pytest.raises(InputError, match=r"in: no ceT1 scan found.*crossmoda_1_ceT1.*Give"):
        from_crossmoda(home, tmp_path / "4")
    (tmp_path / "away").rename(home / "training_source")
    for path in home.rglob("*_hrT2*"):
        path.unlink()
    with pytest.raises(InputError, match="in: no hrT2 scan found"):
        from_crossmoda(home, tmp_path / "5")
