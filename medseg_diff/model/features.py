"""Latent feature translation: source-like deep features drawn for a scan of another look.

A segmenting network without skips, image -> features z -> mask, is trained on the source first.
Then a denoiser learns to draw z of an image, conditioned on the same image after a random change of
appearance. At test time the condition is a scan of the target domain: what is drawn are features as
the source has them, and the source's decoder turns them into a mask.

Legend: B batch, C image channels, Z latent channels, *S voxels, *L the latent's coarser grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from medseg_diff.data.appearance import strongly_changed
from medseg_diff.data.records import Batch
from medseg_diff.model.base import Loss, Sampling, total
from medseg_diff.model.latent import LatentModel
from medseg_diff.networks.conditioners import Context


@dataclass(frozen=True)
class Encoded(Context):
    """A scan with the network's own features of it, encoded once for all draws.

    Attributes:
        z: (B, Z, *L), or None while training, which does not ask for them.
    """

    z: Tensor | None = None

    def repeat(self, draws: int) -> Encoded:
        """See :meth:`Context.repeat`."""
        z = None if self.z is None else self.z.repeat_interleave(draws, 0)
        plain = super().repeat(draws)
        return Encoded(plain.image, plain.features, plain.anchor, z)


class FeatureModel(LatentModel):
    """Denoiser of a segmenting network's own features; see :class:`LatentModel` for the stages.

    Sampler ``anchor`` answers with the network's own mask, nothing diffused: what draws are
    compared with.
    """

    # Channels of the image; those after them say where a voxel lies, and no look changes that.
    planes: int | None = None

    @property
    def noise_channels(self) -> int:
        """Channels of fields from whose voxels the latent's noise is cut."""
        voxels = self.autoencoder.factor**self.autoencoder.dims
        return max(super().noise_channels, math.ceil(self.autoencoder.width / voxels))

    def loss(self, batch: Batch) -> Loss:
        """The stage's own loss: of masks, then of features under a changed condition."""
        noise = self.noise_on_grid(batch.noise)
        if self.first_stage:
            parts, _ = self.reconstruction_losses(batch, batch.image, noise)
            return total(parts)
        with torch.no_grad():
            z = self.autoencoder.encode(batch.image).z
        return self.denoising_loss(replace(batch, image=self._changed(batch)), z, noise)

    def context(self, image: Tensor) -> Context:
        """Maps of what conditions, and at prediction the network's own features."""
        z = None
        if not self.training or self.latent.condition == "features":
            with torch.no_grad():
                z = self.autoencoder.encode(image).z
        if self.conditioner is None:
            return Encoded(image, z=z)
        shown = image
        if self.latent.condition == "edges":
            shown = torch.cat([edges(image[:, : self.planes]), self._places(image)], 1)
        elif self.latent.condition == "features" and z is not None:
            shown = z
        return Encoded(image, self.conditioner(shown).features, z=z)

    def starting_noise(self, context: Context, noise: Tensor, sampling: Sampling) -> Tensor:
        """With ``start: image`` the first state is the scan's own features, noised to ``t_max``.

        Partial noising, as SDEdit does with images (Meng et al. 2022, arXiv 2108.01073).
        """
        if sampling.start == "noise":
            return noise
        z = self._features_of(context)
        t = torch.tensor([sampling.t_max], dtype=torch.float64)
        a, _, sigma = (float(gain) for gain in self.path.coefficients(t))
        # A sampler starts from sigma * noise.
        return noise + (a / sigma) * z

    def check(self, sampling: Sampling) -> None:
        """See :meth:`SegmentationModel.check`; here every sampler and start is allowed."""
        plain = sampling if sampling.sampler != "anchor" else replace(sampling, sampler="ddim")
        super().check(replace(plain, start="noise"))

    def anchor_state(self, context: Context) -> Tensor:
        """The features that sampler ``anchor`` answers with, (B, Z, *L)."""
        return self._features_of(context)

    def _features_of(self, context: Context) -> Tensor:
        if isinstance(context, Encoded) and context.z is not None:
            return context.z
        return self.autoencoder.encode(context.image).z

    def _changed(self, batch: Batch) -> Tensor:
        """Images that condition, each changed by the sample's own coins."""
        if self.latent.change == "none":
            return batch.image
        made = []
        for image, coin in zip(batch.image, batch.coins[:, 0].tolist(), strict=True):
            random = np.random.RandomState(int(coin * 2**32))
            changed = strongly_changed(image[: self.planes].cpu(), random)
            made.append(changed.to(batch.image))
        return torch.cat([torch.stack(made), self._places(batch.image)], 1)

    def _places(self, image: Tensor) -> Tensor:
        """What of an image (B, C + D, *S) is no image: (B, D, *S), often without a channel."""
        return image[:, image.shape[1] if self.planes is None else self.planes :]


def edges(image: Tensor) -> Tensor:
    """Size of the gradient of every channel, (B, C, *S), with mean 1 in each.

    The same for an image and its negative, whatever the gain. One-sided differences at the border.
    """
    axes = tuple(range(2, image.ndim))
    slopes = torch.gradient(image, dim=axes)
    size = torch.stack(list(slopes)).square().sum(0).sqrt()
    return size / size.mean(axes, keepdim=True).clamp_min(1e-6)
