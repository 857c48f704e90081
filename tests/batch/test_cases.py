"""Which cases there are: a CSV, patterns, and names that would overwrite each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg_diff.batch.cases import find_cases, read_table
from medseg_diff.errors import InputError


def table(folder: Path, text: str) -> Path:
    file = folder / "list.csv"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_csv_names_its_cases(tmp_path: Path) -> None:
    """Paths are relative to the CSV; other columns and a byte order mark do no harm."""
    text = "\ufeffcase,T1,FLAIR,note\na,x/1.nii.gz,x/2.nii.gz,old\nb c,/far/3.nii,4.nii,\n"
    found = find_cases([table(tmp_path, text)], ["T1", "FLAIR"])
    assert [case.name for case in found] == ["a", "b c"]
    assert found[0].channels == {
        "T1": tmp_path / "x" / "1.nii.gz",
        "FLAIR": tmp_path / "x" / "2.nii.gz",
    }
    assert found[1].channels["T1"] == Path("/far/3.nii")


def test_a_csv_of_one_channel_may_call_it_image(tmp_path: Path) -> None:
    (case,) = find_cases([table(tmp_path, "case,image\na,1.nii\n")], ["T1"])
    assert case.channels == {"T1": tmp_path / "1.nii"}


def test_every_wrong_row_of_a_csv_is_named(tmp_path: Path) -> None:
    rows = "a,1.nii,2.nii\n,1.nii,2.nii\na,3.nii,4.nii\nb,,5.nii\n../c,1.nii,2.nii\nd,1.nii\n"
    with pytest.raises(InputError) as refused:
        read_table(table(tmp_path, "case,T1,FLAIR\n" + rows), ["T1", "FLAIR"])
    line = str(refused.value)
    assert line.startswith("list.csv: ")
    for words in (
        "line 3: case: no name",
        "line 4: case: is listed twice (found 'a')",
        "line 5: T1: no path",
        "line 6: case name: not usable as an output name",
        "line 7: FLAIR: no path",
    ):
        assert words in line
    assert "line 2" not in line
    assert str(tmp_path) not in line


def test_a_csv_without_a_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"list.csv: FLAIR: column is missing \(found case, T1;"):
        read_table(table(tmp_path, "case,T1\na,1.nii\n"), ["T1", "FLAIR"])
    with pytest.raises(InputError, match=r"list.csv: case, T1: column is missing"):
        read_table(table(tmp_path, ""), ["T1"])


def test_patterns_are_expanded(tmp_path: Path) -> None:
    """A pattern that the shell did not touch, across folders, in the order of names."""
    for name in ("b.nii.gz", "deep/a.nii.gz", "deep/er/c.nii.gz", "notes.txt", "[1].nii"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_cases([tmp_path / "**" / "*.nii.gz"], ["T1"])
    assert [case.name for case in found] == ["b", "a", "c"]
    assert [case.name for case in find_cases([tmp_path / "deep" / "?.nii.gz"], ["T1"])] == ["a"]
    # A file of that very name is the file.
    assert [case.name for case in find_cases([tmp_path / "[1].nii"], ["T1"])] == ["[1]"]
    with pytest.raises(InputError, match=r"\*\.nii: --input: no file matches"):
        find_cases([tmp_path / "deep" / "*.nii"], ["T1"])


@pytest.mark.parametrize(
    ("listed", "words"),
    [("a", "two cases of one name"), ("A", "one output name"), ("a_prob", "one output name")],
)
def test_F44_a_list_and_a_file_of_one_name(tmp_path: Path, listed: str, words: str) -> None:
    (tmp_path / "a.nii").touch()
    file = table(tmp_path, f"case,T1\n{listed},x.nii\n")
    with pytest.raises(InputError, match=words):
        find_cases([file, tmp_path / "a.nii"], ["T1"])
