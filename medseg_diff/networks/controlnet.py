"""A further condition for a trained denoiser: a copy of its encoder, tied in by zero convolutions.

ControlNet (Zhang, Rao & Agrawala 2023, arXiv 2302.05543): the trained network stays frozen; a copy
of its encoder sees the state plus the condition, and its maps are added to the frozen decoder's
skip connections and deepest map. The 1x1 convolutions on the way in and out start at zero, so that
training starts from the network as it is.

Departures: the condition comes in by one zero convolution at full resolution, where the paper
brings an image down to a latent's grid by a small network first; the paper's base is Stable
Diffusion, here it is the package's U-Net in 2-D and 3-D.

Legend: B batch, C channels of the base's input, E channels of the condition, *S spatial axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from medseg_diff.networks.conditioners import Context
from medseg_diff.networks.entries import zero_convolution
from medseg_diff.networks.unet import UNet


class ControlledUNet(nn.Module):
    """Denoiser ``(x, t, features) -> output`` on a frozen base.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels C + E of the input; the condition's are the last.
        out_channels: Channels of the output.
        features: Channels of each level, finest first.
        condition_channels: E.
        time_channels: Width of the time embedding.
        context_channels: See :class:`UNet`.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        features: Sequence[int],
        *,
        condition_channels: int,
        time_channels: int,
        context_channels: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        own = in_channels - condition_channels

        def unet(out: int | None) -> UNet:
            return UNet(
                spatial_dims,
                own,
                out,
                features,
                time_channels=time_channels,
                context_channels=context_channels,
                decoder=out is not None,
            )

        self.own = own
        self.base = unet(out_channels)
        self.base.requires_grad_(False)
        self.copy = unet(None)
        self.enter = zero_convolution(spatial_dims, condition_channels, own)
        self.leave = nn.ModuleList(zero_convolution(spatial_dims, f, f) for f in features)
        self.factor = self.base.factor

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take a trained U-Net's weights, for the base and for what the copy has of it.

        Args:
            weights: State of a :class:`UNet` with the base's channels and widths.
        """
        self.base.load_state_dict(weights)
        names = self.copy.state_dict().keys()
        self.copy.load_state_dict({name: weights[name] for name in names})

    def forward(
        self, x: Tensor, t: Tensor | None = None, context: Sequence[Tensor] | None = None
    ) -> Tensor:
        """(B, C + E, *S) -> (B, out_channels, *S)."""
        state, condition = x[:, : self.own], x[:, self.own :]
        maps = self.copy.maps(state + self.enter(condition), t, context).encoder
        added = [layer(each) for layer, each in zip(self.leave, maps, strict=True)]
        return self.base.controlled(state, t, context, added)


class FirstPlanes(nn.Module):
    """A frozen conditioner that sees the first planes of the image alone.

    Args:
        inner: Image -> context.
        planes: How many it sees.
    """

    def __init__(self, inner: nn.Module, planes: int) -> None:
        super().__init__()
        self.inner, self.planes = inner, planes
        inner.requires_grad_(False)

    def forward(self, image: Tensor) -> Context:
        """Image (B, C + E, *S) -> its context, which holds the whole image."""
        context: Context = self.inner(image[:, : self.planes])
        return replace(context, image=image)
