"""The model: the only part that sees networks and diffusion together.

``loss(batch)`` trains it, ``context(image)`` encodes a window once, ``trajectory(context, ...)``
draws masks from it. The baseline U-Net answers the same three calls.
"""

from medseg_diff.model.base import Estimate, Loss, Sampling, SegmentationModel
from medseg_diff.model.baseline import UNetModel
from medseg_diff.model.build import build_model
from medseg_diff.model.diffusion import DiffusionModel
from medseg_diff.model.flipped import with_flips
from medseg_diff.model.latent import LatentModel

__all__ = [
    "DiffusionModel",
    "Estimate",
    "LatentModel",
    "Loss",
    "Sampling",
    "SegmentationModel",
    "UNetModel",
    "build_model",
    "with_flips",
]
