"""Autoencoders of masks, of images, or image in and mask out: a smaller grid on which to diffuse.

The network is MONAI's KL autoencoder (residual blocks, group norm), with one addition: a mask's
latent is standardised over each sample, as in LDSeg (arXiv 2407.12952), so that the diffusion sees
zero mean and unit variance and no scale factor must be estimated from data.

Legend: B batch, K mask channels, Z latent channels, *S spatial axes, *L = ceil(*S / factor).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from monai.networks.layers.vector_quantizer import EMAQuantizer
from monai.networks.nets.autoencoderkl import AutoencoderKL
from torch import Tensor, nn

from medseg_diff.networks.layout import memory_layout, to_layout
from medseg_diff.networks.unet import pad_to_multiple


class Latent(NamedTuple):
    """A mask's latent.

    Attributes:
        z: (B, Z, *L), zero mean and unit variance in every sample.
        penalty: The regulariser's loss, a scalar.
    """

    z: Tensor
    penalty: Tensor


class MaskAutoencoder(nn.Module):
    """Mask state -> latent -> logits, in 2-D or 3-D for masks of any size.

    Args:
        spatial_dims: 2 or 3.
        channels: Channels K of the mask state.
        latent_channels: Z.
        features: Width of each level; every level after the first halves the resolution.
        regulariser: ``"kl"`` adds noise and pulls the latent towards a standard normal (Kingma &
            Welling 2014); ``"vq"`` rounds it to a code book (van den Oord et al. 2017).
        codes: Entries of the code book.
        in_channels: Channels of what is encoded, where that is no mask but an image: then this is a
            segmenting network without a skip past its latent.
    """

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        latent_channels: int,
        features: Sequence[int],
        regulariser: Literal["kl", "vq"] = "kl",
        codes: int = 256,
        in_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.dims, self.width = spatial_dims, latent_channels
        self.factor = 2 ** (len(features) - 1)
        self.network = AutoencoderKL(
            spatial_dims,
            in_channels=channels if in_channels is None else in_channels,
            out_channels=channels,
            num_res_blocks=1,
            channels=tuple(features),
            attention_levels=(False,) * len(features),
            latent_channels=latent_channels,
            # Several channels a group: one alone would take a uniform mask's level away.
            norm_num_groups=_groups(features),
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
        )
        self.book = (
            EMAQuantizer(spatial_dims, codes, latent_channels) if regulariser == "vq" else None
        )
        self.layout = memory_layout(spatial_dims)
        to_layout(self, self.layout)

    def encode(self, state: Tensor, noise: Tensor | None = None) -> Latent:
        """Latent of a mask state (B, K, *S) in [-1, 1], or of an image.

        Args:
            state: Mask, or image (B, in_channels, *S).
            noise: Standard normal (B, Z, *L): a sample of the KL posterior. None takes its mean.
        """
        padded = pad_to_multiple(state, self.factor).contiguous(memory_format=self.layout)
        mean, sd = self.network.encode(padded)
        if self.book is not None:
            quantised, penalty, _ = self.book(self._scaled(mean))
            return Latent(quantised, penalty)
        divergence = 0.5 * (mean.square() + sd.square() - 2 * sd.log() - 1).mean()
        return Latent(self._scaled(mean if noise is None else mean + sd * noise), divergence)

    def noise(self, field: Tensor) -> Tensor:
        """Noise (B, Z, *L) on the latent's grid from a voxel field (B, K, *S)."""
        return latent_noise(field, self.width, self.factor)

    def _scaled(self, z: Tensor) -> Tensor:
        """A latent (B, Z, *L) in the units that are diffused."""
        return standardised(z)

    def snap(self, z: Tensor) -> Tensor:
        """A latent (B, Z, *L) as the decoder knows it: the nearest codes, or itself."""
        if self.book is None:
            return z
        snapped: Tensor = self.book.embed(self.book.quantize(z)[2])
        return snapped

    def decode(self, z: Tensor, size: Sequence[int]) -> Tensor:
        """Logits (B, K, *size) of a latent."""
        logits: Tensor = self.network.decode(z.contiguous(memory_format=self.layout))
        return cut_to(logits, size)


class ImageAutoencoder(MaskAutoencoder):
    """Image in [-1, 1] -> latent -> image, (B, K, *S) both ways.

    A mask's latent is standardised over each sample, which would take an image's brightness away.
    Here each of its channels is shifted and scaled by mean and variance over the training, which
    running averages keep (batch norm without weights): zero mean and unit variance over many
    windows, and one map for all of them.
    """

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        latent_channels: int,
        features: Sequence[int],
        regulariser: Literal["kl", "vq"] = "kl",
        codes: int = 256,
    ) -> None:
        super().__init__(spatial_dims, channels, latent_channels, features, regulariser, codes)
        norm = nn.BatchNorm3d if spatial_dims == 3 else nn.BatchNorm2d
        self.scale = norm(latent_channels, affine=False)

    def _scaled(self, z: Tensor) -> Tensor:
        scaled: Tensor = self.scale(z)
        return scaled


def cut_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """The first voxels of a map (B, C, ...) along each axis, as many as ``size`` says."""
    for axis, length in enumerate(size, start=2):
        x = x.narrow(axis, 0, length)
    return x


def standardised(z: Tensor) -> Tensor:
    """Every sample (Z, *L) shifted and scaled to zero mean and unit variance."""
    axes = tuple(range(1, z.ndim))
    centred = z - z.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True) + 1e-6).sqrt()


def latent_noise(noise: Tensor, channels: int, factor: int, multiple: int | None = None) -> Tensor:
    """Standard normal noise (B, Z, *L) cut from a field on the voxel grid, (B, K, *S).

    Each of the factor^d sub-lattices of a field is a standard normal field of its own: they are
    taken in turn until there are enough channels. Overlapping windows that start a multiple of
    ``factor`` apart see the same noise.

    Args:
        noise: The field.
        channels: Z.
        factor: Voxels along each axis in one of the latent's.
        multiple: Of how many voxels the latent's grid covers whole blocks; None: of ``factor``.

    Raises:
        ValueError: if the field has fewer than Z such lattices.
    """
    axes = noise.ndim - 2
    # Wrapped round, so that a padded lattice is no copy of its neighbour.
    for axis in range(2, noise.ndim):
        size = noise.shape[axis]
        missing = -size % (multiple or factor)
        if missing:
            places = torch.arange(size + missing, device=noise.device) % size
            noise = noise.index_select(axis, places)
    found: list[Tensor] = []
    for number in range(factor**axes):
        offsets = [number // factor**axis % factor for axis in range(axes)]
        index = tuple(slice(offset, None, factor) for offset in offsets)
        found.append(noise[(slice(None), slice(None), *index)])
        if len(found) * noise.shape[1] >= channels:
            return torch.cat(found, dim=1)[:, :channels]
    raise ValueError(
        f"a latent of {channels} channels needs more noise than {len(found)} lattices of "
        f"{noise.shape[1]} channels hold"
    )


def _groups(features: Sequence[int]) -> int:
    """Largest number of groups up to 8 that leaves each at least two channels at every level."""
    return next(n for n in (8, 4, 2, 1) if all(w % n == 0 and w // n >= 2 for w in features))
