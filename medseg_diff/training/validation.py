"""How good a model is while it is trained: one draw of each validation case, on the model grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import default_collate

from medseg_diff.config import Config
from medseg_diff.data.dataset import Preprocessed, TrainingSet
from medseg_diff.data.records import Batch
from medseg_diff.data.restoration import validation_hole, validation_source
from medseg_diff.data.transforms import network_input
from medseg_diff.inference.ensemble import Request, infer
from medseg_diff.metrics.masks import dice
from medseg_diff.model import Sampling, SegmentationModel

# Times that a validation by loss looks at, each with a crop of every case.
TIMES = 8


def validation_dice(
    model: SegmentationModel, cases: Sequence[Preprocessed], config: Config
) -> float:
    """Mean Dice over cases and structures of one draw per case, on the model grid."""
    scores = []
    for case, drawn in one_draw_each(model, cases, config):
        labels = model.mask_codec.decode(torch.from_numpy(drawn)[None])[0, 0].numpy()
        for members in config.known_task.structures.values():
            truth, found = np.isin(case["label"][0], members), np.isin(labels, members)
            if truth.any() or found.any():
                scores.append(dice(found, truth))
    return float(np.mean(scores)) if scores else float("nan")


def validation_error(
    model: SegmentationModel, cases: Sequence[Preprocessed], config: Config
) -> float:
    """Mean absolute error over cases of one draw per case, in the state's units, 0 to 2.

    Of holes that are filled it is that inside the hole.
    """
    wanted, errors = config.restoration, []
    for case, drawn in one_draw_each(model, cases, config):
        wrong = np.abs(2 * drawn - 1 - case["target"])
        if wanted is not None and wanted.kind == "inpainting":
            patch = config.plan.patch_size or ()
            wrong = wrong[:, validation_hole(wrong.shape[1:], wanted, str(case["case"]), patch)]
        errors.append(float(wrong.mean()))
    return float(np.mean(errors)) if errors else float("nan")


def validation_loss(
    model: SegmentationModel, cases: Sequence[Preprocessed], config: Config
) -> float:
    """Mean loss of crops of the cases, made as training's are, unchanged and at even times.

    A model of scans has no truth to draw towards; its loss on scans it was not trained on falls as
    long as it learns how scans look, and rises when it learns the training scans by heart.
    """
    if not cases:
        return float("nan")
    fixed = config.model_copy(
        update={
            "training": config.training.model_copy(update={"augment": False}),
            "data": config.data.model_copy(update={"annotators": "first"}),
        }
    )
    samples = TrainingSet(cases, fixed, model.noise_channels)
    was_training, device = model.training, next(model.parameters()).device
    losses = []
    model.eval()
    with torch.no_grad():
        for index in range(TIMES):
            numbers = range(index * len(cases), (index + 1) * len(cases))
            whole = default_collate([samples[number] for number in numbers])
            time = torch.full((len(cases),), (index + 0.5) / TIMES, dtype=torch.float64)
            batch = Batch(whole["image"], whole["label"], time, whole["noise"], whole["coins"])
            losses.append(float(model.loss(batch.to(device)).total))
    model.train(was_training)
    return float(np.mean(losses))


def in_units(error: float, config: Config) -> float:
    """An error in the state's units in those of the target image."""
    low, high = config.plan.target_range or (-1.0, 1.0)
    return error * (high - low) / 2


def one_draw_each(
    model: SegmentationModel, cases: Sequence[Preprocessed], config: Config
) -> Iterator[tuple[Preprocessed, NDArray[np.float32]]]:
    """Each case with one draw of it, (K, *S) in [0, 1], on the model grid."""
    wanted = config.prediction
    # Analytic variance is measured on the finished weights; ancestral is the same walk without.
    name = "ancestral" if wanted.sampler == "analytic" else wanted.sampler
    steps = wanted.validation_steps or wanted.steps
    sampling = replace(Sampling.of(wanted), steps=steps, sampler=name)
    was_training = model.training
    model.eval()
    for case in cases:
        request = Request(str(case["case"]), config.seed, 1, sampling, wanted.overlap, 4)
        seen = case["image"]
        if config.restoration is not None:
            patch = config.plan.patch_size or ()
            seen = validation_source(case["target"], config.restoration, str(case["case"]), patch)
        image = network_input(seen, config.plan)
        yield case, infer([model], image, config.window, request).probability
    model.train(was_training)
