"""A denoiser of masks whose noise is drawn classes: categorical and Bernoulli diffusion.

Legend: B batch, K classes or regions, C image channels, *S spatial axes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from medseg_diff.codecs import OneHotCodec
from medseg_diff.config import ModelConfig, ObjectiveConfig
from medseg_diff.data.records import Batch
from medseg_diff.diffusion.discrete import (
    Categorical,
    DiscreteProblem,
    WalkName,
    divergence,
    draw_one_hot,
    draw_pair,
    walk,
)
from medseg_diff.diffusion.objectives import masked_mean
from medseg_diff.diffusion.samplers import FreshNoise
from medseg_diff.diffusion.time_laws import TimeLaw
from medseg_diff.model.base import (
    Estimate,
    Loss,
    Sampling,
    SegmentationModel,
    anchor_losses,
    mask_losses,
    total,
)
from medseg_diff.networks.conditioners import Context

# A segmenter's prior is mixed with this share of the uniform one: no class is beyond reach.
UNIFORM_SHARE = 0.01


class DiscreteModel(SegmentationModel):
    """A denoiser of drawn classes, conditioned on an image's context.

    Exclusive classes are one variable of K categories a voxel; overlapping regions are K variables
    of two categories each.

    Args:
        denoiser: ``(x, t, features) -> logits (B, K, *S)`` with x the state in {-1, 1}, the image
            and a segmenter's prior, as configured.
        conditioner: Image -> context, or None for the image alone.
        process: The noising process.
        codec: Label map <-> state.
        law: How training times are drawn.
        config: What enters the denoiser and what the prior is.
        objective: Weights of the losses; ``kl`` is that of a step's posterior.
    """

    codec: OneHotCodec
    stochastic = True

    def __init__(
        self,
        denoiser: nn.Module,
        conditioner: nn.Module | None,
        process: Categorical,
        codec: OneHotCodec,
        law: TimeLaw,
        config: ModelConfig,
        objective: ObjectiveConfig,
    ) -> None:
        super().__init__()
        self.denoiser, self.conditioner, self.process = denoiser, conditioner, process
        self.codec, self.law, self.config, self.objective = codec, law, config, objective

    def context(self, image: Tensor) -> Context:
        """See :meth:`SegmentationModel.context`."""
        return Context(image) if self.conditioner is None else self.conditioner(image)

    def prior(self, context: Context) -> Tensor:
        """Probabilities (B, K, *S) that the noise is drawn from; no gradient passes.

        Uniform is 1 / K for classes and 1 / 2 for regions.
        """
        shape = (len(context.image), self.codec.channels, *context.image.shape[2:])
        even = 1 / self.codec.channels if self.codec.exclusive else 0.5
        if self.config.discrete_prior == "uniform":
            return context.image.new_full(shape, even)
        if context.anchor is None:
            raise ValueError("this needs a context with an anchor")
        own = self.codec.probabilities(context.anchor.detach())
        return (1 - UNIFORM_SHARE) * own + UNIFORM_SHARE * even

    def raw(self, x_t: Tensor, t: Tensor, context: Context) -> tuple[Tensor, None]:
        """Logits (B, K, *S) of the mask from a state of that shape in {-1, 1}; no variance."""
        parts = [x_t]
        if self.config.concat_image:
            parts.append(context.image)
        if self.config.discrete_prior == "segmenter":
            parts.append(2 * self.prior(context) - 1)
        features = context.features or None
        return self.denoiser(torch.cat(parts, dim=1), t.to(x_t.device), features), None

    def loss(self, batch: Batch) -> Loss:
        """KL of one step's posterior, losses of the mask, and the anchor's."""
        context = self.context(batch.image)
        t, importance = self.law(batch.t)
        t = self.process.times_of(t)
        s = (t - 1 / self.process.steps).clamp_min(0)
        clean, prior = (
            self._categories(each)
            for each in (self.codec.targets(batch.labels), self.prior(context))
        )
        x_t = self._draw(self.process.marginal(clean, prior, t), batch.noise)
        logits, _ = self.raw(2 * self._present(x_t) - 1, t, context)
        parts: dict[str, Tensor] = {}
        if self.objective.kl > 0:
            p = self._categories(self.codec.probabilities(logits))
            true = self.process.posterior(x_t, clean, prior, t, s)
            kl = divergence(true, self.process.reverse(x_t, p, prior, t, s))
            # Of regions, (B, 1, K, *S).
            kl = kl if self.codec.exclusive else kl[:, 0]
            mean = masked_mean(kl, self.codec.weight(batch.labels), importance)
            parts["kl"] = self.objective.kl * mean
        parts |= mask_losses(
            logits, batch.labels, self.codec, self.objective, squared=False, samples=importance
        )
        return total(parts | anchor_losses(context, t, batch, self.codec, self.objective))

    def trajectory(
        self,
        context: Context,
        noise: Tensor,
        sampling: Sampling,
        fresh_noise: FreshNoise | None = None,
    ) -> Iterator[Estimate]:
        """See :meth:`SegmentationModel.trajectory`."""

        def estimate(x_t: Tensor, t: Tensor) -> Tensor:
            logits, _ = self.raw(2 * self._present(x_t) - 1, t, context)
            return self._categories(self.codec.probabilities(logits))

        problem = DiscreteProblem(
            self.process,
            estimate,
            self._categories(self.prior(context)),
            noise,
            self.process.grid(sampling.steps, sampling.grid),
            self._draw,
            fresh_noise,
        )
        kind: WalkName = "ddim" if sampling.sampler == "ddim" else "ancestral"
        for step in walk(problem, kind):
            clean, state = (2 * self._present(each) - 1 for each in (step.clean, step.state))
            yield Estimate(
                step.index,
                step.t,
                clean,
                state,
                step.index + 1,
                self.codec.probabilities_from_state,
            )

    def check(self, sampling: Sampling) -> None:
        """See :meth:`SegmentationModel.check`."""
        if sampling.sampler not in ("ancestral", "ddim"):
            raise ValueError(
                f"classes are drawn by sampler ancestral or ddim, not {sampling.sampler}"
            )
        if sampling.t_max != 1:
            raise ValueError("a discrete walk starts from its prior: set prediction.t_max: 1")
        if sampling.guidance != 1 or sampling.dynamic_threshold is not None:
            raise ValueError("classes have no guidance and no dynamic_threshold: leave them out")
        self.process.grid(sampling.steps, sampling.grid)

    def _categories(self, present: Tensor) -> Tensor:
        """Probabilities or presence (B, K, *S) with their categories on axis 1."""
        return present if self.codec.exclusive else torch.stack([1 - present, present], 1)

    def _present(self, categories: Tensor) -> Tensor:
        """Inverse of :meth:`_categories`."""
        return categories if self.codec.exclusive else categories[:, 1]

    def _draw(self, probabilities: Tensor, noise: Tensor) -> Tensor:
        return (draw_one_hot if self.codec.exclusive else draw_pair)(probabilities, noise)
