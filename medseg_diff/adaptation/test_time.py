"""Adapting a trained network's batch norm to the scans it meets: AdaBN and TENT.

Both need a network that keeps batch statistics (``model.norm: batch``); group norm has none.

Legend: W windows, C channels, K classes, *S spatial axes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medseg_diff.errors import UsageError
from medseg_diff.inference.windows import is_flat, pad_to, windows
from medseg_diff.model import SegmentationModel

# A mask that entropy minimisation shrinks or grows beyond this factor has collapsed.
COLLAPSE = 2.0


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Batch norms of a model.

    Raises:
        UsageError: if it has none.
    """
    found = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not found:
        raise UsageError(
            "the network keeps no batch statistics to adapt",
            field="model.norm",
            expected="batch",
            remedy="train a plain U-Net with model.norm: batch",
        )
    return found


@torch.no_grad()
def adapt_statistics(model: SegmentationModel, batches: Iterable[Tensor]) -> int:
    """AdaBN (Li et al. 2016, arXiv 1603.04779): batch statistics of the target domain.

    Means and variances of every batch norm are replaced by those over target windows, each batch
    weighing the same; nothing is learned and no label is read.

    Args:
        model: In eval mode; changed in place.
        batches: Network inputs (W, C, *S) of target scans.

    Returns:
        Number of batches seen.

    Raises:
        UsageError: if the model has no batch norm.
        ValueError: if there is no batch.
    """
    norms = batch_norms(model)
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean
        norm.train()
    count = 0
    for batch in batches:
        model.context(batch)
        count += 1
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
        norm.eval()
    if not count:
        raise ValueError("AdaBN needs at least one batch of target windows")
    return count


@contextmanager
def entropy_minimised(
    model: SegmentationModel, scan: Tensor, *, steps: int = 5, rate: float = 1e-3
) -> Iterator[str]:
    """TENT (Wang et al. 2021, arXiv 2006.10726) on one scan, undone after the block.

    Batch statistics are the scan's own; gain and shift of every batch norm take Adam steps down the
    mean entropy of its predictions. Where the predicted foreground then has less than half or more
    than twice its former size, the entropy was lowered by calling everything one class: gains and
    shifts go back, the statistics stay.

    Args:
        model: In eval mode.
        scan: All its windows, (W, C, *S).
        steps: Of Adam.
        rate: Learning rate.

    Yields:
        ``"adapted"`` or ``"collapsed"``.

    Raises:
        UsageError: if the model has no batch norm.
    """
    norms = batch_norms(model)
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    trained = [p for norm in norms for p in (norm.weight, norm.bias) if p is not None]
    learning = {p: p.requires_grad for p in model.parameters()}
    try:
        adapt_statistics(model, [scan])
        start = [p.detach().clone() for p in trained]
        before = _foreground(model, scan)
        for parameter in learning:
            parameter.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
        optimiser = torch.optim.Adam(trained, lr=rate)
        for norm in norms:
            norm.train()
        for _ in range(steps):
            optimiser.zero_grad()
            mean_entropy(_probabilities(model, scan)).backward()
            optimiser.step()
        for norm in norms:
            norm.eval()
        adapt_statistics(model, [scan])
        verdict = "adapted"
        if collapsed(before, _foreground(model, scan)):
            with torch.no_grad():
                for parameter, value in zip(trained, start, strict=True):
                    parameter.copy_(value)
            adapt_statistics(model, [scan])
            verdict = "collapsed"
        yield verdict
    finally:
        model.load_state_dict(state)
        for parameter, wanted in learning.items():
            parameter.requires_grad_(wanted)
            parameter.grad = None
        model.eval()


def mean_entropy(probabilities: Tensor) -> Tensor:
    """Mean over voxels of the entropy of (W, K, *S), in nats."""
    p = probabilities.clamp(min=1e-8)
    return -(p * p.log()).sum(1).mean()


def collapsed(before: float, after: float) -> bool:
    """Whether a mask's size changed by more than ``COLLAPSE``; an empty one cannot."""
    if not math.isfinite(after):
        return True
    return before > 0 and not before / COLLAPSE <= after <= before * COLLAPSE


def _probabilities(model: SegmentationModel, scan: Tensor) -> Tensor:
    logits = model.context(scan).anchor
    if logits is None:
        raise UsageError(
            "TENT reads the logits of a plain U-Net", field="model.kind", expected="unet"
        )
    return model.mask_codec.probabilities(logits)


@torch.no_grad()
def _foreground(model: SegmentationModel, scan: Tensor) -> float:
    """Predicted foreground, in voxels, by the sum of probabilities."""
    p = _probabilities(model, scan)
    return float((p[:, 1:] if model.codec.exclusive else p).sum())


def scan_windows(values: NDArray[np.float32], patch: Sequence[int], overlap: float = 0.0) -> Tensor:
    """All windows of a scan as the network sees them.

    Args:
        values: Network input (C, *S) on the model grid, three axes.
        patch: Window size, three axes; depth 1 for 2-D networks.
        overlap: Share of a window that its neighbour covers.

    Returns:
        (W, C, *patch), without the last axis for 2-D networks.
    """
    padded, _ = pad_to(values, patch)
    places = windows(padded.shape[1:], patch, overlap)
    stacked = torch.from_numpy(np.stack([padded[:, *place] for place in places]))
    return stacked[..., 0] if is_flat(places[0]) else stacked
