"""The sections of a configuration: frozen, typed, checked at the door.

A run's ``config.yaml`` is complete: what the user left out is filled in from the case list
(``task``) and from the fingerprint of the training scans (``plan``).
"""

from __future__ import annotations

from typing import Annotated, Literal

import yaml
from pydantic import Field, model_validator

from medseg_diff.config.adapters import LoraConfig
from medseg_diff.config.base import Section
from medseg_diff.config.contradictions import contradictions
from medseg_diff.config.model import ModelConfig
from medseg_diff.config.prediction import PredictionConfig
from medseg_diff.config.restoration import RestorationConfig
from medseg_diff.config.task import TaskConfig


class Normalisation(Section):
    """How one channel's intensities become network input."""

    kind: Literal["zscore_foreground", "ct", "zscore", "unit", "percentile", "range"] = Field(
        description="zscore_foreground: mean 0, sd 1 over voxels that are not background; "
        "ct: clip, then the training set's mean and sd; zscore: over the whole image; "
        "unit: divide by scale; percentile: the image's own percentiles 0.5 and 99.5 become -1 "
        "and 1; range: the ends of clip do"
    )
    clip: tuple[float, float] | None = None
    mean: float = 0.0
    sd: float = Field(1.0, gt=0)
    scale: float = Field(255.0, gt=0)


class DataConfig(Section):
    """Where the cases are and which are trained on."""

    cases: str = Field("sample", description="case list (JSON), or 'sample': the embedded one")
    root: str | None = Field(None, description="folder the list's paths start from")
    target_cases: str | None = Field(
        None,
        description="case list of the domain to translate into, where there are no pairs; an image "
        "of each list is drawn for every sample",
    )
    target_root: str | None = Field(None, description="folder that target_cases' paths start from")
    fold: int | None = Field(None, ge=0)
    folds: int = Field(5, ge=2)
    foreground_crops: float = Field(0.5, ge=0, le=1, description="share of crops on a structure")
    limit: int | None = Field(None, ge=1, description="train on the first N cases only")
    annotators: Literal["random", "all", "first"] = Field(
        "random",
        description="of cases with several masks: one drawn at random in each epoch, every one "
        "in each epoch, or the first alone",
    )


class PlanConfig(Section):
    """Geometry and intensity of the network's input; None is chosen by the fingerprint."""

    spatial_dims: Literal[2, 3] | None = None
    orientation: str = Field("RAS", description="axis order and direction of the model's grid")
    spacing_mm: tuple[float, float, float] | None = None
    patch_size: tuple[int, ...] | None = Field(None, min_length=2, max_length=3)
    normalisation: tuple[Normalisation, ...] | None = None
    target_range: tuple[float, float] | None = Field(
        None,
        description="values of a translation's target that become -1 and 1, in its own units; what "
        "lies beyond is clipped",
    )
    image_ranges: tuple[tuple[float, float], ...] | None = Field(
        None,
        description="prior: for each plane of the scans, the values that -1 and 1 stand for in "
        "what is made",
    )
    raster: bool | None = Field(
        None, description="prior: whether scans are 2-D files; None is decided by the training's"
    )
    centre_crop: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        None,
        min_length=2,
        max_length=3,
        description="voxels of the model's grid around the scan's centre that are looked at; "
        "beyond is background, for scans that are centred on their structure",
    )
    coordinates: bool = Field(
        False,
        description="further input channels: each voxel's place in the scan, -1 to 1 along every "
        "axis (CoordConv, arXiv 1807.03247), for structures known by where they lie",
    )
    slice_position: bool = Field(
        False,
        description="2-D: one further input channel, the slice's place along the axis that is "
        "sliced, -1 to 1 over the scan",
    )
    memory_gb: float | None = Field(
        None, gt=0, description="memory that one training step may take; half of what is free"
    )
    batch_size: int | None = Field(None, ge=1)


class ObjectiveConfig(Section):
    """Weights of the losses; 0 leaves one out."""

    dice: float = Field(0.0, ge=0)
    cross_entropy: float = Field(0.0, ge=0)
    focal: float = Field(0.0, ge=0)
    squared_error: float = Field(
        0.0, ge=0, description="on the network's own target, or on probabilities for logits"
    )
    absolute_error: float = Field(
        0.0, ge=0, description="translation: mean absolute error on the network's own target"
    )
    squared_error_of: Literal["output", "noise"] = Field(
        "output",
        description="what the squared error compares: the network's own output, or the noise that "
        "its output implies (DDPM's L_simple for any output)",
    )
    variational_bound: float = Field(
        0.0, ge=0, description="Improved DDPM's L_vlb; trains a learned variance"
    )
    kl: float = Field(
        0.0,
        ge=0,
        description="probabilistic_unet: beta of KL(posterior || prior); discrete: KL of a step's "
        "posterior, in nats a voxel",
    )
    anchor: float = Field(0.0, ge=0, description="Dice + cross-entropy on the conditioner's mask")
    anchor_cross_entropy: float = Field(1.0, ge=0, description="cross-entropy's share of anchor")
    anchor_every: int = Field(
        1, ge=1, description="the anchor's loss counts at every n-th of 1000 time steps"
    )
    min_snr_gamma: float | None = Field(None, gt=0, description="weight of the squared error")
    time_law: Literal["uniform", "logit_normal", "late", "importance"] = Field(
        "uniform",
        description="how training times are drawn; late favours noisy ones, importance those whose "
        "losses were large, with weights that keep the loss what it is (Improved DDPM)",
    )
    time_law_shape: float = Field(2.0, gt=0, description="late: t = u^(1/shape)")
    time_law_bins: int = Field(100, ge=1, description="importance: cells of the time axis")
    time_law_history: int = Field(
        10,
        ge=1,
        description="importance: losses that a cell remembers; times are uniform until all do",
    )
    recycling: float = Field(
        0.0, ge=0, le=1, description="share of samples trained on their own re-noised prediction"
    )


