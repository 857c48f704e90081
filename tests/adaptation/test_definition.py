"""What an experiment's YAML stands for: one comparison, two directions, or the pairs of sites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from medseg_diff.adaptation.definition import load_experiment, load_experiments
from medseg_diff.adaptation.experiment import domain_cases, run_experiment
from medseg_diff.adaptation.pictures import write_report
from medseg_diff.adaptation.summary import write_summary
from medseg_diff.adaptation.table import Table
from medseg_diff.data.caselist import CaseList, load_caselist, save_caselist
from medseg_diff.errors import UsageError
from tests.training_fixtures import write_dataset

CONFIG = {
    "name": "balls",
    "recipe": "unet",
    "data": {"cases": "elsewhere"},
    "plan": {"spatial_dims": 2, "patch_size": [16, 16], "batch_size": 2},
    "model": {"features": [4, 4]},
    "training": {"steps": 1, "warmup_steps": 1, "validate_every": 1, "save_every": 1},
}


def with_sites(folder: Path, sites: tuple[str, ...] = ("A", "B", "C")) -> CaseList:
    """Nine balls: of each site one for training, one for validation, one to score."""
    cases = load_caselist(write_dataset(folder / "data", cases=9))
    parts = ("train", "validation", "test")
    changed = [
        c.model_copy(update={"site": sites[n % len(sites)], "part": parts[n // 3]})
        for n, c in enumerate(cases.cases)
    ]
    listed = cases.with_cases(changed)
    save_caselist(listed, folder / "data" / "cases.json")
    return listed


def write(folder: Path, **keys: Any) -> Path:
    (folder / "unet.yaml").write_text(yaml.safe_dump(CONFIG))
    whole = {"name": "balls", "config": "unet.yaml", "rows": ["source_only", "oracle"], **keys}
    (folder / "experiment.yaml").write_text(yaml.safe_dump(whole))
    return folder / "experiment.yaml"


SITES = {"cases": "data/cases.json"}


def test_every_ordered_pair_of_sites_and_each_left_out(tmp_path: Path):
    with_sites(tmp_path)
    found = load_experiments(write(tmp_path, sites={**SITES, "leave_one_out": True}))
    pairs = {
        (one.source.sites, target.sites)
        for name, one in found.items()
        if name.startswith("from_")
        for target in one.targets.values()
    }
    assert pairs == {((a,), (b,)) for a in "ABC" for b in "ABC" if a != b}
    left = {n: o for n, o in found.items() if n.startswith("all_but_")}
    assert {n: (o.source.sites, list(o.targets)) for n, o in left.items()} == {
        "all_but_A": (("B", "C"), ["A"]),
        "all_but_B": (("A", "C"), ["B"]),
        "all_but_C": (("A", "B"), ["C"]),
    }
    assert len(found) == 6
    cases = domain_cases(left["all_but_B"], left["all_but_B"].source, tmp_path / "nowhere")
    assert {c.site for c in cases.cases} == {"A", "C"}
    assert len(cases.cases) == 6


def test_some_sites_alone(tmp_path: Path):
    with_sites(tmp_path)
    found = load_experiments(write(tmp_path, sites={**SITES, "only": ["A", "C"]}))
    assert {n: list(o.targets) for n, o in found.items()} == {"from_A": ["C"], "from_C": ["A"]}


def test_both_directions(tmp_path: Path):
    write_dataset(tmp_path / "data")
    domain = {"cases": "data/cases.json"}
    shift = {**domain, "shift": "motion", "level": "mild"}
    file = write(tmp_path, source=domain, targets={"moved": shift}, both_directions=True)
    found = load_experiments(file)
    assert list(found) == ["", "back_from_moved"]
    assert found[""].targets["moved"] == found["back_from_moved"].source
    assert found["back_from_moved"].targets == {"source": found[""].source}
    with pytest.raises(UsageError, match="several comparisons"):
        load_experiment(file)


def test_pairs_of_sites_are_run_and_summed_up(tmp_path: Path):
    torch.set_num_threads(1)
    with_sites(tmp_path, ("A", "B", "A"))
    tables: dict[tuple[str, str], Table] = {}
    for place, one in load_experiments(write(tmp_path, sites=SITES)).items():
        for target, files in run_experiment(one, tmp_path / "out" / place).items():
            tables[place, target] = write_report(one, target, files, tmp_path / "out" / place)
    assert list(tables) == [("from_A", "B"), ("from_B", "A")]
    scored = {
        place: pd.read_csv(tmp_path / "out" / place / target / "rows" / "source_only_seed0.csv")
        for place, target in tables
    }
    cases = {
        place: {w: set(part["case"]) for w, part in table.groupby("domain")}
        for place, table in scored.items()
    }
    assert cases["from_A"]["target"] == cases["from_B"]["source"] == {"ball_7"}
    assert cases["from_A"]["source"] == cases["from_B"]["target"] == {"ball_6", "ball_8"}
    write_summary(tables, tmp_path / "out")
    summary = pd.read_csv(tmp_path / "out" / "summary.csv")
    assert list(summary["comparison"]) == ["from_A", "from_A", "from_B", "from_B"]
    text = (tmp_path / "out" / "summary.md").read_text(encoding="utf-8")
    assert "| Row | from_A, B | from_B, A | Worse than none |" in text
    dice = float(tables["from_B", "A"].rows.set_index("row").loc["oracle", "dice"])
    assert f"{dice:.3f}" in next(line for line in text.splitlines() if "oracle" in line)


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({}, "source and targets, or sites"),
        ({"sites": SITES, "source": SITES}, "source and targets, or sites"),
        ({"source": SITES}, "source and targets, or sites"),
        ({"sites": {**SITES, "only": ["A", "D"]}}, "no case is of that site.*D.*A, B, C"),
        ({"sites": SITES, "both_directions": True}, "both directions already"),
        ({"sites": {**SITES, "only": ["A", "B"], "leave_one_out": True}}, "too few sites"),
    ],
)
def test_what_is_no_experiment(tmp_path: Path, keys: dict, word: str):
    with_sites(tmp_path)
    with pytest.raises(UsageError, match=word):
        load_experiments(write(tmp_path, **keys))


def test_a_list_without_sites_is_refused(tmp_path: Path):
    write_dataset(tmp_path / "data")
    with pytest.raises(UsageError, match="no case with a site"):
        load_experiments(write(tmp_path, sites=SITES))


def test_sites_that_share_a_folder_are_refused(tmp_path: Path):
    with_sites(tmp_path, ("A/1", "A 1"))
    with pytest.raises(UsageError, match="no folder"):
        load_experiments(write(tmp_path, sites=SITES))
