"""How maps and weights lie in memory: channels last, in which CPU convolutions run fastest."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def memory_layout(spatial_dims: int) -> torch.memory_format:
    """Channels last, in 2-D or 3-D."""
    return torch.channels_last_3d if spatial_dims == 3 else torch.channels_last


def to_layout(module: nn.Module, layout: torch.memory_format) -> None:
    """Lay a module's weights in memory as ``layout`` says."""
    # The types of Module.to do not name memory_format, its documentation does.
    convert: Callable[..., nn.Module] = module.to
    convert(memory_format=layout)
