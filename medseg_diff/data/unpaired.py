"""Two sets of images without pairs: their plan, and samples that hold an image of each.

Sample number g takes a patch of the first list's case and one of the second's, each drawn by that
number alone: the two have nothing to do with one another, and a resumed run sees the same.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

from monai.data import CacheDataset
from monai.transforms import Transform

from medseg_diff.config import Config, Normalisation, TaskConfig
from medseg_diff.config.directions import backward, target_name
from medseg_diff.data.caselist import Case, CaseList
from medseg_diff.data.dataset import TrainingSet, cached_cases
from medseg_diff.data.fingerprint import Fingerprint, complete_plan, fingerprint
from medseg_diff.data.transforms import bright_voxels
from medseg_diff.data.unreadable import BAD, Skipped
from medseg_diff.errors import InputError

# The second domain's samples are drawn by another seed, or equal lists would come in step.
OTHER_SEED = 2**32


class OwnTarget(Transform):
    """A preprocessed image as its own target, with voxels to centre crops on."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add ``target`` and ``foreground``."""
        image = data["image"]
        return {**data, "target": image, "foreground": bright_voxels(image)}


class UnpairedSet(TrainingSet):
    """Samples whose label is a patch of an image of the other domain, drawn independently.

    Args:
        cases: Preprocessed training images of the source's domain.
        others: Of the target's.
        config: Complete configuration.
        state_channels: Channels of the noise.
    """

    def __init__(
        self, cases: CacheDataset, others: CacheDataset, config: Config, state_channels: int
    ) -> None:
        super().__init__(cases, config, state_channels)
        apart = config.model_copy(update={"seed": config.seed + OTHER_SEED})
        self.others = TrainingSet(others, apart, 0)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Sample ``number``: image (C, *patch) and label (K, *patch), float32 in [-1, 1]."""
        ours, theirs = super().__getitem__(number), self.others[number]
        bad = ours.pop(BAD, {}) | theirs.pop(BAD, {})
        if not ours or not theirs:
            return {BAD: bad}
        sample = ours | {"label": theirs["image"]}
        return sample | {BAD: bad} if bad else sample


def training_set(
    config: Config, cases: CaseList, others: CaseList | None, channels: int, skipped: Skipped
) -> TrainingSet:
    """Training samples of a case list, or of two without pairs.

    Args:
        config: Complete configuration.
        cases: The list that is segmented or translated.
        others: Images to translate into, where there are no pairs; else None.
        channels: Channels of the noise.
        skipped: Which cases are passed over.
    """
    if others is None:
        task, plan = config.known_task, config.plan
        cached = cached_cases(cases, cases.part("train"), task, plan, skipped)
        return TrainingSet(cached, config, channels)
    ours = _images(config, cases, skipped)
    return UnpairedSet(ours, _images(backward(config), others, skipped), config, channels)


def complete_unpaired(config: Config, ours: CaseList, theirs: CaseList, skipped: Skipped) -> Config:
    """The configuration with its task and plan, from the training images of both lists.

    Geometry is the first list's; each domain has one range of intensities for all its scans.

    Raises:
        InputError: if a list has no training case or several channels, or the second's images do
            not fit the first's.
    """
    data = config.data
    for cases, field in ((ours, "cases"), (theirs, "target_cases")):
        _check(cases, f"data.{field}", getattr(data, field))
    task = config.task or _task_of(ours, theirs)
    orientation = config.plan.orientation
    found, other = (_measured(cases, task, orientation, skipped) for cases in (ours, theirs))
    planes = {"input_channels": found.planes, "target_planes": sum(other.planes)}
    task = task.model_copy(update=planes)
    fixed = Normalisation(kind="range", clip=found.target_range)
    normalisation = config.plan.normalisation or (fixed,) * task.image_planes
    plan = complete_plan(
        config.plan.model_copy(update={"normalisation": normalisation}),
        task,
        config.model,
        replace(found, target_range=other.target_range),
    )
    if plan.spatial_dims == 3 and other.raster:
        raise InputError(
            "the images of the second list are 2-D and those of the first volumes",
            file=data.target_cases, field="data.target_cases",
            remedy="give a list of volumes, or set plan.spatial_dims: 2",
        )  # fmt: skip
    return config.model_copy(update={"task": task, "plan": plan})


def _check(cases: CaseList, field: str, file: str) -> None:
    if len(cases.channels) != 1:
        raise InputError(
            "unpaired translation has one channel in each domain", file=file, field=field,
            found=", ".join(cases.channels), expected="one channel",
            remedy="write a list of the channel that is wanted",
        )  # fmt: skip
    if not cases.part("train"):
        raise InputError(
            "no training case", file=file, field=field, remedy="give some cases part 'train'"
        )


def _task_of(ours: CaseList, theirs: CaseList) -> TaskConfig:
    (source,), (target,) = ours.channels, theirs.channels
    return TaskConfig(
        modality=ours.modality,
        channels=(source,),
        target=target_name(source, target),
        target_channel=target,
        target_modality=None if theirs.modality == ours.modality else theirs.modality,
    )


def _measured(cases: CaseList, task: TaskConfig, axes: str, skipped: Skipped) -> Fingerprint:
    known = sorted(cases.part("train") + cases.part("validation"), key=lambda case: case.case)
    alone = _alone(task.model_copy(update={"channels": tuple(cases.channels)}))
    return fingerprint(cases, _without_masks(known), alone, axes, skipped)


def _images(config: Config, cases: CaseList, skipped: Skipped) -> CacheDataset:
    """Preprocessed training images of a configuration's source, each its own target."""
    part, task = _without_masks(cases.part("train")), _alone(config.known_task)
    return cached_cases(cases, part, task, config.plan, skipped, OwnTarget())


def _alone(task: TaskConfig) -> TaskConfig:
    """A task's source images without what is made of them."""
    return task.model_copy(update={"target": None})


def _without_masks(part: list[Case]) -> list[Case]:
    return [case.model_copy(update={"references": ()}) for case in part]
