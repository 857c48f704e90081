"""The report: a page that stands alone, says what it must and escapes what it is given."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from medseg_diff import report
from medseg_diff.figures import CaseView, slice_stack
from medseg_diff.metrics import statistics

BLANK = dict.fromkeys(
    ["nsd", "hd95_mm", "assd_mm", "volume_ref_ml", "volume_pred_ml", "volume_difference_ml"], 1.0
)
STRUCTURES = {"anterior": (1,), "posterior": (2,)}


def table(dice, structure="a", **columns):
    """Per-case table of one structure, cases named c00, c01, ..."""
    rows = [
        {"case": f"c{i:02d}", "structure": structure, "dice": d, "outcome": "scored"}
        for i, d in enumerate(dice)
    ]
    return pd.DataFrame(rows).assign(**(BLANK | columns))


def block(mean=0.5, **change):
    metric = {"n": 3, "mean": mean, "sd": 0.1, "ci_low": 0.4, "ci_high": 0.6, "median": 0.5}
    names = ["dice", "nsd", "hd95_mm", "assd_mm", "volume_difference_ml"]
    counts = {"n": 3, "n_scored": 2, "misses": "1/3", "false_positives": 4, "both_empty": 5}
    return {**counts, "failed": 6, "metrics": dict.fromkeys(names, metric)} | change


def summary(**change):
    plain = {
        "title": "Test",
        "n_cases": 3,
        "n_failed": 0,
        "structures": {"a": block()},
        "mean": block(),
        "notes": [],
        "conventions": {"hd95": "the larger one"},
    }
    return plain | change


class Page(HTMLParser):
    """Collects tags and the text between them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def volume_view(**change):
    grid = np.indices((30, 40, 20))
    reference = np.zeros((30, 40, 20), int)
    reference[8:18, 10:20, 5:12], reference[8:18, 20:30, 5:12] = 1, 2
    view = {
        "reference": reference,
        "prediction": np.roll(reference, 2, axis=1),
        "affine": np.diag([1.0, 1.0, 2.0, 1.0]),
        "image": grid.sum(0)[None].astype(np.float32),
        "doubt": (grid[1] / 40.0).astype(np.float32),
    }
    return CaseView(**(view | change))


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    """Leave charts out of tests that look at the page's words."""
    if "stands_alone" not in request.node.name:
        monkeypatch.setattr("medseg_diff.report.render.box_plots", lambda *_: b"png")


