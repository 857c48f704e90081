"""Cases with their reference masks, cut into the windows that a model sees, for measurements.

Legend: W windows, C image channels, K state channels, *S spatial axes of a window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg_diff.checkpoint import LoadedRun
from medseg_diff.data.caselist import CaseList, Part
from medseg_diff.data.dataset import cached_cases
from medseg_diff.data.fingerprint import task_of
from medseg_diff.data.prepare import open_cases
from medseg_diff.data.transforms import network_input
from medseg_diff.errors import InputError, UsageError
from medseg_diff.inference.noise import CUBE, SLICE, NoiseField
from medseg_diff.inference.windows import Place, is_flat, pad_to, windows

# Windows of one case that are looked at, evenly chosen: a large scan counts like a small one.
MOST_WINDOWS = 8


@dataclass(frozen=True)
class TrueWindows:
    """Windows of one case and the first annotator's mask in them.

    Attributes:
        case: Case id; with a seed it names the noise.
        image: Network input, (W, C, *S): normalised, with coordinates where the plan has them.
        labels: (W, 1, *S), int16.
        places: Where each window lies on the case's model grid.
    """

    case: str
    image: Tensor
    labels: Tensor
    places: tuple[Place, ...]

    def noise(self, seed: int, draw: int, step: int, channels: int) -> Tensor:
        """Standard normal (W, channels, *S), cut from the case's field of that draw and step."""
        flat = is_flat(self.places[0])
        field = NoiseField(seed, self.case, draw, step, channels, SLICE if flat else CUBE)
        cuts = [
            field.window([s.start for s in place], [s.stop - s.start for s in place])
            for place in self.places
        ]
        values = torch.from_numpy(np.stack(cuts))
        return (values[..., 0] if flat else values).to(self.image.device)


def cases_of(run: LoadedRun, data: Path | None) -> CaseList:
    """The given case list, or the one that the model was trained on, in its own fold.

    Raises:
        InputError: if its labels or regions are not the model's.
        UsageError: if the model makes images.
    """
    if run.config.task is not None and run.config.makes != "masks":
        raise UsageError(
            "this model makes images, and what is asked for is measured on masks",
            file=run.folder,
            field="--model",
        )
    if data is None:
        return open_cases(run.config)
    alone = {"cases": str(data), "root": None, "fold": None, "limit": None}
    section = run.config.data.model_copy(update=alone)
    cases = open_cases(run.config.model_copy(update={"data": section}))
    wanted, found = run.config.task, task_of(cases)
    for part in ("labels", "regions", "ignore_label"):
        if getattr(found, part) != getattr(wanted, part):
            raise InputError(
                "the case list does not segment what the model does",
                file=data,
                field=part,
                found=getattr(found, part),
                expected=getattr(wanted, part),
                remedy="use a case list of the model's own task",
            )
    return cases


def true_windows(
    run: LoadedRun, cases: CaseList, part: Part, limit: int | None = None
) -> Iterator[TrueWindows]:
    """Windows of a part's first ``limit`` cases that have a mask, on the model's device.

    Raises:
        InputError: if there is no such case.
    """
    chosen = [case for case in cases.part(part) if case.references][:limit]
    if not chosen:
        raise InputError(
            f"no {part} case with a reference",
            field="cases",
            remedy="choose another part with --part, or another list with --data",
        )
    task, plan = run.config.task, run.config.plan
    if task is None or plan.patch_size is None:
        raise InputError("the run's configuration is not complete", file=run.folder)
    patch = [*plan.patch_size, 1][:3]
    for case in chosen:
        (item,) = cached_cases(cases, [case], task, plan)
        image, _ = pad_to(network_input(item["image"], plan), patch)
        label, _ = pad_to(item["label"][:1], patch)
        places = _spread(windows(image.shape[1:], patch, 0.0))
        device = next(run.model.parameters()).device
        yield TrueWindows(
            case.case, _cut(image, places).to(device), _cut(label, places).to(device), places
        )


def _spread(places: list[Place]) -> tuple[Place, ...]:
    """At most ``MOST_WINDOWS`` of them, evenly chosen, the first and the last among them."""
    if len(places) <= MOST_WINDOWS:
        return tuple(places)
    index = np.linspace(0, len(places) - 1, MOST_WINDOWS).round().astype(int)
    return tuple(places[i] for i in index)


def _cut(values: NDArray[np.generic], places: tuple[Place, ...]) -> Tensor:
    cuts = torch.from_numpy(np.stack([np.asarray(values)[:, *place] for place in places]))
    return cuts[..., 0] if is_flat(places[0]) else cuts
