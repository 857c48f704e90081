"""Mixers: how an image's context meets the features of a noisy mask, at each step.

MedSegDiff-V1 (Wu et al., MIDL 2023, arXiv 2211.00611): :class:`FFParser` and
:class:`DynamicEncoding`. MedSegDiff-V2 (Wu et al., AAAI 2024, arXiv 2301.11798):
:class:`UncertainSpatialAttention`, :class:`NeuralBandPass` and :class:`SSFormer`. They follow the
papers, not the released code, which has no V2 module. For V2 we had the papers of others who quote
or rebuild it, not its own text: what V2 says here is from secondary sources.

No weight depends on a size, so each mixer takes maps of any size, in 2-D and in 3-D. Spectra are
half spectra, as of ``torch.fft.rfftn``: (B, C, *H) with H = S but S_d // 2 + 1 on the last axis. A
real signal times a real or complex weight on half of its spectrum gives the same result as a
weight on all of it followed by the real part, whose other half is then redundant.

Legend: B batch, C channels, *S spatial axes, *H axes of a half spectrum, d number of spatial axes,
N number of positions (tokens) of a map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.networks.blocks import MLPBlock
from torch import Tensor, nn

from medseg_diff.networks.layout import memory_layout


def filter_spectrum(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply the half spectrum of a real map and go back.

    The leading axes and the last one are inverted in two calls: given a spectrum that no real map
    has, ``irfftn`` differs between libraries, while a one-dimensional ``irfft`` always drops the
    imaginary part of its first and its middle frequency, which is the real part of the result.

    Args:
        x: Real map, (B, C, *S); computed in float32 at least.
        weight: Real or complex, broadcastable to (B, C, *H), frequency 0 first on every axis.

    Returns:
        Real map (B, C, *S), in the type of ``x``, channels last.
    """
    axes = tuple(range(2, x.ndim))
    with torch.autocast(x.device.type, enabled=False):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        spectrum = torch.fft.rfftn(wide, dim=axes) * weight
        rows = torch.fft.ifftn(spectrum, dim=axes[:-1])
        out = torch.fft.irfft(rows, n=x.shape[-1], dim=-1)
    return out.to(x.dtype).contiguous(memory_format=memory_layout(len(axes)))


