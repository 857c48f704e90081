"""Adversarial adaptation: masks of target scans must look like masks of source scans."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from medseg_diff.adaptation.scans import UnlabelledCrops
from medseg_diff.adaptation.work import Adapted, Work
from medseg_diff.config import Config
from medseg_diff.data.caselist import CaseList
from medseg_diff.data.records import Batch
from medseg_diff.model import SegmentationModel
from medseg_diff.model.build import build_codec
from medseg_diff.training.companion import Companion, segmenter
from medseg_diff.training.fit import Options

# Share of the segmenter's loss that fooling the discriminator has.
WEIGHT = 0.01
WIDTHS = (16, 32, 64)


def adapt(work: Work) -> Adapted:
    """AdaptSegNet (Tsai et al. 2018, arXiv 1802.10349) on the network's output, one level.

    A discriminator of small patches tells probabilities of source crops from those of target crops;
    the segmenter learns its masks and, with a small weight, to pass target crops off as source.

    Departures: three convolutions of stride 2 and 3 voxels before the last one, where the paper has
    four of 4 voxels and 64 to 512 channels, since patches here are small; one AdamW for both
    networks at the training's own rate; 0.01 in the place of 0.001, since trainings here are short.
    Neither was tuned.
    """
    target = work.unlabelled
    options = Options(companion=lambda config: OutputDiscriminator(target, config))
    return Adapted(work.train("adversarial_output", work.source, options))


class OutputDiscriminator(Companion):
    """Source or target? A fully convolutional answer to probabilities, trained beside them.

    Both networks take their step from one backward pass: what the segmenter is judged by is the
    discriminator with detached weights, what the discriminator learns from are detached masks.

    Args:
        target: Scans.
        config: Of the training, complete.
    """

    def __init__(self, target: CaseList, config: Config) -> None:
        super().__init__()
        self.crops = UnlabelledCrops(target, config)
        self.judge = patches(build_codec(config.known_task).channels, config.plan.spatial_dims or 3)

    def losses(
        self, model: SegmentationModel, batch: Batch, number: int, average: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """See :class:`Companion`."""
        unet = segmenter(model)
        images = self.crops.images(number).to(batch.image.device)
        target = unet.codec.probabilities(unet.network(images))
        with torch.no_grad():
            source = unet.codec.probabilities(unet.network(batch.image))
        fixed = {name: value.detach() for name, value in self.judge.named_parameters()}
        fooled = functional_call(self.judge, fixed, (target,))
        own = said(self.judge(source), source=True)
        own = own + said(self.judge(target.detach()), source=False)
        return {"adversarial": WEIGHT * said(fooled, source=True), "discriminator": own / 2}


def patches(channels: int, dims: int) -> nn.Sequential:
    """Probabilities (B, K, *S) -> logits of "source", (B, 1, *S / 8 and smaller)."""
    convolution = nn.Conv3d if dims == 3 else nn.Conv2d
    layers: list[nn.Module] = []
    for into, out in zip((channels, *WIDTHS), WIDTHS, strict=False):
        layers += [convolution(into, out, 3, stride=2, padding=1), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, convolution(WIDTHS[-1], 1, 3, padding=1))


def said(logits: Tensor, *, source: bool) -> Tensor:
    """Binary cross-entropy of calling all patches source, or target."""
    wanted = torch.full_like(logits, float(source))
    return functional.binary_cross_entropy_with_logits(logits, wanted)
