"""Networks: any size, every parameter used, time and context matter."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medseg_diff.codecs import OneHotCodec
from medseg_diff.config import ModelConfig, ObjectiveConfig
from medseg_diff.diffusion.paths import VariancePreserving
from medseg_diff.diffusion.time_laws import uniform
from medseg_diff.model import DiffusionModel, Sampling, UNetModel
from medseg_diff.networks.conditioners import AnchoredPyramid, Context, Pyramid
from medseg_diff.networks.unet import TimeEmbedding, TwoConv, UNet, crop_to, pad_to_multiple

WIDTHS = (4, 6, 8)
SIZES = [(9, 11), (8, 8), (13, 7), (9, 11, 7), (8, 12, 8), (10, 5, 9)]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def denoiser(dims: int) -> UNet:
    return UNet(dims, 3, 2, WIDTHS, time_channels=8, context_channels=(4, 5, 8))


def context_maps(size: tuple[int, ...], batch: int = 1) -> list[torch.Tensor]:
    padded = [n + -n % 4 for n in size]
    widths = (4, 5, 8)
    return [
        torch.randn(batch, c, *(n // 2**level for n in padded)) for level, c in enumerate(widths)
    ]


@pytest.mark.parametrize("size", SIZES)
def test_any_size_comes_back(size: tuple[int, ...]):
    network = denoiser(len(size))
    x = torch.randn(2, 3, *size)
    out = network(x, torch.tensor([0.1, 0.9]), context_maps(size, 2))
    assert out.shape == (2, 2, *size)
    assert bool(torch.isfinite(out).all())


@pytest.mark.parametrize("size", [(9, 11), (6, 9, 7)])
def test_every_parameter_gets_gradient(size: tuple[int, ...]):
    network = denoiser(len(size))
    out = network(torch.randn(1, 3, *size), torch.tensor([0.4]), context_maps(size))
    (out * torch.randn_like(out)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        # An instance norm right after a convolution cancels its bias.
        if not name.endswith("conv.bias"):
            assert bool(parameter.grad.any()), name


def test_padding_repeats_the_edge_and_is_undone():
    x = torch.arange(12.0).reshape(1, 1, 3, 4)
    padded = pad_to_multiple(x, 4)
    assert padded.shape == (1, 1, 4, 4)
    assert torch.equal(padded[..., 3, :], x[..., 2, :])
    assert torch.equal(crop_to(padded, x), x)
    assert pad_to_multiple(x, 1) is x


def test_time_changes_the_output():
    network = denoiser(3)
    x, maps = torch.randn(1, 3, 8, 8, 8), context_maps((8, 8, 8))
    with torch.no_grad():
        outputs = [network(x, torch.tensor([t]), maps) for t in (0.1, 0.5, 0.9)]
    assert float((outputs[0] - outputs[1]).abs().max()) > 1e-4
    assert float((outputs[1] - outputs[2]).abs().max()) > 1e-4


def test_instance_norm_does_not_swallow_the_time():
    """Far from the zero-padded border too, where a shift after the activation would vanish."""
    block = TwoConv(3, 1, 4, time_channels=16)
    x = torch.randn(1, 1, 24, 24, 24)
    with torch.no_grad():
        one, two = (block(x, torch.randn(1, 16)) for _ in range(2))
    inside = (..., *[slice(8, 16)] * 3)
    assert float((one - two)[inside].abs().mean()) > 0.02


def test_time_embedding_is_sinusoids_of_1000_t():
    embedding = TimeEmbedding(16)
    embedding.layers = nn.Sequential(nn.Identity())
    found = embedding(torch.tensor([0.0, 0.25]))
    rates = 10_000 ** -(torch.arange(4) / 3)
    torch.testing.assert_close(found[0], torch.tensor([0.0] * 4 + [1.0] * 4))
    expected = torch.cat([torch.sin(250 * rates), torch.cos(250 * rates)])
    torch.testing.assert_close(found[1], expected, rtol=1e-3, atol=1e-3)


def test_context_is_added_to_every_level():
    network = UNet(2, 1, 1, WIDTHS, context_channels=WIDTHS)
    x = torch.randn(1, 1, 8, 8)
    maps = [torch.randn(1, c, 8 // 2**level, 8 // 2**level) for level, c in enumerate(WIDTHS)]
    assert all(isinstance(mix, nn.Identity) for mix in network.mix)
    zeros = [torch.zeros_like(m) for m in maps]
    torch.testing.assert_close(network(x, None, zeros), network(x), rtol=0, atol=0)
    for level in range(3):
        only = [
            m if index == level else z for index, (m, z) in enumerate(zip(maps, zeros, strict=True))
        ]
        changed = network.maps(x, None, only).encoder[level] - network.maps(x).encoder[level]
        torch.testing.assert_close(changed, maps[level], rtol=1e-4, atol=1e-5)


def test_two_identical_calls_are_bit_identical():
    network = denoiser(3).eval()
    x, t, maps = torch.randn(2, 3, 8, 8, 8), torch.tensor([0.3, 0.6]), context_maps((8, 8, 8), 2)
    assert torch.equal(network(x, t, maps), network(x, t, maps))


def test_a_pyramid_has_no_decoder_and_no_output():
    pyramid = Pyramid(2, 1, WIDTHS)
    context = pyramid(torch.randn(1, 1, 8, 8))
    assert [f.shape[1] for f in context.features] == list(WIDTHS)
    assert context.anchor is None
    assert len(pyramid.network.up) == 0
    with pytest.raises(RuntimeError, match="no output"):
        pyramid.network(torch.randn(1, 1, 8, 8))


def test_an_anchored_pyramid_gives_decoder_maps_and_logits():
    pyramid = AnchoredPyramid(2, 1, 3, WIDTHS)
    context = pyramid(torch.randn(1, 1, 9, 7))
    assert [tuple(f.shape[1:]) for f in context.features] == [(4, 12, 8), (6, 6, 4), (8, 3, 2)]
    assert context.anchor is not None
    assert context.anchor.shape == (1, 3, 9, 7)


def test_context_repeats_window_by_window():
    image = torch.tensor([1.0, 2.0]).reshape(2, 1, 1)
    context = Context(image, (image * 10,), image * 100).repeat(3)
    assert context.image.flatten().tolist() == [1, 1, 1, 2, 2, 2]
    assert context.features[0].flatten().tolist() == [10, 10, 10, 20, 20, 20]
    assert context.anchor is not None
    assert context.anchor.flatten().tolist() == [100, 100, 100, 200, 200, 200]


def diffusion(output: str = "correction") -> DiffusionModel:
    config = ModelConfig(features=(4, 4), conditioner="anchored", output=output, time_channels=8)
    return DiffusionModel(
        UNet(2, 3, 2, (4, 4), time_channels=8, context_channels=(4, 4)),
        AnchoredPyramid(2, 1, 2, (4, 4)),
        VariancePreserving("linear", 0.5),
        OneHotCodec(((0,), (1,))),
        uniform,
        config,
        ObjectiveConfig(dice=1),
    ).eval()


def count(module: nn.Module) -> list[int]:
    calls: list[int] = []
    module.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    return calls


@pytest.mark.parametrize(("draws", "steps"), [(1, 1), (3, 4), (5, 2)])
def test_the_conditioner_is_called_once_whatever_the_draws_and_steps(draws: int, steps: int):
    model = diffusion()
    encoder, network = count(model.conditioner), count(model.denoiser)
    context = model.context(torch.randn(2, 1, 8, 8)).repeat(draws)
    noise = torch.randn(2 * draws, 2, 8, 8)
    *_, last = model.trajectory(context, noise, Sampling(steps=steps))
    assert encoder == [2]
    assert network == [2 * draws] * steps
    torch.testing.assert_close(last.probabilities.sum(1), torch.ones(2 * draws, 8, 8))


def test_a_correction_of_zero_is_the_anchor():
    model = diffusion()
    assert model.denoiser.head is not None
    nn.init.zeros_(model.denoiser.head.weight)
    nn.init.zeros_(model.denoiser.head.bias)
    context = model.context(torch.randn(1, 1, 8, 8))
    assert context.anchor is not None
    (only,) = model.trajectory(context, torch.randn(1, 2, 8, 8), Sampling(steps=1))
    torch.testing.assert_close(only.probabilities, context.anchor.softmax(1))


def test_the_baseline_answers_with_its_logits():
    model = UNetModel(UNet(2, 1, 2, (4, 4)), OneHotCodec(((0,), (1,))), ObjectiveConfig(dice=1))
    image = torch.randn(1, 1, 8, 8)
    calls = count(model.network)
    context = model.context(image)
    (only,) = model.trajectory(context, torch.randn(1, 2, 8, 8), Sampling(steps=7))
    assert calls == [1]
    torch.testing.assert_close(only.probabilities, model.network(image).softmax(1))
