"""The page in a real browser, where there is one: no complaint, a slider and a list that sorts."""

from __future__ import annotations

import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from medseg_diff import report
from medseg_diff.figures import CaseView, slice_stack
from medseg_diff.metrics.summary import summarise_table

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")

# Moves the slider, sorts by Dice twice, and writes what it sees where the test can read it.
PROBE = """
const say = (name, value) => document.body.setAttribute("data-" + name, JSON.stringify(value));
const slices = [...document.querySelectorAll(".slice")];
const shown = () => slices.findIndex((s) => !s.hidden);
const slider = document.querySelector("input[type=range]");
say("before", [shown(), slices.filter((s) => !s.hidden).length]);
slider.value = 0;
slider.dispatchEvent(new Event("input"));
say("after", [shown(), document.querySelector("output").value]);
say("controls", document.querySelector(".controls").hidden);
const table = document.querySelector("table.sortable");
const dice = [...table.tHead.rows[0].cells].findIndex((c) => c.textContent.startsWith("Dice"));
const column = () => [...table.tBodies[0].rows].map((r) => r.cells[dice].textContent);
const button = table.tHead.rows[0].cells[dice].querySelector("button");
button.click();
say("up", column());
button.click();
say("down", column());
say("arrow", table.tHead.rows[0].cells[dice].getAttribute("aria-sort"));
const panel = document.querySelector(".slice:not([hidden]) .panel svg").getBoundingClientRect();
say("size", [panel.width > 100, panel.height > 100]);
"""


def browse(tmp_path, page):
    """DOM after the scripts ran, and what the browser's console said."""
    path = tmp_path / "page.html"
    path.write_text(page, encoding="utf-8")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,900", "--dump-dom"]
    done = subprocess.run(
        [str(BROWSER), *flags, path.as_uri()], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def page():
    labels = np.zeros((20, 20, 12), int)
    labels[5:12, 5:12, 3:9] = 1
    labels[4:14, 4:14, 6] = 1
    image = np.random.default_rng(0).normal(size=(1, 20, 20, 12)).astype(np.float32)
    view = CaseView(labels, labels, np.eye(4), image, image[0].clip(0, 1), np.stack([labels] * 2))
    dice = [0.9, np.nan, 0.1, 1.0, 0.35]
    rows = [
        {"case": f"c{k}", "structure": "a", "outcome": "scored", "dice": d}
        for k, d in enumerate(dice)
    ]
    numbers = ["nsd", "hd95_mm", "assd_mm", "volume_ref_ml", "volume_pred_ml"]
    per_case = pd.DataFrame(rows).assign(**dict.fromkeys([*numbers, "volume_difference_ml"], 1.0))
    summary = {"title": "T", "conventions": {"x": "y"}, **summarise_table(per_case)}
    stack = slice_stack(view, {"a": (1,)})
    picture = report.Picture("Best: c3", "words", None, stack, ("a",))
    return report.render_report(summary, per_case, [picture])


def test_the_console_stays_silent_and_the_policy_lets_the_script_run(page, tmp_path):
    dom, console = browse(tmp_path, page)
    assert console == []
    assert '<body class="js">' in dom
    # The policy itself works: a script that is not the page's own is refused, aloud.
    other = page.replace("</body>", "<script>document.title = 'x'</script></body>")
    dom, console = browse(tmp_path, other)
    assert "<title>T</title>" in dom
    assert any("Content Security Policy" in line for line in console)


def test_slider_and_sorting_work(page, tmp_path):
    free = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    dom, console = browse(tmp_path, free.replace("</body>", f"<script>{PROBE}</script></body>"))
    assert console == []
    found = dict(re.findall(r'data-(\w+)="([^"]*)"', dom.split("<body", 1)[1].split(">", 1)[0]))
    seen = {name: text.replace("&quot;", '"') for name, text in found.items()}
    # Masks fill slices 4 to 9 of 12, one more at each end; the largest is the fifth shown.
    assert seen["before"] == "[4,1]"
    assert seen["after"] == '[0,"3 of 12"]'
    assert seen["controls"] == "false"
    assert seen["up"] == '["0.100","0.350","0.900","1.000","–"]'
    assert seen["down"] == '["1.000","0.900","0.350","0.100","–"]'
    assert seen["arrow"] == '"descending"'
    assert seen["size"] == "[true,true]"
