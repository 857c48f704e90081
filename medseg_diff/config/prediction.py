"""How masks are drawn, fused and cleaned."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from medseg_diff.config.base import Section

SamplerName = Literal[
    "ddim",
    "ancestral",
    "analytic",
    "dpm_solver_2m",
    "dpm_solver_3m",
    "dpm_solver_sde",
    "unipc",
    "euler",
    "heun",
    "predictor_corrector",
    "consistency",
    "anchor",
]


FuseName = Literal[
    "mean",
    "majority",
    "staple",
    "certainty",
    "step_uncertainty",
    "step_uncertainty_paper",
    "step_sum",
]


class ShapeConfig(Section):
    """What one structure should look like; see ``inference/morphology.py``."""

    fill_holes: bool = False
    min_volume_mm3: float = Field(0.0, ge=0, description="smaller components are taken away")
    keep_largest: bool = False


class PredictionConfig(Section):
    """How masks are drawn; every key can be overridden at the command line."""

    draws: int = Field(5, ge=1)
    steps: int = Field(5, ge=1)
    validation_steps: int | None = Field(
        None, ge=1, description="steps while training validates; None takes steps"
    )
    sampler: SamplerName = Field(
        "ddim",
        description="anchor samples nothing: it answers with the conditioner's own mask, what an "
        "anchored model's draws are compared with",
    )
    grid: Literal["uniform", "quadratic", "karras", "log_snr"] = "uniform"
    t_max: float = Field(1.0, gt=0, le=1, description="noisiest time of the grid")
    start: Literal["noise", "image"] = Field(
        "noise",
        description="image: a latent of features starts from the scan's own features, noised to "
        "t_max, and not from noise alone",
    )
    guidance: float = Field(
        1.0, ge=0, description="classifier-free guidance; 1 is none, others need condition_dropout"
    )
    dynamic_threshold: float | None = Field(
        None, gt=0, le=1, description="percentile of Imagen's dynamic threshold"
    )
    condition_noise: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="level of the noise on the condition, for models trained with "
        "model.condition_noise; up to its value",
    )
    fuse: FuseName = "mean"
    settle: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="stop drawing when further draws are expected to change less than this share "
        "of the mask; draws is then the most",
    )
    flips: tuple[Annotated[int, Field(ge=0, le=2)], ...] = Field(
        (),
        description="axes of the plan's grid to mirror at test time; every combination is a "
        "further member of the ensemble",
    )
    cleanup: Literal["none", "morphology", "largest"] = Field(
        "none", description="clean-up of the mask by shape, after fusion"
    )
    shapes: dict[str, ShapeConfig] = Field(
        {}, description="clean-up of single structures by name, after cleanup"
    )
    window: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        None,
        min_length=2,
        max_length=3,
        description="voxels that are looked at in one piece; None takes plan.patch_size. In a "
        "larger one a convolutional network sees more around each voxel than in training",
    )
    overlap: float = Field(0.5, ge=0, lt=1)
    batch_size: int = Field(8, ge=1, description="windows x draws in one network call")

    @model_validator(mode="after")
    def _settles(self) -> PredictionConfig:
        if self.settle is not None and self.fuse not in ("mean", "majority", "staple"):
            raise ValueError(
                f"settle watches the mean of the draws, which fuse '{self.fuse}' does not use: "
                "take mean, majority or staple"
            )
        return self
