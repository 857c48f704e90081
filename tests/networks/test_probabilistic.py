"""The Probabilistic U-Net's parts and dropout by handed-over masks, against plain arithmetic."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from medseg_diff.networks.dropout import ChannelDropout, Gains
from medseg_diff.networks.probabilistic import Gaussian, GaussianEncoder, LatentHead
from medseg_diff.networks.unet import UNet

WIDTHS = (4, 6, 8)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def test_a_latent_by_hand():
    given = Gaussian(torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, math.log(3)]]))
    drawn = given.draw(torch.tensor([[0.5, -1.0]]))
    torch.testing.assert_close(drawn, torch.tensor([[1.5, -5.0]]))
    torch.testing.assert_close(given.variance, torch.tensor([[1.0, 9.0]]))


def test_repeating_keeps_each_window_together():
    given = Gaussian(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0]])).repeat(2)
    assert given.mean[:, 0].tolist() == [1, 1, 2, 2]
    assert given.log_sd[:, 0].tolist() == [3, 3, 4, 4]


@pytest.mark.parametrize("size", [(9, 11), (1, 1), (8, 3), (9, 11, 7), (1, 5, 2)])
def test_an_encoder_takes_any_size(size: tuple[int, ...]):
    net = GaussianEncoder(len(size), 2, WIDTHS, 5)
    found = net(torch.randn(3, 2, *size))
    assert found.mean.shape == found.log_sd.shape == (3, 5)
    (found.mean.sum() + found.log_sd.sum()).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in net.parameters())


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("size", [1, 16])
def test_an_encoder_tells_flat_maps_apart(dims: int, size: int):
    """A window may well be all background, or all structure; an instance norm would not see it."""
    net = GaussianEncoder(dims, 2, (8, 16, 16), 5)
    x = torch.zeros(2, 2, *[size] * dims)
    x[0, 0] = x[1, 1] = 1
    empty, full = net(x).mean.detach()
    assert float((empty - full).abs().max()) > 1e-2


def test_standard_deviations_stay_finite():
    net = GaussianEncoder(2, 1, WIDTHS, 5)
    with torch.no_grad():
        net.head.weight.mul_(1e4)
        found = net(torch.randn(4, 1, 8, 8))
    assert float(found.log_sd.abs().max()) <= 5
    assert bool(torch.isfinite(found.variance).all() & (found.variance > 0).all())


@pytest.mark.parametrize("dims", [2, 3])
def test_an_encoder_looks_everywhere(dims: int):
    """Every voxel moves the answer; none stands for the whole."""
    net = GaussianEncoder(dims, 1, (8, 16), 5)
    x = torch.randn(1, 1, *[16] * dims, requires_grad=True)
    net(x).mean.square().sum().backward()
    assert x.grad is not None
    assert bool((x.grad != 0).all())


@pytest.mark.parametrize("size", [(3, 5), (3, 5, 2)])
def test_the_head_is_one_perceptron_at_every_voxel(size: tuple[int, ...]):
    """Second implementation: matrices on the vector (map at a voxel, latent)."""
    net = LatentHead(len(size), 4, 2, 3)
    maps, z = torch.randn(2, 4, *size), torch.randn(2, 2)
    found = net(maps, z)
    assert found.shape == (2, 3, *size)
    layers = [layer for layer in net.layers if hasattr(layer, "weight")]
    assert len(layers) == 4
    voxel = (1, *(n - 1 for n in size))
    values = torch.cat([maps[voxel[0], :, *voxel[1:]], z[1]])
    for layer in layers:
        values = layer.weight.flatten(1) @ values + layer.bias
        if layer is not layers[-1]:
            values = torch.where(values > 0, values, 0.1 * values)
    torch.testing.assert_close(found[1, :, *voxel[1:]], values)


def test_gains_by_hand():
    """Three levels: the deeper two of the encoder, then the middle one of the decoder."""
    dropout = ChannelDropout((2, 3, 4), 0.25)
    assert dropout.normals == 3 + 4 + 3
    # A quarter of a standard normal lies below -0.6745.
    normals = torch.tensor([[-0.67, -0.68, 0, 1, -1, 2, -2, -0.5, -0.7, 3.0]])
    gains = dropout.gains(normals)
    assert gains.encoder[0] is None
    assert gains.decoder[0] is None
    assert len(gains.encoder) == 3
    assert len(gains.decoder) == 2
    k = pytest.approx(4 / 3)
    assert gains.encoder[1][0].tolist() == [k, 0, k]
    assert gains.encoder[2][0].tolist() == [k, 0, k, 0]
    assert gains.decoder[1][0].tolist() == [k, 0, k]


def test_the_rate_is_kept_and_so_is_the_mean():
    dropout = ChannelDropout((8, 8, 8, 8), 0.3)
    gains = dropout.gains(torch.randn(2000, dropout.normals))
    for gain in (*gains.encoder[2:], gains.decoder[2]):
        assert float((gain == 0).float().mean()) == pytest.approx(0.3, abs=0.015)
        assert float(gain.mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1])
def test_a_rate_outside_its_range_is_refused(rate: float):
    with pytest.raises(ValueError, match="between 0 and 1"):
        ChannelDropout((4, 4), rate)


@pytest.mark.parametrize("size", [(9, 11), (9, 6, 7)])
def test_a_mask_is_a_network_with_other_weights(size: tuple[int, ...]):
    """Second implementation: the same factors on the weights that read each map."""
    net = UNet(len(size), 1, 2, WIDTHS)
    x, factor = torch.randn(1, 1, *size), {w: torch.rand(w) for w in WIDTHS}
    mid, deep, out = factor[6], factor[8], factor[6].flip(0)
    gains = Gains((None, mid[None], deep[None]), (None, out[None]))
    plain = copy.deepcopy(net)
    shape = [1] * len(size)
    with torch.no_grad():
        # Max-pooling passes a factor on; the skip's map comes first in a merge.
        plain.down[2].first.conv.weight *= mid.reshape(1, -1, *shape)
        plain.merge[1].first.conv.weight[:, :6] *= mid.reshape(1, -1, *shape)
        plain.up[1].weight *= deep.reshape(-1, 1, *shape)
        plain.up[0].weight *= out.reshape(-1, 1, *shape)
        found = net.dropped(x, gains)
        torch.testing.assert_close(found, plain(x), atol=1e-5, rtol=1e-4)
        assert float((found - net(x)).abs().max()) > 1e-2


def test_gains_of_one_change_nothing_and_samples_have_their_own():
    net, x = UNet(2, 1, 2, WIDTHS), torch.randn(1, 1, 9, 11).repeat(2, 1, 1, 1)
    ones = Gains((None, None, torch.ones(2, 8)), (None, None))
    with torch.no_grad():
        assert torch.equal(net.dropped(x, ones), net(x))
        half = Gains((None, None, torch.stack([torch.ones(8), torch.zeros(8)])), (None, None))
        first, second = net.dropped(x, half)
    torch.testing.assert_close(first, net(x)[0].detach())
    assert float((first - second).abs().max()) > 1e-2
