"""Unpaired translation by a few large reverse steps, each judged by a discriminator.

Two domains, ``a`` (the batch's images) and ``b`` (its targets), whose images have no pairs. In each
domain d a one-pass *translator* makes an image of d from one of the other domain; the *generator*
of d denoises a noisy image of d given a source in the other domain. In training that source is the
translator's estimate, at prediction it is the scan.

Legend: B batch, K planes of a domain's image, Z planes of the latent, *S spatial axes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from medseg_diff.codecs import ImageCodec
from medseg_diff.config import AdversarialConfig, ObjectiveConfig
from medseg_diff.data.records import Batch
from medseg_diff.diffusion.objectives import absolute_error
from medseg_diff.diffusion.paths import Path, reverse_step
from medseg_diff.diffusion.samplers import FreshNoise
from medseg_diff.model.base import Estimate, Loss, Sampling, SegmentationModel, total
from medseg_diff.networks.conditioners import Context

Domain = Literal["a", "b"]
DOMAINS: tuple[Domain, Domain] = ("a", "b")
OTHER: Mapping[Domain, Domain] = {"a": "b", "b": "a"}


class Networks(NamedTuple):
    """One domain's networks.

    Attributes:
        translator: Image of the other domain -> image of this one, in one pass.
        generator: ``(x_t, source, latent, t) -> clean`` image of this domain.
        step_judge: ``(x_s and x_t side by side, t) -> logits``: do these two follow one another?
        image_judge: ``image -> logits``: is it one of this domain?
    """

    translator: nn.Module
    generator: nn.Module
    step_judge: nn.Module
    image_judge: nn.Module


class Noise(NamedTuple):
    """One field of normals by what it serves; see :attr:`AdversarialModel.noise_channels`."""

    start: Tensor
    step: Tensor
    latent: Tensor


class AdversarialModel(SegmentationModel):
    """SynDiff's generators and discriminators of both domains, trained at once.

    The generators' losses see the discriminators' weights detached, and the discriminators' losses
    see the made images detached: one backward pass of the sum gives each its own gradient.

    Args:
        codecs: Of the two domains.
        networks: Of the two domains.
        path: The noising process.
        config: Number of steps, latent and weights.
        objective: Weight of the clean image's absolute error.
    """

    stochastic = True

    def __init__(
        self,
        codecs: Mapping[Domain, ImageCodec],
        networks: Mapping[Domain, Networks],
        path: Path,
        config: AdversarialConfig,
        objective: ObjectiveConfig,
    ) -> None:
        super().__init__()
        self.codecs, self.path = dict(codecs), path
        self.config, self.objective = config, objective
        self.translators = nn.ModuleDict({d: networks[d].translator for d in DOMAINS})
        self.generators = nn.ModuleDict({d: networks[d].generator for d in DOMAINS})
        self.step_judges = nn.ModuleDict({d: networks[d].step_judge for d in DOMAINS})
        self.image_judges = nn.ModuleDict({d: networks[d].image_judge for d in DOMAINS})
        self.penalised = True
        self.make("b")

    def make(self, domain: Domain) -> None:
        """Choose which domain's images a trajectory makes, from scans of the other."""
        self.made, self.codec = domain, self.codecs[domain]

    @property
    def noise_channels(self) -> int:
        """Normals of the noisy image, of the step's own noise, and of the latent."""
        return 2 * self.widest + self.config.latent_planes

    @property
    def widest(self) -> int:
        """Planes of the domain that has more."""
        return max(codec.channels for codec in self.codecs.values())

    def begin(self, step: int) -> None:
        """See :meth:`SegmentationModel.begin`: the penalty comes every few steps (lazy R1)."""
        self.penalised = step % self.config.r1_every == 0

    # Training

    def loss(self, batch: Batch) -> Loss:
        """All losses of both domains, summed.

        Both domains take the batch's times and noise: each loss reads one domain, so the mean of
        their sum is that of independent draws.
        """
        real: dict[Domain, Tensor] = {"a": batch.image, "b": batch.labels}
        made = {d: self.translators[d](real[OTHER[d]]) for d in DOMAINS}
        # Up to the next knot: every step back is as likely as another.
        t = (batch.t * self.config.steps).ceil() / self.config.steps
        parts: dict[str, Tensor] = {}
        for d in DOMAINS:
            cycled = self.translators[d](made[OTHER[d]])
            losses = self._image_losses(d, real[d], made[d], cycled)
            losses |= self._step_losses(d, real[d], made[OTHER[d]], t, batch.noise)
            for name, value in losses.items():
                parts[name] = parts[name] + value if name in parts else value
        return total(parts)

    def _image_losses(
        self, domain: Domain, real: Tensor, made: Tensor, cycled: Tensor
    ) -> dict[str, Tensor]:
        """Of the translators: real-looking, and back where they came from."""
        judge = self.image_judges[domain]
        return {
            "cycle": self.config.cycle * absolute_error(cycled, real),
            "translators": fooled(judged_by_frozen(judge, made)),
            "image_judges": told_apart(judge(real), judge(made.detach())),
        }

    def _step_losses(
        self, domain: Domain, real: Tensor, source: Tensor, t: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Of the generator: its step back from ``t`` looks like the process's own."""
        fields, judge = self._fields(noise, domain), self.step_judges[domain]
        x_t = self.path.noised(real, fields.start, t)
        clean = self.generators[domain](x_t, source, fields.latent, t)
        true, made = (self._back(x_t, image, t, fields.step) for image in (real, clean))
        true.requires_grad_()
        with torch.enable_grad():
            logits = judge(torch.cat([true, x_t], dim=1), t)
        pair = torch.cat([made, x_t], dim=1)
        losses = {
            "absolute_error": self.objective.absolute_error * absolute_error(clean, real),
            "generators": fooled(judged_by_frozen(judge, pair, t)),
            "step_judges": told_apart(logits, judge(pair.detach(), t)),
        }
        if self.penalised and self.config.r1 > 0:
            losses["r1"] = self.config.r1 * gradient_penalty(logits, true)
        return losses

    def _back(self, x_t: Tensor, clean: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """A draw of q(x_s | x_t, clean), one of the process's steps earlier.

        With the true clean image, x_s and x_t are distributed as if noised one after the other.
        """
        s = (t - 1 / self.config.steps).clamp_min(0)
        return reverse_step(self.path, x_t, clean, t, s, noise=noise, eta=1.0)

    def _fields(self, noise: Tensor, domain: Domain) -> Noise:
        """A domain's share of a field (B, noise_channels, *S)."""
        planes, widest = self.codecs[domain].channels, self.widest
        start, step = noise[:, :planes], noise[:, widest : widest + planes]
        return Noise(start, step, noise[:, 2 * widest :])

    # Sampling

    def context(self, image: Tensor) -> Context:
        """The window itself: generators see it at every step."""
        return Context(image)

    def check(self, sampling: Sampling) -> None:
        """See :meth:`SegmentationModel.check`."""
        plain = Sampling("ancestral", self.config.steps)
        if sampling != plain:
            raise ValueError(
                f"this model was trained for {plain.steps} steps of sampler 'ancestral' on a "
                "uniform grid from t = 1, without guidance or threshold: leave these keys alone"
            )

    def trajectory(
        self,
        context: Context,
        noise: Tensor,
        sampling: Sampling,
        fresh_noise: FreshNoise | None = None,
    ) -> Iterator[Estimate]:
        """See :meth:`SegmentationModel.trajectory`."""
        if fresh_noise is None:
            raise ValueError("every step adds noise and has a latent: give fresh_noise")
        decode = self.codec.probabilities_from_state
        times = torch.linspace(1, 0, self.config.steps + 1, dtype=torch.float64)
        fields = self._fields(noise, self.made)
        x = self.path.start(fields.start, times[:1])
        for index, (t, _) in enumerate(itertools.pairwise(times)):
            at = t.expand(len(x)).to(x.device)
            clean = self.generators[self.made](x, context.image, fields.latent, at)
            fields = self._fields(fresh_noise(index), self.made)
            x = self._back(x, clean, at, fields.step)
            yield Estimate(index, float(t), clean, x, index + 1, decode)


def judged_by_frozen(judge: nn.Module, *inputs: Tensor) -> Tensor:
    """A discriminator's logits, whose gradient reaches the inputs and not its weights."""
    weights = {name: value.detach() for name, value in judge.named_parameters()}
    logits: Tensor = functional_call(judge, weights, inputs)
    return logits


def fooled(made: Tensor) -> Tensor:
    """Non-saturating loss of who makes images, from logits (Goodfellow et al. 2014)."""
    return functional.softplus(-made).mean()


def told_apart(real: Tensor, made: Tensor) -> Tensor:
    """Loss of a discriminator: the logistic loss of real and of made images, summed."""
    return functional.softplus(-real).mean() + functional.softplus(made).mean()


def gradient_penalty(logits: Tensor, real: Tensor) -> Tensor:
    """R1 (Mescheder et al. 2018, Eq. 9) for gamma 1: half the squared slope at real images.

    Counted per logit, so that it does not depend on the patch's size.

    Args:
        logits: (B, 1, *P), computed from ``real`` with gradient.
        real: (B, K, *S).
    """
    (slope,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
    return slope.square().sum() / (2 * logits.numel())
