"""Comparisons: claims that the cases allow, the refusals before them, and what is written."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pandas as pd
import pytest

from medseg_diff import comparison
from medseg_diff.comparison import compare_folders, compare_table, read_method
from medseg_diff.errors import InputError, UsageError
from medseg_diff.metrics import statistics

BLANK = dict.fromkeys(
    ["nsd", "hd95_mm", "assd_mm", "volume_ref_ml", "volume_pred_ml", "volume_difference_ml"], 1.0
)
CONVENTIONS = {"nsd_tolerance_mm": 1.0, "structures": {"a": [1]}, "hd95": "the larger one"}


def table(dice, structure="a", **columns):
    """Per-case table of one structure, cases named c00, c01, ..."""
    rows = [
        {"case": f"c{i:02d}", "structure": structure, "dice": d, "outcome": "scored"}
        for i, d in enumerate(dice)
    ]
    return pd.DataFrame(rows).assign(**(BLANK | columns))


def folder(path, per_case, **conventions):
    """An evaluation folder as ``evaluate`` writes it."""
    path.mkdir(parents=True)
    per_case.to_csv(path / "per_case.csv", index=False, float_format="%.6g")
    summary = {"conventions": CONVENTIONS | conventions}
    (path / "summary.json").write_text(json.dumps(summary))
    return str(path)


@pytest.fixture
def two(tmp_path):
    """Two evaluations of 20 cases, the first better by 0.1."""
    low = np.linspace(0.3, 0.7, 20)
    return [folder(tmp_path / "ours", table(low + 0.1)), folder(tmp_path / "unet", table(low))]


# --- tests of pairs


def test_comparison_claims_a_clear_difference_and_nothing_else():
    low = np.linspace(0.3, 0.7, 20)
    noise = np.random.default_rng(0).normal(0, 0.01, 20)
    result = compare_table(
        {"ours": table(low + 0.1), "same": table(low + 0.1 + noise), "unet": table(low)},
        reference="ours",
        metrics=["dice"],
    )
    assert list(result["b"]) == ["same", "unet"]
    assert result["verdict"].iloc[0].startswith("Dice, a: No evidence of a difference")
    assert result["verdict"].iloc[1].startswith("Dice, a: ours is better than unet")
    assert result["difference"].iloc[1] == pytest.approx(0.1)
    assert (result["n"] == 20).all()
    assert result["p_holm"].tolist() == pytest.approx(statistics.holm(result["p"].tolist()))
    assert result["p_holm"].iloc[1] == pytest.approx(2 * result["p"].iloc[1])
    assert result["mean_b"].iloc[1] == pytest.approx(0.5)
    assert f"p = {result['p_holm'].iloc[1]:.2g}," in result["verdict"].iloc[1]


def test_comparison_pairs_by_case_not_by_row():
    dice = np.linspace(0.2, 0.9, 12)
    shuffled = table(dice).sample(frac=1, random_state=1)
    result = compare_table({"x": table(dice), "y": shuffled}, metrics=["dice"])
    assert result["difference"].iloc[0] == 0
    assert result["ci_low"].iloc[0] == result["ci_high"].iloc[0] == 0


def test_comparison_knows_that_small_distances_are_good():
    near, far = (table([0.5] * 10, hd95_mm=np.arange(10.0) + shift) for shift in (1, 5))
    result = compare_table({"near": near, "far": far}, metrics=["hd95_mm"])
    assert "near is better than far (mean difference -4 mm" in result["verdict"].iloc[0]


def test_comparison_adds_the_mean_of_structures_and_drops_blank_pairs():
    a = pd.concat([table([0.6, 0.8, 0.9], "x"), table([0.4, 0.6, math.nan], "y")])
    b = pd.concat([table([0.5, 0.7, 0.8], "x"), table([0.1, 0.3, 0.5], "y")])
    result = compare_table({"a": a, "b": b}, metrics=["dice"]).set_index("structure")
    assert list(result.index) == ["x", "y", statistics.MEAN_OF_STRUCTURES]
    assert result.loc["y", "n"] == 2
    assert result.loc["y", "mean_b"] == pytest.approx(0.2)
    assert result.loc["y", "difference"] == pytest.approx(0.3)
    mean = result.loc[statistics.MEAN_OF_STRUCTURES]
    assert mean["difference"] == pytest.approx(np.mean([0.2, 0.2, 0.9 - 0.65]))
    assert "too small" in mean["verdict"]


def test_comparison_counts_patients():
    a, b = table(np.linspace(0.5, 0.9, 12)), table(np.linspace(0.1, 0.4, 12))
    patients = {f"c{i:02d}": f"p{i // 3}" for i in range(12)}
    result = compare_table({"a": a, "b": b}, metrics=["dice"], patients=patients)
    assert result["p"].iloc[0] == statistics.smallest_p(4)
    assert result["n"].iloc[0] == 12


def test_comparison_refuses_different_cases():
    with pytest.raises(InputError, match="c02 / a"):
        compare_table({"a": table([0.1, 0.2, 0.3]), "b": table([0.1, 0.2])})
    with pytest.raises(InputError, match="two evaluations"):
        compare_table({"a": table([0.1])})


def test_every_pair_or_one_against_the_rest():
    three = {name: table(np.linspace(0.3, 0.7, 12) + k / 50) for k, name in enumerate("xyz")}
    every = compare_table(three, metrics=["dice"])
    assert list(zip(every["a"], every["b"], strict=True)) == [("x", "y"), ("x", "z"), ("y", "z")]
    rest = compare_table(three, reference="z", metrics=["dice"])
    assert list(zip(rest["a"], rest["b"], strict=True)) == [("z", "x"), ("z", "y")]
    # Equal p in every row: Holm multiplies the smallest by the number of rows.
    assert every["p_holm"].iloc[0] == pytest.approx(3 * every["p"].iloc[0])
    assert rest["p_holm"].iloc[0] == pytest.approx(2 * rest["p"].iloc[0])
    with pytest.raises(UsageError, match="--reference"):
        compare_table(three, reference="w")


def test_the_smallest_p_counts_the_tests():
    # 7 pairs can give 2 / 2^7 = 0.0156: enough for one test, not for the 6 of three structures.
    a = pd.concat([table(np.linspace(0.5, 0.9, 7), s) for s in ("x", "y")])
    b = pd.concat([table(np.linspace(0.1, 0.4, 7), s) for s in ("x", "y")])
    c = pd.concat([table(np.linspace(0.0, 0.2, 7), s) for s in ("x", "y")])
    two = compare_table({"a": a, "b": b}, metrics=["dice"])
    assert two["smallest_p_holm"].tolist() == pytest.approx([3 / 64] * 3)
    assert all("a is better" in v for v in two["verdict"])
    three = compare_table({"a": a, "b": b, "c": c}, metrics=["dice"])
    assert three["smallest_p_holm"].tolist() == pytest.approx([9 / 64] * 9)
    assert all("too small for 9 tests" in v and "No evidence" in v for v in three["verdict"])


def test_sd_of_the_difference_is_over_patients():
    a, b = table([0.9, 0.7, 0.5, 0.5]), table([0.5, 0.5, 0.5, 0.3])
    patients = {"c00": "p", "c01": "p", "c02": "q", "c03": "q"}
    row = compare_table({"a": a, "b": b}, metrics=["dice"], patients=patients).iloc[0]
    assert (row["n"], row["units"]) == (4, 2)
    assert row["sd_difference"] == pytest.approx(np.std([0.3, 0.1], ddof=1))


def test_headlines_are_one_per_pair_and_name_other_rows():
    flat = table(np.linspace(0.5, 0.7, 12))
    near, far = (flat.assign(hd95_mm=np.arange(12.0) + k) for k in (1, 5))
    result = compare_table({"near": near, "far": far})
    ((text, sure),) = comparison.headlines(result)
    assert not sure
    assert text.startswith("Dice, a: No evidence of a difference between near and far")
    assert "of 3 other rows: HD95, a: near is better" in text
    assert [comparison.claims(row) for _, row in result.iterrows()] == [False, False, True, False]


# --- methods read from folders


def test_names_come_from_the_folder_or_are_given(two, tmp_path, monkeypatch):
    assert read_method(two[0]).name == "ours"
    assert read_method(f"best={two[0]}").name == "best"
    odd = folder(tmp_path / "a=b,c", table([0.5, 0.6]))
    assert read_method(odd).name == "a=b,c"
    monkeypatch.chdir(two[0])
    assert read_method(".").name == "ours"
    for text in ("=x", f" ={two[0]}", "name="):
        with pytest.raises(UsageError, match="NAME=FOLDER"):
            read_method(text)


def test_awkward_case_names_stay_as_they_are(tmp_path):
    per_case = table([0.5, math.nan, 0.7])
    per_case["case"] = ["007", "NA", "1e3"]
    read = read_method(folder(tmp_path / "x", per_case)).per_case
    assert read["case"].tolist() == ["007", "NA", "1e3"]
    assert read["dice"].isna().tolist() == [False, True, False]


def test_seeds_are_averaged_by_case(tmp_path):
    first = pd.concat([table([0.2, 0.4, math.nan], "x"), table([0.6, 0.6, 0.6], "y")])
    second = pd.concat([table([0.4, 0.6, 0.8], "x"), table([0.8, 0.8, 0.8], "y")])
    paths = [folder(tmp_path / str(k), t) for k, t in enumerate((first, second))]
    method = read_method(f"ours={','.join(paths)}")
    assert (method.name, method.seeds) == ("ours", 2)
    x = method.per_case[method.per_case["structure"] == "x"]["dice"]
    assert x.tolist() == pytest.approx([0.3, 0.5, 0.8])
    assert method.seed_sd["y", "dice"] == pytest.approx(np.std([0.6, 0.8], ddof=1))
    assert method.seed_sd["x", "dice"] == pytest.approx(np.std([0.3, 0.6], ddof=1))
    # Means over structures, case by case: (0.4, 0.5, 0.6) and (0.6, 0.7, 0.8).
    mean = method.seed_sd[statistics.MEAN_OF_STRUCTURES, "dice"]
    assert mean == pytest.approx(np.std([0.5, 0.7], ddof=1))
    assert read_method(paths[0]).seed_sd == {}


def test_patients_of_the_tables_are_the_units(tmp_path):
    who = [f"p{i // 3}" for i in range(12)]
    paths = [
        folder(tmp_path / name, table(np.linspace(low, low + 0.3, 12)).assign(patient=who))
        for name, low in (("a", 0.5), ("b", 0.1))
    ]
    methods = [read_method(path) for path in paths]
    result = comparison.compare_methods(methods)
    assert set(result["units"]) == {4}
    notes = " ".join(comparison.caveats(result, methods))
    assert "n = 4 with 1 test(s)" in notes
    assert "share a patient" not in notes
    other = folder(tmp_path / "c", table(np.linspace(0, 1, 12)).assign(patient=["p"] * 12))
    with pytest.raises(InputError, match="disagree on the patients"):
        compare_folders([paths[0], other], tmp_path / "out")


def test_caveats_say_what_the_cases_cannot_show(tmp_path):
    rng = np.random.default_rng(0)
    base = rng.uniform(0.4, 0.8, 30)
    gaps = rng.normal(0, 0.05, 30)
    paths = [folder(tmp_path / "a", table(base)), folder(tmp_path / "b", table(base + gaps))]
    methods = [read_method(path) for path in paths]
    result = comparison.compare_methods(methods)
    needed = statistics.cases_needed(0.01, float(result["sd_difference"].iloc[0]))
    notes = comparison.caveats(result, methods)
    assert any(f"takes about {needed} cases" in note and "there are 30" in note for note in notes)
    assert any("every case counts as one" in note for note in notes)
    assert any("Seeds: a 1, b 1." in note for note in notes)
    assert not any("cannot show any difference" in note for note in notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: (t.head(19), {}), "c19 / a"),
        (lambda t: (t, {"nsd_tolerance_mm": 2.0}), "nsd_tolerance_mm: .*made differently"),
        (lambda t: (t.assign(volume_ref_ml=1.5), {}), "different references"),
        (lambda t: (pd.concat([t, t]), {}), "two for one case"),
        (lambda t: (t.drop(columns="nsd"), {}), "not readable"),
        (lambda t: (t.assign(dice="high"), {}), "not readable"),
        (lambda t: (t.head(0), {}), "no row"),
    ],
)
def test_refuses_what_cannot_be_compared(two, tmp_path, change, message):
    changed, conventions = change(table(np.linspace(0.3, 0.7, 20)))
    other = folder(tmp_path / "other", changed, **conventions)
    with pytest.raises(InputError, match=message):
        compare_folders([two[0], other], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_refuses_wrong_use(two, tmp_path):
    with pytest.raises(UsageError, match="two evaluations"):
        compare_folders(two[:1], tmp_path / "out")
    with pytest.raises(UsageError, match="one name"):
        compare_folders([two[0], f"ours={two[1]}"], tmp_path / "out")
    with pytest.raises(InputError, match="holds no evaluation"):
        compare_folders([two[0], str(tmp_path)], tmp_path / "out")
    with pytest.raises(InputError, match="is a file"):
        compare_folders(two, tmp_path / "ours" / "per_case.csv")


# --- files


def test_writes_four_files_that_agree(two, tmp_path):
    said = compare_folders(two, tmp_path / "out")
    assert said[0].startswith("Dice, a: ours is better than unet (mean difference +0.1 ")
    names = ["compare.csv", "compare.html", "compare.md", "compare.tex"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == names
    csv = pd.read_csv(tmp_path / "out" / "compare.csv")
    assert csv["metric"].tolist() == list(comparison.table.METRICS)
    assert csv["difference"].iloc[0] == pytest.approx(0.1)
    for name in names[1:]:
        text = (tmp_path / "out" / name).read_text()
        assert "ours is better than unet" in text
        assert "+0.100" in text
        assert "Wilcoxon" in text


def test_latex_is_whole_and_escaped(tmp_path):
    low = np.linspace(0.3, 0.7, 12)
    paths = [
        f"{name}={folder(tmp_path / str(k), table(low + k / 10, structure='a_b & c'))}"
        for k, name in enumerate((r"50%_{x}~^\#$", "plain"))
    ]
    compare_folders(paths, tmp_path / "out")
    text = (tmp_path / "out" / "compare.tex").read_text()
    body = [line for line in text.splitlines() if not line.startswith("%")]
    rule = body.index(r"\midrule")
    row = body[rule + 1]
    assert row.startswith(
        r"50\%\_\{x\}\textasciitilde{}\textasciicircum{}\textbackslash{}\#\$ & plain & a\_b \& c &"
    )
    assert row.endswith(r" \\")
    # As many separators as the head has, whatever the names hold.
    bare = [line.replace(r"\&", "") for line in body[rule - 1 : rule + 5]]
    assert {line.count("&") for line in bare if "&" in line} == {10}
    assert text.count(r"\begin{") == text.count(r"\end{") == 2
    assert text.index(r"\toprule") < text.index(r"\midrule") < text.index(r"\bottomrule")


def test_markdown_and_page_hold_names_in_check(tmp_path):
    low = np.linspace(0.3, 0.7, 12)
    evil = "<script>|`"
    paths = [f"{evil}={folder(tmp_path / 'x', table(low))}", folder(tmp_path / "y", table(low))]
    compare_folders(paths, tmp_path / "out")
    lines = (tmp_path / "out" / "compare.md").read_text().splitlines()
    rows = [line.replace(r"\|", "") for line in lines if line.startswith("|")]
    assert {line.count("|") for line in rows} == {9, 12}
    page = (tmp_path / "out" / "compare.html").read_text()
    assert page.count("<script") == 1
    assert "No evidence of a difference between &lt;script&gt;|` and y" in page


def test_the_command(two, tmp_path, monkeypatch, capsys):
    from medseg_diff.cli.main import main

    words = ["compare", f"a={two[0]}", f"b={two[1]}", "--out", str(tmp_path / "out")]
    for extra, code, line in (
        (["--reference", "b"], 0, "Dice, a: b is worse than a"),
        (["--reference", "c"], 2, "no such evaluation"),
    ):
        monkeypatch.setattr(sys, "argv", ["medseg-diff", *words, *extra])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert (stopped.value.code or 0) == code
        shown = capsys.readouterr()
        assert line in (shown.out if code == 0 else shown.err)