def test_page_stands_alone_and_says_what_it_must():
    picture = report.Picture("Worst: c00", "Mean Dice 0.1.", b"\x89PNG fake")
    page = report.render_report(
        summary(notes=["n = 3 is too small"]),
        table([0.1, 0.5, 0.9]),
        [picture],
        attribution="Some archive, CC-BY 4.0",
    )
    parsed = Page(page)
    assert not [tag for tag, _ in parsed.tags if tag in ("link", "iframe")]
    assert [attrs for tag, attrs in parsed.tags if tag == "script"] == [{}]
    sources = [attrs["src"] for tag, attrs in parsed.tags if tag == "img"]
    assert len(sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|@import|https?:", page)
    wanted = ["n = 3 is too small", "Some archive, CC-BY 4.0", report.RESEARCH_USE]
    wanted += ["Worst: c00", "Mean Dice 0.1.", "1/3", "0.500 ± 0.100 [0.400, 0.600]"]
    assert [text for text in wanted if text not in parsed.text] == []
    assert all(attrs.get("alt") for tag, attrs in parsed.tags if tag == "img")


def test_page_escapes_every_name():
    evil = "<script>alert('x')</script>&"
    page = report.render_report(
        summary(title=evil, structures={evil: block()}, notes=[evil], conventions={evil: evil}),
        table([0.1, 0.2], structure=evil).assign(case=evil),
        [report.Picture(f'{evil}"', evil, b"png")],
        attribution=evil,
    )
    parsed = Page(page)
    assert page.count("<script") == 1  # the page's own
    # Title twice, notes, structure, two lists of cases, picture, conventions, source.
    assert parsed.text.count(evil) >= 15


def test_summary_table_has_a_row_per_structure_and_their_mean():
    one = report.summary_table(summary())
    assert list(one["Structure"]) == ["a"]
    assert one.loc[0, ["Misses", "False positives", "Both empty", "Failed"]].tolist() == [
        "1/3",
        "4",
        "5",
        "6",
    ]
    two = report.summary_table(summary(structures={"a": block(), "b": block()}, mean=block(0.25)))
    assert list(two["Structure"]) == ["a", "b", statistics.MEAN_OF_STRUCTURES]
    assert two["Dice"].iloc[2].startswith("0.250")
    none = dict.fromkeys(["mean", "sd", "ci_low", "ci_high", "median"])
    blank = block(metrics=dict.fromkeys(block()["metrics"], none))
    assert report.summary_table(summary(structures={"a": blank})).loc[0, "Dice"] == "–"


def test_attention_table_puts_failures_first():
    cases = table([0.9, 0.0, 0.0, 0.3, 0.0])
    cases["outcome"] = ["scored", "false_positive", "missed", "scored", "failed"]
    cases = pd.concat([cases, table([math.nan], outcome="both_empty")])
    found = report.attention_table(cases)
    assert list(found["Case"]) == ["c04", "c02", "c01", "c03", "c00"]
    assert list(found["Outcome"])[:3] == ["failed", "missed", "false positive"]
    assert found["Dice"].iloc[4] == "0.900"
    assert len(report.attention_table(table([0.5] * 40))) == 10


def test_extra_sections_appear_only_when_given():
    plain = report.render_report(summary(), table([0.5]))
    words = ("Can the doubt be trusted?", "Plausible masks")
    assert not [word for word in words if word in plain]
    extras = report.Extras(
        reliability=[(0.5, 0.5, 10)],
        risk_coverage={"entropy": ([0.5, 1.0], [0.1, 0.2])},
        plausibility=pd.DataFrame({"<GED>": ["0.2"]}),
        notes=("16 draws",),
    )
    page = report.render_report(summary(), table([0.5]), extras=extras)
    assert not [word for word in (*words, "&lt;GED&gt;", "16 draws") if word not in page]
    assert page.count("data:image/png") == plain.count("data:image/png") + 2


def test_case_list_holds_every_case_and_the_values_to_sort_by():
    cases = table([0.12345, math.nan], outcome=["scored", "both_empty"])
    page = report.render_report(summary(), cases)
    assert '<td data-value="0.12345">0.123</td>' in page
    assert '<td data-value="">–</td>' in page
    assert '<tr class="both_empty">' in page
    many = pd.concat([table(np.linspace(0.5, 1, 2000), s) for s in "ab"], ignore_index=True)
    page = report.render_report(summary(), many)
    assert page.count('<tr class="scored">') == 3000
    assert "The 1000 rows with the highest Dice are left out" in page


def test_tiles_mark_bad_news():
    good = report.render_report(summary(mean=block(misses="0/3", false_positives=0)), table([0.5]))
    assert 'class="tile bad"' not in good
    bad = report.render_report(summary(mean=block(misses="1/3", false_positives=4)), table([0.5]))
    assert bad.count('class="tile bad"') == 2


def test_report_does_not_load_a_window_system():
    code = "import sys, medseg_diff.report; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_empty_masks_show_one_slice_and_say_so():
    nothing = np.zeros((30, 40, 20), int)
    view = volume_view(reference=nothing, prediction=nothing)
    stack = slice_stack(view, STRUCTURES)
    assert stack.empty
    assert [s.number for s in stack.slices] == [10]
    picture = report.Picture("Only: x", "", None, stack, tuple(STRUCTURES))
    page = report.render_report(summary(), table([0.5]), [picture])
    assert "Neither mask holds a structure" in page
    assert 'type="range"' not in page


def test_viewer_shows_one_slice_without_script_and_all_draws():
    draws = np.stack([np.roll(volume_view().reference, k, axis=0) for k in range(3)])
    stack = slice_stack(volume_view(draws=draws), STRUCTURES)
    picture = report.Picture("Best: x", "", None, stack, tuple(STRUCTURES))
    page = report.render_report(summary(), table([0.5]), [picture, picture])
    parsed = Page(page)
    shown = [a for tag, a in parsed.tags if tag == "div" and a.get("class") == "slice"]
    assert len(shown) == 2 * len(stack.slices)
    assert [("hidden" not in a) for a in shown].count(True) == 2
    # What panels point to exists, once; two viewers do not share pieces.
    names = [a["id"] for _, a in parsed.tags if "id" in a]
    assert len(names) == len(set(names))
    pointed = {a["href"] for tag, a in parsed.tags if tag == "use"}
    assert pointed <= {f"#{name}" for name in names}
    titles = [a["aria-label"] for tag, a in parsed.tags if tag == "svg" and "aria-label" in a]
    assert titles[:8] == [
        "Image", "Reference", "Prediction", "Doubt", "All draws", "Draw 1", "Draw 2", "Draw 3",
    ]  # fmt: skip
    controls = [a for tag, a in parsed.tags if a.get("class") == "controls"]
    assert all("hidden" in a for a in controls)  # a slider without its script is no use
