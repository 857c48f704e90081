"""Frozen, typed configuration: what a YAML may say, checked at the door.

A run's ``config.yaml`` is complete: what the user left out is filled in from the case list
(``task``) and from the fingerprint of the training scans (``plan``).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from medseg_diff.errors import UsageError


class Section(BaseModel):
    """A part of the configuration: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Normalisation(Section):
    """How one channel's intensities become network input."""

    kind: Literal["zscore_foreground", "ct", "zscore", "unit"] = Field(
        description="zscore_foreground: mean 0, sd 1 over voxels that are not background; "
        "ct: clip, then the training set's mean and sd; zscore: over the whole image; "
        "unit: divide by scale"
    )
    clip: tuple[float, float] | None = None
    mean: float = 0.0
    sd: float = Field(1.0, gt=0)
    scale: float = Field(255.0, gt=0)


class DataConfig(Section):
    """Where the cases are and which are trained on."""

    cases: str = Field("sample", description="case list (JSON), or 'sample': the embedded one")
    root: str | None = Field(None, description="folder the list's paths start from")
    fold: int | None = Field(None, ge=0)
    folds: int = Field(5, ge=2)
    foreground_crops: float = Field(0.5, ge=0, le=1, description="share of crops on a structure")
    limit: int | None = Field(None, ge=1, description="train on the first N cases only")


class TaskConfig(Section):
    """What is segmented; copied from the case list."""

    modality: Literal["MR", "CT", "RGB", "other"] = "other"
    channels: tuple[str, ...] = Field(min_length=1)
    labels: dict[str, int]
    regions: dict[str, tuple[int, ...]] | None = None
    ignore_label: int | None = None
    input_channels: tuple[int, ...] | None = Field(
        None, description="planes of each channel's file: 1, or 3 for RGB"
    )

    @property
    def structures(self) -> dict[str, tuple[int, ...]]:
        """Foreground structures by name, with the label values each holds."""
        if self.regions is not None:
            return dict(self.regions)
        # The codec's channels go by label value, in whatever order a case list names them.
        by_value = sorted(self.labels.items(), key=lambda item: item[1])
        return {name: (value,) for name, value in by_value if value != 0}

    @property
    def image_planes(self) -> int:
        """Channels of the network's image input."""
        return sum(self.input_channels or [1] * len(self.channels))


class PlanConfig(Section):
    """Geometry and intensity of the network's input; None is chosen by the fingerprint."""

    spatial_dims: Literal[2, 3] | None = None
    orientation: str = Field("RAS", description="axis order and direction of the model's grid")
    spacing_mm: tuple[float, float, float] | None = None
    patch_size: tuple[int, ...] | None = Field(None, min_length=2, max_length=3)
    normalisation: tuple[Normalisation, ...] | None = None
    memory_gb: float | None = Field(
        None, gt=0, description="memory that one training step may take; half of what is free"
    )
    batch_size: int | None = Field(None, ge=1)


class ObjectiveConfig(Section):
    """Weights of the losses; 0 leaves one out."""

    dice: float = Field(0.0, ge=0)
    cross_entropy: float = Field(0.0, ge=0)
    squared_error: float = Field(0.0, ge=0)
    anchor: float = Field(0.0, ge=0, description="Dice + cross-entropy on the conditioner's mask")


