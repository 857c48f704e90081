"""Mixers against their formulas, written again in numpy or by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medseg_diff.networks.mixers import (
    DynamicEncoding,
    FFParser,
    LearnableGaussian,
    NeuralBandPass,
    SpectralAttention,
    SSFormer,
    UncertainSpatialAttention,
    filter_spectrum,
    resampling_matrix,
)

SIZES = [(9, 11), (8, 8), (1, 5), (6, 5, 4), (3, 4, 7), (1, 1, 1)]
every_size = pytest.mark.parametrize("size", SIZES, ids=str)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def shaken(module: nn.Module, scale: float = 0.3) -> nn.Module:
    """The module with every parameter moved away from its start."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module


def all_gradients_arrive(module: nn.Module, out: Tensor) -> None:
    (out * torch.randn_like(out)).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
        assert bool(parameter.grad.any()), name


def whole_spectrum(half: np.ndarray, last: int) -> np.ndarray:
    """Weights (C, *H) on all frequencies, (C, *S): the missing ones are the conjugates at -k."""
    size = (*half.shape[1:-1], last)
    full = np.zeros((len(half), *size), dtype=complex)
    for index in np.ndindex(*size):
        if index[-1] < half.shape[-1]:
            full[(slice(None), *index)] = half[(slice(None), *index)]
        else:
            mirror = (-k % n for k, n in zip(index, size, strict=True))
            full[(slice(None), *index)] = half[(slice(None), *mirror)].conj()
    return full


def numpy_filter(m: Tensor, half: Tensor) -> np.ndarray:
    """Re(IFFT(A FFT(m))) over the spatial axes, on the whole spectrum."""
    axes = tuple(range(2, m.ndim))
    full = whole_spectrum(half.detach().numpy(), m.shape[-1])
    spectrum = np.fft.fftn(m.numpy().astype(float), axes=axes)
    return np.fft.ifftn(full[None] * spectrum, axes=axes).real


@every_size
def test_a_new_parser_is_the_identity(size: tuple[int, ...]):
    m = torch.randn(2, 3, *size)
    parser = FFParser(len(size), 3)
    torch.testing.assert_close(parser(m), m, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(6, 6), (4, 4, 4)], ids=str)
def test_the_parser_at_its_base_size_is_the_papers_formula(size: tuple[int, ...]):
    parser = shaken(FFParser(len(size), 2, size[0]), 1.0)
    half = torch.complex(parser.planes[0], parser.planes[1])
    assert torch.equal(parser.frequency_map(size), half)
    m = torch.randn(2, 2, *size)
    np.testing.assert_allclose(parser(m).detach().numpy(), numpy_filter(m, half), atol=1e-5)


@every_size
def test_the_parser_at_any_size_filters_by_its_interpolated_map(size: tuple[int, ...]):
    parser = shaken(FFParser(len(size), 2, 4), 1.0)
    m = torch.randn(1, 2, *size)
    expected = numpy_filter(m, parser.frequency_map(size))
    np.testing.assert_allclose(parser(m).detach().numpy(), expected, atol=1e-5)


def test_half_a_map_says_all_that_a_whole_complex_map_can():
    """Of a whole map A on a real signal, the real part sees only (A(k) + conj A(-k)) / 2."""
    rng = np.random.default_rng(0)
    m, whole = rng.normal(size=(6, 4)), rng.normal(size=(6, 4, 2)) @ [1, 1j]
    paper = np.fft.ifft2(whole * np.fft.fft2(m)).real
    mirrored = np.roll(whole[::-1, ::-1], 1, axis=(0, 1)).conj()
    half = torch.from_numpy(((whole + mirrored) / 2)[:, :3])
    found = filter_spectrum(torch.from_numpy(m)[None, None], half)[0, 0]
    np.testing.assert_allclose(found.numpy(), paper, atol=1e-12)


@pytest.mark.parametrize(("size", "base"), [(8, 8), (7, 4), (40, 8), (5, 8), (1, 2), (3, 6)])
def test_interpolation_reads_the_map_at_the_same_cycles_per_voxel(size: int, base: int):
    """Of two functions of frequency that are linear between the base's knots: |f| and 1."""
    for half in (False, True):
        matrix = resampling_matrix(size, base, half=half).double()
        there, here = (
            torch.fft.rfftfreq(n, dtype=torch.float64)
            if half
            else torch.fft.fftfreq(n, dtype=torch.float64)
            for n in (base, size)
        )
        torch.testing.assert_close(matrix @ there.abs(), here.abs(), atol=1e-6, rtol=0)
        torch.testing.assert_close(matrix.sum(1), torch.ones(len(here), dtype=torch.float64))
    assert torch.equal(resampling_matrix(base, base, half=False), torch.eye(base))


