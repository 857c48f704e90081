"""Training samples: which case, which crop, which noise, all fixed by (seed, sample number).

Sample number g = step * global batch + position decides everything, so the data order is the same
for any number of processes and workers, and a resumed run needs no saved position but its step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, get_track_meta, set_track_meta
from monai.transforms import Compose, Transform
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from medseg_diff.config import Config, PlanConfig, TaskConfig, TrainingConfig
from medseg_diff.data.appearance import SyntheticContrastd, strong_appearance
from medseg_diff.data.augmentation import augmentation
from medseg_diff.data.caselist import Case, CaseList
from medseg_diff.data.records import Batch
from medseg_diff.data.restoration import training_source
from medseg_diff.data.transforms import network_input
from medseg_diff.data.unreadable import BAD, Attempt, Skipped
from medseg_diff.data.workers import Watch
from medseg_diff.errors import InputError
from medseg_diff.memory import check_shared, free_host_bytes

Preprocessed = dict[str, Any]

# Share of free memory that preprocessed cases may take; what does not fit is read again.
CACHE_SHARE = 0.5


def cached_cases(
    cases: CaseList,
    part: Sequence[Case],
    task: TaskConfig,
    plan: PlanConfig,
    skipped: Skipped | None = None,
    then: Transform | None = None,
) -> CacheDataset:
    """Preprocessed cases, in memory as far as half of what is free allows.

    One that cannot be used stands as ``{"case": ..., "bad": line}``; ``then`` changes the others.

    Raises:
        InputError: if a case that was read now cannot be used and ``skipped`` does not allow it.
    """
    items = [
        {
            "case": case.case,
            "channels": cases.channel_paths(case),
            "references": cases.reference_paths(case),
            "target": None if task.restores else cases.target_path(case),
        }
        for case in part
    ]
    skipped = skipped or Skipped()
    preprocess = Compose([Attempt(task, plan, then)])
    if not items:
        raise InputError("no case to work on", field="cases", remedy="check the list's parts")
    first: dict[str, Any] = {}
    for item in items:
        first = preprocess(item)
        if BAD not in first:
            break
        skipped.note(first["case"], first[BAD])
    held = [first.get(key) for key in ("image", "label", "target")]
    size = sum(np.asarray(values).nbytes for values in held if values is not None)
    room = CACHE_SHARE * free_host_bytes() / max(size, 1)
    cached = CacheDataset(
        items,
        preprocess,
        cache_num=min(len(items), int(room)),
        num_workers=None,
        progress=False,
        copy_cache=False,
    )
    for index in range(cached.cache_num):
        if BAD in cached[index]:
            skipped.note(cached[index]["case"], cached[index][BAD])
    return cached


def preprocessed(
    cases: CaseList,
    part: Sequence[Case],
    task: TaskConfig,
    plan: PlanConfig,
    skipped: Skipped | None = None,
) -> list[Preprocessed]:
    """Preprocessed cases, all in memory; an empty part gives an empty list."""
    if not part:
        return []
    skipped = skipped or Skipped()
    cached = cached_cases(cases, part, task, plan, skipped)
    found = [cached[index] for index in range(len(part))]
    for case in found:
        if BAD in case:
            skipped.note(case["case"], case[BAD])
    return [case for case in found if BAD not in case]


class TrainingSet(Dataset[dict[str, Any]]):
    """Crops, augmentations, times and noise of sample numbers 0, 1, 2, ...

    Args:
        cases: Preprocessed training cases, a dataset or a list.
        config: Complete configuration.
        state_channels: Channels K of the diffused state, for the noise.
    """

    def __init__(
        self, cases: CacheDataset | Sequence[Preprocessed], config: Config, state_channels: int
    ) -> None:
        plan = config.plan
        if plan.patch_size is None or plan.spatial_dims is None:
            raise ValueError("the plan is not complete")
        self.cases, self.config = cases, config
        self.items: Sequence[dict[str, Any]] = getattr(cases, "data", cases)
        self.dims: int = plan.spatial_dims
        self.patch = tuple(plan.patch_size)
        self.state_channels = state_channels
        self.watch = Watch(config.training.workers)
        # With all annotators an epoch visits every mask; otherwise every case.
        self.translates = config.task is not None and config.task.target is not None
        self.prior = config.model.prior
        every = config.data.annotators == "all" and not self.translates
        counts = [len(c["references"]) for c in self.items] if every else [1] * len(cases)
        self.masks = [(index, rater) for index, n in enumerate(counts) for rater in range(n)]
        training = config.training
        self.augment = _augment(
            self.patch, training, images=self.translates, intensities=self.prior is None
        )
        # Room for rotation and scaling without reaching past the crop. The same on both sides: a
        # crop of other parity than the patch would be sampled between voxels, where the image
        # interpolates and the label rounds, and the two would part by half a voxel.
        share = 0.1 if training.augment else 0.0
        self.crop_size = [n + 2 * math.ceil(n * share) for n in self.patch] + [1] * (3 - self.dims)

    def __len__(self) -> int:
        """Samples of the whole training."""
        training, plan = self.config.training, self.config.plan
        return training.steps * training.accumulate * (plan.batch_size or 1)

    @property
    def sample_bytes(self) -> int:
        """Size of one sample as a worker hands it over."""
        planes = self.config.input_planes + self.state_channels
        truth = 4 * self.state_channels if self.translates or self.prior is not None else 2
        return math.prod(self.patch) * (4 * planes + truth)

    def case_of(self, number: int) -> tuple[int, int]:
        """Case index and epoch of a sample number: each epoch is a seeded permutation."""
        index, _, epoch = self._mask_of(number)
        return index, epoch

    def case_name(self, number: int) -> str:
        """Name of a sample's case."""
        return str(self.items[self.case_of(number)[0]]["case"])

    def _mask_of(self, number: int, later: int = 0) -> tuple[int, int, int]:
        """Case index, annotator (where all of them take part) and epoch of a sample number.

        Or of the one that comes ``later`` in the same epoch's round.
        """
        epoch, position = divmod(number, len(self.masks))
        order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.masks))
        return (*self.masks[int(order[(position + later) % len(order)])], epoch)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Sample ``number``: image (C, *patch), label (1, *patch), t (), noise, coins (2,).

        The label of a translation is its target image, (K, *patch) float32 in [-1, 1]. A prior's
        is the scan itself, and its image the label map where it is a condition.

        Where its case cannot be used, the next in the epoch's round that can takes its place, and
        ``bad`` maps the names of those passed over to the lines why. With none left ``bad`` is all
        there is.
        """
        self.watch.note(number)
        bad: dict[str, str] = {}
        for later in range(len(self.masks)):
            index, rater, epoch = self._mask_of(number, later)
            case = self.cases[index]
            if BAD not in case:
                sample: dict[str, Any] = dict(self._sample(case, index, rater, epoch))
                return sample | {BAD: bad} if bad else sample
            bad[case["case"]] = case[BAD]
        return {BAD: bad}

    def _sample(
        self, case: dict[str, Any], index: int, rater: int, epoch: int
    ) -> dict[str, torch.Tensor]:
        # The first annotator's samples keep the randomness that a case of one mask has.
        which = [index, epoch] if rater == 0 else [index, epoch, rater]
        rng = np.random.default_rng([self.config.seed, 1, *which])
        truth = case["target"] if self.translates else self._mask(case, rater, rng)
        centre = self._centre(case, rng)
        image = crop(case["image"], centre, self.crop_size)
        label = crop(truth, centre, self.crop_size)
        if self.dims == 2:
            image, label = image[..., 0], label[..., 0]
        if self.augment is not None:
            self.augment.set_random_state(seed=int(rng.integers(2**31)))
            with plain_tensors():
                sample: dict[str, Any] = self.augment(
                    {"image": torch.from_numpy(image), "label": torch.from_numpy(label).float()}
                )
            image, label = np.asarray(sample["image"]), np.asarray(sample["label"])
        if self.prior is not None:
            shown = label.round().astype(np.float32) if self.prior == "mask" else image[:0]
            image, label = shown, image.clip(-1, 1)
        elif self.config.restoration is not None:
            image = training_source(label, self.config.restoration, rng)
        patch = (*self.patch, 1)[:3]
        start = [int(c) - n // 2 for c, n in zip(centre, patch, strict=True)]
        image = network_input(image, self.config.plan, start, case["image"].shape[1:])
        noise = rng.standard_normal((self.state_channels, *self.patch), dtype=np.float32)
        if not self.translates and self.prior is None:
            label = label.round().astype(np.int16)
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32)),
            "label": torch.from_numpy(np.ascontiguousarray(label)),
            # In (0, 1]: at t = 0 there is nothing to denoise.
            "t": torch.tensor(1.0 - rng.random(), dtype=torch.float64),
            "noise": torch.from_numpy(noise),
            "coins": torch.from_numpy(rng.random(2)),
        }

    def _mask(
        self, case: dict[str, Any], rater: int, rng: np.random.Generator
    ) -> NDArray[np.int16]:
        """One annotator's mask (1, *S), the given or one drawn at random; empty without any."""
        label: NDArray[np.int16] | None = case.get("label")
        if label is None:
            return np.zeros((1, *case["image"].shape[1:]), np.int16)
        drawn = int(rng.integers(len(label)))
        if self.config.data.annotators == "random":
            rater = drawn
        return label[rater : rater + 1]

    def _centre(self, case: dict[str, Any], rng: np.random.Generator) -> NDArray[np.int64]:
        """Centre voxel of the crop: on a structure, or anywhere the patch fits."""
        shape = np.array(case["image"].shape[1:])
        patch = np.array([*self.patch, *[1] * (3 - self.dims)])
        if case["foreground"] and rng.random() < self.config.data.foreground_crops:
            voxels = case["foreground"][int(rng.integers(len(case["foreground"])))]
            centre = voxels[int(rng.integers(len(voxels)))]
        else:
            centre = (rng.random(3) * shape).astype(np.int64)
        # Keep the patch inside the scan where it fits, and centred where it does not.
        low, high = patch // 2, shape - (patch - patch // 2)
        return np.where(low <= high, np.clip(centre, low, np.maximum(low, high)), shape // 2)


@contextmanager
def plain_tensors() -> Iterator[None]:
    """MONAI transforms without a record of what they did, which takes a third of their time."""
    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)


