"""Calibrate a model: fit one temperature on its validation cases and store it with the model.

The draws' fused probability is what is calibrated, so the temperature belongs to the settings it
was fitted with (draws, steps, sampler, rule), which the card keeps beside it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg_diff import io
from medseg_diff.calibration import (
    MARGIN_MM,
    Calibration,
    TopLabelCalibration,
    near_foreground,
)
from medseg_diff.checkpoint import CARD, read_card
from medseg_diff.data.caselist import CaseList, Part
from medseg_diff.data.transforms import spacing_of
from medseg_diff.errors import InputError, UsageError
from medseg_diff.files import atomic_text
from medseg_diff.inference.predictor import Predictor
from medseg_diff.temperature import Temperature, apply_temperature, fit_temperature


@dataclass(frozen=True)
class Calibrated:
    """What was fitted, and what it did to the cases it was fitted on.

    Attributes:
        temperature: The fit.
        ece_before: Expected calibration error near the foreground at T = 1.
        ece_after: The same at T. On the fitted cases: a test set says what it is worth.
        cases: Validation cases.
        settings: Draws, steps, sampler and rule of the probability.
    """

    temperature: Temperature
    ece_before: float
    ece_after: float
    cases: int
    settings: dict[str, Any]


def calibrate(
    predictor: Predictor, cases: CaseList, *, part: Part = "validation", seed: int = 0,
    **asked: Any,
) -> Calibrated:  # fmt: skip
    """Fit a temperature and write it into the run's card.

    Every voxel within ``MARGIN_MM`` of a structure (in any annotator's mask or the prediction)
    counts once per annotator.

    Args:
        predictor: One run; an ensemble has no card to keep the answer in.
        cases: Case list of the model's task.
        part: Which cases; the test part is refused.
        seed: Of the draws.
        asked: Settings of :meth:`Predictor.predict`; the run's own by default.

    Raises:
        InputError: if the part has no case with a mask.
        UsageError: for an ensemble, or the test part.
    """
    if len(predictor.runs) != 1:
        raise UsageError(
            "a temperature belongs to one run", field="--model", found=len(predictor.runs),
            expected=1,
        )  # fmt: skip
    if part == "test":
        raise UsageError(
            "a temperature is never fitted on the test part", field="--part", found=part,
            expected="validation or train",
        )  # fmt: skip
    chosen = [case for case in cases.part(part) if case.references]
    if not chosen:
        raise InputError(f"no {part} case with a mask", field="cases")
    p, y, settings = [], [], {}
    for case in chosen:
        answer = predictor.predict(
            cases.channel_paths(case), case=case.case, seed=seed, calibrated=False, **asked
        )
        settings = {k: answer.record[k] for k in ("draws", "steps", "sampler", "fuse")}
        masks = [io.read_label(path, like=answer.mask) for path in cases.reference_paths(case)]
        probability = np.asarray(predictor.all_channels(answer))
        for near, truth in _judged(predictor, probability, masks, spacing_of(answer.mask)):
            p.append(probability[:, near])
            y.append(truth)
    exclusive = predictor.codec.exclusive
    fitted = fit_temperature(p, y, exclusive=exclusive)
    after = [apply_temperature(one, fitted.value, exclusive=exclusive) for one in p]
    result = Calibrated(
        fitted, _ece(p, y, exclusive), _ece(after, y, exclusive), len(chosen), settings
    )
    _store(predictor.runs[0].folder, result, part)
    return result


def _judged(
    predictor: Predictor,
    probability: NDArray[np.float32],
    masks: list[Any],
    spacing_mm: tuple[float, ...],
) -> Iterator[tuple[NDArray[np.bool_], NDArray[Any]]]:
    """For each annotator: voxels (*S) to judge, and their truth (V,) or, for regions, (K, V)."""
    codec = predictor.codec
    labels = np.stack([np.asarray(mask)[0] for mask in masks])
    first = 1 if codec.exclusive else 0
    found = (labels != 0).any(0)
    found |= probability.argmax(0) != 0 if codec.exclusive else (probability > 0.5).any(0)
    near = near_foreground(found, spacing_mm[: found.ndim], MARGIN_MM)
    for label in labels:
        judged = near if codec.ignore_label is None else near & (label != codec.ignore_label)
        if not judged.any():
            continue
        planes = np.stack([np.isin(label[judged], list(m)) for m in codec.members])
        yield judged, planes.argmax(0) if first else planes.astype(np.float32)


def _ece(p: list[NDArray[Any]], y: list[NDArray[Any]], exclusive: bool) -> float:
    pool = TopLabelCalibration() if exclusive else Calibration()
    for probability, truth in zip(p, y, strict=True):
        pool.add(probability, truth)
    return pool.score().ece


def _store(run: Path, found: Calibrated, part: Part) -> None:
    """Add the fit to the card, which keeps vouching for the weights."""
    card = read_card(run)
    card["calibration"] = {
        "temperature": found.temperature.value,
        "part": part,
        "cases": found.cases,
        **found.settings,
        "fit": {k: v for k, v in asdict(found.temperature).items() if k != "value"},
        "ece_before": _finite(found.ece_before),
        "ece_after": _finite(found.ece_after),
    }
    atomic_text(run / CARD, json.dumps(card, indent=2) + "\n")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
