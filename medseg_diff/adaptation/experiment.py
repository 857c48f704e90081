"""One YAML -> every row trained and scored on the same budget, one CSV a row, resumable.

OUT/domains/<name>/         shifted scans, where a domain is made by a frozen shift
OUT/seed<k>/runs/           trainings that saw nothing of a target
OUT/<target>/seed<k>/runs/  trainings that did
OUT/<target>/rows/<row>_seed<k>.csv   every case of source and target, long
OUT/<target>/table.*, report.html
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from medseg_diff import __version__
from medseg_diff.adaptation import rows as methods
from medseg_diff.adaptation.definition import Domain, Experiment, listed_cases
from medseg_diff.adaptation.work import Adapted, Work
from medseg_diff.batch.run import Case, predict_many
from medseg_diff.config import Config, compare, load_config
from medseg_diff.data.caselist import CaseList, Part
from medseg_diff.data.derived import derive, shifted
from medseg_diff.data.frozen_shifts import load_shifts
from medseg_diff.data.prepare import prepare
from medseg_diff.errors import UsageError
from medseg_diff.evaluation.masks import score_part
from medseg_diff.files import atomic_text
from medseg_diff.inference.predictor import checked, load

Report = Callable[[str], None]


def run_experiment(
    experiment: Experiment, out: str | Path, report: Report = lambda line: None
) -> dict[str, list[Path]]:
    """Run what is missing.

    Args:
        experiment: From :func:`load_experiment`.
        out: Made if missing.
        report: Called with a line per row.

    Returns:
        The CSVs of each target, in the order of the rows.

    Raises:
        UsageError: if ``out`` holds rows of another experiment.
    """
    out = Path(out)
    source = domain_cases(experiment, experiment.source, out / "domains" / "source")
    base = load_config(experiment.config, experiment.set)
    files: dict[str, list[Path]] = {}
    for name, domain in experiment.targets.items():
        target = domain_cases(experiment, domain, out / "domains" / name)
        for row in experiment.rows:
            for seed in experiment.seeds:
                config = _complete(base, source, seed, out)
                place = out / name / f"seed{seed}"
                work = Work(config, source, target, out / f"seed{seed}", place)
                file = out / name / "rows" / f"{row}_seed{seed}.csv"
                _row(experiment, domain, row, work, file, report)
                files.setdefault(name, []).append(file)
    return files


def scores_folder(out: Path, target: str, seed: int, row: str, domain: str) -> Path:
    """Where predictions and evaluation of a row lie; ``domain`` is source or target."""
    return out / target / f"seed{seed}" / "scores" / row / domain


def domain_cases(experiment: Experiment, domain: Domain, folder: Path) -> CaseList:
    """A domain's training, validation and scored cases; shifted scans are made in ``folder``."""
    cases = listed_cases(domain)
    scored = [c for c in cases.part(experiment.part) if c.references][: experiment.scored_cases]
    train = cases.part("train")[: experiment.train_cases]
    validation = cases.part("validation")
    if not scored or not train:
        raise UsageError(
            "a domain needs train cases and cases to score",
            file=domain.cases,
            field=None if domain.sites is None else f"site {', '.join(domain.sites)}",
            found=f"{len(train)} and {len(scored)}",
            expected=f"some of part train and of part {experiment.part}",
        )
    chosen = {c.case: c for c in (*train, *validation, *scored)}
    kept = [c for c in cases.cases if c.case in chosen]
    if domain.shift is None:
        return cases.with_cases(kept)
    frozen = load_shifts()
    shift = frozen.get(domain.shift, str(domain.level))
    return shifted(cases, kept, folder, shift, seed=frozen.seed)


def _complete(base: Config, source: CaseList, seed: int, out: Path) -> Config:
    """The configuration with the plan of the source's training scans, which all rows share."""
    listed = out / "source.json"
    if not listed.is_file():
        from medseg_diff.data.caselist import save_caselist

        out.mkdir(parents=True, exist_ok=True)
        save_caselist(source, listed)
    data = base.data.model_copy(update={"cases": str(listed), "root": str(source.root)})
    return prepare(base.model_copy(update={"data": data, "seed": seed}))[0]


@dataclass(frozen=True)
class _Scored:
    per_case: pd.DataFrame
    passes: float
    seconds: float