def crop(values: NDArray[Any], centre: NDArray[np.int64], size: Sequence[int]) -> NDArray[Any]:
    """Cut (C, *size) around a centre voxel; what lies outside repeats the edge."""
    index: list[NDArray[np.int64]] = [np.arange(len(values))]
    for axis, (middle, length) in enumerate(zip(centre, size, strict=True), start=1):
        span = np.arange(length) + int(middle) - length // 2
        index.append(span.clip(0, values.shape[axis] - 1))
    result: NDArray[Any] = values[np.ix_(*index)]
    return result


class StepSampler(Sampler[int]):
    """Sample numbers of one process: its share of every global batch, from a step on."""

    def __init__(self, first: int, last: int, batch: int, rank: int = 0, world: int = 1) -> None:
        if batch % world:
            raise InputError(
                "the global batch must divide among the processes",
                field="plan.batch_size",
                found=batch,
                expected=f"a multiple of {world}",
            )
        self.first, self.last, self.batch = first, last, batch
        self.rank, self.share = rank, batch // world

    def __iter__(self) -> Iterator[int]:
        """Numbers in the order they are trained on."""
        for step in range(self.first, self.last):
            start = step * self.batch + self.rank * self.share
            yield from range(start, start + self.share)

    def __len__(self) -> int:
        """How many samples are left."""
        return (self.last - self.first) * self.share


