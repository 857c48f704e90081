"""Ensemble: windows x draws x steps, streamed.

Every window is encoded once. Its draws pass through in batches and leave only running moments, so
memory does not grow with their number but for one bit per voxel, structure and draw (the draws'
own masks, from which their spread is measured).

Legend: W windows, D draws, K classes or regions, *S spatial axes (always three here).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg_diff.config import FuseName
from medseg_diff.fusion import (
    CertaintyWeightedMean,
    RunningMoments,
    StepSum,
    StepUncertainty,
    predictive_entropy,
)
from medseg_diff.inference.draws import DrawMasks, Fused, expected_change, fuse_masks
from medseg_diff.inference.noise import CUBE, SLICE, NoiseField, draw_normals
from medseg_diff.inference.windows import (
    Canvas,
    Place,
    WindowAnswer,
    grouped,
    is_flat,
    pad_to,
    windows,
)
from medseg_diff.model import Estimate, Sampling, SegmentationModel
from medseg_diff.networks.conditioners import Context

Array = NDArray[np.float32]
# Draws before the first look at whether the mask has settled; each later round doubles them.
FIRST_ROUND = 4


@dataclass(frozen=True)
class Request:
    """What is asked of the ensemble.

    Attributes:
        case: Case id; with ``seed`` it names the noise.
        seed: The user's seed.
        draws: Masks drawn from each model; the most of them where ``settle`` is given.
        sampling: Sampler, steps and grid.
        overlap: Share of a window that its neighbour covers, in [0, 1).
        batch_size: Windows x draws in one network call.
        fuse: How a window's draws and steps become one probability.
        settle: Stop drawing when further draws are expected to change less than this share of
            the mask (:func:`medseg_diff.inference.draws.expected_change`); None draws them all.
        compact: Keep probabilities in 16 bits; for rules that stream, without ``settle``.
    """

    case: str
    seed: int
    draws: int
    sampling: Sampling
    overlap: float = 0.5
    batch_size: int = 8
    fuse: FuseName = "mean"
    settle: float | None = None
    compact: bool = False


@dataclass
class _Work:
    """One scan, cut into windows, and the models that answer."""

    models: Sequence[SegmentationModel]
    image: Array
    patch: Sequence[int]
    shape: tuple[int, ...]
    places: list[Place]
    request: Request
    # Context of each model, where the whole scan fits one batch of windows.
    contexts: dict[int, Context] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=lambda: {"context": 0, "denoiser": 0})

    @property
    def first(self) -> int:
        """First structure among the codec's channels."""
        return 1 if self.models[0].codec.exclusive else 0

    def numbers(self, member: int, chosen: range) -> list[int]:
        """Numbers of a model's draws in a round.

        Each model of an ensemble has its own draws: member m takes the numbers after m - 1's. A
        model without noise has one answer, in the first round.
        """
        if self.models[member].stochastic:
            return [member * self.request.draws + d for d in chosen]
        return [member * self.request.draws] if chosen.start == 0 else []

    def members(self, chosen: range) -> int:
        """Draws of all models together in a round."""
        return sum(len(self.numbers(m, chosen)) for m in range(len(self.models)))


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
    padded, shape = pad_to(image, patch)
    places = windows(padded.shape[1:], patch, request.overlap)
    work = _Work(models, padded, patch, shape, places, request)
    fused: Fused | None = None
    with torch.inference_mode():
        for chosen in _rounds(work):
            answer = _round(work, chosen)
            fused = answer if fused is None else fused.joined(answer)
            if request.settle is not None and _change(work, fused) < request.settle:
                break
    if fused is None:
        raise ValueError("at least one draw is needed")
    if request.fuse in ("majority", "staple"):
        return fuse_masks(fused, request.fuse, exclusive=models[0].codec.exclusive)
    return fused


def _change(work: _Work, fused: Fused) -> float:
    return expected_change(fused, exclusive=work.models[0].codec.exclusive)


def _rounds(work: _Work) -> Iterator[range]:
    """All draws at once, or 4, 4, 8, 16 ... of them until they are all made."""
    draws = work.request.draws
    if work.request.settle is None or not any(m.stochastic for m in work.models):
        yield range(draws)
        return
    start = 0
    while start < draws:
        stop = min(draws, max(FIRST_ROUND, 2 * start))
        yield range(start, stop)
        start = stop


