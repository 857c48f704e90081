"""Cycle consistency of features: what is drawn for an unlabelled target scan must lead back to it.

The denoiser of latent feature translation, conditioned on the frozen network's own features e(x),
is a way from a target's features to the source's: one step from pure noise, G(e), is their mean and
has a gradient. A small translator H goes the other way. Target crops x_T and source crops x_S, of
the second stage alone, give

    cycle_target   |H(G(e(x_T))) - e(x_T)|      what is drawn keeps what the target's features say
    cycle_source   |G(H(e(x_S))) - e(x_S)|      features made to look like the target's draw the
                                                source's own, whose mask is known
    moments        |m(H(e(x_S))) - m(e(x_T))| + |m(G(e(x_T))) - m(e(x_S))|

with m the mean and standard deviation of every channel over the batch, and means of absolute values
throughout (CycleGAN's losses, Zhu et al. 2017, arXiv 1703.10593, with moments in the place of its
discriminators).

What this cannot exclude. H and G may agree on any code that can be undone: the two cycles are zero
for the identity, for a permutation of channels and for a change of sign, whether or not a drawn
feature means to the decoder what it means in the source. The identity is excluded only as far as
means and standard deviations of the domains differ, and moments hardly notice a shift that leaves
them alone: features of an inverted scan have the source's distribution and the wrong sign
(docs/domain_adaptation.md). What a code means is held by the model's own loss on source features
alone, through the weights that both share.

Legend: B batch, Z latent channels, *L the latent's grid.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from medseg_diff.adaptation.scans import UnlabelledCrops
from medseg_diff.config import Config
from medseg_diff.data.caselist import CaseList
from medseg_diff.data.records import Batch
from medseg_diff.errors import UsageError
from medseg_diff.model import FeatureModel, SegmentationModel
from medseg_diff.networks.conditioners import Context
from medseg_diff.training.companion import Companion

# Of each of the three losses beside the model's own; not tuned.
WEIGHT = 1.0
# Widths between the two convolutions of the translator, in units of its channels.
WIDER = 4
# Noise of the draws has a seed of its own.
APART = 104_729


class FeatureCycle(Companion):
    """The unlabelled half of a training by cycles.

    Args:
        target: Scans.
        config: Of the training, complete.
    """

    def __init__(self, target: CaseList, config: Config) -> None:
        super().__init__()
        latent = config.model.latent
        if latent is None:
            raise _unfit()
        self.crops, self.seed = UnlabelledCrops(target, config), config.seed
        self.back = translator(config.plan.spatial_dims or 3, latent.state_channels)

    def losses(
        self, model: SegmentationModel, batch: Batch, number: int, average: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """See :class:`Companion`; nothing while the segmenting network itself is learning."""
        if not isinstance(model, FeatureModel) or model.latent.condition != "features":
            raise _unfit()
        if model.first_stage:
            return {}
        with torch.no_grad():
            own = model.autoencoder.encode(batch.image).z
            theirs = model.autoencoder.encode(self.crops.images(number).to(own.device)).z
        random = torch.Generator().manual_seed(self.seed + APART + number)
        noises = [torch.randn(z.shape, generator=random).to(own) for z in (theirs, own)]
        source_like = drawn(model, theirs, noises[0])
        target_like = self.back(own)
        parts = {
            "cycle_target": distance(self.back(source_like), theirs),
            "cycle_source": distance(drawn(model, target_like, noises[1]), own),
            "moments": distance(moments(target_like), moments(theirs))
            + distance(moments(source_like), moments(own)),
        }
        return {name: WEIGHT * value for name, value in parts.items()}


def drawn(model: FeatureModel, seen: Tensor, noise: Tensor) -> Tensor:
    """One step from pure noise to features (B, Z, *L), conditioned on features (B, Z, *L)."""
    if model.conditioner is None:
        raise _unfit()
    # Nothing but the maps is looked at: the latent has no image of its own grid.
    context = Context(seen, model.conditioner(seen).features)
    t = torch.ones(len(seen), dtype=torch.float64, device=seen.device)
    x_t = model.path.start(noise, t)
    output, _ = model.raw(x_t, t, context)
    return model.estimate(output, x_t, t)


def translator(dims: int, channels: int) -> nn.Sequential:
    """Source-like features -> the target's, (B, Z, *L); a residual would be the identity."""
    conv = nn.Conv3d if dims == 3 else nn.Conv2d
    wide = WIDER * channels
    return nn.Sequential(
        conv(channels, wide, 3, padding=1), nn.SiLU(), conv(wide, channels, 3, padding=1)
    )


def moments(z: Tensor) -> Tensor:
    """Mean and standard deviation of every channel over a batch (B, Z, *L): (2, Z)."""
    axes = (0, *range(2, z.ndim))
    mean = z.mean(axes)
    variance = (z - mean.reshape(1, -1, *[1] * (z.ndim - 2))).square().mean(axes)
    return torch.stack([mean, (variance + 1e-6).sqrt()])


def distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean absolute difference."""
    return (found - wanted).abs().mean()


def _unfit() -> UsageError:
    return UsageError(
        "cycles of features need a denoiser that is shown features",
        field="model.latent.condition",
        expected="features, of latent.of: features and a conditioner",
    )
