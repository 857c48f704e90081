"""A model that looks at the image in a mirror: a further member of an ensemble."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations

from torch import Tensor

from medseg_diff.data.records import Batch
from medseg_diff.diffusion.samplers import FreshNoise
from medseg_diff.model.base import Estimate, Loss, Sampling, SegmentationModel
from medseg_diff.networks.conditioners import Context


class Flipped(SegmentationModel):
    """Another model's answer about the mirrored image, mirrored back.

    Only probabilities are mirrored back; an estimate's states stay as the model drew them.

    Args:
        model: Who answers.
        axes: Spatial axes to mirror, from 0.
        coordinates: Last channels of the image that say where a voxel lies, one per axis: what
            is mirrored lies on the other side.
    """

    def __init__(self, model: SegmentationModel, axes: Sequence[int], coordinates: int = 0) -> None:
        super().__init__()
        self.model, self.codec, self.stochastic = model, model.codec, model.stochastic
        self.draw_normals = model.draw_normals
        self.axes = [axis + 2 for axis in axes]
        self.turned = [axis - coordinates for axis in axes if axis < coordinates]

    @property
    def noise_channels(self) -> int:
        """The model's own."""
        return self.model.noise_channels

    def loss(self, batch: Batch) -> Loss:
        """The model's own: mirroring is for prediction."""
        return self.model.loss(batch)

    def context(self, image: Tensor) -> Context:
        """Encode the mirrored windows (B, C, *S)."""
        mirrored = image.flip(self.axes)
        for channel in self.turned:
            mirrored[:, channel] *= -1
        return self.model.context(mirrored)

    def trajectory(
        self,
        context: Context,
        noise: Tensor,
        sampling: Sampling,
        fresh_noise: FreshNoise | None = None,
    ) -> Iterator[Estimate]:
        """See :meth:`SegmentationModel.trajectory`."""
        for estimate in self.model.trajectory(context, noise, sampling, fresh_noise):
            yield replace(estimate, decode=self._mirrored(estimate.decode))

    def check(self, sampling: Sampling) -> None:
        """See :meth:`SegmentationModel.check`."""
        self.model.check(sampling)

    def _mirrored(self, decode: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda clean: decode(clean).flip(self.axes)


def with_flips(
    model: SegmentationModel, axes: Sequence[int], coordinates: int = 0
) -> list[SegmentationModel]:
    """The model, and one mirrored member for every combination of axes: 2^n in all."""
    chosen = [c for n in range(1, len(axes) + 1) for c in combinations(sorted(set(axes)), n)]
    return [model, *(Flipped(model, combination, coordinates) for combination in chosen)]
