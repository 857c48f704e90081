"""A second loss of a training, on data of its own and, where it learns something, with weights.

A companion is handed to :func:`medseg_diff.training.fit.fit` by whoever starts the training, as a
method of domain adaptation does with scans that no configuration names. It ends with the training:
the run holds the model alone.

Legend: B batch, C image channels, K structures, *S spatial axes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from medseg_diff.data.records import Batch
from medseg_diff.errors import UsageError
from medseg_diff.model import SegmentationModel, UNetModel


class Companion(nn.Module, ABC):
    """What joins a training. Its parameters share the optimiser; resume points keep its state."""

    @abstractmethod
    def losses(
        self, model: SegmentationModel, batch: Batch, number: int, average: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Weighted losses by name, which are added to the model's own.

        Args:
            model: In training.
            batch: What the model's own loss was taken on.
            number: Of the micro-batch, from 0: all randomness follows from it and the seed, so
                that a resumed training goes on as if it had not stopped.
            average: The running average of the model's state, by name; not to be changed.
        """


def segmenter(model: SegmentationModel) -> UNetModel:
    """The model as a plain U-Net, whose logits a companion can read in one pass.

    Raises:
        UsageError: if it is none.
    """
    if not isinstance(model, UNetModel):
        raise UsageError(
            "this method reads the logits of a plain U-Net", field="model.kind", expected="unet"
        )
    return model
