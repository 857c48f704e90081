"""One U-Net for every part: baseline segmenter, image conditioner and time-aware denoiser.

Built of MONAI's convolution and up-sampling blocks in the shape of Diff-UNet's networks
(Xing et al. 2023, arXiv 2303.10326): two convolutions a level, instance norm, LeakyReLU 0.1,
max-pooling down, transposed convolution up, and the time embedding added between the two
convolutions of every level.

One departure: time is added before the first activation. Added after it, a shift that is constant
over a channel passes the next convolution as a constant, and its instance norm removes it but at
the zero-padded border: the network would hardly know its time.

Weights and maps lie in memory channels last, which made a training step 1.4 to 2 times faster on
two CPU cores (``benchmarks/memory_format.py``). Instance norm is written as group norm with one
channel a group: the same numbers, but by a kernel that keeps that layout.

Legend: B batch, C channels, *S spatial axes, L levels (level 0 is full resolution).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from monai.networks.blocks import Convolution
from torch import Tensor, nn
from torch.nn import functional

from medseg_diff.networks.dropout import Gains
from medseg_diff.networks.entries import CrossAttention
from medseg_diff.networks.layout import memory_layout, to_layout

NormName = Literal["instance", "batch"]
# Of a level, from its number of axes, the context's channels and its own; see `entries.py`.
Entry = Callable[[int, int, int], nn.Module]


class Maps(NamedTuple):
    """Feature maps of a U-Net, finest first.

    Attributes:
        encoder: L maps, level l at 1 / 2**l of the padded input's resolution.
        decoder: L maps of the same shapes; the last is the encoder's deepest.
    """

    encoder: tuple[Tensor, ...]
    decoder: tuple[Tensor, ...]


def pad_to_multiple(x: Tensor, factor: int) -> Tensor:
    """Pad the end of every spatial axis by its edge value to a multiple of ``factor``."""
    padding: list[int] = []
    for size in reversed(x.shape[2:]):
        padding += [0, -size % factor]
    return functional.pad(x, padding, mode="replicate") if any(padding) else x


def crop_to(x: Tensor, like: Tensor) -> Tensor:
    """Undo :func:`pad_to_multiple`: keep the first voxels, as many as ``like`` has."""
    for axis, size in enumerate(like.shape[2:], start=2):
        x = x.narrow(axis, 0, size)
    return x


def scaled(x: Tensor, gain: Tensor | None) -> Tensor:
    """Maps (B, C, *S) times one factor a sample and channel, (B, C); None changes nothing."""
    return x if gain is None else x * gain.to(x.dtype).reshape(*gain.shape, *[1] * (x.ndim - 2))


class TimeEmbedding(nn.Module):
    """Times in [0, 1] -> (B, channels): sinusoids of 1000 t, then two linear layers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.frequencies = channels // 4
        self.layers = nn.Sequential(
            nn.Linear(2 * self.frequencies, channels), nn.SiLU(), nn.Linear(channels, channels)
        )

    def forward(self, t: Tensor) -> Tensor:
        """Embed times of shape (B,)."""
        steps = torch.arange(self.frequencies, device=t.device, dtype=torch.float32)
        rates = torch.exp(-math.log(10_000) * steps / max(self.frequencies - 1, 1))
        angles = 1000 * t.float()[:, None] * rates[None]
        return self.layers(torch.cat([angles.sin(), angles.cos()], dim=1))


def summed(spatial_dims: int, given: int, width: int) -> nn.Module:
    """The context's map itself (Diff-UNet), through a 1x1 convolution where the widths differ."""
    conv = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
    return nn.Identity() if given == width else conv(given, width, 1)


