"""Low-rank adapters: what a frozen network learns from few cases, in a few thousand numbers.

LoRA (Hu et al. 2021, arXiv 2106.09685) adds to a frozen weight W the product of two thin matrices,
W + (alpha / r) B A, with A random and B zero, so that training starts from the network as it is.
A convolution's weight is read as a matrix of its first axis by all others, which is a convolution
to r channels and one of size 1 behind it; of a transposed convolution the first axis is its input.
The sum is torch's own parametrization, so merging is taking it away.

Departures: the released code (microsoft/LoRA, loralib/layers.py) reads a convolution's weight as
(out k, in k) at k times the rank and draws A uniformly; here A has a standard deviation of
1 / sqrt(columns), and a rank never exceeds the matrix's own. All projections of an attention layer
are adapted. There is no dropout before A.

Legend: R rows, C columns of a weight read as a matrix, r rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

_PLAIN = (nn.Linear, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


class LowRank(nn.Module):
    """A weight plus (alpha / r) B A.

    Args:
        weight: What it is added to; gives shape, device and type.
        rank: r, which the smaller of rows and columns bounds.
        alpha: The gain is alpha / r, with r as it was asked for.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        rows, columns = len(weight), weight[0].numel()
        bounded = min(rank, rows, columns)
        self.gain = alpha / rank
        self.a = nn.Parameter(weight.new_empty(bounded, columns).normal_(std=columns**-0.5))
        self.b = nn.Parameter(weight.new_zeros(rows, bounded))

    def forward(self, weight: Tensor) -> Tensor:
        """Weight (R, ...) -> the adapted weight, same shape and strides."""
        change = (self.gain * (self.b @ self.a)).reshape(weight.shape)
        # By their strides convolutions choose a kernel, and kernels differ in the last bits.
        return torch.empty_like(weight).copy_(weight + change)


class Place(NamedTuple):
    """A weight that can be adapted.

    Attributes:
        name: Of its layer, as ``named_modules`` has it.
        layer: The layer.
        weight: The weight's name there.
    """

    name: str
    layer: nn.Module
    weight: str

    @property
    def full_name(self) -> str:
        """Name of the weight in the network."""
        return f"{self.name}.{self.weight}" if self.name else self.weight


def places(network: nn.Module) -> Iterator[Place]:
    """Weights of linear layers, convolutions and attention, in the network's order."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.MultiheadAttention):
            yield from (
                Place(name, layer, weight)
                for weight in _PROJECTIONS
                if getattr(layer, weight) is not None
            )
        elif isinstance(layer, _PLAIN):
            yield Place(name, layer, "weight")


def attach(
    network: nn.Module,
    rank: int,
    alpha: float,
    layers: Sequence[str] = ("*",),
    whole: Sequence[str] = (),
    *,
    without: str = "",
) -> list[str]:
    """Freeze a network and give it adapters; its answers stay what they were, bit for bit.

    Args:
        network: Changed in place. Only the adapters, and ``whole``, have gradients afterwards.
        rank: r, 1 or more.
        alpha: Gain of the adapters, divided by the rank.
        layers: Patterns (``*``, ``?``) of names of layers, any of which chooses.
        whole: Patterns of names of parameters that are trained as they are, without an adapter.
        without: Beginning of the names of layers that are left alone, whatever patterns say.

    Returns:
        Names of the adapted weights.

    Raises:
        ValueError: if a pattern fits nothing.
    """
    chosen = [
        place
        for place in places(network)
        if _fits(place.name, layers)
        and not _fits(place.full_name, whole)
        and not (without and place.name.startswith(without))
    ]
    for pattern in layers:
        if not any(fnmatchcase(place.name, pattern) for place in chosen):
            raise ValueError(f"no linear, convolution or attention layer is named {pattern!r}")
    names = [name for name, _ in network.named_parameters()]
    for pattern in whole:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"no parameter is named {pattern!r}")
    for place in chosen:
        change = LowRank(getattr(place.layer, place.weight).detach(), rank, alpha)
        # Its shape is the weight's by construction, and the check would run the sum twice.
        parametrize.register_parametrization(place.layer, place.weight, change, unsafe=True)
    freeze(network, whole, without=without)
    return [place.full_name for place in chosen]


def freeze(network: nn.Module, whole: Sequence[str] = (), *, without: str = "") -> None:
    """Leave a gradient to the adapters alone, and to what ``whole`` names; see :func:`attach`."""
    own = {id(p) for change in adapters(network).values() for p in change.parameters()}
    for name, parameter in network.named_parameters():
        adapted = ".parametrizations." in f".{name}"
        left = bool(without) and name.startswith(without)
        free = id(parameter) in own or (not adapted and not left and _fits(name, whole))
        parameter.requires_grad_(free)


def adapters(network: nn.Module) -> dict[str, LowRank]:
    """The adapters by the names of the weights that they change."""
    found: dict[str, LowRank] = {}
    for name, layer in network.named_modules():
        if not parametrize.is_parametrized(layer):
            continue
        for weight, changes in layer.parametrizations.items():
            prefix = f"{name}." if name else ""
            found |= {f"{prefix}{weight}": c for c in changes if isinstance(c, LowRank)}
    return found


def tensors(network: nn.Module) -> dict[str, Tensor]:
    """What the network has learned beyond its base: both matrices of each adapter, and ``whole``.

    Names are ``<weight>.lora_a``, ``<weight>.lora_b`` and, of whole parameters, their own.
    """
    found: dict[str, Tensor] = {}
    for name, change in adapters(network).items():
        found |= {f"{name}.lora_a": change.a.detach(), f"{name}.lora_b": change.b.detach()}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and ".parametrizations." not in f".{name}":
            found[name] = parameter.detach()
    return found


def merge(network: nn.Module, learned: Mapping[str, Tensor], gain: float) -> None:
    """Add what adapters learned to the weights of their base, which is an ordinary network after.

    Args:
        network: The base, without adapters, changed in place.
        learned: As :func:`tensors` gives it.
        gain: alpha / r.

    Raises:
        ValueError: naming the first weight that does not fit the network.
    """
    state = network.state_dict()
    for name, value in learned.items():
        weight, _, kind = name.rpartition(".")
        if kind == "lora_b":
            continue
        target = state.get(weight if kind == "lora_a" else name)
        b = learned.get(f"{weight}.lora_b") if kind == "lora_a" else None
        if target is None or (kind == "lora_a" and b is None):
            raise ValueError(f"{name} belongs to no weight of the model")
        change = value if b is None else (gain * (b @ value))
        if change.numel() != target.numel() or len(change) != len(target):
            raise ValueError(
                f"{name} has {tuple(value.shape)}, the model's weight {tuple(target.shape)}"
            )
        change = change.reshape(target.shape).to(target)
        target.copy_(change if b is None else target + change)


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