def resampling_matrix(size: int, base: int, *, half: bool) -> Tensor:
    """Linear interpolation of a spectrum's axis, from ``base`` to ``size`` frequencies.

    Index k of n stands for k / n cycles a voxel, so it reads position ``k base / n``. The axis
    keeps the order of ``torch.fft`` and is periodic, so nothing is shifted: the upper half of the
    indices are the negative frequencies, and the neighbours of 0 are 1 and -1 at every size. A
    half axis ends at its Nyquist frequency.

    Returns:
        (size, base), or (size // 2 + 1, base // 2 + 1) for a half axis; rows sum to 1.
    """
    k = torch.arange(size // 2 + 1 if half else size)
    # Whole numbers, so that at the base size the matrix is the identity to the last bit.
    lower = torch.div(k * base, size, rounding_mode="floor")
    share = (k * base - lower * size).float() / size
    columns = base // 2 + 1 if half else base
    upper = (lower + 1).clamp(max=base // 2) if half else (lower + 1) % base
    eye = torch.eye(columns)
    return eye[lower] * (1 - share)[:, None] + eye[upper] * share[:, None]


class FFParser(nn.Module):
    """Feature Frequency Parser of MedSegDiff-V1: a learnable filter in Fourier space.

    ``M = FFT(m), M' = A * M, m' = IFFT(M')`` over the spatial axes, real part taken, with a
    learnable complex A per channel and frequency (the paper's section on the FF-Parser).

    Departures. The paper's A has the size of its map, which ties a network to one image size:
    here A is held on a grid of ``base_size`` frequencies an axis and interpolated linearly, as a
    function of cycles per voxel. Only half of A is held, see the module's text. The paper is
    silent on the start: A begins as 1 everywhere, so the parser passes its map unchanged until
    training finds what to damp (noise of 0.02 alone, as in the released code, would start the
    mixer at almost nothing).

    Args:
        spatial_dims: 2 or 3.
        channels: Channels of the map.
        base_size: Even number of frequencies an axis. A map of this size is filtered as in the
            paper. A holds ``channels * base_size**(d - 1) * (base_size // 2 + 1)`` complex numbers.
    """

    def __init__(self, spatial_dims: int, channels: int, base_size: int = 8) -> None:
        super().__init__()
        if base_size < 2 or base_size % 2:
            raise ValueError(f"base_size must be even and at least 2, not {base_size}")
        self.base_size = base_size
        half = [base_size] * (spatial_dims - 1) + [base_size // 2 + 1]
        planes = torch.zeros(2, channels, *half)
        planes[0] = 1
        self.planes = nn.Parameter(planes)

    def frequency_map(self, size: Sequence[int]) -> Tensor:
        """A on the half spectrum of a map of ``size``: complex, (C, *H)."""
        planes = self.planes.float()
        with torch.autocast(planes.device.type, enabled=False):
            for axis, count in enumerate(size, start=2):
                half = axis == len(size) + 1
                matrix = resampling_matrix(count, self.base_size, half=half).to(planes)
                planes = torch.tensordot(planes, matrix, dims=([axis], [1])).movedim(-1, axis)
        return torch.complex(planes[0], planes[1])

    def forward(self, m: Tensor) -> Tensor:
        """Map (B, C, *S) -> filtered map, same shape and type."""
        return filter_spectrum(m, self.frequency_map(m.shape[2:]))


def channel_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """Layer norm over the channels of every position of a map (B, C, *S)."""
    return norm(x.movedim(1, -1)).movedim(-1, 1)


class DynamicEncoding(nn.Module):
    """Dynamic conditional encoding of MedSegDiff-V1: what of the image matters at this step.

    ``A(m_I, m_x) = (LN(m_I) * LN(m_x)) * m_I``, products element by element; the result replaces
    the image branch's map. The paper does not name the axes of LN: here it is taken over the
    channels of each position, so that an answer does not depend on the size of its window.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm_image, self.norm_mask = nn.LayerNorm(channels), nn.LayerNorm(channels)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Image map m_I and mask map m_x, both (B, C, *S) -> image map, same shape."""
        likeness = channel_norm(self.norm_image, image) * channel_norm(self.norm_mask, mask)
        return likeness * image


class LearnableGaussian(nn.Module):
    """Smoothing by a Gaussian whose width is learned, one a channel.

    Each axis is a matrix ``exp(-(i - j)^2 / (2 sigma^2))`` whose rows are divided by their sums:
    the full Gaussian, not cut at a radius, and at the border a mean over the voxels that exist. On
    a CPU this is about ten times faster than depthwise convolutions of width 7.

    Args:
        channels: Channels of the map.
        sigma: Standard deviation at the start, in voxels of the map.
    """

    def __init__(self, channels: int, sigma: float = 1.0) -> None:
        super().__init__()
        self.log_sigma = nn.Parameter(torch.full((channels,), math.log(sigma)))

    def kernel(self, size: int) -> Tensor:
        """Smoothing matrices of an axis, (C, size, size); rows sum to 1."""
        place = torch.arange(size, device=self.log_sigma.device, dtype=torch.float32)
        exponent = -0.5 * (place[:, None] - place[None]).square()
        precision = torch.exp(-2 * self.log_sigma.float())[:, None, None]
        return torch.softmax(exponent * precision, dim=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, *S) -> smooth map, same shape."""
        for axis, size in enumerate(x.shape[2:], start=2):
            lines = x.movedim(axis, 2)
            smooth = torch.einsum("cij,bcjr->bcir", self.kernel(size).to(x), lines.flatten(3))
            x = smooth.reshape(lines.shape).movedim(2, axis)
        return x.contiguous(memory_format=memory_layout(x.ndim - 2))


class UncertainSpatialAttention(nn.Module):
    """U-SA, the anchor condition of MedSegDiff-V2 (from secondary sources, two of which agree).

    ``f_anc = max(f_c * k_Gauss, f_c)``, element by element, with a learnable Gaussian, then
    ``f_d' = sigmoid(conv_1x1(f_anc)) f_d + f_d`` with a convolution to one channel: the smoothed
    anchor says softly where the mask may lie, whatever the channel.

    Silent there, decided here: one width of the Gaussian a channel, 1 voxel at the start.
    """

    def __init__(self, spatial_dims: int, context_channels: int) -> None:
        super().__init__()
        conv = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
        self.gaussian = LearnableGaussian(context_channels)
        self.weigh = conv(context_channels, 1, 1)

    def forward(self, mask: Tensor, anchor: Tensor) -> Tensor:
        """f_d (B, C, *S) and f_c (B, context_channels, *S) -> f_d', like f_d."""
        uncertain = torch.maximum(self.gaussian(anchor), anchor)
        return torch.sigmoid(self.weigh(uncertain)) * mask + mask


class NeuralBandPass(nn.Module):
    """NBP filter of MedSegDiff-V2: which frequencies pass at this time (from secondary sources).

    A small network reads the map of frequency coordinates: ``blocks`` times convolution, layer
    norm over channels, scale and shift from the time, ReLU; then a 1x1 convolution and a sigmoid.

    Silent there, decided here: ``width`` channels; coordinates in units of the Nyquist frequency,
    so -1 to 1 and 0 to 1 on the last axis of the half spectrum, sorted while the convolutions see
    them so that neighbours in the map are neighbours in frequency.

    Args:
        spatial_dims: 2 or 3, also the number of coordinates.
        time_channels: Width of the time embedding.
        blocks: Number of convolutions; a rebuilding by others has 6.
        width: Channels between them.
    """

    def __init__(
        self, spatial_dims: int, time_channels: int, blocks: int = 6, width: int = 16
    ) -> None:
        super().__init__()
        conv = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
        widths = [spatial_dims] + [width] * blocks
        self.convs = nn.ModuleList(conv(into, width, 3, padding=1) for into in widths[:-1])
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(blocks))
        self.times = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Linear(time_channels, 2 * width)) for _ in range(blocks)
        )
        self.last = conv(widths[-1], 1, 1)

    def forward(self, size: Sequence[int], time: Tensor) -> Tensor:
        """Weights for maps of ``size`` at times (B, time_channels): (B, 1, *H), in (0, 1)."""
        lines = [torch.fft.fftshift(torch.fft.fftfreq(n)) for n in size[:-1]]
        lines.append(torch.fft.rfftfreq(size[-1]))
        coordinates = 2 * torch.stack(torch.meshgrid(*lines, indexing="ij"))
        x = coordinates.to(time)[None].expand(len(time), *coordinates.shape)
        for conv, norm, modulation in zip(self.convs, self.norms, self.times, strict=True):
            scale, shift = modulation(time).reshape(len(time), -1, *[1] * len(size)).chunk(2, 1)
            x = torch.relu(channel_norm(norm, conv(x)) * (1 + scale) + shift)
        return torch.fft.ifftshift(torch.sigmoid(self.last(x)), dim=tuple(range(2, x.ndim - 1)))


