"""The embedded sample: whole, licensed, small, and chosen as its script says."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest

from medseg_diff.data.caselist import load_caselist, verify_hashes
from medseg_diff.data.sample import sample_attribution, sample_caselist, sample_folder


@pytest.fixture(scope="module")
def script(repository: Path) -> ModuleType:
    path = repository / "data_prep" / "build_sample.py"
    spec = importlib.util.spec_from_file_location("build_sample", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_parts_size_and_hashes() -> None:
    caselist = sample_caselist()
    verify_hashes(caselist)
    assert len(caselist.part("test")) == 20
    assert len(caselist.part("validation")) == 6
    assert len(caselist.part("train")) >= 40
    assert caselist.structures == {"anterior": [1], "posterior": [2]}
    assert (caselist.channels, caselist.modality) == (("T1",), "MR")
    files = [path for path in sample_folder().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 5_900_000
    named = {path for case in caselist.cases for path in caselist.paths(case)}
    assert set(files) - named == {sample_folder() / "cases.json", sample_folder() / "LICENSE.md"}


def test_licence_travels_along() -> None:
    caselist, text = sample_caselist(), sample_attribution()
    assert caselist.licence == "CC-BY-SA 4.0"
    for words in ("CC-BY-SA 4.0", "arXiv:1902.09063", "Nature Communications 13:4128", "Changes"):
        assert words in text
    assert f"A subset: {len(caselist.cases)} cases" in text


def test_parts_follow_the_rank_of_the_ids() -> None:
    caselist = sample_caselist()
    ranked = sorted(caselist.cases, key=lambda c: hashlib.sha256(c.case.encode()).hexdigest())
    assert [c.part for c in ranked] == (
        ["test"] * 20 + ["validation"] * 6 + ["train"] * (len(ranked) - 26)
    )


def test_masks_fit_their_images() -> None:
    caselist = sample_caselist()
    for case in caselist.cases[:5]:
        image = nib.load(caselist.channel_paths(case)["T1"])
        mask = nib.load(caselist.reference_paths(case)[0])
        assert image.shape == mask.shape
        np.testing.assert_allclose(image.affine, mask.affine, atol=1e-4)
        assert set(np.unique(np.asarray(mask.dataobj))) == {0, 1, 2}


def test_sample_is_a_copy_of_the_training_part(shared_data: Path, script: ModuleType) -> None:
    source = shared_data / "msd_hippocampus"
    caselist = sample_caselist()
    for case in caselist.cases:
        image, mask = caselist.paths(case)
        assert image.read_bytes() == (source / f"imagesTr/{case.case}_0000.nii.gz").read_bytes()
        assert mask.read_bytes() == (source / f"labelsTr/{case.case}.nii.gz").read_bytes()
    # Full as it can be: the next case in rank would not have fitted.
    ids = script.ranked_ids(
        [re.sub(r"\.nii\.gz$", "", p.name) for p in (source / "labelsTr").iterdir()]
    )
    n = len(caselist.cases)
    assert {c.case for c in caselist.cases} == set(ids[:n])
    following = (
        (source / f"imagesTr/{ids[n]}_0000.nii.gz").stat().st_size
        + (source / f"labelsTr/{ids[n]}.nii.gz").stat().st_size
    )  # fmt: skip
    used = sum(path.stat().st_size for case in caselist.cases for path in caselist.paths(case))
    assert used + following > script.MAX_BYTES - script.TEXT_BYTES


def test_rebuilding_gives_the_same_sample(
    shared_data: Path, script: ModuleType, tmp_path: Path
) -> None:
    total = script.build(shared_data / "msd_hippocampus", tmp_path)
    assert load_caselist(tmp_path).cases == sample_caselist().cases
    assert total == sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file())
    for name in ("cases.json", "LICENSE.md"):
        assert (tmp_path / name).read_bytes() == (sample_folder() / name).read_bytes()


def test_choose_skips_none(script: ModuleType) -> None:
    ids = [f"c{i}" for i in range(40)]
    order = script.ranked_ids(ids)
    sizes = dict.fromkeys(ids, 10) | {order[30]: 1000}
    parts = script.choose(sizes, 400)
    assert list(parts) == order[:30], "a large case ends the list; smaller ones behind stay out"
    with pytest.raises(ValueError, match="too few cases"):
        script.choose(dict.fromkeys(ids[:26], 1), 400)


def test_held_out_cases_leave_the_full_list(
    shared_data: Path, repository: Path, tmp_path: Path
) -> None:
    subprocess.run(
        [sys.executable, repository / "data_prep/hippocampus.py", "--hold-out-sample",
         "--data", shared_data / "msd_hippocampus", "--out", tmp_path],
        check=True, capture_output=True, cwd=repository,
        env={"PYTHONPATH": str(repository), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    full = load_caselist(tmp_path, verify=True)
    assert (len(full.part("train")), len(full.part("validation"))) == (144, 16)
    assert len(full.part("test")) == 28
    held_out = sample_caselist().part("test")
    assert {c.case for c in full.cases}.isdisjoint(c.case for c in held_out)
    images = {digest for c in full.cases for name, digest in c.sha256.items() if "images" in name}
    assert images.isdisjoint(c.sha256[c.channels["T1"]] for c in held_out)


def test_loading_the_sample_needs_no_heavy_library(repository: Path) -> None:
    code = (
        "import sys; from medseg_diff.data.sample import sample_caselist; sample_caselist();"
        "print(sorted({'torch', 'monai', 'nibabel', 'pandas', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=repository
    )
    assert done.stdout.strip() == "[]"