def _round(work: _Work, chosen: range) -> Fused:
    """Some draws of every window, stitched."""
    codec, members = work.models[0].codec, work.members(chosen)
    structures, before = codec.structures, dict(work.calls)
    canvas = Canvas(
        work.image.shape[1:],
        work.patch,
        codec.channels,
        structures,
        members,
        shape=work.shape,
        compact=work.request.compact,
    )
    for group in grouped(work.places, max(1, work.request.batch_size // members)):
        for place, answer in zip(group, _draw_group(work, group, chosen), strict=True):
            canvas.paste(place, answer)
    canvas.finish()
    inside = tuple(slice(0, n) for n in work.shape)
    return Fused(
        canvas.probability,
        canvas.variance,
        canvas.entropy,
        DrawMasks((canvas.masks[:, *inside],), (members,)),
        {name: count - before[name] for name, count in work.calls.items()},
    )


class _Tally:
    """One window's draws as they arrive: moments, entropy and bits; no draw is kept."""

    def __init__(self, work: _Work, chosen: range) -> None:
        codec = work.models[0].codec
        self.first, self.exclusive = work.first, codec.exclusive
        self.masked = codec.structures > 0
        self.moments, self.entropy = RunningMoments(), RunningMoments()
        self.rule = _rule(work.request.fuse)
        weigh = work.request.fuse == "certainty"
        self.weighted = CertaintyWeightedMean(exclusive=self.exclusive) if weigh else None
        bytes_ = (work.members(chosen) + 7) // 8
        # Bits are set as draws arrive: a window never holds its draws' masks as whole bytes.
        self.masks = np.zeros((codec.structures, *work.patch, bytes_), np.uint8)

    def add(self, p: Array) -> None:
        """Take one draw's probabilities, or its image between 0 and 1, (K, *S)."""
        if self.masked:
            byte, bit = divmod(self.moments.count, 8)
            present = _present(p, self.first, exclusive=self.exclusive).astype(np.uint8)
            self.masks[..., byte] |= present << (7 - bit)
        self.moments.add(p)
        if not self.masked:
            # The value of an image's voxel is no probability: it has no entropy.
            self.entropy.add(np.zeros(p.shape[1:], np.float32))
            return
        if self.weighted is not None:
            self.weighted.add(p)
        self.entropy.add(predictive_entropy(p, exclusive=self.exclusive))

    def answer(self) -> WindowAnswer:
        """What the draws say together."""
        if self.moments.mean is None or self.entropy.mean is None:
            raise RuntimeError("a window without draws")
        mean = self.moments.mean
        if self.rule is not None:
            mean = self.rule.probability(exclusive=self.exclusive)
        elif self.weighted is not None:
            mean = self.weighted.probability()
        return WindowAnswer(mean, self.moments.variance, self.entropy.mean, self.masks)


def _draw_group(work: _Work, group: Sequence[Place], chosen: range) -> list[WindowAnswer]:
    """Draws of a group of windows from every model, fused per window."""
    tallies = [_Tally(work, chosen) for _ in group]
    rules = [tally.rule for tally in tallies]
    request, flat = work.request, is_flat(group[0])
    for member, model in enumerate(work.models):
        numbers = work.numbers(member, chosen)
        if not numbers:
            continue
        context = _context(work, member, group)
        at_once = max(1, request.batch_size // len(group))
        for start in range(0, len(numbers), at_once):
            batch = numbers[start : start + at_once]
            drawn, called = _draw(model, context, group, batch, request, flat, rules)
            work.calls["denoiser"] += len(group) * len(batch) * called
            for tally, draws in zip(tallies, drawn, strict=True):
                for p in draws:
                    tally.add(p)
    return [tally.answer() for tally in tallies]


def _context(work: _Work, member: int, group: Sequence[Place]) -> Context:
    """Encode a group of windows; a scan that is one group is encoded once for all rounds."""
    if member in work.contexts:
        return work.contexts[member]
    model = work.models[member]
    crops = torch.from_numpy(np.stack([work.image[:, *place] for place in group]))
    crops = crops[..., 0] if is_flat(group[0]) else crops
    context = model.context(crops.to(next(model.parameters()).device))
    work.calls["context"] += len(group)
    if len(group) == len(work.places):
        work.contexts[member] = context
    return context


def _rule(name: FuseName) -> StepUncertainty | StepSum | None:
    """Accumulator of a rule that reads every step; None for rules that read whole draws."""
    if name == "step_sum":
        return StepSum()
    if name in ("step_uncertainty", "step_uncertainty_paper"):
        return StepUncertainty("code" if name == "step_uncertainty" else "paper")
    return None


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
    channels = model.noise_channels

    def noise(step: int) -> Tensor:
        if model.draw_normals is not None:
            rows = [
                draw_normals(request.seed, request.case, n, step, model.draw_normals)
                for n in numbers
            ]
            return torch.from_numpy(np.stack(rows * len(group))).to(device)
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
