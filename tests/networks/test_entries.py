"""How a context enters a level: what an untrained entry adds, and what attention looks at."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from medseg_diff.networks import entries
from medseg_diff.networks.entries import CrossAttention, coarsened, zero_convolution
from medseg_diff.networks.positions import positions
from medseg_diff.networks.unet import Entry, UNet, summed

WIDTHS, GIVEN = (8, 12), (8, 6)


def attentive(dims: int, given: int, width: int) -> CrossAttention:
    return CrossAttention(width, given, 2)


ENTRIES: dict[str, Entry] = {"sum": summed, "zero": zero_convolution, "attention": attentive}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def network(dims: int, entry: Entry) -> UNet:
    return UNet(dims, 3, 2, WIDTHS, time_channels=8, context_channels=GIVEN, entry=entry)


def maps(size: tuple[int, ...]) -> list[Tensor]:
    padded = [n + n % 2 for n in size]
    return [torch.randn(2, c, *(n // 2**k for n in padded)) for k, c in enumerate(GIVEN)]


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize("size", [(9, 11), (5, 4), (5, 7, 6)])
def test_any_size_passes_and_every_parameter_learns(name: str, size: tuple[int, ...]):
    made = network(len(size), ENTRIES[name])
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    x, t, context = torch.randn(2, 3, *size), torch.tensor([0.2, 0.8]), maps(size)
    for each in context:
        each.requires_grad_(True)
    out = made(x, t, context)
    assert out.shape == (2, 2, *size)
    (out * torch.randn_like(out)).sum().backward()
    for label, parameter in made.named_parameters():
        # An instance norm right after a convolution cancels its bias.
        if not label.endswith("conv.bias"):
            assert parameter.grad is not None, label
            assert bool(parameter.grad.any()), label
    assert all(bool(each.grad.any()) for each in context)
    blank = made(x, t, [torch.zeros_like(each) for each in context])
    assert float((blank - out).detach().abs().max()) > 1e-3


def test_a_zero_convolution_adds_nothing_until_it_has_learned():
    made, x = network(2, zero_convolution), torch.randn(2, 3, 8, 8)
    t = torch.tensor([0.2, 0.8])
    assert torch.equal(made(x, t, maps((8, 8))), made(x, t))
    made(x, t, maps((8, 8))).square().sum().backward()
    assert all(bool(layer.weight.grad.any()) for layer in made.mix)
    with torch.no_grad():
        made.mix[0].weight.fill_(0.1)
    assert not torch.allclose(made(x, t, maps((8, 8))), made(x, t))


def test_a_context_alike_everywhere_gives_every_position_its_value():
    made = CrossAttention(8, 6, 2)
    row = torch.randn(1, 6, 1, 1)
    found = made(torch.randn(1, 8, 5, 4), row.expand(1, 6, 5, 4))
    value = made.norm_context(row[0, :, 0, 0]) @ made.attention.v_proj_weight.T
    value = made.attention.out_proj(value + made.attention.in_proj_bias[16:])
    assert torch.allclose(found, value.reshape(1, 8, 1, 1).expand_as(found), atol=1e-6)


def looking_at_its_own_place() -> CrossAttention:
    """Queries and keys are places alone, many times over; the value is channel 8."""
    made = CrossAttention(8, 12, 1)
    with torch.no_grad():
        made.norm.weight.zero_()
        for weight in (made.attention.q_proj_weight, made.attention.k_proj_weight):
            weight.zero_()
            weight[:, :8] = 40 * torch.eye(8)
        made.attention.v_proj_weight.zero_()
        made.attention.v_proj_weight[0, 8] = 1
        made.attention.out_proj.weight.copy_(torch.eye(8))
    return made


def signs(pattern: Tensor) -> Tensor:
    """Context (1, 12, *S) whose channels 8 and 9 are a sign and its opposite, all others 0."""
    context = torch.zeros(1, 12, *pattern.shape)
    context[0, 8], context[0, 9] = pattern, -pattern
    return context


@pytest.mark.parametrize("block", [1, 2])
def test_a_position_finds_its_own_place(monkeypatch: pytest.MonkeyPatch, block: int):
    """Layer norm makes the sign sqrt(6); blocks of the context lie where the level's voxels do."""
    monkeypatch.setattr(entries, "SEEN", 36 if block == 1 else 9)
    coarse = torch.randn(6 // block, 6 // block).sign()
    fine = coarse.repeat_interleave(block, 0).repeat_interleave(block, 1)
    found = looking_at_its_own_place()(torch.randn(1, 8, 6, 6), signs(fine))
    assert torch.allclose(found[0, 0], math.sqrt(6) * fine, atol=1e-3)
    assert torch.allclose(found[0, 1:], torch.zeros(7, 6, 6), atol=1e-6)


@pytest.mark.parametrize(
    ("size", "block"),
    [((32, 32), 1), ((33, 8), 2), ((21, 26), 1), ((10, 10, 10), 1), ((11, 3, 21), 3)],
)
def test_no_more_is_seen_than_fits(size: tuple[int, ...], block: int):
    context = torch.ones(1, 6, *size)
    pooled, found = coarsened(context)
    assert found == block
    assert pooled.shape[2:] == torch.Size(-(-n // block) for n in size)
    assert pooled[0, 0].numel() <= entries.SEEN
    # Blocks that reach over the end count what there is.
    assert torch.allclose(pooled, torch.ones_like(pooled))


def test_places_of_blocks_are_their_middles():
    whole, halves = positions([8], 8), positions([4], 8, 2)
    middles = torch.tensor([0.5, 2.5, 4.5, 6.5])
    # The fastest of four rates is one a voxel.
    assert torch.allclose(halves[:, 0], middles.sin(), atol=1e-6)
    assert torch.allclose(halves[:, 4], middles.cos(), atol=1e-6)
    assert torch.equal(positions([8], 8, 1), whole)
