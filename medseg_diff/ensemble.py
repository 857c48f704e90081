"""Ensemble: windows x draws x steps, streamed.

Every window is encoded once. Its draws pass through in batches and leave only running moments, so
memory does not grow with their number but for one bit per voxel, structure and draw (the draws'
own masks, from which their spread is measured).

Legend: W windows, D draws, K classes or regions, *S spatial axes (always three here).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from numpy.typing import NDArray
from torch import Tensor

from medseg_diff.config import FuseName
from medseg_diff.fusion import PairwiseDice, RunningMoments, StepSum, StepUncertainty
from medseg_diff.model import Estimate, Sampling, SegmentationModel
from medseg_diff.networks.conditioners import Context
from medseg_diff.noise import CUBE, SLICE, NoiseField

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Request:
    """What is asked of the ensemble.

    Attributes:
        case: Case id; with ``seed`` it names the noise.
        seed: The user's seed.
        draws: Masks drawn from each model.
        sampling: Sampler, steps and grid.
        overlap: Share of a window that its neighbour covers, in [0, 1).
        batch_size: Windows x draws in one network call.
        fuse: How a window's draws and steps become one probability.
    """

    case: str
    seed: int
    draws: int
    sampling: Sampling
    overlap: float = 0.5
    batch_size: int = 8
    fuse: FuseName = "mean"


@dataclass(frozen=True)
class Fused:
    """The ensemble's answer on the model grid.

    Attributes:
        probability: The fusion rule's, (K, *S); the mean over draws unless asked otherwise.
        variance: Variance between draws, averaged over K, (*S).
        pairwise_dice: Mean Dice between pairs of draws, per foreground structure; nan for one.
        network_calls: Forward passes of each network: ``{"context": n, "denoiser": n}``, counted
            per window and draw, however they were batched.
    """

    probability: Array
    variance: Array
    pairwise_dice: list[float]
    network_calls: dict[str, int]


@dataclass
class _Canvas:
    """Weighted sums over windows, and each draw's mask by its nearest window."""

    probability: Array
    variance: Array
    weight: Array
    nearest: Array
    masks: NDArray[np.uint8]


def windows(shape: Sequence[int], patch: Sequence[int], overlap: float) -> list[tuple[slice, ...]]:
    """Windows that cover a grid, each of ``patch`` voxels, by MONAI's geometry."""
    step = [max(1, int(n * (1 - overlap))) if n > 1 else 1 for n in patch]
    found: list[tuple[slice, ...]] = dense_patch_slices(shape, patch, step)
    return found


