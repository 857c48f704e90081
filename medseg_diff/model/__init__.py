"""The model: the only part that sees networks and diffusion together.

``loss(batch)`` trains it, ``context(image)`` encodes a window once, ``trajectory(context, ...)``
draws masks, or translated images, from it. The baselines (U-Net, MC dropout, Probabilistic U-Net,
and a translation's one-step regression) answer the same calls.
"""

from medseg_diff.model.adversarial import AdversarialModel
from medseg_diff.model.base import Estimate, Loss, Sampling, SegmentationModel
from medseg_diff.model.baseline import RegressionModel, UNetModel
from medseg_diff.model.build import build_model
from medseg_diff.model.cascade import NoisedConditionModel
from medseg_diff.model.diffusion import DiffusionModel
from medseg_diff.model.discrete import DiscreteModel
from medseg_diff.model.dropout import DropoutUNetModel
from medseg_diff.model.features import FeatureModel
from medseg_diff.model.flipped import with_flips
from medseg_diff.model.inpainting import InpaintingModel
from medseg_diff.model.joint import JointModel
from medseg_diff.model.latent import LatentModel
from medseg_diff.model.prior import LatentPriorModel, PriorModel
from medseg_diff.model.probabilistic import ProbabilisticUNetModel

__all__ = [
    "AdversarialModel",
    "DiffusionModel",
    "DiscreteModel",
    "DropoutUNetModel",
    "Estimate",
    "FeatureModel",
    "InpaintingModel",
    "JointModel",
    "LatentModel",
    "LatentPriorModel",
    "Loss",
    "NoisedConditionModel",
    "PriorModel",
    "ProbabilisticUNetModel",
    "RegressionModel",
    "Sampling",
    "SegmentationModel",
    "UNetModel",
    "build_model",
    "with_flips",
]