def _row(
    experiment: Experiment, domain: Domain, row: str, work: Work, file: Path, report: Report
) -> None:
    stamp = file.with_suffix(".json")
    key = _row_key(experiment, domain, row, work)
    if stamp.is_file() and file.is_file():
        if not _same_row(json.loads(stamp.read_text(encoding="utf-8"))["key"], key, work.config):
            raise UsageError(
                "the row was made with other settings", file=file, remedy="give a new --out"
            )
        report(f"{file.parent.parent.name}, {file.stem}: done before")
        return
    adapted = methods.method(row)(work)
    tables = []
    for where, cases in (("target", work.target), ("source", work.source)):
        folder = work.folder / "scores" / row / where
        scored = _score(adapted, cases, experiment.part, folder)
        table = scored.per_case.assign(domain=where, passes=scored.passes, seconds=scored.seconds)
        tables.append(table)
    at_test_time = adapted.around is not None or adapted.restyle is not None
    uses = "the scan itself" if at_test_time else "none"
    uses = "labels" if work.labels_used else "scans" if work.target_used else uses
    whole = pd.concat(tables).assign(
        row=row,
        seed=work.config.seed,
        baseline=adapted.baseline,
        target_used=uses,
        training_steps=work.config.training.steps,
        training_seconds=work.seconds,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_text(file, whole.to_csv(index=False, float_format="%.6g"))
    atomic_text(stamp, json.dumps({"key": key}, indent=1) + "\n")
    dice = whole[whole["domain"] == "target"]["dice"].mean()
    report(f"{file.parent.parent.name}, {file.stem}: target Dice {dice:.3f}")


def _score(adapted: Adapted, cases: CaseList, part: Part, folder: Path) -> _Scored:
    """Restyle, predict and evaluate the scored part of a domain."""
    chosen = [c for c in cases.part(part) if c.references]
    listed, restyling = cases.with_cases(chosen), 0.0
    if adapted.restyle is not None:
        clock = folder / "restyling.json"
        began = time.perf_counter()
        listed = derive(cases, chosen, folder / "images", adapted.restyle, made_from=adapted.style)
        if not clock.is_file():
            atomic_text(clock, json.dumps((time.perf_counter() - began) / len(chosen)))
        restyling = float(json.loads(clock.read_text(encoding="utf-8")))
    predictor = load(adapted.run, "cpu")
    predictor.around = adapted.around
    wanted = [Case(c.case, listed.channel_paths(c)) for c in listed.cases]
    predictor.defaults = checked(predictor.defaults, adapted.settings)
    predict_many(predictor, wanted, folder / "predictions", go_on=True, maps=False)
    per_case = score_part(folder / "predictions", listed, part=part)
    records = [
        json.loads((folder / "predictions" / f"{c.case}.json").read_text(encoding="utf-8"))
        for c in listed.cases
    ]
    calls = [sum(record["network_calls"].values()) for record in records]
    seconds = [record["seconds"] for record in records]
    n = len(records)
    passes = adapted.passes * sum(calls) / n
    return _Scored(per_case, passes, restyling + sum(seconds) / n)


def _row_key(experiment: Experiment, domain: Domain, row: str, work: Work) -> Mapping[str, Any]:
    """All that a row depends on; folders may move."""
    keys = work.config.model_dump(mode="json")
    keys.pop("data")
    key = {
        "row": row,
        "config": keys,
        "source": _domain_key(experiment.source, work.source),
        "target": _domain_key(domain, work.target),
        "part": experiment.part,
        "version": __version__,
    }
    found: Mapping[str, Any] = json.loads(json.dumps(key))
    return found


def _same_row(before: Mapping[str, Any], now: Mapping[str, Any], config: Config) -> bool:
    """Whether a stored key is a row's own, but for keys of ``config`` that are younger than it."""
    known, asked = dict(before), dict(now)
    there, here = (compare.flat(key.pop("config")) for key in (known, asked))
    return known == asked and not compare.changed(there, here, compare.defaults(config))


def _domain_key(domain: Domain, cases: CaseList) -> Mapping[str, Any]:
    shift = None
    if domain.shift is not None:
        one = load_shifts().get(domain.shift, str(domain.level))
        shift = [one.name, one.parameter, one.value, one.fixed]
    return {"name": cases.name, "shift": shift, "cases": [[c.case, c.part] for c in cases.cases]}
