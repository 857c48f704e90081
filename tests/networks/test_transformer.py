"""The diffusion transformer: any size, tokens in their places, adaLN-Zero, cross-attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from medseg_diff.networks.transformer import DiffusionTransformer, TransformerBlock, positions

T = torch.tensor([0.3, 0.8])


def network(dims: int = 2, seed: int = 0, **changes: Any) -> DiffusionTransformer:
    """A small one with every parameter moved off its zeros."""
    torch.manual_seed(seed)
    keys = {"width": 24, "depth": 2, "heads": 2, "token_size": 2, "time_channels": 16} | changes
    made = DiffusionTransformer(dims, 3, 2, **keys)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


@pytest.mark.parametrize("size", [(8, 6), (7, 9), (1, 1), (6, 4, 8), (5, 7, 3)])
def test_any_size_in_2d_and_3d(size: tuple[int, ...]):
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        assert network(len(size))(x, T).shape == (2, 2, *size)


@pytest.mark.parametrize("dims", [2, 3])
def test_tokens_go_back_to_where_they_came_from(dims: int):
    """A changed voxel changes its own token's patch most: attention spreads the rest evenly."""
    made = network(dims)
    x = torch.randn(1, 3, *[8] * dims)
    other = x.clone()
    where = (0, 0, *[5, 2, 7][:dims])
    other[where] += 3
    with torch.no_grad():
        moved = (made(other, T[:1]) - made(x, T[:1])).abs().sum((0, 1))
    patch = tuple(slice(n // 2 * 2, n // 2 * 2 + 2) for n in where[2:])
    inside = float(moved[patch].mean())
    moved[patch] = 0
    assert inside > 3 * float(moved.max())


def test_an_untrained_network_answers_zero_and_its_blocks_do_nothing():
    """adaLN-Zero: gates and the last layer start at zero."""
    torch.manual_seed(0)
    fresh = DiffusionTransformer(
        2, 3, 2, width=24, depth=2, heads=2, token_size=2, time_channels=16, context_channels=5
    )
    x, context = torch.randn(2, 3, 8, 8), [torch.randn(2, 5, 4, 4)]
    assert float(fresh(x, T, context).detach().abs().max()) == 0
    block = TransformerBlock(24, 2, 5)
    tokens = torch.randn(2, 9, 24)
    assert torch.equal(block(tokens, torch.randn(2, 24), torch.randn(2, 4, 5)), tokens)


@pytest.mark.parametrize(
    ("shape", "width"), [((5, 4), 24), ((3, 4, 5), 24), ((40, 56), 96), ((2, 2, 2), 6)]
)
def test_every_place_has_its_own_sinusoids(shape: tuple[int, ...], width: int):
    found = positions(shape, width)
    assert found.shape == (torch.Size(shape).numel(), width)
    distances = torch.cdist(found, found) + 9 * torch.eye(len(found))
    assert float(distances.min()) > 0.05
    assert float(found.abs().max()) <= 1


def test_places_matter():
    """The same tokens in another order give another answer, not a permutation of the first."""
    made, x = network(), torch.randn(1, 3, 4, 4)
    turned = x.roll(2, 2)
    with torch.no_grad():
        assert float((made(turned, T[:1]) - made(x, T[:1]).roll(2, 2)).abs().max()) > 1e-3


def test_time_and_context_matter_and_get_gradients():
    made = network(context_channels=5)
    x = torch.randn(2, 3, 8, 8)
    maps = [torch.randn(2, 4, 8, 8), torch.randn(2, 5, 4, 4)]

    def answer(t: Tensor, features: list[Tensor]) -> Tensor:
        return made(x, t, features)

    plain = answer(T, maps)
    assert float((answer(T / 2, maps) - plain).detach().abs().max()) > 1e-3
    blank = [maps[0], torch.zeros_like(maps[1])]
    assert float((answer(T, blank) - plain).detach().abs().max()) > 1e-3
    plain.square().sum().backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in made.parameters())


def test_widths_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="multiple of 2 heads and of 6, not 20"):
        network(3, width=20)
