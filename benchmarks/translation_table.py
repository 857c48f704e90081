"""Train the translators of one family of YAMLs on one list, translate its test part, print a table.

    python benchmarks/translation_table.py --cases LIST.json [--root FOLDER] --work DIR
        [--rows one_step palette ...] [--set training.steps=100 ...]

Everything goes through the command line's own functions, so a row is what a user gets. A run that
is there already is not trained again, and every row must have `one_step` beside it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import pandas as pd

from medseg_diff.batch import find_cases, predict_many
from medseg_diff.config import load_config
from medseg_diff.data.caselist import load_caselist
from medseg_diff.image_evaluation import evaluate_images_part
from medseg_diff.training import fit
from medseg_diff.translation import load_translator
from medseg_diff.translators import TRANSLATORS

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def trained(row: str, cases: Path, root: str | None, run: Path, overrides: list[str]) -> float:
    """Train a row unless its run is whole; the seconds that it took, NaN if it was there."""
    if (run / "card.json").is_file():
        return float("nan")
    settings = [f"data.cases={json.dumps(str(cases))}", *overrides]
    settings += [] if root is None else [f"data.root={json.dumps(root)}"]
    began = time.monotonic()
    fit(load_config(CONFIGS / f"flair_{row}.yaml", settings), run)
    return time.monotonic() - began


def measured(
    row: str, run: Path, cases: Path, root: str | None, out: Path, **asked: Any
) -> dict[str, Any]:
    """Translate and score the test part; one line of the table."""
    translator, listed = load_translator(run, "cpu"), load_caselist(cases, root)
    chosen = [
        case
        for one in listed.part("test")
        for case in find_cases([listed.channel_paths(one)[listed.channels[0]]], listed.channels)
    ]
    named = [
        type(case)(one.case, case.channels)
        for case, one in zip(chosen, listed.part("test"), strict=True)
    ]
    began = time.monotonic()
    predict_many(translator, named, out / "images", **asked)
    seconds = (time.monotonic() - began) / len(named)
    found = evaluate_images_part(out / "images", listed, out / "scores").summary
    records = [json.loads((out / "images" / f"{case.name}.json").read_text()) for case in named]
    line: dict[str, Any] = {
        "row": row,
        "parameters": sum(p.numel() for p in translator.runs[0].model.parameters()),
        "draws": records[0]["draws_made"],
        "steps": records[0]["steps"],
        "calls/scan": sum(sum(r["network_calls"].values()) for r in records) // len(records),
        "s/scan": round(seconds, 1),
        "range": "{:.0f}..{:.0f}".format(*found["range"]),
    }
    for name, block in found["metrics"].items():
        line[name] = None if block["mean"] is None else round(block["mean"], 3)
    line["spread"] = round(sum(r["mean_spread"] for r in records) / len(records), 2)
    return line


def main() -> None:
    """Parse, train, translate, score, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--root", help="folder that the list's paths start from")
    parser.add_argument("--work", type=Path, required=True, help="runs, images and scores")
    parser.add_argument("--rows", nargs="+", default=list(TRANSLATORS), choices=list(TRANSLATORS))
    parser.add_argument("--set", dest="overrides", nargs="*", default=[])
    given = parser.parse_args()
    if "one_step" not in given.rows:
        parser.error("--rows needs one_step: a table without it is not a result")
    lines = []
    for row in given.rows:
        run = given.work / f"flair_{row}"
        seconds = trained(row, given.cases, given.root, run, given.overrides)
        for suffix, asked in (("", {}), (", 1 step", {"steps": 1, "draws": 1})):
            if suffix and row == "one_step":
                continue
            out = given.work / f"out_{row}{suffix.replace(', ', '_').replace(' ', '_')}"
            line = measured(f"{row}{suffix}", run, given.cases, given.root, out, **asked)
            lines.append({**line, "training s": round(seconds, 1)})
            print(json.dumps(lines[-1]), flush=True)
    table = pd.DataFrame(lines)
    table.to_csv(given.work / "translation_table.csv", index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
