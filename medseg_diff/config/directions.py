"""The way back: a configuration of unpaired translation with its two domains swapped."""

from __future__ import annotations

from typing import Literal

from medseg_diff.config.sections import Config, Normalisation, PlanConfig
from medseg_diff.config.task import TaskConfig
from medseg_diff.errors import UsageError

Direction = Literal["forward", "backward"]


def backward(config: Config) -> Config:
    """A complete configuration whose source is the target's domain, and the other way round.

    Raises:
        UsageError: if the model was trained on pairs.
    """
    task, plan = config.known_task, config.plan
    if task.target_channel is None or plan.target_range is None or not plan.normalisation:
        raise UsageError(
            "this model knows one direction",
            field="--direction",
            found="backward",
            remedy="translate forward, or train without pairs (recipe syndiff)",
        )
    return config.model_copy(update={"task": _task_back(task), "plan": _plan_back(task, plan)})


def target_name(source: str, target: str) -> str:
    """Name of an image that is made, which differs from the one that it is made of."""
    return target if target != source else f"target {target}"


def _task_back(task: TaskConfig) -> TaskConfig:
    source, target = task.channels[0], str(task.target_channel)
    modality = task.target_modality or task.modality
    return task.model_copy(
        update={
            "modality": modality,
            "channels": (target,),
            "input_channels": (task.target_planes,),
            "target": target_name(target, source),
            "target_channel": source,
            "target_planes": task.image_planes,
            "target_modality": None if task.modality == modality else task.modality,
        }
    )


def _plan_back(task: TaskConfig, plan: PlanConfig) -> PlanConfig:
    ends = (plan.normalisation or ())[0].clip
    there = Normalisation(kind="range", clip=plan.target_range)
    return plan.model_copy(
        update={"normalisation": (there,) * task.target_planes, "target_range": ends}
    )
