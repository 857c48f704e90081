"""Fusion: many answers -> one and its doubt. Arrays only; nothing here knows diffusion.

Streams of probabilities: :class:`RunningMoments` (the mean), :class:`CertaintyWeightedMean`,
:class:`StepUncertainty` and :class:`StepSum`. Masks: :func:`majority_mask`,
:func:`majority_labels`, :func:`staple_mask`, :func:`staple_labels`. Doubt: :class:`Doubt` per
voxel, :func:`boundary_doubt_mm` and :func:`volume_interval_ml` per structure.
"""

from medseg_diff.fusion.doubt import (
    Doubt,
    DoubtMaps,
    VolumeInterval,
    boundary_doubt_mm,
    interval_of_volumes,
    volume_interval_ml,
)
from medseg_diff.fusion.moments import (
    Array,
    RunningMoments,
    StreamedEntropy,
    channel_entropy,
    mean_probability,
    predictive_entropy,
)
from medseg_diff.fusion.staple import (
    LabelStaple,
    Staple,
    VotingPatterns,
    staple_labels,
    staple_mask,
    voting_patterns,
)
from medseg_diff.fusion.step_uncertainty import StepSum, StepUncertainty, SufVariant
from medseg_diff.fusion.votes import PairwiseDice, label_votes, majority_labels, majority_mask
from medseg_diff.fusion.weighted import CertaintyWeightedMean, certainty, certainty_weighted_mean

__all__ = [
    "Array",
    "CertaintyWeightedMean",
    "Doubt",
    "DoubtMaps",
    "LabelStaple",
    "PairwiseDice",
    "RunningMoments",
    "Staple",
    "StepSum",
    "StepUncertainty",
    "StreamedEntropy",
    "SufVariant",
    "VolumeInterval",
    "VotingPatterns",
    "boundary_doubt_mm",
    "certainty",
    "certainty_weighted_mean",
    "channel_entropy",
    "interval_of_volumes",
    "label_votes",
    "majority_labels",
    "majority_mask",
    "mean_probability",
    "predictive_entropy",
    "staple_labels",
    "staple_mask",
    "volume_interval_ml",
    "voting_patterns",
]
