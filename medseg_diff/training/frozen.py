"""Training on a frozen base: adapters of its weights, or a further condition beside them.

Both start from a trained run that answers exactly as it did, see the image as that run saw it, and
leave its weights as they are.
"""

from __future__ import annotations

from pathlib import Path

from medseg_diff import adapters
from medseg_diff.checkpoint import WEIGHTS, LoadedRun, load_run
from medseg_diff.codecs import Codec, OneHotCodec
from medseg_diff.config import Config
from medseg_diff.errors import InputError, UsageError
from medseg_diff.model import DiffusionModel, SegmentationModel
from medseg_diff.networks import lora
from medseg_diff.networks.controlnet import ControlledUNet, FirstPlanes


def base_of(init: Path | None, config: Config) -> LoadedRun | None:
    """The trained run that a training leaves frozen, or None where it trains a whole model.

    Raises:
        UsageError: if the configuration asks for a frozen base and none is given.
        InputError: if the base is no trained run, or its model is another.
    """
    control = config.model.control_planes > 0
    if config.training.lora is None and not control:
        return None
    if init is None or not init.is_dir():
        raise UsageError(
            f"{'a further condition' if control else 'an adapter'} belongs to a trained run",
            field="--init",
            found="none" if init is None else init.name,
            expected="the run folder that stays frozen",
            remedy="give it with --init, with --resume too",
        )
    base = load_run(init)
    theirs, ours = (c.model.model_dump() for c in (base.config, config))
    free = {"control_planes"} if control else set()
    differing = next((key for key in ours if key not in free and ours[key] != theirs[key]), None)
    if differing is None and control and theirs["control_planes"] > 0:
        differing = "control_planes"
    if differing is not None:
        raise InputError(
            "its model is not the one that is configured",
            file=init,
            field=f"model.{differing}",
            found=theirs[differing],
            expected=0 if differing == "control_planes" else ours[differing],
            remedy="use the recipe and the model keys of the run's config.yaml",
        )
    return base


def on_plan_of(base: LoadedRun, config: Config) -> Config:
    """A configuration whose open keys of ``plan`` are the base's: a frozen network sees as before.

    The batch size is left open for the data, and so are intensities where there are more channels
    than the base has: see :func:`normalised_as`.
    """
    ours, theirs = config.plan.model_dump(), base.config.plan.model_dump()
    theirs |= {"batch_size": None, "memory_gb": None}
    if config.model.control_planes > 0:
        theirs["normalisation"] = None
    kept = {key: theirs[key] if value is None else value for key, value in ours.items()}
    for key in ("orientation", "coordinates", "slice_position"):
        if key not in config.plan.model_fields_set:
            kept[key] = theirs[key]
    return config.model_copy(update={"plan": type(config.plan).model_validate(kept)})


def normalised_as(base: LoadedRun, config: Config) -> Config:
    """A complete configuration whose first channels are the base's, named and normalised alike.

    Raises:
        InputError: if the data do not have the base's channels first, and the condition's after.
    """
    if config.model.control_planes == 0:
        return config
    ours, theirs = config.task, base.config.task
    if ours is None or theirs is None:
        raise ValueError("the configuration is not complete: it has no task")
    seen = base.config.input_planes
    if (
        ours.channels[: len(theirs.channels)] != theirs.channels
        or config.input_planes != seen + config.model.control_planes
    ):
        raise InputError(
            "the data do not have the base's channels first and the condition's after",
            file=base.folder,
            field="channels",
            found=f"{', '.join(ours.channels)} ({config.input_planes} planes)",
            expected=f"{', '.join(theirs.channels)} and {config.model.control_planes} more planes",
            remedy="order the case list's channels so, and set model.control_planes",
        )
    own, first = config.plan.normalisation or (), base.config.plan.normalisation or ()
    plan = config.plan.model_copy(update={"normalisation": (*first, *own[len(first) :])})
    return config.model_copy(update={"plan": plan})


def start(model: SegmentationModel, base: LoadedRun, config: Config) -> None:
    """Give an untrained model the base's weights, frozen; it answers as the base does.

    Raises:
        InputError: if the base's weights do not fit, as where the new data have other structures.
        UsageError: if a pattern of ``training.lora`` fits nothing.
    """
    if config.training.lora is not None:
        adapters.adapt(model, base, config)
        return
    theirs = base.model
    if not isinstance(model, DiffusionModel) or not isinstance(theirs, DiffusionModel):
        raise ValueError("a further condition needs a diffusion model")
    if model.codec != theirs.codec:
        raise InputError(
            "the data have other structures than the base",
            file=base.folder,
            field="labels",
            found=_made(model.codec),
            expected=_made(theirs.codec),
            remedy="use a case list with the base's labels",
        )
    if not isinstance(model.denoiser, ControlledUNet):
        raise ValueError("a further condition needs a controlled denoiser")
    model.denoiser.start_from(theirs.denoiser.state_dict())
    if isinstance(model.conditioner, FirstPlanes) and theirs.conditioner is not None:
        model.conditioner.inner.load_state_dict(theirs.conditioner.state_dict())


def begin(model: SegmentationModel, step: int, config: Config) -> None:
    """Prepare for a training step: the base's own stages lie behind, and it stays frozen."""
    latent = config.model.latent
    model.begin(step if latent is None else step + latent.steps)
    if config.training.lora is not None:
        lora.freeze(model, config.training.lora.whole, without=adapters.LEFT_ALONE)


def identity(base: LoadedRun | None) -> dict[str, str]:
    """What a resumed training must find again: the base's hash."""
    return {} if base is None else {"base": str(base.card["sha256"][WEIGHTS])}


def _made(codec: Codec) -> str:
    """What a model makes, for a message."""
    return str(codec.members) if isinstance(codec, OneHotCodec) else "an image"