class SpectralAttention(nn.Module):
    """One of the two modules of an SS-Former block: a stream asks another (secondary sources).

    With F the Fourier transform over the spatial axes of the tokens (not over channels), w the
    filter's weight of each frequency and W learnable C x C matrices:

        M  = (F(a) W_q) (F(b) W_k)^T                     frequencies of a x frequencies of b
        f  = F^-1(w M w^T) (a W_v) / (N sqrt(C))         F^-1 over both axes of M, real part
        a' = a + f,  result = a' + MLP(a')

    F acts on positions and W on channels, so ``F^-1(w M w^T)`` is the product of the band-passed
    queries and keys, and M itself (N x N) is never formed: queries and keys are filtered, and
    ``Q (K^T V)`` is multiplied from the right, which is the same number for any N.

    Our reading, where the sources are silent or from memory: w acts on both axes of M, since both
    are frequencies; layer norm before the products and the MLP; a residual around each; no
    softmax, as in the formula, but a division by N sqrt(C), which makes f a mean over tokens that
    does not grow with the window; one head.

    Args:
        spatial_dims: 2 or 3.
        channels: Channels of both streams.
        time_channels: Width of the time embedding.
        filter_blocks: Convolutions of the filter.
    """

    def __init__(
        self, spatial_dims: int, channels: int, time_channels: int, filter_blocks: int
    ) -> None:
        super().__init__()
        self.norm_stream, self.norm_other = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.query = nn.Linear(channels, channels, bias=False)
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels, bias=False)
        self.band_pass = NeuralBandPass(spatial_dims, time_channels, filter_blocks)
        self.norm_mlp = nn.LayerNorm(channels)
        self.mlp = MLPBlock(channels, 4 * channels)

    def forward(self, stream: Tensor, other: Tensor, time: Tensor) -> Tensor:
        """Maps a and b, (B, C, *S), times (B, time_channels) -> a', (B, C, *S)."""
        a, b = stream.movedim(1, -1), other.movedim(1, -1)
        tokens, others = self.norm_stream(a), self.norm_other(b)
        weight = self.band_pass(stream.shape[2:], time)
        query = filter_spectrum(self.query(tokens).movedim(-1, 1), weight).flatten(2)
        key = filter_spectrum(self.key(others).movedim(-1, 1), weight).flatten(2)
        value = self.value(tokens).flatten(1, -2)
        channels, count = query.shape[1:]
        mean = (key @ value) / (count * math.sqrt(channels))
        a = a + (query.transpose(1, 2) @ mean).reshape(a.shape)
        return (a + self.mlp(self.norm_mlp(a))).movedim(-1, 1)


