"""The demo: from nothing to scored segmentations with a picture, on the embedded sample.

Trains a small Diff-UNet and a U-Net of the same size on the same budget, predicts the sample's
test part with both and with the shipped model, scores all three and writes one report each.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from medseg_diff.batch.run import Case, predict_many
from medseg_diff.cli.progress import TrainingBar
from medseg_diff.config import parse_config
from medseg_diff.data.caselist import CaseList
from medseg_diff.data.sample import sample_attribution, sample_caselist
from medseg_diff.errors import UsageError
from medseg_diff.evaluation.masks import Evaluation, evaluate_part
from medseg_diff.inference.predictor import load
from medseg_diff.training.fit import Options, fit

# Half the batch and a quarter of the steps of the real configurations: two cores train each
# network in about two minutes.
BUDGET: dict[str, Any] = {
    "data": {"cases": "sample"},
    "plan": {"patch_size": [40, 56, 40], "batch_size": 2},
    "training": {
        "steps": 200,
        "learning_rate": 3e-3,
        "warmup_steps": 20,
        "validate_every": 100,
        "validation_cases": 3,
        "save_every": 100,
    },
}
NETWORKS: dict[str, dict[str, Any]] = {
    "diff_unet": {"recipe": "diff_unet", "prediction": {"draws": 5, "steps": 2}},
    "unet": {"recipe": "unet"},
}
SEED = 0


def run_demo(out: Path) -> Path:
    """Run everything into ``out`` and return the report of the network just trained."""
    out = Path(out)
    _clear(out)
    began = time.monotonic()
    cases = sample_caselist()
    _say(f"embedded sample: {len(cases.part('train'))} cases to train on, "
         f"{len(cases.part('test'))} to test")  # fmt: skip
    for name, keys in NETWORKS.items():
        config = parse_config({"name": name, "seed": SEED, **BUDGET, **keys})
        with TrainingBar(config.training.steps, f"training {name}") as bar:
            fit(config, out / "runs" / name, Options(report=bar))
    models = {name: str(out / "runs" / name) for name in NETWORKS} | {"shipped": "hippocampus"}
    results = {name: _predict_and_score(name, model, cases, out) for name, model in models.items()}
    print(summary_table(results).to_string(index=False))
    minutes = (time.monotonic() - began) / 60
    report = results["diff_unet"].report
    _say(f"done in {minutes:.1f} minutes; open {report}")
    return report


def summary_table(results: Mapping[str, Evaluation]) -> pd.DataFrame:
    """Mean Dice per structure and over both, one row a model."""
    rows = []
    for name, result in results.items():
        scored = result.per_case.groupby("structure")["dice"].mean()
        rows.append({"model": name, **scored.round(3).to_dict(), "mean": round(scored.mean(), 3)})
    return pd.DataFrame(rows)


def _predict_and_score(name: str, model: str, cases: CaseList, out: Path) -> Evaluation:
    test = cases.part("test")
    folder = out / "predictions" / name
    predictor = load(model, "cpu")
    _say(f"predicting {len(test)} cases with {name}")
    predict_many(predictor, [Case(c.case, cases.channel_paths(c)) for c in test], folder, seed=SEED)
    return evaluate_part(
        folder,
        cases,
        out / "evaluation" / name,
        title=f"Hippocampus, embedded sample: {name}",
        attribution=sample_attribution(),
    )


def _clear(out: Path) -> None:
    """Remove an earlier demo's folders; refuse a folder that holds anything else."""
    ours = {"runs", "predictions", "evaluation"}
    if out.is_dir() and {p.name for p in out.iterdir()} - ours:
        raise UsageError(
            "the folder holds other things", file=out, field="--out", remedy="give a new folder"
        )
    for name in ours:
        shutil.rmtree(out / name, ignore_errors=True)


def _say(sentence: str) -> None:
    print(sentence, flush=True)
