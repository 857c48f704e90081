"""Score runs against several annotators: GED, HM-IoU, best match, calibration, risk and coverage.

    python benchmarks/plausibility_table.py --cases datasets/lidc/cases.json \
        --rows anchored=runs/lidc_anchored "unet x 4=runs/lidc_unet,runs/lidc_unet_1,..." \
        --out benchmarks/results/lidc

A row is one run, or several that form an ensemble; "+flips" adds the members that look at the
image in mirrors, and "+anchor" asks an anchored model's conditioner for its own mask instead.
Each is predicted once with the largest number of draws; smaller numbers score the first of them.
A row's cases go to NAME.csv when all are done; a row that is already there is not run again. Two
more rows need no model: the annotators' majority as a single mask, and as many masks drawn from
the annotators themselves.

"forward passes" and GFLOPs count one case with 16 draws (an ensemble's members if fewer).
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import platform
import re
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from tables import markdown  # noqa: E402

from medseg_diff.calibration import RegionalCalibration  # noqa: E402
from medseg_diff.metrics.plausibility import score_samples  # noqa: E402
from medseg_diff.metrics.risk import score_doubt  # noqa: E402
from medseg_diff.metrics.statistics import compare, holm, summarise, verdict  # noqa: E402

COUNTS = (4, 16, 50)
# Both are scored with this many draws where the table has one column.
MAIN = 16
# Pixels around the foreground in which calibration is judged beside the whole image.
REGION = 5.0


# What follows a row's runs after a plus sign, as settings of `Predictor.predict`.
WAYS: dict[str, dict[str, Any]] = {
    "": {},
    "flips": {"flips": (0, 1)},
    "anchor": {"sampler": "anchor", "draws": 1},
}


@dataclass(frozen=True)
class Answered:
    """One case: the draws (N, *S), the probability (*S), the annotators' masks (R, *S)."""

    case: str
    patient: str
    draws: NDArray[np.bool_]
    probability: NDArray[np.float32]
    masks: NDArray[np.bool_]


def main() -> None:
    """Run the missing rows, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument(
        "--rows", nargs="+", default=[], help="NAME=RUN or NAME=RUN,RUN,..., and +flips"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", default="test", choices=["validation", "test"])
    parser.add_argument("--draws", type=int, default=max(COUNTS))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--sampler", help="default: each run's own")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit", type=int, help="first N cases only (a trial)")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    rows = {"annotators: majority": None, "annotators: resampled": None}
    rows |= dict(row.split("=", maxsplit=1) for row in given.rows)
    for name, runs in rows.items():
        file = given.out / f"{re.sub(r'[^a-z0-9]+', '_', name.lower())}.csv"
        if file.is_file():
            continue
        print(name, flush=True)
        if runs is None:
            facts, answers = {}, annotators(given, name)
        else:
            names, _, way = runs.partition("+")
            facts, answers = predicted(given, names.split(","), WAYS[way])
        pool = RegionalCalibration(margin_mm=REGION)
        lines = []
        for answer in answers:
            lines.append({"row": name, **facts, **scores(answer)})
            if runs is not None:
                calibrate(pool, answer)
        pooled = {s.region: asdict(s) for s in pool.scores()} if runs is not None else {}
        file.with_suffix(".json").write_text(json.dumps(pooled, indent=1) + "\n", encoding="utf-8")
        pd.DataFrame(lines).to_csv(file, index=False, float_format="%.6g")
    show(given.out)


def predicted(
    given: argparse.Namespace, runs: list[str], way: dict[str, Any]
) -> tuple[dict[str, Any], Iterator[Answered]]:
    """Cost of a row, and its cases as they are drawn."""
    from torch.utils.flop_counter import FlopCounterMode

    from medseg_diff import io
    from medseg_diff.data.caselist import load_caselist
    from medseg_diff.inference.predictor import load

    listed = load_caselist(given.cases)
    cases = listed.part(given.part)[: given.limit]
    predictor = load(runs, given.device)
    asked = {"steps": given.steps, "save_draws": True, "batch_size": given.draws}
    asked |= {"sampler": given.sampler} if given.sampler else {}
    first = listed.channel_paths(cases[0])
    with FlopCounterMode(display=False) as counter:
        answer = predictor.predict(first, case="first", **{**asked, "draws": MAIN, **way})
    facts = {
        "steps": answer.record["steps"],
        "sampler": answer.record["sampler"],
        "parameters": sum(run.card["parameters"] for run in predictor.runs),
        "network_calls": sum(answer.record["network_calls"].values()),
        "gflops": counter.get_total_flops() / 1e9,
        "machine": f"{platform.machine()}, {platform.system()}, {given.device}",
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
    }

    def answers() -> Iterator[Answered]:
        for case in cases:
            drawn = predictor.predict(
                listed.channel_paths(case), case=case.case, **{**asked, "draws": given.draws, **way}
            )
            masks = [np.asarray(io.read_label(p))[0] == 1 for p in listed.reference_paths(case)]
            yield Answered(
                case.case,
                case.patient,
                np.asarray(drawn.draws) == 1,
                np.asarray(drawn.probability)[0],
                np.stack(masks),
            )

    return facts, answers()


def annotators(given: argparse.Namespace, name: str) -> Iterator[Answered]:
    """What the annotators' own masks score: their majority, or a resampling of them."""
    from medseg_diff import io
    from medseg_diff.data.caselist import load_caselist

    listed = load_caselist(given.cases)
    rng = np.random.default_rng(0)
    for case in listed.part(given.part)[: given.limit]:
        paths = listed.reference_paths(case)
        masks = np.stack([np.asarray(io.read_label(p))[0] == 1 for p in paths])
        if name.endswith("majority"):
            draws = masks.mean(0, keepdims=True) >= 0.5
        else:
            draws = masks[rng.integers(len(masks), size=given.draws)]
        yield Answered(case.case, case.patient, draws, masks.mean(0, dtype=np.float32), masks)


