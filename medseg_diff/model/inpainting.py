"""A denoiser that fills a hole: what is known stays known, and only the hole is learned.

Legend: B batch, K channels of the state, *S spatial axes.
"""

from __future__ import annotations

from torch import Tensor

from medseg_diff.data.records import Batch
from medseg_diff.model.diffusion import DiffusionModel
from medseg_diff.networks.conditioners import Context


class InpaintingModel(DiffusionModel):
    """A :class:`DiffusionModel` of images whose condition has a plane that is 1 in the hole.

    Outside the hole the network sees no state, in training as at prediction, since the condition
    holds the image there; and no loss counts there.
    """

    # Plane of the condition that says where the hole is; `build_model` sets it.
    hole_plane = 1

    def raw(
        self, x_t: Tensor, t: Tensor, context: Context, previous: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """See :meth:`DiffusionModel.raw`."""
        return super().raw(x_t * self._hole(context.image), t, context, previous)

    def _weight(self, batch: Batch) -> Tensor | None:
        return self._hole(batch.image)

    def _hole(self, image: Tensor) -> Tensor:
        return image[:, self.hole_plane : self.hole_plane + 1]