@pytest.mark.parametrize("size", [(16, 12), (9, 21), (12, 10, 16), (5, 7, 9)], ids=str)
def test_a_low_pass_map_stays_low_pass_at_other_sizes(size: tuple[int, ...]):
    """Ideal low pass at a quarter of a cycle a voxel: below passes, above next to nothing."""
    dims, base = len(size), 16
    lines = [torch.fft.fftfreq(base)] * (dims - 1) + [torch.fft.rfftfreq(base)]
    radius = torch.stack(torch.meshgrid(*lines, indexing="ij")).norm(dim=0)
    parser = FFParser(dims, 1, base)
    with torch.no_grad():
        parser.planes[0, 0] = (radius <= 0.25).float()
    found = parser.frequency_map(size)[0]
    assert not bool(found.imag.any())
    lines = [torch.fft.fftfreq(n) for n in size[:-1]] + [torch.fft.rfftfreq(size[-1])]
    radius = torch.stack(torch.meshgrid(*lines, indexing="ij")).norm(dim=0)
    knot = math.sqrt(dims) / base
    assert bool((found.real[radius < 0.25 - knot] == 1).all())
    assert bool((found.real[radius > 0.25 + knot] == 0).all())
    constant = torch.full((1, 1, *size), 2.5)
    torch.testing.assert_close(parser(constant), constant)


def test_the_parser_computes_in_float32_under_mixed_precision():
    parser = shaken(FFParser(2, 3, 4))
    m = torch.randn(1, 3, 9, 7)
    with torch.autocast("cpu", torch.bfloat16):
        assert parser.frequency_map((9, 7)).dtype == torch.complex64
        mixed, narrow = parser(m), parser(m.bfloat16())
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, parser(m))
    assert narrow.dtype == torch.bfloat16
    assert torch.equal(narrow, parser(m.bfloat16().float()).bfloat16())


def test_the_parser_learns_real_and_imaginary_part():
    parser = FFParser(3, 2, 4)
    all_gradients_arrive(parser, parser(torch.randn(1, 2, 5, 6, 7)))
    assert parser.planes.grad is not None
    assert bool(parser.planes.grad[0].any())
    assert bool(parser.planes.grad[1].any())


@pytest.mark.parametrize("base", [0, 1, 7])
def test_the_parsers_base_size_is_even(base: int):
    with pytest.raises(ValueError, match="even"):
        FFParser(2, 3, base)


@every_size
def test_dynamic_encoding_is_its_formula(size: tuple[int, ...]):
    encoding = shaken(DynamicEncoding(5))
    image, mask = torch.randn(2, 2, 5, *size)

    def normed(x: Tensor, norm: nn.LayerNorm) -> Tensor:
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
        shape = (5, *[1] * len(size))
        return x * norm.weight.reshape(shape) + norm.bias.reshape(shape)

    expected = normed(image, encoding.norm_image) * normed(mask, encoding.norm_mask) * image
    torch.testing.assert_close(encoding(image, mask), expected)
    all_gradients_arrive(encoding, encoding(image, mask))


def test_the_gaussian_sums_to_one_and_follows_its_sigma():
    gaussian = LearnableGaussian(2)
    with torch.no_grad():
        gaussian.log_sigma.copy_(torch.tensor([0.5, 2.0]).log())
    kernel = gaussian.kernel(25)
    torch.testing.assert_close(kernel.sum(2), torch.ones(2, 25))
    place = torch.arange(25.0) - 12
    for channel, sigma in enumerate((0.5, 2.0)):
        row = kernel[channel, 12]
        torch.testing.assert_close(row, row.flip(0))
        expected = (-place.square() / (2 * sigma**2)).exp()
        torch.testing.assert_close(row, expected / expected.sum())
        spread = (row * place.square()).sum().sqrt()
        assert float(spread.detach()) == pytest.approx(sigma, rel=0.1)


@every_size
def test_the_gaussian_is_the_product_of_its_axes(size: tuple[int, ...]):
    gaussian = shaken(LearnableGaussian(2))
    x = torch.randn(2, 2, *size)
    letters = "xyz"[: len(size)]
    kernels = [gaussian.kernel(n) for n in size]
    spec = ",".join(f"c{upper}{lower}" for upper, lower in zip("XYZ", letters, strict=False))
    expected = torch.einsum(f"bc{letters},{spec}->bc{letters.upper()}", x, *kernels)
    torch.testing.assert_close(gaussian(x), expected)
    torch.testing.assert_close(gaussian(torch.ones_like(x)), torch.ones_like(x))


