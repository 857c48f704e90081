"""The demo from end to end, on a budget too small to be good."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from medseg_diff.cli import demo
from medseg_diff.errors import UsageError


@pytest.mark.slow
def test_demo_trains_predicts_scores_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All three models are scored on the same twenty cases; the shipped one is good."""
    small = {**demo.BUDGET["training"], "steps": 4, "validate_every": 4, "save_every": 4}
    monkeypatch.setitem(demo.BUDGET, "training", small)
    report = demo.run_demo(tmp_path / "demo")
    assert report.is_file()
    shown = capsys.readouterr().out
    assert str(report) in shown
    for name in ("diff_unet", "unet", "shipped"):
        table = pd.read_csv(tmp_path / "demo" / "evaluation" / name / "per_case.csv")
        assert table["case"].nunique() == 20
    assert table["dice"].mean() > 0.85
    demo._clear(tmp_path / "demo")
    (tmp_path / "demo" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds other things"):
        demo.run_demo(tmp_path / "demo")
    assert (tmp_path / "demo" / "thesis.txt").read_text() == "mine"
