"""A latent of several depths: stacked and split without loss, and all that the decoder sees."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from medseg_diff.networks.autoencoder import MaskAutoencoder, latent_noise
from medseg_diff.networks.depths import DepthsAutoencoder

WIDTHS, Z = (8, 16, 16), 3
CASES = [(2, (21, 26)), (3, (21, 26)), (2, (9, 6, 11)), (3, (9, 6, 11))]
cases = pytest.mark.parametrize(("depths", "size"), CASES)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def network(depths: int, dims: int) -> DepthsAutoencoder:
    return DepthsAutoencoder(dims, 4, Z, WIDTHS, depths, 2).eval()


def grid(size: tuple[int, ...], block: int) -> list[int]:
    """Voxels at one level, of an image padded to whole blocks of the deepest."""
    return [math.ceil(n / 4) * 4 // block for n in size]


@cases
def test_the_grid_is_that_of_the_finest_depth(depths: int, size: tuple[int, ...]):
    made = network(depths, len(size))
    latent = made.encode(torch.randn(2, 2, *size))
    assert made.factor == 2 ** (3 - depths)
    assert latent.z.shape == (2, depths * Z, *grid(size, made.factor))
    assert made.decode(latent.z, size).shape == (2, 4, *size)
    field = torch.randn(2, 12, *size)
    assert made.noise(field).shape == latent.z.shape
    assert made.encode(torch.randn(2, 2, *size), made.noise(field)).z.shape == latent.z.shape


@cases
def test_what_is_stacked_is_split_again(depths: int, size: tuple[int, ...]):
    made = network(depths, len(size))
    maps = [torch.randn(2, Z, *grid(size, 4 // 2**d)) for d in range(depths)]
    stack = made.stacked(maps)
    assert torch.equal(stack[:, -Z:], maps[-1])
    for found, wanted in zip(made.split(stack), maps, strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)
    # Voxels of one coarse voxel are alike.
    coarse = stack[0, 0]
    assert torch.equal(coarse[0], coarse[1])
    assert not torch.equal(coarse[0], coarse[2 ** (depths - 1)])


@cases
def test_every_depth_has_mean_0_and_variance_1(depths: int, size: tuple[int, ...]):
    z = network(depths, len(size)).encode(7 + 3 * torch.randn(2, 2, *size)).z
    for sample in z.reshape(2, depths, -1).unbind():
        assert torch.allclose(sample.mean(1), torch.zeros(depths), atol=1e-5)
        assert torch.allclose(sample.square().mean(1), torch.ones(depths), atol=1e-3)


def test_the_deepest_channels_are_what_they_are_alone():
    torch.manual_seed(1)
    made = network(2, 2)
    alone = MaskAutoencoder(2, 4, Z, WIDTHS, in_channels=2).eval()
    alone.network.load_state_dict(made.network.state_dict())
    image = torch.randn(1, 2, 21, 26)
    deepest = made.split(made.encode(image).z)[0]
    assert torch.allclose(deepest, alone.encode(image).z, atol=1e-5)


@pytest.mark.parametrize("depths", [2, 3])
def test_skips_alone_differ_from_a_network_without(depths: int):
    """With expansions at zero the mask is that of the deepest map alone."""
    made = network(depths, 2)
    alone = MaskAutoencoder(2, 4, Z, WIDTHS, in_channels=2).eval()
    alone.network.load_state_dict(made.network.state_dict())
    z = torch.randn(1, depths * Z, *grid((21, 26), made.factor))
    wanted = alone.decode(made.split(z)[0], (21, 26))
    assert not torch.allclose(made.decode(z, (21, 26)), wanted, atol=1e-2)
    with torch.no_grad():
        for parameter in made.expand.parameters():
            parameter.zero_()
    assert torch.allclose(made.decode(z, (21, 26)), wanted, atol=1e-5)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_each_depth_reaches_the_mask_by_its_means(depth: int):
    made, size = network(3, 2), (8, 12)
    z = torch.randn(1, 3 * Z, *size)
    plain = made.decode(z, size)
    within = torch.zeros_like(z)
    within[:, depth * Z] = torch.tensor([1.0, -1.0]).repeat(6)
    moved = made.decode(z + within, size)
    assert torch.allclose(moved, plain, atol=1e-4) == (depth < 2)
    assert not torch.allclose(made.decode(z + within.abs(), size), plain, atol=1e-3)


def test_a_sample_has_the_posteriors_spread_at_every_depth():
    """Variances of exp(2 log 3) around means of 0, before each depth is standardised."""
    made = network(2, 2)
    shapes = [(1, Z, 8, 8), (1, Z, 16, 16)]
    spreads = [(torch.zeros(s), torch.full(s, 2 * math.log(3))) for s in shapes]
    made._spreads = lambda padded: spreads
    made._scaled = lambda z: z
    noise = torch.randn(1, 2 * Z, 16, 16)
    coarse, fine = made.split(made.encode(torch.zeros(1, 2, 32, 32), noise).z)
    assert torch.allclose(fine, 3 * noise[:, Z:], atol=1e-5)
    assert torch.allclose(coarse, 3 * noise[:, :Z, ::2, ::2], atol=1e-5)
    # KL(N(0, 9) || N(0, 1)) = (9 - log 9 - 1) / 2
    found = made.encode(torch.zeros(1, 2, 32, 32)).penalty
    assert float(found.detach()) == pytest.approx((8 - math.log(9)) / 2)


@cases
def test_gradients_reach_every_parameter(depths: int, size: tuple[int, ...]):
    made = network(depths, len(size)).train()
    latent = made.encode(torch.randn(2, 2, *size), made.noise(torch.randn(2, 12, *size)))
    logits: Tensor = made.decode(latent.z, size)
    ((logits * torch.randn_like(logits)).sum() + latent.penalty).backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()), name


def test_noise_is_wrapped_to_whole_blocks():
    field = torch.arange(20.0).reshape(1, 1, 4, 5)
    found = latent_noise(field, 1, 2, 4)
    assert torch.equal(found[0, 0], field[0, 0][::2][:, [0, 2, 4, 1]])
    assert torch.equal(latent_noise(field, 1, 2), found[..., :3])
    # A field smaller than a block goes round more than once.
    assert torch.equal(latent_noise(field[..., :1, :1], 1, 1, 4), torch.zeros(1, 1, 4, 4))
