"""The table's numbers on rows made up by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medseg_diff.adaptation.table import build_table, gap_closed, read_rows
from medseg_diff.adaptation.write import write_table
from medseg_diff.errors import InputError

CASES = 12


def row(name: str, target: float, source: float, *, seed: int = 0, **more) -> pd.DataFrame:
    """Cases around a mean Dice; the same ups and downs in every row."""
    wave = 0.02 * np.sin(np.arange(CASES))
    jitter = 0.004 * np.cos(7 * np.arange(CASES) + len(name))
    parts = []
    for domain, mean in (("target", target), ("source", source)):
        for structure, offset in (("head", 0.05), ("tail", -0.05)):
            table = pd.DataFrame(
                {
                    "case": [f"c{n}" for n in range(CASES)],
                    "patient": [f"p{n // 2}" for n in range(CASES)],
                    "structure": structure,
                    "dice": mean + offset + wave + jitter,
                    "nsd": 0.9,
                    "hd95_mm": 1.0,
                    "assd_mm": 0.5,
                    "volume_ref_ml": 1.0,
                    "outcome": "scored",
                }
            )
            parts.append(table.assign(domain=domain))
    fixed = {
        "row": name,
        "seed": seed,
        "baseline": "source_only",
        "target_used": "none",
        "passes": 3,
        "seconds": 0.2,
        "training_steps": 10,
        "training_seconds": 5.0,
    }
    return pd.concat(parts).assign(**{**fixed, **more})


def experiment() -> pd.DataFrame:
    return pd.concat(
        [
            row("source_only", 0.4, 0.8),
            row("half", 0.6, 0.75),
            row("worse", 0.3, 0.8),
            row("oracle", 0.8, 0.5, target_used="labels"),
        ]
    )


@pytest.fixture(scope="module")
def table():
    return build_table(experiment())


def test_gap_difference_and_forgetting(table):
    rows = table.rows.set_index("row")
    assert rows.loc["half", "gap"] == pytest.approx(0.5, abs=0.02)
    assert rows.loc["half", "gap_low"] < 0.5 < rows.loc["half", "gap_high"]
    assert rows.loc["worse", "gap"] == pytest.approx(-0.25, abs=0.02)
    assert math.isnan(rows.loc["oracle", "gap"])
    assert math.isnan(rows.loc["source_only", "difference"])
    assert rows.loc["half", "difference"] == pytest.approx(0.2, abs=0.01)
    assert rows.loc["half", "forgetting"] == pytest.approx(0.05, abs=0.01)
    assert rows.loc["half", "dice head"] == pytest.approx(0.65, abs=0.01)
    # Six patients: the smallest p is 2 / 2^6, times three rows.
    assert rows.loc["half", "p_holm"] == pytest.approx(3 / 32)


def test_negative_transfer_is_marked_where_it_is(table):
    rows = table.rows.set_index("row")
    assert rows.loc["worse", "negative"] == "head*, tail*"
    assert rows.loc["half", "negative"] == ""


def test_notes_say_what_was_lost_and_how_few_seeds(table):
    assert any("40.0 Dice points" in note for note in table.notes)
    assert any("Trainings per row: 1" in note for note in table.notes)


def test_no_gap_no_share():
    long = pd.concat([row("source_only", 0.8, 0.8), row("m", 0.8, 0.8), row("oracle", 0.8, 0.8)])
    oracle = long["row"] == "oracle"
    long.loc[oracle, "dice"] = long.loc[long["row"] == "source_only", "dice"].to_numpy()
    found = build_table(long)
    assert found.rows["gap"].isna().all()
    assert any("less than the 10" in note for note in found.notes)
    assert math.isnan(gap_closed(np.ones(3), np.ones(3), np.ones(3)))


def test_seeds_are_averaged_by_case_and_their_spread_is_told():
    long = pd.concat(
        [
            *(row("source_only", 0.4 + 0.1 * s, 0.8, seed=s) for s in range(3)),
            *(row("oracle", 0.9, 0.5, seed=s) for s in range(3)),
        ]
    )
    rows = build_table(long).rows.set_index("row")
    assert rows.loc["source_only", "dice"] == pytest.approx(0.5, abs=0.01)
    assert rows.loc["source_only", "dice_sd_seeds"] == pytest.approx(0.1)
    assert rows.loc["source_only", "cases"] == CASES


def test_a_batch_norm_row_is_measured_against_its_own_baseline():
    twin = {"baseline": "source_only_batchnorm"}
    long = pd.concat(
        [
            experiment(),
            row("source_only_batchnorm", 0.2, 0.8, **twin),
            row("tent", 0.5, 0.8, **twin),
        ]
    )
    rows = build_table(long).rows.set_index("row")
    assert rows.loc["tent", "difference"] == pytest.approx(0.3, abs=0.01)
    assert rows.loc["tent", "gap"] == pytest.approx(0.5, abs=0.02)


def test_files(tmp_path: Path):
    files = []
    for name, part in experiment().groupby("row", sort=False):
        files.append(tmp_path / f"{name}.csv")
        part.to_csv(files[-1], index=False)
    write_table("balls & boxes", files, tmp_path)
    markdown = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| half | none |" in markdown
    assert "50 % [" in markdown
    latex = (tmp_path / "table.tex").read_text(encoding="utf-8")
    assert r"\bottomrule" in latex
    assert "source\\_only" in latex
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "balls &amp; boxes" in page
    assert "head*, tail*" in page
    stored = pd.read_csv(tmp_path / "table.csv")
    assert list(stored["row"]) == ["source_only", "half", "worse", "oracle"]
    with pytest.raises(InputError, match="row is missing"):
        read_rows([*files, tmp_path / "gone.csv"])
