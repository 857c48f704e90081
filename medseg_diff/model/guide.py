"""Draws steered towards what another network says about the same image.

Legend: B batch, K classes or regions, *S spatial axes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medseg_diff.codecs import OneHotCodec
from medseg_diff.diffusion import guidance
from medseg_diff.diffusion.paths import Path
from medseg_diff.diffusion.samplers import Denoise
from medseg_diff.model.base import Sampling
from medseg_diff.model.baseline import UNetModel
from medseg_diff.networks.conditioners import Context

# Probabilities stay this far from 0 and 1: one voxel never decides alone.
MARGIN = 1e-3


@dataclass(frozen=True)
class Guide:
    """Classifier guidance by a trained U-Net's probabilities u of the mask.

    The energy is the cross-entropy of the clean estimate p(x_t) under them, over all voxels:

        log p(y | x_t) ~ sum of p(x_t) log u   (and of (1 - p) log(1 - u), where regions overlap)

    It stands for log u of the mask itself, which a noisy state does not show; the estimate in the
    mask's place is the approximation of Chung et al. (2023, diffusion posterior sampling, Eq. 10).
    So draws lean towards p(mask | image) u(mask | image)^scale, exactly so to first order in the
    scale where voxels are independent and the denoiser is exact, and their spread narrows. It is
    no calibrated posterior: both factors know the same image.

    Attributes:
        model: Trained U-Net of the same task and plan.
        path: The steered model's noising process.
        codec: Its codec.
        scale: 0 is no guidance.
    """

    model: UNetModel
    path: Path
    codec: OneHotCodec
    scale: float

    def __call__(
        self, follow: Callable[[Context], Denoise], denoise: Denoise, context: Context
    ) -> Denoise:
        """Steer one trajectory.

        Args:
            follow: Denoiser of a context, by which the gradient is taken.
            denoise: What is steered.
            context: Its windows; the guide sees their image.

        Returns:
            Denoiser whose estimates stay in [-1, 1].
        """
        answer = self.model.context(context.image)
        (estimate,) = self.model.trajectory(answer, context.image, Sampling())
        # Ordinary copies: the gradient passes where inference mode does not reach.
        with torch.inference_mode(False):
            u = estimate.probabilities.clone().clamp(MARGIN, 1 - MARGIN)
            plain = follow(_copied(context))

        def log_probability(x_t: Tensor, t: Tensor) -> Tensor:
            p = self.codec.probabilities_from_state(plain(x_t, t).clean)
            terms = p * u.log()
            if not self.codec.exclusive:
                terms = terms + (1 - p) * torch.log1p(-u)
            return terms.flatten(1).sum(1)

        steered = guidance.classifier(denoise, log_probability, self.path, self.scale)
        return guidance.clip_static(steered)


def _copied(context: Context) -> Context:
    return replace(
        context,
        image=context.image.clone(),
        features=tuple(f.clone() for f in context.features),
        anchor=None if context.anchor is None else context.anchor.clone(),
    )
