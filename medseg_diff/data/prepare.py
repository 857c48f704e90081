"""From a configuration to everything a training needs to know about its data."""

from __future__ import annotations

from dataclasses import dataclass

from medseg_diff.config import Config, TaskConfig
from medseg_diff.config.contradictions import contradictions
from medseg_diff.data.caselist import CaseList, load_caselist
from medseg_diff.data.fingerprint import complete_plan, fingerprint, plan_of_scans, task_of
from medseg_diff.data.sample import sample_caselist
from medseg_diff.data.splits import kfold
from medseg_diff.data.unpaired import complete_unpaired
from medseg_diff.data.unreadable import Skipped
from medseg_diff.errors import InputError, UsageError


@dataclass(frozen=True)
class DataFacts:
    """Counts and licence for the model card."""

    name: str
    licence: str
    train: int
    validation: int


def open_targets(config: Config) -> CaseList | None:
    """The list of images to translate into without pairs, where the configuration names one."""
    data = config.data
    if data.target_cases is None:
        return None
    there = data.model_copy(update={"cases": data.target_cases, "root": data.target_root})
    return open_cases(config.model_copy(update={"data": there}))


def open_cases(config: Config) -> CaseList:
    """The configuration's case list, dealt into its fold and cut to its limit."""
    data = config.data
    cases = sample_caselist() if data.cases == "sample" else load_caselist(data.cases, data.root)
    if data.fold is not None:
        if data.fold >= data.folds:
            raise InputError(
                "no such fold",
                field="data.fold",
                found=data.fold,
                expected=f"0 to {data.folds - 1}",
            )
        cases = kfold(cases, data.folds, data.fold, config.seed)
    if data.limit is not None:
        kept = {c.case for c in cases.part("train")[: data.limit]}
        chosen = [c for c in cases.cases if c.part != "train" or c.case in kept]
        cases = cases.with_cases(chosen)
    return cases


def restored(task: TaskConfig) -> TaskConfig:
    """The task of making a list's one channel from a source made of it; masks are left aside.

    Raises:
        UsageError: if there are several channels.
    """
    if len(task.channels) != 1:
        raise UsageError(
            "a restoration is of one channel", field="restoration", found=", ".join(task.channels),
            remedy="make a case list with the one channel that is to be restored",
        )  # fmt: skip
    gone: dict[str, object] = {"labels": {}, "regions": None, "ignore_label": None}
    made = {"target": task.channels[0], "target_modality": None}
    return task.model_copy(update=gone | made)


def prepare(config: Config, skipped: Skipped | None = None) -> tuple[Config, CaseList, DataFacts]:
    """Complete the configuration: ``task`` from the list, ``plan`` from the training scans.

    Raises:
        InputError: if there is no training case, or one cannot be read and ``skipped`` does not
            allow it.
    """
    cases, others = open_cases(config), open_targets(config)
    if others is not None:
        whole = complete_unpaired(config, cases, others, skipped or Skipped())
        return _checked(whole), cases, _facts(cases, others)
    train = cases.part("train")
    if not train:
        raise InputError(
            "no training case", field="data.cases", remedy="give some cases part 'train'"
        )
    task = config.task or task_of(cases)
    if config.restoration is not None:
        task = restored(task)
    if task.target is None and not task.labels and config.model.prior is None:
        raise InputError(
            "the list has images alone", file=config.data.cases, field="labels",
            remedy="give it labels and masks to segment, a target to translate, translate "
            "without pairs (data.target_cases), or learn the scans (model.prior: unconditional)",
        )  # fmt: skip
    plan = config.plan
    needed = ["spatial_dims", "spacing_mm", "patch_size", "normalisation"]
    needed += ["target_range"] if task.target is not None and not task.restores else []
    needed += ["image_ranges", "raster"] if config.model.prior is not None else []
    complete = task.input_channels and all(getattr(plan, key) is not None for key in needed)
    if not complete or plan.batch_size is None:
        # Validation cases count too: the folds of a cross-validation then share one plan, and
        # their models form one ensemble.
        known = sorted(train + cases.part("validation"), key=lambda case: case.case)
        found = fingerprint(cases, known, task, plan.orientation, skipped)
        planes = {"input_channels": found.planes, "target_planes": found.target_planes}
        task = task.model_copy(update=planes)
        plan = complete_plan(plan, task, config.model, found)
        if config.model.prior is not None:
            plan = plan_of_scans(plan, found)
    whole = config.model_copy(update={"task": task, "plan": plan})
    return _checked(whole), cases, _facts(cases)


def _checked(whole: Config) -> Config:
    """Check again: the YAML was checked without its task, which the case list brings."""
    for broken, message in contradictions(whole):
        if broken:
            raise UsageError(message, file=whole.data.cases, field="target")
    return whole


def _facts(*lists: CaseList) -> DataFacts:
    """Counts over all lists; names and licences one after the other."""
    return DataFacts(
        " and ".join(dict.fromkeys(cases.name for cases in lists)),
        " and ".join(dict.fromkeys(cases.licence for cases in lists)),
        sum(len(cases.part("train")) for cases in lists),
        sum(len(cases.part("validation")) for cases in lists),
    )
