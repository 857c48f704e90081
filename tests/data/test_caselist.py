"""Case lists: the contract's example goes round, and each fault of a list has its refusal."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from medseg_diff.data.caselist import (
    CaseList,
    build_caselist,
    hash_files,
    load_caselist,
    save_caselist,
    verify_hashes,
)
from medseg_diff.errors import InputError

Content = dict[str, Any]


def entry(case: str, part: str, patient: str | None = None) -> Content:
    return {
        "case": case,
        "patient": patient or f"p-{case}",
        "part": part,
        "channels": {"T1": f"images/{case}_T1.nii.gz", "T2": f"images/{case}_T2.nii.gz"},
        "references": [f"labels/{case}.nii.gz"],
    }


@pytest.fixture
def content() -> Content:
    return {
        "name": "Toy",
        "licence": "CC0",
        "modality": "MR",
        "channels": ["T2", "T1"],
        "labels": {"background": 0, "anterior": 1, "posterior": 2},
        "cases": [
            entry("a", "train"),
            entry("b", "train"),
            entry("c", "validation"),
            entry("d", "test"),
        ],
    }


@pytest.fixture
def folder(content: Content, tmp_path: Path) -> Path:
    """A folder with the list and all its files, each with bytes of its own."""
    for case in content["cases"]:
        for name in (*case["channels"].values(), *case["references"]):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(name)
    (tmp_path / "cases.json").write_text(json.dumps(content))
    return tmp_path


def refusal(content: Content) -> InputError:
    with pytest.raises(InputError) as caught:
        build_caselist(content)
    assert "\n" not in str(caught.value)
    return caught.value


def test_parts_and_paths(folder: Path) -> None:
    caselist = load_caselist(folder / "cases.json")
    assert [c.case for c in caselist.part("train")] == ["a", "b"]
    assert [c.case for c in caselist.part("test")] == ["d"]
    case = caselist.part("validation")[0]
    # The list's channel order rules, not the case's.
    assert list(caselist.channel_paths(case).items()) == [
        ("T2", folder / "images/c_T2.nii.gz"),
        ("T1", folder / "images/c_T1.nii.gz"),
    ]
    assert caselist.reference_paths(case) == [folder / "labels/c.nii.gz"]
    assert caselist.paths(case) == [
        folder / "images/c_T2.nii.gz",
        folder / "images/c_T1.nii.gz",
        folder / "labels/c.nii.gz",
    ]
    with pytest.raises(InputError, match="unknown part"):
        caselist.part("training")  # type: ignore[arg-type]


def test_structures(content: Content) -> None:
    assert build_caselist(content).structures == {"anterior": [1], "posterior": [2]}
    content["regions"] = {"whole": [1, 2], "anterior": [1]}
    assert build_caselist(content).structures == {"whole": [1, 2], "anterior": [1]}


def test_a_list_is_frozen(content: Content) -> None:
    caselist = build_caselist(content)
    with pytest.raises(ValueError, match="frozen"):
        caselist.name = "other"  # type: ignore[misc]


def test_save_and_load_round_trip(folder: Path) -> None:
    caselist = hash_files(load_caselist(folder))
    save_caselist(caselist, folder / "cases.json")
    again = load_caselist(folder, verify=True)
    assert again == caselist
    assert list(folder.glob(".*")) == [], "temporary files left behind"
    written = json.loads((folder / "cases.json").read_text())
    assert list(written) == [
        "name", "licence", "modality", "channels", "labels", "regions", "ignore_label", "cases",
    ]  # fmt: skip
    assert list(written["cases"][0]) == [
        "case", "patient", "site", "part", "channels", "references", "sha256",
    ]  # fmt: skip
    expected = hashlib.sha256(b"labels/a.nii.gz").hexdigest()
    assert written["cases"][0]["sha256"]["labels/a.nii.gz"] == expected
    assert len(written["cases"][0]["sha256"]) == 3


def test_root_moves_the_start_of_paths(folder: Path, tmp_path_factory: Any) -> None:
    elsewhere = tmp_path_factory.mktemp("list") / "mine.json"
    elsewhere.write_bytes((folder / "cases.json").read_bytes())
    with pytest.raises(InputError, match="missing files"):
        load_caselist(elsewhere)
    caselist = load_caselist(elsewhere, root=folder)
    assert caselist.root == folder
    assert caselist.with_cases(caselist.cases[:2]).root == folder
    assert hash_files(caselist).root == folder


def test_missing_files_in_one_line(folder: Path) -> None:
    for path in [*sorted((folder / "images").iterdir())[:6], folder / "labels/d.nii.gz"]:
        path.unlink()
    with pytest.raises(InputError) as caught:
        load_caselist(folder)
    text = str(caught.value)
    assert "7 missing files" in text
    assert text.count(".nii.gz") == 5
    assert "and 2 more" in text
    assert str(folder) not in text


def test_verify_finds_the_changed_file(folder: Path) -> None:
    caselist = load_caselist(folder)
    with pytest.raises(InputError, match="no sha256 stored"):
        verify_hashes(caselist)
    save_caselist(hash_files(caselist), folder / "cases.json")
    (folder / "labels/b.nii.gz").write_text("changed")
    load_caselist(folder)
    with pytest.raises(InputError, match=r"differ from their stored sha256 \(found b.nii.gz\)"):
        load_caselist(folder, verify=True)


def test_F76_hashing_finds_one_image_in_two_parts(folder: Path) -> None:
    (folder / "images/d_T1.nii.gz").write_text("images/a_T1.nii.gz")
    with pytest.raises(InputError, match=r"one image in more than one part.*a = d"):
        hash_files(load_caselist(folder))


def test_equal_masks_and_equal_images_within_a_part_are_no_leak(folder: Path) -> None:
    (folder / "labels/d.nii.gz").write_text("labels/a.nii.gz")
    (folder / "images/b_T1.nii.gz").write_text("images/a_T1.nii.gz")
    assert len(hash_files(load_caselist(folder)).cases) == 4


def test_one_path_in_two_parts_needs_no_hash(content: Content) -> None:
    content["cases"][3]["channels"]["T1"] = "images/./a_T1.nii.gz"
    assert "more than one part" in str(refusal(content))


def test_F76_patient_in_two_parts(content: Content) -> None:
    content["cases"][3]["patient"] = "p-a"
    text = str(refusal(content))
    assert "patients in more than one part" in text
    assert "found p-a" in text
    content["cases"][1]["patient"] = content["cases"][0]["patient"] = "same"
    content["cases"][3]["patient"] = "p-d"
    assert len(build_caselist(content).part("train")) == 2


def test_F75_duplicate_ids_are_all_listed(content: Content) -> None:
    content["cases"] += [entry("a", "train"), entry("b", "train"), entry("e", "train")]
    assert refusal(content).found == "a, b"


def test_F75_cases_without_image_or_reference_are_all_listed(content: Content) -> None:
    lacking = copy.deepcopy(content)
    for case in lacking["cases"]:
        case["references"] = []
    assert refusal(lacking).found == "a, b, c", "test cases may lack references"
    lacking["cases"] = lacking["cases"][3:]
    assert build_caselist(lacking).reference_paths(build_caselist(lacking).cases[0]) == []
    for case in content["cases"][1:]:
        case["channels"] = {}
    assert refusal(content).found == "b, c, d"


@pytest.mark.parametrize(
    ("where", "key", "nearest"),
    [("list", "chanels", "channels"), ("list", "ignore", "ignore_label"),
     ("case", "reference", "references"), ("case", "pathient", "patient")],
)  # fmt: skip
def test_unknown_key_names_the_nearest(
    content: Content, where: str, key: str, nearest: str
) -> None:
    target = content if where == "list" else content["cases"][2]
    target[key] = target.pop(nearest, None)
    text = str(refusal(content))
    assert f"unknown key '{key}'" in text
    assert f"Did you mean '{nearest}'?" in text
    assert ("cases.2" in text) == (where == "case")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": {"background": 0, "a": 2}}, "not contiguous from 0"),
        ({"labels": {"a": 1, "b": 2}}, "not contiguous from 0"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "not contiguous from 0"),
        ({"labels": {"background": 0, "a": True}}, "valid integer"),
        ({"labels": {"background": 0, "a": "1"}}, "valid integer"),
        ({"labels": {"a": 1}, "regions": {"x": [1]}}, "hold the background 0"),
        ({"regions": {"x": [1, 3]}}, "regions.x"),
        ({"regions": {"x": [0, 1]}}, "regions.x"),
        ({"regions": {"x": []}}, "regions.x"),
        ({"regions": {"x": [1, 1]}}, "regions.x"),
        ({"regions": {}}, "no region"),
        ({"ignore_label": 2}, "ignored label is also a label"),
        ({"modality": "MRI"}, "modality"),
        ({"channels": ["T1"]}, "channels differ"),
        ({"channels": ["T1", "T2", "T2"]}, "duplicate channel names"),
        ({"channels": []}, "channels"),
        ({"cases": []}, "cases"),
        ({"name": " "}, "name"),
    ],
)
def test_bad_lists(content: Content, change: Content, words: str) -> None:
    assert words in str(refusal({**content, **change}))


def test_regions_allow_gaps_and_ignore_lies_outside(content: Content) -> None:
    gaps = {"labels": {"background": 0, "a": 1, "b": 4}, "regions": {"whole": [1, 4]}}
    caselist = build_caselist({**content, **gaps, "ignore_label": 3})
    assert caselist.structures == {"whole": [1, 4]}


@pytest.mark.parametrize(
    "path",
    ["../a.nii.gz", "images/../../a.nii.gz", "/data/a.nii.gz", "C:/a.nii.gz", "C:a.nii.gz",
     "images\\a.nii.gz", "", "."],
)  # fmt: skip
@pytest.mark.parametrize("field", ["channels", "references"])
def test_paths_stay_below_the_root(content: Content, path: str, field: str) -> None:
    case = content["cases"][0]
    case[field] = {"T1": path, "T2": "x.nii.gz"} if field == "channels" else [path]
    text = str(refusal(content))
    assert "path" in text
    assert "/data" not in text


@pytest.mark.parametrize(
    ("field", "value"),
    [("case", "a/b"), ("case", ".a"), ("case", "a\nb"), ("case", ""), ("part", "training"),
     ("patient", ""), ("sha256", {"images/a_T1.nii.gz": "abc"}),
     ("sha256", {"other.nii.gz": "0" * 64})],
)  # fmt: skip
def test_bad_cases(content: Content, field: str, value: object) -> None:
    content["cases"][0][field] = value
    assert field in str(refusal(content)) or "id " in str(refusal(content))


def test_missing_key(content: Content) -> None:
    del content["cases"][1]["patient"]
    assert str(refusal(content)) == "cases.1.patient: missing key"


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "not a JSON file"), ("[]", "not a case list"), ('{"name": "x"}', "missing key")],
)
def test_bad_files(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "cases.json").write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        load_caselist(tmp_path)
    assert caught.value.file == tmp_path / "cases.json"


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such case list"):
        load_caselist(tmp_path / "none.json")


def test_failed_save_keeps_the_old_file(
    content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cases.json"
    path.write_text("old")

    def full_disk(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(InputError, match="No space"):
        save_caselist(build_caselist(content), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_class_itself_checks(content: Content) -> None:
    content["cases"][3]["patient"] = "p-a"
    with pytest.raises(ValueError, match="patients in more than one part"):
        CaseList.model_validate(content)
