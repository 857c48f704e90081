"""The networks of MedSegDiff V1 and V2, as in the papers, in 2-D and 3-D.

V1 (Wu et al., MIDL 2023, arXiv 2211.00611): an image encoder and a mask encoder side by side,
joined by dynamic conditional encoding, then one deepest stage and one decoder. The part of the
image encoder that never meets the mask is :class:`MedSegDiffV1Conditioner`, which runs once for
all draws and steps; the rest is :class:`MedSegDiffV1Denoiser`.

V2 (Wu et al., AAAI 2024, arXiv 2301.11798): a U-Net that meets the context of an anchored pyramid
at its first and at its deepest map, :class:`MedSegDiffV2Denoiser`.

The released code is another network than either paper; it was not followed.

Legend: B batch, C image channels, K channels of the noisy mask, *S spatial axes, L levels (level 0
is full resolution, level L - 1 the deepest).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medseg_diff.networks.conditioners import Context
from medseg_diff.networks.layout import memory_layout, to_layout
from medseg_diff.networks.mixers import (
    DynamicEncoding,
    FFParser,
    SSFormer,
    UncertainSpatialAttention,
)
from medseg_diff.networks.unet import Maps, TimeEmbedding, UNet, crop_to, pad_to_multiple

RESNET34_BLOCKS = (0, 3, 4, 6, 3)
"""Residual blocks of V1's size S: a stem, then ResNet34's four stages, the last one shared."""


def fused_levels(levels: int) -> tuple[int, int]:
    """The middle two of ``levels`` stages, the deeper pair where ``levels`` is odd.

    Raises:
        ValueError: if there are fewer than 4 levels, so that the middle touches the deepest.
    """
    if levels < 4:
        raise ValueError(f"MedSegDiff-V1 needs at least 4 levels (features), not {levels}")
    first = (levels - 1) // 2
    return first, first + 1


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm of at most 32 groups with at least 4 channels each (one group below that).

    A group of one channel would cancel the time, which is one number a channel.
    """
    groups = max(g for g in range(1, 33) if channels % g == 0 and (g == 1 or channels // g >= 4))
    return nn.GroupNorm(groups, channels)


class ResidualBlock(nn.Module):
    """Twice group norm, SiLU and convolution, around them a shortcut (V1, network architecture).

    The time embedding is added to the output of the first convolution. The norm that follows
    takes the mean of a group of channels away, not each channel's own shift, so the time stays.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the input; a 1x1 convolution is the shortcut if they change.
        channels: Channels of the output.
        time_channels: Width of the time embedding, or None for a block that knows no time.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, channels: int, time_channels: int | None
    ) -> None:
        super().__init__()
        conv = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
        self.first = nn.Sequential(
            group_norm(in_channels), nn.SiLU(), conv(in_channels, channels, 3, padding=1)
        )
        self.second = nn.Sequential(
            group_norm(channels), nn.SiLU(), conv(channels, channels, 3, padding=1)
        )
        self.time = None if time_channels is None else nn.Linear(time_channels, channels)
        self.shortcut = nn.Identity() if in_channels == channels else conv(in_channels, channels, 1)

    def forward(self, x: Tensor, time: Tensor | None) -> Tensor:
        """(B, in_channels, *S), (B, time_channels) -> (B, channels, *S)."""
        h = self.first(x)
        if self.time is not None and time is not None:
            shift = self.time(nn.functional.silu(time))
            h = h + shift.reshape(*shift.shape, *([1] * (x.ndim - 2)))
        return self.shortcut(x) + self.second(h)


class Stage(nn.Module):
    """One level of an encoder: halve the resolution, then residual blocks.

    Level 0 keeps the resolution and begins with a 3x3 convolution, since group norm cannot read
    an image's single channel.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        channels: int,
        blocks: int,
        time_channels: int | None,
        *,
        stem: bool = False,
    ) -> None:
        super().__init__()
        conv = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
        pool = nn.MaxPool3d if spatial_dims == 3 else nn.MaxPool2d
        self.enter = conv(in_channels, channels, 3, padding=1) if stem else pool(2)
        widths = [channels if stem else in_channels] + [channels] * blocks
        self.blocks = nn.ModuleList(
            ResidualBlock(spatial_dims, into, channels, time_channels) for into in widths[:-1]
        )

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """(B, in_channels, *S), (B, time_channels) -> (B, channels, *S or half of it)."""
        x = self.enter(x)
        for block in self.blocks:
            x = block(x, time)
        return x


def encoder_stages(
    spatial_dims: int,
    in_channels: int,
    features: Sequence[int],
    blocks: Sequence[int],
    time_channels: int | None,
    levels: range,
) -> nn.ModuleList:
    """Stages of an encoder at ``levels``.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the encoder's input.
        features: Channels of each level, finest first.
        blocks: Residual blocks of each level, as many as ``features``.
        time_channels: Width of the time embedding, or None for stages that know no time.
        levels: Levels to build, a part of ``range(len(features))``.

    Raises:
        ValueError: if ``blocks`` does not fit ``features``, or a level below 0 has no block.
    """
    if len(blocks) != len(features) or min(blocks[1:]) < 1 or blocks[0] < 0:
        raise ValueError(
            f"blocks needs one number for each of the {len(features)} levels, at least 1 "
            f"below level 0, not {list(blocks)}"
        )
    widths = [in_channels, *features]
    return nn.ModuleList(
        Stage(spatial_dims, widths[n], widths[n + 1], blocks[n], time_channels, stem=n == 0)
        for n in levels
    )


class MedSegDiffV1Conditioner(nn.Module):
    """V1's image encoder down to the first fusion, where the image first meets the mask.

    Departure: these stages know no time. In the paper both encoders have the same blocks, time
    included; without it they run once for all draws and steps, and what depends on the step is
    left to the fusion and to the image branch after it.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the image, C.
        features: Channels of each of the network's L levels; the same as the denoiser's.
        blocks: Residual blocks of each level; the same as the denoiser's.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, features: Sequence[int], blocks: Sequence[int]
    ) -> None:
        super().__init__()
        self.factor = 2 ** (len(features) - 1)
        levels = range(fused_levels(len(features))[0] + 1)
        self.stages = encoder_stages(spatial_dims, in_channels, features, blocks, None, levels)
        self.widths = tuple(features[n] for n in levels)
        self.layout = memory_layout(spatial_dims)
        to_layout(self, self.layout)

    def forward(self, image: Tensor) -> Context:
        """Image (B, C, *S) -> context: maps of level 0 to the first fused level."""
        x = pad_to_multiple(image, self.factor).contiguous(memory_format=self.layout)
        maps: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return Context(image, tuple(maps))


class MedSegDiffV1Denoiser(nn.Module):
    """V1's network ``D(E_I + E_x, t)``: mask encoder, fusions, deepest stage and decoder.

    At the middle two levels (:func:`fused_levels`) the mask's map passes the FF-Parser into the
    image branch, and dynamic conditional encoding of the two replaces the image branch's map. The
    mask branch goes on with its own. After the last separate level the two are added; the deepest
    stage and the decoder are shared.

    Silent in the paper, decided here: time enters every block that runs in the denoiser, the
    image branch's too, since the paper gives both encoders the same blocks and its image
    embedding belongs to a step; skips carry the sum of the branches, since the decoder is written
    as a function of E_I + E_x alone; max-pooling down, transposed convolution up, one residual
    block a decoder level, and group norm and SiLU before the last 1x1 convolution.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the noisy mask, K.
        out_channels: Channels of the output.
        features: Channels of each level, finest first, at least 4 levels.
        blocks: Residual blocks of each level in each encoder (:data:`RESNET34_BLOCKS`).
        time_channels: Width of the time embedding, linear, SiLU, linear.
        map_size: Frequencies an axis of each FF-Parser.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        features: Sequence[int],
        *,
        blocks: Sequence[int],
        time_channels: int,
        map_size: int = 8,
    ) -> None:
        super().__init__()
        conv = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
        up = nn.ConvTranspose3d if spatial_dims == 3 else nn.ConvTranspose2d
        dims, deepest = spatial_dims, len(features) - 1
        self.factor = 2**deepest
        self.fused = fused_levels(len(features))
        self.embedding = TimeEmbedding(time_channels)
        self.mask_stages = encoder_stages(
            dims, in_channels, features, blocks, time_channels, range(deepest)
        )
        late = range(self.fused[0] + 1, deepest)
        self.image_stages = encoder_stages(dims, 0, features, blocks, time_channels, late)
        self.parsers = nn.ModuleList(FFParser(dims, features[n], map_size) for n in self.fused)
        self.encodings = nn.ModuleList(DynamicEncoding(features[n]) for n in self.fused)
        last = range(deepest, deepest + 1)
        self.deepest = encoder_stages(dims, 0, features, blocks, time_channels, last)[0]
        self.up = nn.ModuleList(
            up(features[n + 1], features[n], kernel_size=2, stride=2) for n in range(deepest)
        )
        self.merge = nn.ModuleList(
            ResidualBlock(dims, 2 * features[n], features[n], time_channels) for n in range(deepest)
        )
        self.head = nn.Sequential(
            group_norm(features[0]), nn.SiLU(), conv(features[0], out_channels, 1)
        )
        self.layout = memory_layout(dims)
        to_layout(self, self.layout)

    def encode(self, mask: Tensor, time: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """Sums of the image's and the mask's maps at levels 0 to L - 2, finest first."""
        first, image, sums = self.fused[0], features[0], []
        for level, stage in enumerate(self.mask_stages):
            mask = stage(mask, time)
            if level <= first:
                image = features[level]
            else:
                image = self.image_stages[level - first - 1](image, time)
            if level in self.fused:
                parsed = self.parsers[level - first](mask)
                image = self.encodings[level - first](image, parsed)
            sums.append(image + mask)
        return sums

    def forward(self, x_t: Tensor, t: Tensor, features: Sequence[Tensor] | None) -> Tensor:
        """Denoise.

        Args:
            x_t: Noisy mask, (B, K, *S).
            t: Times in [0, 1], (B,).
            features: Maps of :class:`MedSegDiffV1Conditioner`, finest first.

        Returns:
            Output (B, out_channels, *S).

        Raises:
            ValueError: if the maps do not reach down to the first fused level.
        """
        if features is None or len(features) <= self.fused[0]:
            raise ValueError(
                f"the denoiser needs the context's maps of levels 0 to {self.fused[0]}: "
                "use MedSegDiffV1Conditioner with the same features"
            )
        time = self.embedding(t)
        x = pad_to_multiple(x_t, self.factor).contiguous(memory_format=self.layout)
        sums = self.encode(x, time, features)
        x = self.deepest(sums[-1], time)
        for level in reversed(range(len(sums))):
            x = self.merge[level](torch.cat([sums[level], self.up[level](x)], dim=1), time)
        return crop_to(self.head(x), x_t)


class MedSegDiffV2Denoiser(UNet):
    """V2's diffusion network: a U-Net with U-SA at its first map and SS-Former at its deepest.

    The anchor condition reads the finest decoder map of the context, the semantic condition its
    deepest embedding; the maps between are not used. All of this is from secondary sources, see
    :mod:`medseg_diff.networks.mixers`. The paper's U-Net is not described there: it is the
    package's own, with time in every level. The result of U-SA goes on and is the skip of level
    0; that of SS-Former replaces the deepest map.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the noisy mask, K.
        out_channels: Channels of the output.
        features: Channels of each level, finest first.
        context_channels: Channels of the context's maps, finest first, of the same L levels.
        time_channels: Width of the time embedding.
        blocks: SS-Former blocks, of two attention modules each.
        filter_blocks: Convolutions of each NBP filter.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        features: Sequence[int],
        *,
        context_channels: Sequence[int],
        time_channels: int,
        blocks: int = 2,
        filter_blocks: int = 6,
    ) -> None:
        super().__init__(
            spatial_dims, in_channels, out_channels, features, time_channels=time_channels
        )
        if len(context_channels) != len(features):
            raise ValueError(
                f"the context must have the denoiser's {len(features)} levels, "
                f"not {len(context_channels)}"
            )
        self.anchor_condition = UncertainSpatialAttention(spatial_dims, context_channels[0])
        self.semantic_condition = SSFormer(
            spatial_dims,
            features[-1],
            context_channels[-1],
            time_channels,
            blocks=blocks,
            filter_blocks=filter_blocks,
        )
        to_layout(self, self.layout)

    def maps(
        self, x: Tensor, t: Tensor | None = None, context: Sequence[Tensor] | None = None
    ) -> Maps:
        """Feature maps of the padded input; times (B,), context maps finest first."""
        if self.embedding is None or t is None or not context or len(context) != len(self.down):
            raise ValueError("MedSegDiff-V2 needs a time and a context map for each level")
        time = self.embedding(t)
        x = pad_to_multiple(x, self.factor).contiguous(memory_format=self.layout)
        encoder: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else self.pool(x), time)
            if level == 0:
                x = self.anchor_condition(x, context[0])
            encoder.append(x)
        x = encoder[-1] = self.semantic_condition(x, context[-1], time)
        decoder = [x]
        for level in reversed(range(len(self.up))):
            x = self.merge[level](torch.cat([encoder[level], self.up[level](x)], dim=1), time)
            decoder.insert(0, x)
        return Maps(tuple(encoder), tuple(decoder))