class SSFormer(nn.Module):
    """Spectrum-Space Former, the semantic condition of MedSegDiff-V2 (from secondary sources).

    Each block is two symmetric :class:`SpectralAttention` modules on the deepest embeddings: the
    condition c asks the mask's embedding e and takes up its noise, ``c' = A1(c, e)``, then e asks
    the result and takes up its meaning, ``e' = A2(e, c')``. The next block goes on with both.

    Our reading: in the second module e gives query and value, as c does in the first. That makes
    the modules mirror images; a formula quoted from memory has the result as query and e as key
    and value instead. A 1x1 convolution brings c to the width of e where they differ.

    Args:
        spatial_dims: 2 or 3.
        channels: Channels of the mask's deepest embedding.
        context_channels: Channels of the condition's deepest embedding.
        time_channels: Width of the time embedding.
        blocks: Number of blocks; the sources do not give the paper's.
        filter_blocks: Convolutions of each filter.
    """

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        context_channels: int,
        time_channels: int,
        *,
        blocks: int = 2,
        filter_blocks: int = 6,
    ) -> None:
        super().__init__()
        conv = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
        self.enter = (
            nn.Identity() if context_channels == channels else conv(context_channels, channels, 1)
        )

        def modules() -> nn.ModuleList:
            return nn.ModuleList(
                SpectralAttention(spatial_dims, channels, time_channels, filter_blocks)
                for _ in range(blocks)
            )

        self.condition, self.mask = modules(), modules()

    def forward(self, mask: Tensor, condition: Tensor, time: Tensor) -> Tensor:
        """Maps e (B, C, *S) and c (B, context_channels, *S), times (B, time_channels) -> e'."""
        c = self.enter(condition)
        for to_condition, to_mask in zip(self.condition, self.mask, strict=True):
            c = to_condition(c, mask, time)
            mask = to_mask(mask, c, time)
        return mask.contiguous(memory_format=memory_layout(mask.ndim - 2))