def scores(answer: Answered) -> dict[str, Any]:
    """All numbers of one case."""
    row: dict[str, Any] = {"case": answer.case, "patient": answer.patient}
    row["members"] = len(answer.draws)
    for count in COUNTS:
        if count <= len(answer.draws) or count == min(COUNTS):
            row[f"ged_{count}"] = score_samples(answer.draws[:count], answer.masks).ged2
    main = score_samples(answer.draws[:MAIN], answer.masks)
    row |= {
        "hm_iou": main.hm_iou,
        "best_dice": main.best_dice_references,
        "diversity": main.sample_diversity,
        "annotator_diversity": main.reference_diversity,
        "empty_draws": float((~answer.draws.any((1, 2))).mean()),
        "empty_masks": float((~answer.masks.any((1, 2))).mean()),
    }
    fused = answer.probability > 0.5
    row["dice"] = float(np.mean([_dice(fused, mask) for mask in answer.masks]))
    # Confidence of the case: how far its draws agree (Dice of two empty draws is 1).
    agreement = [_dice(a, b) for i, a in enumerate(answer.draws) for b in answer.draws[:i]]
    row["agreement"] = float(np.mean(agreement)) if agreement else float("nan")
    return row


def _dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    total = int(a.sum() + b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


def calibrate(pool: RegionalCalibration, answer: Answered) -> None:
    """Add a case to the pool: what should happen is the share of annotators who marked a voxel."""
    wanted = answer.masks.mean(0)
    pool.add(answer.probability, wanted, (1.0, 1.0))


def show(out: Path) -> None:
    """Print the table and a verdict per row; write both beside the rows.

    GED is compared with the annotators' majority and with each row; p by Wilcoxon over patients,
    corrected by Holm over all pairs.
    """
    files = sorted(out.glob("*.csv"), key=lambda file: file.stat().st_mtime)
    tables = [pd.read_csv(file) for file in files]
    lines = [
        line_of(table, json.loads(file.with_suffix(".json").read_text()))
        for table, file in zip(tables, files, strict=True)
    ]
    text = "\n".join([markdown(lines), "", *(f"- {s}" for s in verdicts(tables))])
    (out / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def line_of(table: pd.DataFrame, pooled: dict[str, Any]) -> dict[str, str]:
    """One row of the table."""
    patients = list(table["patient"])
    line = {"row": table["row"][0], "steps": _shown(table, "steps", "{:.0f}")}
    for count in COUNTS:
        column = f"ged_{count}"
        if column in table:
            found = summarise(table[column].to_numpy(), patients=patients)
            line[f"GED {count}"] = f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"
        else:
            line[f"GED {count}"] = "-"
    for heading, column in (("HM-IoU", "hm_iou"), ("best Dice", "best_dice"), ("Dice", "dice")):
        line[heading] = f"{table[column].mean():.3f}"
    line["diversity"] = _shown(table, "diversity", "{:.3f}")
    line["empty draws"] = f"{table['empty_draws'].mean():.2f}"
    near = next((v for k, v in pooled.items() if k.startswith("within")), {})
    line["ECE near"] = f"{near['ece']:.3f}" if near else "-"
    line["Brier near"] = f"{near['brier']:.3f}" if near else "-"
    doubt = 1 - table["agreement"]
    line["AURC"] = "-"
    if pooled and doubt.notna().all():
        line["AURC"] = f"{score_doubt(1 - table['dice'], doubt).aurc:.3f}"
    calls = f"forward passes ({MAIN} draws)"
    line[calls] = _shown(table, "network_calls", "{:.0f}")
    line["GFLOPs"] = _shown(table, "gflops", "{:.1f}")
    line["M parameters"] = f"{table['parameters'][0] / 1e6:.2f}" if "parameters" in table else "-"
    return line


def _shown(table: pd.DataFrame, column: str, form: str) -> str:
    if column not in table or math.isnan(table[column].mean()):
        return "-"
    return form.format(table[column].mean())


def verdicts(tables: list[pd.DataFrame]) -> list[str]:
    """One sentence a pair, on GED with the draws that both rows have."""
    pairs = []
    for index, theirs in enumerate(tables):
        for ours in tables[index + 1 :]:
            columns = [f"ged_{min(MAIN, int(t['members'][0]))}" for t in (ours, theirs)]
            values = [
                t[c if c in t else "ged_4"].to_numpy()
                for t, c in zip((ours, theirs), columns, strict=True)
            ]
            pair = compare(*values, patients=list(ours["patient"]))
            pairs.append((ours["row"][0], theirs["row"][0], pair))
    adjusted = holm([pair.p for *_, pair in pairs])
    return [
        "GED: " + verdict(a, b, pair, p_adjusted=p, higher_is_better=False)
        for (a, b, pair), p in zip(pairs, adjusted, strict=True)
    ]


if __name__ == "__main__":
    main()