def batches(
    training_set: TrainingSet,
    first: int,
    last: int,
    *,
    rank: int = 0,
    world: int = 1,
    skipped: Skipped | None = None,
) -> Iterator[Batch]:
    """Micro-batches ``first`` ... ``last - 1`` of one process.

    Raises:
        InputError: at a case that cannot be used, if ``skipped`` does not allow it.
    """
    config, skipped = training_set.config, skipped or Skipped()
    sampler = StepSampler(first, last, config.plan.batch_size or 1, rank, world)
    check_shared(training_set.sample_bytes * sampler.share, config.training.workers)
    loader = DataLoader(
        training_set,
        batch_size=sampler.share,
        sampler=sampler,
        num_workers=config.training.workers,
        collate_fn=_collate,
        # A generator of its own: by default a new loader advances the global one, and a resumed
        # run would differ from one that was never stopped.
        generator=torch.Generator().manual_seed(config.seed),
        persistent_workers=config.training.workers > 0,
    )
    for item, bad in loader:
        for case, line in bad.items():
            skipped.note(case, line)
        if item is None:
            raise InputError("no training case can be used", field="data.cases")
        yield Batch(item["image"], item["label"], item["t"], item["noise"], item["coins"])


def _augment(
    patch: Sequence[int], training: TrainingConfig, *, images: bool, intensities: bool
) -> Compose | None:
    """What a training asks for: nothing, moves and mild changes of intensity, or more."""
    if not training.augment:
        return None
    standard = augmentation(patch, training.mirror_axes, images=images, intensities=intensities)
    if training.augmentation == "strong":
        return Compose([standard, *strong_appearance(patch)])
    if training.augmentation == "synthetic":
        return Compose([standard, SyntheticContrastd()])
    return standard


def _collate(samples: list[dict[str, Any]]) -> tuple[dict[str, Any] | None, dict[str, str]]:
    """Samples as one batch, or None if some could not be made; and what was passed over."""
    bad: dict[str, str] = {}
    for sample in samples:
        bad |= sample.pop(BAD, {})
    whole = all(samples)
    return (default_collate(samples) if whole else None), bad
