"""Score trained runs for several numbers of steps and draws, one row at a time.

    python benchmarks/segmentation_table.py --cases datasets/hippocampus/cases.json \
        --runs runs/hippocampus_unet runs/hippocampus_anchored --out benchmarks/results/hippocampus

``--as-configured`` scores each run with the draws, steps and sampler of its own YAML, with
``--one-step`` in one step too, and an anchored one by its anchor alone: the table over recipes.
``--most-steps N`` scores slow recipes at N steps and extrapolates network calls, GFLOPs and seconds
to the configured steps (seconds marked ~).
``--samplers`` with ``--steps`` compares samplers on one run.

Each row runs in a process of its own (its peak memory is that process's) and is appended to
rows.csv when it is done; a row that is already there is not run again. The last step prints the
table, with each row compared, case by case, with the first run. Cases are scored on their own grid
by the package's own `evaluate`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import platform
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

warnings.filterwarnings("ignore")

import pandas as pd  # noqa: E402
from tables import markdown  # noqa: E402

STEPS, DRAWS = (1, 2, 5, 10), (1, 5)


def main() -> None:
    """Run the missing rows, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--runs", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", default="test", choices=["validation", "test"])
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--draws", type=int, nargs="+", default=DRAWS)
    parser.add_argument("--samplers", nargs="+", help="default: each run's own")
    parser.add_argument("--as-configured", action="store_true")
    parser.add_argument("--one-step", action="store_true", help="with --as-configured, in one, too")
    parser.add_argument("--most-steps", type=int, default=10**6, help="with --as-configured")
    parser.add_argument("--limit", type=int, help="first N cases only (a trial)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--row", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.row:
        run, steps, draws, sampler = given.row
        print(json.dumps(measure(Path(run), Settings(int(steps), int(draws), sampler), given)))
        return
    file = given.out / "rows.csv"
    for run in given.runs:
        for settings in combinations(run, given):
            rows = pd.read_csv(file).to_dict("records") if file.is_file() else []
            name = f"{run.name}, {settings.sampler}, {settings.steps} steps, {settings.draws} draws"
            if name in {row["row"] for row in rows}:
                continue
            print(name, flush=True)
            rows.append({"row": name, **run_row(run, settings)})
            pd.DataFrame(rows).to_csv(file, index=False)
    show(given.out)


class Settings(NamedTuple):
    """How a row's masks are drawn."""

    steps: int
    draws: int
    sampler: str

    def folder(self, run: str) -> str:
        """Name of a row's folder."""
        return f"{run}_{self.sampler}_{self.steps}_{self.draws}"


def combinations(run: Path, given: argparse.Namespace) -> list[Settings]:
    """The rows of a run; a U-Net has one answer."""
    from medseg_diff.config import load_config

    config = load_config(run / "config.yaml")
    own = config.prediction
    if config.model.kind == "unet" and config.model.dropout == 0:
        return [Settings(1, 1, own.sampler)]
    if given.as_configured:
        rows = [Settings(min(own.steps, given.most_steps), own.draws, own.sampler)]
        # The same network asked in one step: what its trajectory must beat to be worth its calls.
        rows += [Settings(1, own.draws, own.sampler)] * (given.one_step and own.steps > 1)
        # What the draws must beat to be worth their cost: the conditioner's own mask.
        return rows + [Settings(1, 1, "anchor")] * (config.model.output == "correction")
    samplers = given.samplers or [own.sampler]
    return [Settings(s, d, name) for name in samplers for d in given.draws for s in given.steps]


def run_row(run: Path, settings: Settings) -> dict[str, object]:
    """Measure one row in a fresh process."""
    command = [sys.executable, *sys.argv, "--row", str(run), *map(str, settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    row: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return row


def measure(run: Path, settings: Settings, given: argparse.Namespace) -> dict[str, object]:
    """Predict and score the test part."""
    from medseg_diff.batch.run import Case, predict_many
    from medseg_diff.data.caselist import load_caselist
    from medseg_diff.evaluation.masks import evaluate_part
    from medseg_diff.inference.predictor import load

    listed = load_caselist(given.cases)
    test = listed.part(given.part)[: given.limit]
    predictor = load(run, given.device)
    cases = [Case(c.case, listed.channel_paths(c)) for c in test]
    asked = settings._asdict()
    own, whole = predictor.defaults, settings.steps
    if given.as_configured and settings.steps == given.most_steps < own.steps:
        whole = own.steps
    # The first call pays for lazy imports and thread pools; it is not timed. It counts FLOPs.
    gflops, calls = cost(predictor, cases[0], settings)
    if whole > settings.steps:
        # Calls and FLOPs are linear in the steps: two counts give those of any number.
        first = cost(predictor, cases[0], settings._replace(steps=1))
        more = (whole - settings.steps) / (settings.steps - 1)
        gflops += more * (gflops - first[0])
        calls += round(more * (calls - first[1]))
    name = settings.folder(run.name)
    began = time.perf_counter()
    predict_many(predictor, cases, given.out / "predictions" / name, **asked)
    seconds = (time.perf_counter() - began) / len(cases)
    scored = listed.with_cases(test)
    folder = given.out / "evaluations" / name
    result = evaluate_part(given.out / "predictions" / name, scored, folder, part=given.part)
    record = json.loads(
        (given.out / "predictions" / name / f"{cases[0].name}.json").read_text(encoding="utf-8")
    )
    made = sum(record["network_calls"].values())
    spread = [v for v in _pairwise(given.out / "predictions" / name) if not math.isnan(v)]
    return {
        "run": run.name,
        **asked,
        "parameters": predictor.runs[0].card["parameters"],
        "steps_configured": whole,
        "network_calls": calls,
        "gflops": gflops,
        "seconds": seconds * calls / made,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "pairwise_dice": sum(spread) / len(spread) if spread else math.nan,
        "cases": len(test),
        "machine": f"{platform.machine()}, {platform.system()}, {given.device}",
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "hd95_mm": result.per_case["hd95_mm"].mean(),
        **{f"dice {k}": v for k, v in result.per_case.groupby("structure")["dice"].mean().items()},
    }


def cost(predictor: Any, case: Any, settings: Settings) -> tuple[float, int]:
    """GFLOPs and network calls of one case."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        answer = predictor.predict(case.channels, case="first", **settings._asdict())
    return counter.get_total_flops() / 1e9, sum(answer.record["network_calls"].values())


def _pairwise(folder: Path) -> list[float]:
    values = []
    for file in folder.glob("*.json"):
        found = json.loads(file.read_text())["pairwise_dice"].values()
        values += [math.nan if v is None else v for v in found]
    return values


def show(out: Path) -> None:
    """Print the table as Markdown and a verdict per row; write both beside the rows.

    Differences are paired by case, in Dice points, against the first row; p by Wilcoxon with
    Holm's correction over the rows.
    """
    from medseg_diff.metrics.statistics import (
        Comparison,
        case_means,
        compare,
        holm,
        summarise,
        verdict,
    )

    rows = pd.read_csv(out / "rows.csv")
    scores = []
    for _, row in rows.iterrows():
        name = Settings(row["steps"], row["draws"], row["sampler"]).folder(row["run"])
        per_case = pd.read_csv(out / "evaluations" / name / "per_case.csv")
        scores.append(case_means(per_case)["dice"])
    pairs: list[Comparison] = [
        compare(s.to_numpy() * 100, scores[0].to_numpy() * 100) for s in scores[1:]
    ]
    adjusted = holm([pair.p for pair in pairs])
    lines, sentences = [], []
    for index, row in rows.iterrows():
        mean = summarise(scores[index].to_numpy())
        line = {"run": row["run"], "sampler": row["sampler"]}
        configured = row.get("steps_configured", math.nan)
        cut = not math.isnan(configured) and configured != row["steps"]
        shown = f"{row['steps']} of {configured:.0f}" if cut else row["steps"]
        line |= {"steps": shown, "draws": row["draws"]}
        line["Dice [95 % CI]"] = f"{mean.mean:.4f} [{mean.low:.4f}, {mean.high:.4f}]"
        for column in [c for c in rows if str(c).startswith("dice ")]:
            line[column.removeprefix("dice ")] = f"{row[column]:.4f}"
        line["HD95, mm"] = f"{row['hd95_mm']:.2f}"
        line["difference, points"] = "-"
        if index > 0:
            pair = pairs[index - 1]
            line["difference, points"] = (
                f"{pair.difference:+.2f} [{pair.low:+.2f}, {pair.high:+.2f}]"
            )
            sentences.append(
                verdict(
                    row["row"], rows["row"][0], pair, p_adjusted=adjusted[index - 1], unit=" points"
                )
            )
        spread = row["pairwise_dice"]
        line["Dice between draws"] = "-" if math.isnan(spread) else f"{spread:.4f}"
        line["M parameters"] = f"{row['parameters'] / 1e6:.2f}"
        line |= {"calls": row["network_calls"], "GFLOPs": f"{row['gflops']:.1f}"}
        line |= {"s": f"{'~' * cut}{row['seconds']:.2f}", "GB": f"{row['peak_gb']:.2f}"}
        lines.append(line)
    text = "\n".join([markdown(lines), "", *(f"- {s}" for s in sentences)])
    (out / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