@pytest.mark.parametrize("size", [(9, 11), (6, 5, 4)], ids=str)
def test_spatial_attention_is_its_formula(size: tuple[int, ...]):
    attention = shaken(UncertainSpatialAttention(len(size), 4))
    mask, anchor = torch.randn(2, 3, *size), torch.randn(2, 4, *size)
    smooth = attention.gaussian(anchor)
    uncertain = torch.where(smooth > anchor, smooth, anchor)
    weight, bias = attention.weigh.weight.reshape(-1), attention.weigh.bias
    score = (uncertain * weight.reshape(1, 4, *[1] * len(size))).sum(1, keepdim=True) + bias
    expected = mask / (1 + torch.exp(-score)) + mask
    out = attention(mask, anchor)
    torch.testing.assert_close(out, expected)
    share = out / mask - 1
    torch.testing.assert_close(share[:, :1].expand_as(share), share, rtol=1e-3, atol=1e-4)
    all_gradients_arrive(attention, out)


@every_size
def test_the_band_pass_weighs_each_frequency_by_time(size: tuple[int, ...]):
    band_pass = NeuralBandPass(len(size), 8, blocks=2)
    time = torch.randn(3, 8)
    weight = band_pass(size, time)
    assert weight.shape == (3, 1, *size[:-1], size[-1] // 2 + 1)
    assert bool(((weight > 0) & (weight < 1)).all())
    assert float((weight[0] - weight[1]).abs().max().detach()) > 1e-3
    torch.testing.assert_close(band_pass(size, time[1:2])[0], weight[1], rtol=1e-4, atol=1e-6)
    if max(size) > 1:  # the one frequency of a single voxel has coordinate 0
        all_gradients_arrive(band_pass, weight)


def test_a_block_of_the_band_pass_is_its_formula():
    band_pass = NeuralBandPass(2, 8, blocks=1)
    time, seen = torch.randn(3, 8), []
    band_pass.last.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    weight = band_pass((4, 6), time)
    rows, columns = 2 * torch.arange(-2, 2) / 4, 2 * torch.arange(4) / 6
    coordinates = torch.stack([rows[:, None].expand(4, 4), columns.expand(4, 4)])
    h = band_pass.convs[0](coordinates[None])
    h = (h - h.mean(1)) / (h.var(1, correction=0) + 1e-5).sqrt()
    scale, shift = band_pass.times[0](time)[..., None, None].split(16, dim=1)
    h = (h * (1 + scale) + shift).clamp(min=0)
    torch.testing.assert_close(seen[0], h)
    expected = 1 / (1 + torch.exp(-band_pass.last(h))).roll(2, dims=2)
    torch.testing.assert_close(weight, expected)


def test_the_band_pass_sees_sorted_coordinates_in_units_of_nyquist():
    band_pass = NeuralBandPass(2, 8, blocks=1)
    seen: list[Tensor] = []
    band_pass.convs[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    band_pass((4, 6), torch.randn(1, 8))
    rows, columns = seen[0][0]
    assert rows[:, 0].tolist() == [-1, -0.5, 0, 0.5]
    torch.testing.assert_close(columns[0], torch.tensor([0, 1, 2, 3]) / 3)


def test_the_band_pass_returns_its_weights_with_frequency_0_first():
    band_pass = NeuralBandPass(2, 8, blocks=1)
    band_pass.convs[0] = nn.Conv2d(2, 16, 1)
    band_pass.norms[0], band_pass.last = nn.Identity(), nn.Conv2d(16, 1, 1, bias=False)
    with torch.no_grad():
        band_pass.convs[0].weight.zero_()
        band_pass.convs[0].bias.zero_()
        band_pass.convs[0].weight[:2, 0, 0, 0] = torch.tensor([1.0, -1.0])
        band_pass.times[0][1].weight.zero_()
        band_pass.times[0][1].bias.zero_()
        band_pass.last.weight.fill_(-4)
    weight = band_pass((6, 5), torch.randn(1, 8))[0, 0]
    expected = torch.sigmoid(-8 * torch.fft.fftfreq(6).abs())
    torch.testing.assert_close(weight, expected[:, None].expand(6, 3))


@pytest.mark.parametrize("size", [(4, 3), (2, 3, 4)], ids=str)
def test_attention_is_the_filtered_affinity_of_spectra(size: tuple[int, ...]):
    """With the N x N affinity written out: M, both transforms, the filter on both axes."""
    dims, channels, count = len(size), 6, math.prod(size)
    attention = shaken(SpectralAttention(dims, channels, 8, 2))
    a, b, time = torch.randn(1, channels, *size), torch.randn(1, channels, *size), torch.randn(1, 8)
    axes = tuple(range(dims))

    def spectrum(x: Tensor, norm: nn.Module, linear: nn.Linear) -> np.ndarray:
        tokens = norm(x[0].movedim(0, -1)).detach().numpy().astype(float)
        transformed = np.fft.fftn(tokens, axes=axes)
        return transformed.reshape(count, channels) @ linear.weight.detach().numpy().T

    query = spectrum(a, attention.norm_stream, attention.query)
    key = spectrum(b, attention.norm_other, attention.key)
    weight = attention.band_pass(size, time)[0].detach().numpy()
    w = whole_spectrum(weight, size[-1])[0]
    # On the planes that are their own mirror image the real part keeps the even part of w.
    mirror = np.ix_(*[[-k % n for k in range(n)] for n in size])
    w = ((w + w[mirror].conj()) / 2).reshape(count)
    affinity = w[:, None] * (query @ key.T) * w[None]
    spatial = np.fft.ifftn(affinity.reshape(*size, *size), axes=tuple(range(2 * dims)))
    assert float(np.abs(spatial.imag).max()) < 1e-9
    tokens = a[0].movedim(0, -1).reshape(count, channels)
    value = attention.value(attention.norm_stream(tokens)).detach().numpy()
    f = spatial.real.reshape(count, count) @ value / (count * math.sqrt(channels))
    stream = tokens + torch.from_numpy(f).float()
    expected = stream + attention.mlp(attention.norm_mlp(stream))
    found = attention(a, b, time)[0].movedim(0, -1).reshape(count, channels)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    alone = tokens + attention.mlp(attention.norm_mlp(tokens))
    assert float((found - alone).abs().max().detach()) > 1e-3


def former(dims: int, blocks: int = 2) -> SSFormer:
    return SSFormer(dims, 6, 4, 8, blocks=blocks, filter_blocks=2)


@every_size
def test_an_ss_former_takes_any_size_and_trains_everything(size: tuple[int, ...]):
    module = former(len(size))
    e, c, time = torch.randn(2, 6, *size), torch.randn(2, 4, *size), torch.randn(2, 8)
    out = module(e, c, time)
    assert out.shape == e.shape
    assert torch.equal(out, module(e, c, time))
    if max(size) > 1:
        all_gradients_arrive(module, out)


def test_the_two_modules_of_a_block_are_mirror_images():
    module = former(2, blocks=3)
    assert len(module.condition) == len(module.mask) == 3
    for one, two in zip(module.condition, module.mask, strict=True):
        assert type(one) is type(two) is SpectralAttention
        shapes = [{n: p.shape for n, p in m.named_parameters()} for m in (one, two)]
        assert shapes[0] == shapes[1]
        assert one.query.weight is not two.query.weight


def test_a_block_asks_in_both_directions_and_hands_both_on():
    module = former(2)
    calls: list[tuple[Tensor, Tensor, Tensor]] = []
    for side in (module.condition, module.mask):
        for attention in side:
            attention.register_forward_hook(lambda _, i, out: calls.append((i[0], i[1], out)))
    e, c = torch.randn(1, 6, 4, 3), torch.randn(1, 4, 4, 3)
    result = module(e, c, torch.randn(1, 8))
    first, second, third, fourth = calls
    assert torch.equal(first[0], module.enter(c))
    assert first[1] is e
    assert second[0] is e
    assert second[1] is first[2]
    assert third[0] is first[2]
    assert third[1] is second[2]
    assert fourth[0] is second[2]
    assert fourth[1] is third[2]
    assert torch.equal(result, fourth[2])


def test_equal_widths_need_no_entry():
    assert isinstance(SSFormer(2, 6, 6, 8, blocks=1).enter, nn.Identity)


@pytest.mark.parametrize("which", ["time", "condition", "mask", "filter"])
def test_an_ss_former_hears_each_of_its_inputs(which: str):
    module = former(3)
    e, c, time = torch.randn(1, 6, 4, 3, 5), torch.randn(1, 4, 4, 3, 5), torch.randn(1, 8)
    before = module(e, c, time)
    if which == "time":
        time = torch.randn(1, 8)
    elif which == "condition":
        c = torch.zeros_like(c)
    elif which == "mask":
        e = torch.randn_like(e)
    else:
        for side in (module.condition, module.mask):
            for attention in side:
                nn.init.constant_(attention.band_pass.last.bias, 6.0)
    assert float((module(e, c, time) - before).abs().max().detach()) > 1e-5