class TrainingConfig(Section):
    """The optimiser's budget and habits."""

    steps: int = Field(1000, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-5, ge=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.999), description="Adam's averages of the gradient and of its square"
    )
    warmup_steps: int = Field(50, ge=0)
    schedule: Literal["cosine", "polynomial", "constant"] = "cosine"
    clip_norm: float = Field(1.0, gt=0)
    accumulate: int = Field(1, ge=1, description="micro-batches of one optimiser step")
    ema_decay: float = Field(0.999, ge=0, lt=1)
    precision: Literal["no", "fp16", "bf16"] = "no"
    validate_every: int = Field(200, ge=1)
    validation_cases: int = Field(8, ge=1)
    save_every: int = Field(100, ge=1)
    workers: int = Field(0, ge=0)
    patience_minutes: float = Field(
        30,
        gt=0,
        description="how long one of several processes waits for the others, e.g. for validation",
    )
    stop_after_bad_losses: int = Field(5, ge=1, description="NaN or Inf losses in a row")
    augment: bool = True
    augmentation: Literal["standard", "strong", "synthetic"] = Field(
        "standard",
        description="strong adds random convolutions, gain fields, coarse axes and contrast "
        "(data/appearance.py); synthetic replaces every image by one drawn from its label map",
    )
    mirror_axes: tuple[int, ...] = Field(
        (), description="axes that may be mirrored; left out where left and right differ"
    )
    reflow_from: str | None = Field(
        None,
        description="run folder of a trained flow whose own pairs of noise and mask are learned, "
        "which straightens it; prediction does not need it",
    )
    lora: LoraConfig | None = Field(
        None, description="train adapters of the run that --init names, and leave it frozen"
    )
    reflow_steps: int = Field(20, ge=1, description="Euler steps from a pair's noise to its mask")


class Config(Section):
    """One experiment."""

    name: str = "model"
    recipe: str | None = None
    seed: int = 0
    data: DataConfig = DataConfig()
    task: TaskConfig | None = None
    plan: PlanConfig = PlanConfig()
    model: ModelConfig
    restoration: RestorationConfig | None = Field(
        None, description="translate a source that is made from the list's own image into it"
    )
    objective: ObjectiveConfig = ObjectiveConfig()
    training: TrainingConfig = TrainingConfig()
    prediction: PredictionConfig = PredictionConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        for broken, message in contradictions(self):
            if broken:
                raise ValueError(message)
        return self

    @property
    def known_task(self) -> TaskConfig:
        """The task of a complete configuration."""
        if self.task is None:
            raise ValueError("the configuration is not complete: it has no task")
        return self.task

    @property
    def window(self) -> tuple[int, int, int]:
        """Voxels along the model grid's three axes that prediction looks at in one piece."""
        if self.plan.patch_size is None:
            raise ValueError("the configuration is not complete: it has no patch size")
        size = self.prediction.window or self.plan.patch_size
        return (size[0], size[1], size[2] if len(size) == 3 else 1)

    @property
    def makes(self) -> Literal["masks", "translations", "scans"]:
        """What comes out of the trained model."""
        if self.model.prior is not None:
            return "scans"
        return "masks" if self.known_task.target is None else "translations"

    @property
    def input_planes(self) -> int:
        """Channels of the network's image input: images, or a prior's label map (as one), a hole's
        place, the slice's place, coordinates.
        """
        if self.task is None or self.plan.spatial_dims is None:
            raise ValueError("the configuration is not complete: task and plan come from the data")
        places = self.plan.spatial_dims if self.plan.coordinates else 0
        hole = self.restoration is not None and self.restoration.kind == "inpainting"
        seen = {None: self.task.image_planes, "mask": 1, "unconditional": 0}[self.model.prior]
        return seen + int(hole) + int(self.plan.slice_position) + places

    def to_yaml(self) -> str:
        """YAML text that :func:`parse_config` turns back into an equal configuration."""
        text: str = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
        return text
