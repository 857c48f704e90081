"""How N sampled masks cover what R references hold plausible: arrays in, numbers out.

Letters: N samples S, R references Y (one mask per annotator), *S spatial axes. d = 1 - IoU.

**Empty masks.** Two empty masks are equal: IoU 1, Dice 1, d 0. One empty mask: IoU 0, Dice 0, d 1.

    GED^2           = 2 E d(S, Y) - E d(S, S') - E d(Y, Y')

is the squared generalised energy distance (Szekely & Rizzo 2013) with the distance that Kohl et al.
(2018, Probabilistic U-Net) gave it for masks. Each E is a mean over all pairs, i = j included (the
V-statistic), as in published tables. It is never negative, and it falls as N grows: state N.

    GED^2 unbiased  = the same with i = j left out of E d(S, S') and E d(Y, Y') (the U-statistic)

Its expectation does not depend on N, a single value may be negative, and it needs N, R >= 2.

    HM-IoU          = largest mean IoU of a one-to-one matching (Hungarian algorithm)

Samples and references are each repeated to the least common multiple of N and R, so that every
sample and every reference weighs the same whatever N and R are (N = 4, R = 3: 12 pairs, each sample
in 3, each reference in 4). Nobody is dropped where N is no multiple of R.

    best Dice of references  = mean over references of the largest Dice any sample reaches: coverage
    best Dice of samples     = mean over samples of the largest Dice with any reference: precision

Diversity is E d over pairs i != j, of samples and of references; their ratio is 1 where samples
differ as much as annotators do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]

GED_DEFINITION = "squared, distance 1 - IoU, means over all pairs with i = j (V-statistic)"
HM_IOU_DEFINITION = "samples and references repeated to their least common multiple, then matched"

# Counts are summed in float32, exact up to 2^24: a block of voxels stays far below, and small.
_BLOCK = 2**18


@dataclass(frozen=True)
class Plausibility:
    """One structure of one case; see the top of this file for the definitions.

    Attributes:
        samples: N.
        references: R.
        all_empty: No sample and no reference marks a voxel: every score below is perfect by
            convention. Count such cases beside any mean.
        ged2: GED^2, in [0, 2].
        ged2_unbiased: Its U-statistic; NaN unless N and R are at least 2.
        hm_iou: HM-IoU, in [0, 1].
        best_dice_references: In [0, 1].
        best_dice_samples: In [0, 1].
        sample_diversity: In [0, 1]; NaN for one sample.
        reference_diversity: In [0, 1]; NaN for one reference.
        diversity_ratio: Of samples over that of references; NaN where either is NaN or the
            references agree.
    """

    samples: int
    references: int
    all_empty: bool
    ged2: float
    ged2_unbiased: float
    hm_iou: float
    best_dice_references: float
    best_dice_samples: float
    sample_diversity: float
    reference_diversity: float
    diversity_ratio: float


SCORES = tuple(f.name for f in fields(Plausibility) if f.type == "float")


def score_samples(samples: BoolArray, references: BoolArray) -> Plausibility:
    """Score the sampled masks of one structure of one case against its references.

    Args:
        samples: (N, *S) bool, N at least 1.
        references: (R, *S) bool, R at least 1, on the same grid.

    Raises:
        ValueError: if a stack is empty or not bool, or the grids differ.
    """
    _check(samples, references)
    for name, masks in (("samples", samples), ("references", references)):
        if masks.dtype != np.bool_:
            raise ValueError(f"{name} must be bool masks, not {masks.dtype}")
    return score_overlaps(overlaps(samples, references), samples=len(samples))


def score_structures(
    samples: NDArray[Any],
    references: NDArray[Any],
    structures: Mapping[str, Sequence[int]],
    *,
    ignore_label: int | None = None,
) -> dict[str, Plausibility]:
    """Score sampled label maps structure by structure.

    Args:
        samples: Label maps, (N, *S).
        references: Label maps, (R, *S); a voxel that any of them marks with ``ignore_label`` is
            left out of all masks.
        structures: Name to label values, as ``metrics.masks.structures_of`` returns.
        ignore_label: Value of a voxel that an annotator did not judge.

    Raises:
        ValueError: if a stack is empty, the grids differ, or a structure is the ignored label.
    """
    _check(samples, references)
    if ignore_label is not None and any(ignore_label in v for v in structures.values()):
        raise ValueError(f"ignore_label {ignore_label} is also the value of a structure")
    if ignore_label is not None:
        judged = (references != ignore_label).all(0)
        samples, references = samples[:, judged], references[:, judged]
    scores = {}
    for name, values in structures.items():
        planes = [np.isin(labels, list(values)) for labels in (samples, references)]
        scores[name] = score_samples(planes[0], planes[1])
    return scores


def mean_over_structures(scores: Mapping[str, Plausibility]) -> Plausibility:
    """Average a case's structures, score by score, NaN left out.

    Structures that are empty in every sample and reference are left out too, since their perfect
    scores would hide the others'; where all are, the mean is perfect and ``all_empty`` is True.

    Raises:
        ValueError: if there is no structure.
    """
    if not scores:
        raise ValueError("no structure to average")
    kept = [score for score in scores.values() if not score.all_empty] or list(scores.values())
    means = {}
    for name in SCORES:
        known = [v for v in (getattr(score, name) for score in kept) if not math.isnan(v)]
        means[name] = sum(known) / len(known) if known else math.nan
    first = kept[0]
    return Plausibility(first.samples, first.references, first.all_empty, **means)


def overlaps(samples: BoolArray, references: BoolArray) -> FloatArray:
    """Count the voxels that each pair of masks shares, (N + R, N + R), samples first.

    The diagonal holds the sizes. Counts of parts of an image (slabs, tiles) add up to those of
    the image, so a large case need not be held at once.
    """
    planes = [masks.reshape(len(masks), -1) for masks in (samples, references)]
    # Voxels that nobody marks add nothing, and they are most of a scan.
    marked = np.flatnonzero(planes[0].any(0) | planes[1].any(0))
    count = len(samples) + len(references)
    shared = np.zeros((count, count))
    for start in range(0, marked.size, _BLOCK):
        voxels = marked[start : start + _BLOCK]
        block = np.concatenate([masks[:, voxels] for masks in planes]).astype(np.float32)
        shared += block @ block.T
    return shared


def score_overlaps(shared: FloatArray, *, samples: int) -> Plausibility:
    """Score from the counts of :func:`overlaps`, the first ``samples`` rows being samples.

    Raises:
        ValueError: if ``shared`` leaves no sample or no reference.
    """
    n, r = samples, len(shared) - samples
    if n < 1 or r < 1:
        raise ValueError(f"need at least one sample and one reference, got {n} and {r}")
    size = np.diag(shared)
    both = size[:, None] + size[None]
    iou = np.where(both > 0, shared / np.maximum(both - shared, 1), 1.0)
    dice = np.where(both > 0, 2 * shared / np.maximum(both, 1), 1.0)
    distance = 1 - iou
    cross = float(distance[:n, n:].mean())
    within = [_mean_of_pairs(distance[:n, :n]), _mean_of_pairs(distance[n:, n:])]
    ged2 = 2 * cross - float(distance[:n, :n].mean()) - float(distance[n:, n:].mean())
    return Plausibility(
        samples=n,
        references=r,
        all_empty=not bool(size.any()),
        # The energy distance of 1 - IoU is never negative; rounding may be.
        ged2=max(0.0, ged2),
        ged2_unbiased=2 * cross - within[0] - within[1],
        hm_iou=_matched(iou[:n, n:]),
        best_dice_references=float(dice[:n, n:].max(0).mean()),
        best_dice_samples=float(dice[:n, n:].max(1).mean()),
        sample_diversity=within[0],
        reference_diversity=within[1],
        diversity_ratio=within[0] / within[1] if within[1] > 0 else math.nan,
    )


def _mean_of_pairs(distance: FloatArray) -> float:
    """Mean over i != j; NaN for one mask."""
    count = len(distance)
    return float(distance.sum()) / (count * (count - 1)) if count > 1 else math.nan


def _matched(iou: FloatArray) -> float:
    """Mean IoU of the best one-to-one matching after repeating both sides, (N, R) -> number."""
    common = math.lcm(*iou.shape)
    repeated = iou.repeat(common // iou.shape[0], axis=0).repeat(common // iou.shape[1], axis=1)
    rows, columns = linear_sum_assignment(repeated, maximize=True)
    return float(repeated[rows, columns].mean())


def _check(samples: NDArray[Any], references: NDArray[Any]) -> None:
    if samples.shape[1:] != references.shape[1:]:
        raise ValueError(
            f"samples (N, *S) {samples.shape} and references (R, *S) {references.shape} "
            "differ in grid"
        )
    if not (len(samples) and len(references)):
        raise ValueError(
            f"need at least one sample and one reference, got {len(samples)} and {len(references)}"
        )
