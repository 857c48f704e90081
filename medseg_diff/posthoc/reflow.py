"""Reflow: a rectified flow learns its own pairs of noise and mask, which straightens it.

Liu, Gong & Liu (2023, arXiv 2209.03003), Alg. 1: the pairs that a flow's ODE connects do not cross,
so a flow trained on them is straighter, and one Euler step goes further. The pairs are made while
training: a batch's own noise and crop go to the teacher, whose answer stands in the place of the
annotator's mask. So a training step stays a function of its number.

Legend: B batch, K classes or regions, *S spatial axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from medseg_diff.checkpoint import WEIGHTS, LoadedRun, load_run
from medseg_diff.config import Config
from medseg_diff.data.records import Batch
from medseg_diff.diffusion.paths import Linear
from medseg_diff.errors import InputError
from medseg_diff.model import DiffusionModel, JointModel, LatentModel, Sampling, SegmentationModel


@dataclass(frozen=True)
class Coupling:
    """The masks that a flow reaches from given noise.

    Attributes:
        teacher: Trained flow on the straight path, frozen, in eval mode.
        steps: Euler steps from noise to mask.
    """

    teacher: DiffusionModel
    steps: int

    def __call__(self, batch: Batch) -> Tensor:
        """Clean states (B, K, *S) in [-1, 1] at the end of the flow from the batch's noise."""
        state = batch.noise
        with torch.no_grad():
            context = self.teacher.context(batch.image)
            walk = self.teacher.trajectory(context, state, Sampling("euler", self.steps))
            for estimate in walk:
                state = estimate.state
        return state


def attach_teacher(
    model: SegmentationModel, config: Config, device: str | torch.device
) -> dict[str, str]:
    """Let a model learn its teacher's pairs, where its configuration names one.

    Args:
        model: To be trained; takes the coupling, and no weight of the teacher.
        config: Complete configuration of the training.
        device: Where it trains.

    Returns:
        What a resumed training must find again: the teacher's hash, or nothing.

    Raises:
        InputError: if the teacher is no flow on the straight path, or sees other images or
            structures than the model.
    """
    folder = config.training.reflow_from
    if folder is None:
        return {}
    run = load_run(Path(folder), device)
    teacher = _checked(run, config)
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    model.coupling = Coupling(teacher, config.training.reflow_steps)
    return {"teacher": str(run.card["sha256"][WEIGHTS])}


def _checked(run: LoadedRun, config: Config) -> DiffusionModel:
    teacher, field = run.model, "training.reflow_from"
    if (
        not isinstance(teacher, DiffusionModel)
        or isinstance(teacher, LatentModel | JointModel)
        or not isinstance(teacher.path, Linear)
    ):
        raise InputError(
            "the teacher is no flow of masks on the straight path",
            file=run.folder,
            field=field,
            remedy="give a run of the recipe rectified_flow",
        )
    for part, keys in (
        ("task", ("channels", "input_channels", "labels", "regions")),
        ("plan", ("spatial_dims", "orientation", "spacing_mm", "normalisation")),
        ("plan", ("coordinates", "slice_position")),
    ):
        theirs, ours = getattr(run.config, part), getattr(config, part)
        for key in keys:
            if getattr(theirs, key) != getattr(ours, key):
                raise InputError(
                    "the teacher sees other images or structures than this model",
                    file=run.folder,
                    field=f"{part}.{key}",
                    found=getattr(theirs, key),
                    expected=getattr(ours, key),
                    remedy="use the data and the plan that the teacher was trained with",
                )
    return teacher