class TwoConv(nn.Module):
    """Convolution, norm, activation, twice; time enters between the two."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        channels: int,
        time_channels: int | None,
        norm_name: NormName = "instance",
    ) -> None:
        super().__init__()
        norm: Any = ("group", {"num_groups": channels, "affine": True})
        if norm_name == "batch":
            norm = "batch"

        def unit(into: int) -> nn.Module:
            return Convolution(spatial_dims, into, channels, adn_ordering="N", norm=norm)

        self.first, self.second = unit(in_channels), unit(channels)
        self.act = nn.LeakyReLU(0.1, inplace=True)
        self.time = (
            None
            if time_channels is None
            else nn.Sequential(nn.SiLU(), nn.Linear(time_channels, channels))
        )

    def forward(self, x: Tensor, time: Tensor | None) -> Tensor:
        """(B, in_channels, *S), (B, time_channels) -> (B, channels, *S)."""
        x = self.first(x)
        if self.time is not None and time is not None:
            shift = self.time(time)
            x = x + shift.reshape(*shift.shape, *([1] * (x.ndim - 2)))
        return self.act(self.second(self.act(x)))


class UNet(nn.Module):
    """U-Net in 2-D or 3-D for inputs of any size.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the input.
        out_channels: Channels of the output, or None for a network asked for its maps only.
        features: Channels of each level, finest first; L - 1 halvings of resolution.
        time_channels: Width of the time embedding, or None for a network that knows no time.
        context_channels: Channels of the context map that each encoder level takes, or None.
        decoder: False leaves the decoder away: a pyramid of encoder maps.
        norm: ``"batch"`` keeps statistics of the training set, which some test-time adaptation
            needs; ``"instance"`` has none.
        entry: How a context's map enters its level.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int | None,
        features: Sequence[int],
        *,
        time_channels: int | None = None,
        context_channels: Sequence[int] | None = None,
        decoder: bool = True,
        norm: NormName = "instance",
        entry: Entry = summed,
    ) -> None:
        super().__init__()
        conv = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
        up = nn.ConvTranspose3d if spatial_dims == 3 else nn.ConvTranspose2d
        self.pool = nn.MaxPool3d(2) if spatial_dims == 3 else nn.MaxPool2d(2)
        self.factor = 2 ** (len(features) - 1)
        self.embedding = None if time_channels is None else TimeEmbedding(time_channels)
        widths = [in_channels, *features]
        self.down = nn.ModuleList(
            TwoConv(spatial_dims, widths[level], widths[level + 1], time_channels, norm)
            for level in range(len(features))
        )
        self.mix = nn.ModuleList(
            entry(spatial_dims, given, width)
            for given, width in zip(context_channels or (), features, strict=False)
        )
        shallow = range(len(features) - 1 if decoder else 0)
        self.up = nn.ModuleList(
            up(features[level + 1], features[level], kernel_size=2, stride=2) for level in shallow
        )
        self.merge = nn.ModuleList(
            TwoConv(spatial_dims, 2 * features[level], features[level], time_channels, norm)
            for level in shallow
        )
        self.head = None if out_channels is None else conv(features[0], out_channels, 1)
        self.layout = memory_layout(spatial_dims)
        to_layout(self, self.layout)

    def maps(
        self, x: Tensor, t: Tensor | None = None, context: Sequence[Tensor] | None = None
    ) -> Maps:
        """Feature maps of the padded input; times (B,), context maps finest first."""
        return self._maps(x, t, context, None)

    def dropped(self, x: Tensor, gains: Gains) -> Tensor:
        """(B, in_channels, *S) -> (B, out_channels, *S), each level's maps times its gains."""
        return self.read_out(self._maps(x, None, None, gains), x)

    def controlled(
        self,
        x: Tensor,
        t: Tensor | None,
        context: Sequence[Tensor] | None,
        added: Sequence[Tensor],
    ) -> Tensor:
        """:meth:`forward` with maps like the encoder's, finest first, added to what it decodes."""
        return self.read_out(self._maps(x, t, context, None, added), x)

    def _maps(
        self,
        x: Tensor,
        t: Tensor | None,
        context: Sequence[Tensor] | None,
        gains: Gains | None,
        added: Sequence[Tensor] | None = None,
    ) -> Maps:
        time = None if self.embedding is None or t is None else self.embedding(t)
        x = pad_to_multiple(x, self.factor).contiguous(memory_format=self.layout)
        encoder: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else self.pool(x), time)
            if context is not None:
                x = x + self._entering(level, x, context[level])
            x = x if gains is None else scaled(x, gains.encoder[level])
            encoder.append(x)
        if added is not None:
            encoder = [own + other for own, other in zip(encoder, added, strict=True)]
            x = encoder[-1]
        decoder = [x]
        for level in reversed(range(len(self.up))):
            x = self.merge[level](torch.cat([encoder[level], self.up[level](x)], dim=1), time)
            x = x if gains is None else scaled(x, gains.decoder[level])
            decoder.insert(0, x)
        return Maps(tuple(encoder), tuple(decoder))

    def _entering(self, level: int, x: Tensor, given: Tensor) -> Tensor:
        """What a level's map gains from the context's."""
        mix = self.mix[level]
        gained: Tensor = mix(x, given) if isinstance(mix, CrossAttention) else mix(given)
        return gained

    def forward(
        self, x: Tensor, t: Tensor | None = None, context: Sequence[Tensor] | None = None
    ) -> Tensor:
        """(B, in_channels, *S) -> (B, out_channels, *S)."""
        return self.read_out(self.maps(x, t, context), x)

    def read_out(self, maps: Maps, like: Tensor) -> Tensor:
        """Output (B, out_channels, *S) at the size of ``like`` from maps already computed."""
        if self.head is None:
            raise RuntimeError("this network has no output; ask for its maps")
        return crop_to(self.head(maps.decoder[0]), like)
