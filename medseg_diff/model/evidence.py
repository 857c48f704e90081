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
from medseg_diff.diffusion.samplers import Denoise, Denoised
from medseg_diff.networks.conditioners import Context

SMALL = 1e-6
# Prior probabilities stay this far from 0: the scan may always object.
MARGIN = 1e-4


def spread_within(image: Tensor, p: Tensor, reach: float | None) -> Tensor:
    """Squared distance of greys from the mean of their class, (B,), summed over voxels.

        E(p) = sum over k, x of  integral of G(x - y) p_k(y) (I(y) - c_k(x))^2 dy

    with c_k(x) the mean grey of class k around x, weighted by G: the data term of Chan & Vese
    (2001) with soft classes and local means (region-scalable fitting, Li et al. 2008). Turning all
    greys around, I -> a - I, changes nothing.

    Args:
        image: (B, C, *S).
        p: Probabilities of classes that sum to 1, (B, K, *S).
        reach: Standard deviation of the Gaussian G in voxels; None takes means over the whole
            window, as Chan & Vese do.
    """
    return (p * distances(image, p, reach)).flatten(1).sum(1)


def distances(image: Tensor, p: Tensor, reach: float | None) -> Tensor:
    """Gradient of :func:`spread_within` by p, (B, K, *S): each voxel's squared distance in grey.

    The means c_k follow p, but since they are the best there are, that adds nothing to it.
    """
    blur = _blur(image.ndim - 2, reach)
    share = blur(p) + SMALL
    whole = blur(torch.ones_like(p))
    found = torch.zeros_like(p)
    for grey in image.split(1, dim=1):
        mean = blur(p * grey) / share
        # integral of G (I - c)^2, written out: G does not see I(y), c(x) it does.
        found = found + grey.square() * whole - 2 * grey * blur(mean) + blur(mean.square())
    return found


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

    At every step of a draw the denoiser's answer is p(class of a voxel | x_t). Greys that are
    Gaussian around the mean of their class make of it, by Bayes,

        p_k <- p_k exp(-d_k / (2 sd^2)) / sum over k,     d = ``distances``

    which is exact where voxels are independent given x_t and the means are known; it is also one
    step of exponentiated gradient down E / (2 sd^2). Means are taken from the prior's answer at
    that step. No gradient passes through the network, so a step costs what it does without.

    Attributes:
        codec: The prior's codec.
        planes: Channels of the image, without those of coordinates.
        sd: Of greys within a class, in the network's units: those of a normalised image.
        reach: See :func:`spread_within`.
    """

    codec: OneHotCodec
    planes: int
    sd: float = 0.3
    reach: float | None = 4.0

    def __call__(
        self, follow: Callable[[Context], Denoise], denoise: Denoise, context: Context
    ) -> Denoise:
        """Steer one trajectory; see ``DiffusionModel.steer``."""
        image = context.image[:, : self.planes]

        def steered(x_t: Tensor, t: Tensor) -> Denoised:
            answer = denoise(x_t, t)
            p = self.codec.probabilities_from_state(answer.clean)
            return Denoised(2 * self.posterior(image, p) - 1, answer.variance)

        return steered

    def posterior(self, image: Tensor, p: Tensor) -> Tensor:
        """Probabilities (B, K, *S) after a look at the image; regions that overlap one by one."""
        if self.codec.exclusive:
            return self._bayes(image, p)
        pairs = [torch.cat([1 - one, one], dim=1) for one in p.split(1, dim=1)]
        return torch.cat([self._bayes(image, pair)[:, 1:] for pair in pairs], dim=1)

    def _bayes(self, image: Tensor, p: Tensor) -> Tensor:
        p = p.clamp(min=MARGIN)
        p = p / p.sum(1, keepdim=True)
        return (p.log() - distances(image, p, self.reach) / (2 * self.sd**2)).softmax(1)