class ModelConfig(Section):
    """Axes of the model; see ``recipes.py`` for the papers."""

    kind: Literal["diffusion", "unet"] = "diffusion"
    features: tuple[int, ...] = Field(min_length=2)
    conditioner: Literal["none", "pyramid", "anchored"] = "none"
    conditioner_features: tuple[int, ...] | None = None
    concat_image: bool = True
    time_channels: int = Field(128, ge=4, multiple_of=4)
    schedule: Literal["linear", "cosine"] = "linear"
    betas: tuple[Annotated[float, Field(gt=0, lt=1)], ...] | None = Field(
        None, min_length=1, description="beta table instead of a schedule"
    )
    input_scale: float = Field(1.0, gt=0, le=1)
    output: Literal["clean", "noise", "velocity", "correction"] = Field(
        "clean",
        description="clean and correction are logits; a correction is added to the anchor's",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> ModelConfig:
        if self.output == "correction" and self.conditioner != "anchored":
            raise ValueError("output 'correction' corrects an anchor: set conditioner: anchored")
        widths = self.conditioner_features
        if widths is not None and len(widths) != len(self.features):
            raise ValueError(
                f"conditioner_features has {len(widths)} levels and features "
                f"{len(self.features)}: give both the same number"
            )
        return self


class TrainingConfig(Section):
    """The optimiser's budget and habits."""

    steps: int = Field(1000, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-5, ge=0)
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
    stop_after_bad_losses: int = Field(5, ge=1, description="NaN or Inf losses in a row")
    augment: bool = True
    mirror_axes: tuple[int, ...] = Field(
        (), description="axes that may be mirrored; left out where left and right differ"
    )


class PredictionConfig(Section):
    """How masks are drawn; every key can be overridden at the command line."""

    draws: int = Field(5, ge=1)
    steps: int = Field(5, ge=1)
    sampler: Literal["ddim", "ancestral"] = "ddim"
    grid: Literal["uniform", "quadratic"] = "uniform"
    fuse: Literal["mean"] = "mean"
    overlap: float = Field(0.5, ge=0, lt=1)
    batch_size: int = Field(8, ge=1, description="windows x draws in one network call")


class Config(Section):
    """One experiment."""

    name: str = "model"
    recipe: str | None = None
    seed: int = 0
    data: DataConfig = DataConfig()
    task: TaskConfig | None = None
    plan: PlanConfig = PlanConfig()
    model: ModelConfig
    objective: ObjectiveConfig = ObjectiveConfig()
    training: TrainingConfig = TrainingConfig()
    prediction: PredictionConfig = PredictionConfig()

    def to_yaml(self) -> str:
        """YAML text that :func:`parse_config` turns back into an equal configuration."""
        text: str = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
        return text


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, start from its ``recipe``, apply ``key.sub=value`` overrides.

    Raises:
        UsageError: on a missing file, broken YAML, unknown keys (with the nearest name) or
            values out of range.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError("no such configuration file", file=path, remedy="check the path")
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise UsageError(f"not valid YAML: {first}", file=path) from None
    if not isinstance(given, dict):
        raise UsageError("not a mapping of keys", file=path, found=type(given).__name__)
    return parse_config(given, overrides, file=path)


def parse_config(
    given: Mapping[str, Any], overrides: Sequence[str] = (), *, file: Path | None = None
) -> Config:
    """Checked configuration from a mapping; see :func:`load_config`."""
    from medseg_diff import recipes

    keys = dict(given)
    for override in overrides:
        keys = _with_override(keys, override)
    if keys.get("recipe") is not None:
        keys = merged(recipes.seed(str(keys["recipe"])), keys)
    try:
        return Config.model_validate(keys)
    except ValidationError as error:
        raise _as_input_error(error, file) from None


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the keys of ``over`` on top, mapping by mapping."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = merged(old, value)
        result[key] = value
    return result


def _with_override(keys: dict[str, Any], override: str) -> dict[str, Any]:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise UsageError(
            "an override has the form key.sub=value", field="--set", found=repr(override)
        )
    try:
        tree: Any = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UsageError(
            "the value is not valid YAML", field="--set", found=repr(override)
        ) from None
    for part in reversed(name.split(".")):
        tree = {part: tree}
    return merged(keys, tree)


def _as_input_error(error: ValidationError, file: Path | None) -> UsageError:
    """First complaint of pydantic as one line, with the nearest name for an unknown key."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    more = error.error_count() - 1
    tail = f" (and {more} more)" if more else ""
    if first["type"] == "extra_forbidden":
        section: Any = Config
        for part in location[:-1]:
            if part.isdigit():
                continue
            field = section.model_fields.get(part) if hasattr(section, "model_fields") else None
            section = _section_of(field.annotation) if field is not None else None
        names = list(getattr(section, "model_fields", {}))
        near = difflib.get_close_matches(location[-1], names, n=1, cutoff=0.5)
        remedy = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(names)}"
        return UsageError(f"unknown key{tail}", file=file, field=".".join(location), remedy=remedy)
    message = first["msg"].removeprefix("Value error, ")
    found = first.get("input")
    simple = isinstance(found, str | int | float | bool | list | tuple)
    return UsageError(
        f"{message}{tail}",
        file=file,
        field=".".join(location) or None,
        found=repr(found) if simple and first["type"] != "missing" else None,
    )


def _section_of(annotation: Any) -> Any:
    """The Section inside an annotation such as ``tuple[Normalisation, ...] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    inner = (_section_of(argument) for argument in getattr(annotation, "__args__", ()))
    return next((section for section in inner if section is not None), None)
