"""Conditioners: an image becomes context, once for all draws and steps of a window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from medseg_diff.networks.unet import UNet


@dataclass(frozen=True)
class Context:
    """What an image gives to the denoiser.

    Attributes:
        image: The window itself, (B, C, *S).
        features: Maps finest first, of the padded image; empty where there is no pyramid.
        anchor: The conditioner's own logits (B, K, *S), or None.
    """

    image: Tensor
    features: tuple[Tensor, ...] = ()
    anchor: Tensor | None = None

    def repeat(self, draws: int) -> Context:
        """Context for ``draws`` samples of every window, (B * draws, ...), window by window."""
        if draws == 1:
            return self
        return replace(
            self,
            image=self.image.repeat_interleave(draws, 0),
            features=tuple(f.repeat_interleave(draws, 0) for f in self.features),
            anchor=None if self.anchor is None else self.anchor.repeat_interleave(draws, 0),
        )


class Pyramid(nn.Module):
    """Diff-UNet's feature encoder: the image's encoder maps at every scale, without time.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the image.
        features: Width of each level, finest first.
        skip: Finest levels that the context leaves out, for a denoiser on a coarser grid.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, features: Sequence[int], skip: int = 0
    ) -> None:
        super().__init__()
        self.network = UNet(spatial_dims, in_channels, None, features, decoder=False)
        self.skip = skip

    def forward(self, image: Tensor) -> Context:
        """Image (B, C, *S) -> context."""
        return Context(image, self.network.maps(image).encoder[self.skip :])


class AnchoredPyramid(nn.Module):
    """A segmenting U-Net: its decoder maps are the context, its logits the anchor.

    MedSegDiff-V2 (arXiv 2301.11798) trains its condition network by segmentation too; the
    decoder's maps carry more of the answer than the encoder's, at the same scales.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, features: Sequence[int]
    ) -> None:
        super().__init__()
        self.network = UNet(spatial_dims, in_channels, out_channels, features)

    def forward(self, image: Tensor) -> Context:
        """Image (B, C, *S) -> context."""
        maps = self.network.maps(image)
        return Context(image, maps.decoder, self.network.read_out(maps, image))
