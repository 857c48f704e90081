"""Calibration and use of doubt: diffusion draws against ensembles, by network calls.

    python benchmarks/doubt_table.py --cases datasets/hippocampus/cases.json \
        --rows "U-Net=runs/slices_unet" "U-Net x 4=runs/slices_unet,runs/slices_unet_1,..." \
        "anchored, 3 draws=runs/slices_anchored:draws=3:steps=1" \
        --out benchmarks/results/slices_doubt

A row is NAME=RUN[,RUN ...][:draws=N][:steps=N][:sampler=NAME]; several runs are one ensemble. Each
row is predicted and scored by the package's own `evaluate`, from the probabilities and draws that
`predict` writes; a row that is already there is not run again. "calls" are the first case's. ECE,
Brier and NLL are means over the structures, of voxels within 5 mm of the foreground; AURC is that
of the predictive entropy.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import re
import statistics
import warnings
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")

from tables import markdown  # noqa: E402

REGION = "within"


def main() -> None:
    """Run the missing rows, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--rows", nargs="*", default=[], help="NAME=RUN[,RUN ...][:draws=N] ...")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", default="test", choices=["validation", "test"])
    parser.add_argument("--limit", type=int, help="first N cases only (a trial)")
    given = parser.parse_args()
    for name, _, asked in (row.partition("=") for row in given.rows):
        folder = given.out / re.sub(r"[^a-z0-9]+", "_", name.lower())
        if not (folder / "row.json").is_file():
            print(name, flush=True)
            line = measured(name, asked, folder, given)
            (folder / "row.json").write_text(json.dumps(line, indent=1) + "\n", encoding="utf-8")
    found = [json.loads(file.read_text(encoding="utf-8")) for file in given.out.glob("*/row.json")]
    text = markdown(sorted(found, key=lambda line: (line["calls"], line["row"])))
    (given.out / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def measured(name: str, asked: str, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Predict and score one row."""
    from medseg_diff.batch.run import Case, predict_many
    from medseg_diff.data.caselist import load_caselist
    from medseg_diff.evaluation.masks import evaluate_part
    from medseg_diff.inference.predictor import load

    runs, *words = asked.split(":")
    settings: dict[str, Any] = dict(word.split("=") for word in words)
    settings = {k: v if k == "sampler" else int(v) for k, v in settings.items()}
    listed = load_caselist(given.cases)
    part = listed.part(given.part)[: given.limit]
    cases = [Case(c.case, listed.channel_paths(c)) for c in part]
    predictor = load(runs.split(","), "cpu")
    predict_many(predictor, cases, folder / "predictions", **settings)
    evaluate_part(folder / "predictions", listed.with_cases(part), folder, part=given.part)
    record = json.loads((folder / "predictions" / f"{cases[0].name}.json").read_text())
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    near = [
        next(v for k, v in regions.items() if k.startswith(REGION))
        for regions in summary["calibration"].values()
    ]
    doubt = summary["doubt"]["scores"]["entropy"]
    dice = summary["mean"]["metrics"]["dice"]
    return {
        "row": name,
        "calls": sum(record["network_calls"].values()),
        "Dice [95 % CI]": f"{dice['mean']:.3f} [{dice['ci_low']:.3f}, {dice['ci_high']:.3f}]",
        "ECE": f"{statistics.mean(n['ece'] for n in near):.4f}",
        "Brier": f"{statistics.mean(n['brier'] for n in near):.4f}",
        "NLL": f"{statistics.mean(n['nll'] for n in near):.4f}",
        "AURC": f"{doubt['aurc']:.4f}",
        "doubt with error": interval(doubt["spearman"], doubt["low"], doubt["high"]),
        "cases": len(cases),
        "machine": f"{platform.machine()}, {platform.system()}",
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
    }


def interval(value: float, low: float | None, high: float | None) -> str:
    """A value and its interval, where there are cases enough for one."""
    return f"{value:.2f}" if low is None or high is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main()