def infer(
    models: Sequence[SegmentationModel], image: Array, patch: Sequence[int], request: Request
) -> Fused:
    """Draw, fuse and stitch.

    Args:
        models: Members that share codec and plan, in eval mode on one device.
        image: Normalised image (C, *S) on the model grid.
        patch: Window size, three axes; depth 1 for 2-D networks.
        request: Draws, steps, seed.
    """
    padded, shape = _pad_to(image, patch)
    codec = models[0].codec
    first = 1 if codec.exclusive else 0
    members = _members(models, request)
    size = padded.shape[1:]
    structures = codec.channels - first
    canvas = _Canvas(
        np.zeros((codec.channels, *size), np.float32),
        np.zeros(size, np.float32),
        np.zeros(size, np.float32),
        np.zeros(size, np.float32),
        np.zeros((structures, *size, (members + 7) // 8), np.uint8),
    )
    importance = _importance(patch)
    calls = {"context": 0, "denoiser": 0}
    places = windows(size, patch, request.overlap)
    with torch.inference_mode():
        for group in _grouped(places, max(1, request.batch_size // members)):
            answers = _draw_group(models, padded, group, request, first, calls)
            for place, answer in answers:
                _paste(canvas, place, importance, answer)
    inside = tuple(slice(0, n) for n in shape)
    spread = PairwiseDice(members, structures)
    for slab in np.moveaxis(canvas.masks[:, *inside], 1, 0):
        bits = np.unpackbits(slab, axis=-1, count=members)
        spread.add(bits.reshape(structures, -1, members).astype(bool))
    return Fused(
        (canvas.probability / canvas.weight)[:, *inside],
        (canvas.variance / canvas.weight)[inside],
        spread.mean(),
        calls,
    )


def _members(models: Sequence[SegmentationModel], request: Request) -> int:
    """Draws of all models together; a model without noise has one answer."""
    return sum(request.draws if m.stochastic else 1 for m in models)


@dataclass(frozen=True)
class WindowAnswer:
    """One window's fused probability (K, *S), variance between draws, and the draws' masks."""

    probability: Array
    variance: Array
    masks: NDArray[np.uint8]


def _draw_group(
    models: Sequence[SegmentationModel],
    image: Array,
    group: Sequence[tuple[slice, ...]],
    request: Request,
    first: int,
    calls: dict[str, int],
) -> Iterator[tuple[tuple[slice, ...], WindowAnswer]]:
    """Draws of a group of windows from every model, fused per window."""
    moments = [RunningMoments() for _ in group]
    rules = [_rule(request.fuse) for _ in group]
    codec = models[0].codec
    patch = [s.stop - s.start for s in group[0]]
    # Bits are set as draws arrive: a window never holds its draws' masks as whole bytes.
    packed = (codec.channels - first, *patch, (_members(models, request) + 7) // 8)
    masks = [np.zeros(packed, np.uint8) for _ in group]
    for member, model in enumerate(models):
        device = next(model.parameters()).device
        flat = _is_flat(group[0])
        crops = torch.from_numpy(np.stack([image[:, *place] for place in group]))
        context = model.context((crops[..., 0] if flat else crops).to(device))
        calls["context"] += len(group)
        draws = request.draws if model.stochastic else 1
        at_once = max(1, request.batch_size // len(group))
        for start in range(0, draws, at_once):
            chosen = range(start, min(draws, start + at_once))
            # Each model of an ensemble has its own draws: member m takes the numbers after m - 1's.
            numbers = [member * request.draws + d for d in chosen]
            drawn, called = _draw(model, context, group, numbers, request, flat, rules)
            if model.stochastic:
                calls["denoiser"] += len(group) * len(numbers) * called
            for w in range(len(group)):
                for d in range(len(numbers)):
                    p = drawn[w, d]
                    byte, bit = divmod(moments[w].count, 8)
                    present = _present(p, first, exclusive=codec.exclusive).astype(np.uint8)
                    masks[w][..., byte] |= present << (7 - bit)
                    moments[w].add(p)
    for place, moment, rule, mask in zip(group, moments, rules, masks, strict=True):
        if moment.mean is None:
            raise RuntimeError("a window without draws")
        mean = moment.mean if rule is None else rule.probability(exclusive=codec.exclusive)
        yield place, WindowAnswer(mean, moment.variance, mask)


def _rule(name: FuseName) -> StepUncertainty | StepSum | None:
    """Accumulator of a rule that reads every step; None for the mean of the draws."""
    if name == "mean":
        return None
    if name == "step_sum":
        return StepSum()
    return StepUncertainty("code" if name == "step_uncertainty" else "paper")


def _draw(
    model: SegmentationModel,
    context: Context,
    group: Sequence[tuple[slice, ...]],
    numbers: Sequence[int],
    request: Request,
    flat: bool,
    rules: Sequence[StepUncertainty | StepSum | None],
) -> tuple[Array, int]:
    """Probabilities (W, D, K, *S) of some draws of a group of windows, and calls a draw."""
    device = context.image.device
    channels = model.codec.channels

    def noise(step: int) -> Tensor:
        fields = [
            NoiseField(request.seed, request.case, n, step, channels, SLICE if flat else CUBE)
            for n in numbers
        ]
        cuts = [
            f.window([s.start for s in place], [s.stop - s.start for s in place])
            for place in group
            for f in fields
        ]
        stacked = torch.from_numpy(np.stack(cuts)).to(device)
        return stacked[..., 0] if flat else stacked

    def split(values: Tensor) -> Array:
        whole = values.float().cpu().numpy()
        whole = whole[..., None] if flat else whole
        return whole.reshape(len(group), len(numbers), *whole.shape[1:])

    steps = model.trajectory(
        context.repeat(len(numbers)), noise(0), request.sampling, lambda k: noise(k + 1)
    )
    estimate: Estimate | None = None
    for estimate in steps:
        if rules[0] is not None:
            # Rules of steps read the clean state of a mask, 2 p - 1, whatever was diffused.
            _watch(rules, estimate.index, split(2 * estimate.probabilities - 1))
    if estimate is None:
        raise RuntimeError("a trajectory without steps")
    return split(estimate.probabilities), estimate.calls


def _watch(rules: Sequence[StepUncertainty | StepSum | None], index: int, states: Array) -> None:
    """Hand one step of several draws (W, D, K, *S) to each window's rule."""
    for rule, draws in zip(rules, states, strict=True):
        for state in draws:
            if rule is not None:
                rule.add(index, state)


def _present(probabilities: Array, first: int, *, exclusive: bool) -> NDArray[np.bool_]:
    """One draw's own mask, (K foreground, *S)."""
    if not exclusive:
        return probabilities > 0.5
    winner = probabilities.argmax(0)
    return np.stack([winner == k for k in range(first, len(probabilities))])


def _paste(
    canvas: _Canvas,
    place: tuple[slice, ...],
    importance: Array,
    answer: WindowAnswer,
) -> None:
    canvas.probability[:, *place] += importance * answer.probability
    canvas.variance[place] += importance * answer.variance.mean(0)
    canvas.weight[place] += importance
    # A draw's own mask takes each voxel from the window it lies most central in.
    closer = importance > canvas.nearest[place]
    canvas.nearest[place] = np.where(closer, importance, canvas.nearest[place])
    canvas.masks[:, *place] = np.where(
        closer[None, ..., None], answer.masks, canvas.masks[:, *place]
    )


def _importance(patch: Sequence[int]) -> Array:
    """Gaussian weights of a window, never zero."""
    weights = compute_importance_map(tuple(patch), mode="gaussian", sigma_scale=0.125)
    result: Array = np.asarray(weights, dtype=np.float32)
    return result.clip(min=1e-3 * float(result.max()))


def _pad_to(image: Array, patch: Sequence[int]) -> tuple[Array, tuple[int, ...]]:
    """Repeat the far edge until a window fits; also the shape to crop back to."""
    shape = image.shape[1:]
    padding = [(0, 0)] + [(0, max(0, p - n)) for n, p in zip(shape, patch, strict=True)]
    return np.pad(image, padding, mode="edge"), tuple(shape)


def _grouped(
    places: Sequence[tuple[slice, ...]], size: int
) -> Iterator[Sequence[tuple[slice, ...]]]:
    for start in range(0, len(places), size):
        yield places[start : start + size]


def _is_flat(place: tuple[slice, ...]) -> bool:
    return place[-1].stop - place[-1].start == 1
