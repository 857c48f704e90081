"""Train the translators of one family of YAMLs, translate test parts, print a table.

    python benchmarks/translation_table.py --cases LIST.json [LIST.json ...] [--root FOLDER]
        --work DIR [--rows one_step palette ...] [--range LOW HIGH] [--set training.steps=100 ...]

Several lists are folds (leave one patient out): every row is trained once on each, and scores are
means over the test cases of all. PSNR and SSIM need one data range for all of them: --range.
Everything goes through the command line's own functions, so a row is what a user gets. What is done
already is not done again, and every row must have `one_step` beside it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
from tables import finish, known, markdown

from medseg_diff.batch.run import find_cases, predict_many
from medseg_diff.config import load_config
from medseg_diff.data.caselist import load_caselist
from medseg_diff.evaluation.images import evaluate_images_part
from medseg_diff.metrics.images import METRICS
from medseg_diff.recipes.translators import TRANSLATORS
from medseg_diff.training.fit import Options, fit
from medseg_diff.translation.translator import load_translator

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def trained(row: str, cases: Path, root: str | None, run: Path, overrides: list[str]) -> float:
    """Train a row, or go on with it; the seconds that its steps took."""
    settings = [f"data.cases={json.dumps(str(cases))}", *overrides]
    settings += [] if root is None else [f"data.root={json.dumps(root)}"]
    if not known(run, overrides):
        config = load_config(CONFIGS / f"flair_{row}.yaml", settings)
        resume = any((run / "checkpoints").glob("*"))
        if not resume:
            shutil.rmtree(run, ignore_errors=True)
        fit(config, run, Options(resume=resume))
        finish(run, overrides)
    return float(pd.read_csv(run / "log.csv")["seconds"].sum())


def measured(run: Path, cases: Path, given: argparse.Namespace, out: Path, **asked: Any) -> Path:
    """Translate and score a list's test part; the file that says how it went."""
    file, settings = out / "line.json", [asked, given.range, given.overrides]
    if known(out, settings):
        return file
    translator, listed = load_translator(run, "cpu"), load_caselist(cases, given.root)
    chosen = [
        case
        for one in listed.part("test")
        for case in find_cases([listed.channel_paths(one)[listed.channels[0]]], listed.channels)
    ]
    named = [
        type(case)(one.case, case.channels)
        for case, one in zip(chosen, listed.part("test"), strict=True)
    ]
    predict_many(translator, named, out / "images", go_on=True, **asked)
    ends = {} if given.range is None else {"ends": tuple(given.range)}
    found = evaluate_images_part(out / "images", listed, out / "scores", **ends)
    records = [json.loads((out / "images" / f"{case.name}.json").read_text()) for case in named]
    line = {
        "parameters": sum(p.numel() for p in translator.runs[0].model.parameters()),
        "draws": records[0]["draws_made"],
        "steps": records[0]["steps"],
        "calls/scan": sum(sum(r["network_calls"].values()) for r in records) // len(records),
        "s/scan": round(sum(r["seconds"] for r in records) / len(records), 1),
        "spread": round(sum(r["mean_spread"] for r in records) / len(records), 2),
        "range": "{:.0f}..{:.0f}".format(*found.summary["range"]),
    }
    file.write_text(json.dumps(line), encoding="utf-8")
    finish(out, settings)
    return file


def pooled(name: str, outs: list[Path], seconds: list[float]) -> dict[str, Any]:
    """One line of the table from a row's folds."""
    per_case = pd.concat([pd.read_csv(out / "scores" / "per_case.csv") for out in outs])
    lines = [json.loads((out / "line.json").read_text(encoding="utf-8")) for out in outs]
    line: dict[str, Any] = {"row": name, **lines[0]}
    line["calls/scan"] = sum(one["calls/scan"] for one in lines) // len(lines)
    line["s/scan"] = round(sum(one["s/scan"] for one in lines) / len(lines), 1)
    line["spread"] = round(sum(one["spread"] for one in lines) / len(lines), 2)
    for score in (s for s in METRICS if s in per_case):
        line[score] = round(float(per_case[score].mean()), 3)
    if len(outs) > 1:
        each = [pd.read_csv(out / "scores" / "per_case.csv")["mae"].mean() for out in outs]
        line["mae of each fold"] = ", ".join(f"{value:.1f}" for value in each)
    return {**line, "training s": round(sum(seconds) / len(seconds))}


def main() -> None:
    """Parse, train, translate, score, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=Path, nargs="+", required=True)
    parser.add_argument("--root", help="folder that the lists' paths start from")
    parser.add_argument("--work", type=Path, required=True, help="runs, images and scores")
    parser.add_argument("--rows", nargs="+", default=list(TRANSLATORS), choices=list(TRANSLATORS))
    parser.add_argument("--range", nargs=2, type=float, help="data range of PSNR and SSIM")
    parser.add_argument("--set", dest="overrides", nargs="*", default=[])
    given = parser.parse_args()
    if "one_step" not in given.rows:
        parser.error("--rows needs one_step: a table without it is not a result")
    if len(given.cases) > 1 and given.range is None:
        parser.error("several lists need one --range")
    lines = []
    for row in given.rows:
        runs = [given.work / cases.stem / f"flair_{row}" for cases in given.cases]
        seconds = [
            trained(row, cases, given.root, run, given.overrides)
            for cases, run in zip(given.cases, runs, strict=True)
        ]
        for suffix, asked in (("", {}), (", 1 step", {"steps": 1, "draws": 1})):
            if suffix and row == "one_step":
                continue
            outs = [run.with_name(f"out_{row}{'_1_step' if suffix else ''}") for run in runs]
            for cases, run, out in zip(given.cases, runs, outs, strict=True):
                measured(run, cases, given, out, **asked)
            lines.append(pooled(f"{row}{suffix}", outs, seconds))
            print(json.dumps(lines[-1]), flush=True)
            pd.DataFrame(lines).to_csv(given.work / "translation_table.csv", index=False)
    print(markdown(lines))


if __name__ == "__main__":
    main()
