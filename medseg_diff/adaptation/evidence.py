"""What a scan says about a mask without any source intensity: structures are alike in grey.

Legend: B batch, C image channels, K classes, *S spatial axes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from monai.networks.layers import GaussianFilter
from torch import Tensor

from medseg_diff.codecs import OneHotCodec
from medseg_diff.diffusion import guidance
from medseg_diff.diffusion.paths import Path
from medseg_diff.diffusion.samplers import Denoise
from medseg_diff.model.guide import ordinary
from medseg_diff.networks.conditioners import Context

SMALL = 1e-6


def spread_within(image: Tensor, p: Tensor, reach: float | None) -> Tensor:
    """Squared distance of greys from the mean of their class, (B,), summed over voxels.

        sum over x, k of  integral of G(x - y) p_k(y) (I(y) - c_k(x))^2 dy

    with c_k(x) the mean grey of class k around x, weighted by G: the data term of Chan & Vese
    (2001) with soft classes and local means (region-scalable fitting, Li et al. 2008). Turning all
    greys around, I -> a - I, changes nothing.

    Args:
        image: (B, C, *S).
        p: Probabilities of classes that sum to 1, (B, K, *S).
        reach: Standard deviation of the Gaussian G in voxels; None takes means over the whole
            window, as Chan & Vese do.
    """
    blur = _blur(image.ndim - 2, reach)
    share = blur(p)
    total = torch.zeros(len(p), device=p.device)
    for grey in image.split(1, dim=1):
        first, second = blur(p * grey), blur(p * grey.square())
        total = total + (second - first.square() / (share + SMALL)).flatten(1).sum(1)
    return total


def _blur(dims: int, reach: float | None) -> Callable[[Tensor], Tensor]:
    if reach is not None:
        smooth: Callable[[Tensor], Tensor] = GaussianFilter(dims, reach)
        return smooth
    axes = tuple(range(2, dims + 2))

    def mean(values: Tensor) -> Tensor:
        return values.mean(axes, keepdim=True).expand_as(values)

    return mean


@dataclass(frozen=True)
class Evidence:
    """Steers a prior of masks towards masks whose classes are alike in grey in the scan.

    Adds the gradient of log p(image | mask) = -``spread_within`` / (2 sd^2), Gaussian greys around
    the means of their classes; the denoiser's clean estimate stands for the mask (Chung et al.
    2023, diffusion posterior sampling, Eq. 10).

    Attributes:
        path: The prior's noising process.
        codec: Its codec.
        planes: Channels of the image, without those of coordinates.
        sd: Of greys within a class, in the network's units: those of a normalised image.
        reach: See :func:`spread_within`.
    """

    path: Path
    codec: OneHotCodec
    planes: int
    sd: float = 0.5
    reach: float | None = 4.0

    def __call__(
        self, follow: Callable[[Context], Denoise], denoise: Denoise, context: Context
    ) -> Denoise:
        """Steer one trajectory; see ``DiffusionModel.steer``."""
        # Ordinary copies: the gradient passes where inference mode does not reach.
        with torch.inference_mode(False):
            copied = ordinary(context)
            plain = follow(copied)
        image = copied.image[:, : self.planes]

        def log_probability(x_t: Tensor, t: Tensor) -> Tensor:
            p = self.codec.probabilities_from_state(plain(x_t, t).clean)
            return -sum_over_regions(image, p, self) / (2 * self.sd**2)

        steered = guidance.classifier(denoise, log_probability, self.path)
        return guidance.clip_static(steered)


def sum_over_regions(image: Tensor, p: Tensor, evidence: Evidence) -> Tensor:
    """`spread_within` of exclusive classes; of regions that overlap, the sum over in and out."""
    if evidence.codec.exclusive:
        return spread_within(image, p, evidence.reach)
    pairs = [torch.cat([one, 1 - one], dim=1) for one in p.split(1, dim=1)]
    return torch.stack([spread_within(image, pair, evidence.reach) for pair in pairs]).sum(0)
