"""Restoration: a translation whose source is made from its target, so that no pairs are needed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from medseg_diff.config.base import Section

if TYPE_CHECKING:
    from medseg_diff.config.sections import Config


class RestorationConfig(Section):
    """How the source is made from the image itself; see :mod:`medseg_diff.data.restoration`."""

    kind: Literal["super_resolution", "inpainting"] = Field(
        description="super_resolution: block means along axes, interpolated back; inpainting: "
        "boxes and ellipsoids are taken out"
    )
    axes: tuple[Annotated[int, Field(ge=0, le=2)], ...] = Field(
        (0, 1), min_length=1, description="super_resolution: axes of the plan's grid made coarser"
    )
    factors: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        (2, 4), min_length=1, description="super_resolution: voxels of a block; one drawn a sample"
    )
    hole_sides: tuple[float, float] = Field(
        (0.2, 0.5),
        description="inpainting: sides of a hole as a share of the patch's, drawn between",
    )

    @model_validator(mode="after")
    def _in_range(self) -> RestorationConfig:
        low, high = self.hole_sides
        if not 0 < low <= high <= 1:
            raise ValueError("hole_sides are two shares, 0 < low <= high <= 1")
        return self


def beside_restoration(config: Config) -> Iterator[tuple[bool, str]]:
    """What cannot stand beside a restoration, each with the sentence for the user."""
    restoration, plan, model = config.restoration, config.plan, config.model
    if restoration is None:
        return
    filling = restoration.kind == "inpainting"
    yield (
        any(n.kind not in ("percentile", "range") for n in plan.normalisation or ()),
        "a restoration gives a scan back its own values: set plan.normalisation to percentile or "
        "range",
    )
    yield (
        model.adversarial is not None,
        "a restoration learns from one list, and model.adversarial from two: leave one out",
    )
    yield (
        model.prior is not None,
        "a restoration is told of its scan, and model.prior makes scans from nothing or a label "
        "map: leave one out",
    )
    yield (
        plan.centre_crop is not None,
        "a restoration is of the whole scan: leave out plan.centre_crop",
    )
    yield (
        not filling
        and plan.spatial_dims is not None
        and max(restoration.axes) >= plan.spatial_dims,
        f"restoration.axes {list(restoration.axes)} are not all among the network's "
        f"{plan.spatial_dims} axes: choose others, or set plan.spatial_dims: 3",
    )
    yield (
        filling and (model.noises_condition or model.learned_variance),
        "inpainting shows what is known as it is: leave out model.condition_noise, coarse and "
        "learned_variance",
    )
    yield (
        filling and model.kind == "diffusion" and not model.concat_image,
        "inpainting tells the denoiser where the hole is beside its state: set model.concat_image: "
        "true",
    )
