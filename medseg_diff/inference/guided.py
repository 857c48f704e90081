"""Prediction under a guide: a trained U-Net that leans on the draws of diffusion models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from medseg_diff.checkpoint import WEIGHTS, LoadedRun, load_run
from medseg_diff.config import PlanConfig
from medseg_diff.errors import InputError, UsageError
from medseg_diff.inference.answer import Answer
from medseg_diff.inference.predictor import Predictor, Scan
from medseg_diff.model import DiffusionModel, JointModel, LatentModel, UNetModel
from medseg_diff.model.guide import Guide


class GuidedPredictor(Predictor):
    """A predictor whose records name the guide."""

    guide: dict[str, Any]

    def predict(self, scan: Scan, **settings: Any) -> Answer:
        """See :meth:`Predictor.predict`."""
        answer = super().predict(scan, **settings)
        return replace(answer, record={**answer.record, "guide": self.guide})


def guided(predictor: Predictor, run: str | Path, scale: float = 1.0) -> GuidedPredictor:
    """The same models, steered by a trained U-Net; see :class:`medseg_diff.model.guide.Guide`.

    Every step costs a second network call and its gradient.

    Args:
        predictor: Of diffusion models; they are steered from now on, and frozen.
        run: Run folder of a U-Net of the same task and plan.
        scale: How strongly; 0 is not at all.

    Raises:
        UsageError: if a model cannot be steered, or the guide is no U-Net.
        InputError: if the guide was trained for another task or plan.
    """
    if not scale >= 0:
        raise UsageError("must be 0 or more", field="--guide-scale", found=scale)
    members = [_steerable(each) for each in predictor.runs]
    guide = load_run(run, next(members[0].parameters()).device)
    unet = guide.model
    if not isinstance(unet, UNetModel):
        raise UsageError(
            "not a plain U-Net", file=guide.folder, field="--guide", expected="model.kind: unet"
        )
    for part, theirs, ours in (
        ("task", guide.config.task, predictor.task),
        ("plan", _seen(guide.config.plan), _seen(predictor.plan)),
    ):
        if theirs != ours:
            raise InputError(
                f"its {part} differs from that of the model it would guide",
                file=guide.folder,
                field="--guide",
                remedy="train both on one case list with the same plan",
            )
    unet.requires_grad_(False)
    vouched = {"model": guide.card["sha256"][WEIGHTS], "scale": scale}
    runs = []
    for each, model in zip(predictor.runs, members, strict=True):
        model.requires_grad_(False)
        model.steer = Guide(unet, model.path, model.mask_codec, scale)
        # Part of what an answer is made from: a folder is not continued under another guide.
        hashes = {**each.card["sha256"], "guide": vouched}
        runs.append(replace(each, card={**each.card, "sha256": hashes}))
    result = GuidedPredictor(runs)
    result.guide = vouched
    return result


def _seen(plan: PlanConfig) -> PlanConfig:
    """What of a plan decides about the network's input."""
    return plan.model_copy(update={"memory_gb": None, "batch_size": None})


def _steerable(run: LoadedRun) -> DiffusionModel:
    model = run.model
    if not isinstance(model, DiffusionModel) or isinstance(model, LatentModel | JointModel):
        raise UsageError(
            "only a model that diffuses masks themselves can be guided",
            file=run.folder,
            field="--model",
        )
    return model
