"""A denoiser of masks, or of a target image, conditioned on an image's context.

Legend: B batch, K channels of the state (classes, regions or the target's planes), C image
channels, *S spatial axes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from medseg_diff.codecs import Codec, OneHotCodec
from medseg_diff.config import ModelConfig, ObjectiveConfig
from medseg_diff.data.records import Batch
from medseg_diff.diffusion import guidance, objectives
from medseg_diff.diffusion.grids import time_grid
from medseg_diff.diffusion.parameterisations import (
    SMALLEST_GAIN,
    Parameterisation,
    clean_from,
    target,
)
from medseg_diff.diffusion.paths import Path, spread
from medseg_diff.diffusion.samplers import (
    Denoise,
    Denoised,
    FreshNoise,
    Problem,
    check_fit,
    sample,
)
from medseg_diff.diffusion.time_laws import Importance, TimeLaw
from medseg_diff.model.base import (
    BOUND_STEPS,
    Estimate,
    Loss,
    Sampling,
    SegmentationModel,
    anchor_losses,
    anchor_of,
    mask_losses,
    total,
)
from medseg_diff.networks.conditioners import Context


class DiffusionModel(SegmentationModel):
    """A denoiser of masks, or of a target image, conditioned on an image's context.

    Args:
        denoiser: ``(x, t, features) -> (B, out_channels, *S)`` with x the state (and the image, and
            its own last estimate, as configured), t (B,) and the context's maps.
        conditioner: Image -> context, or None for the image alone.
        path: The noising process.
        codec: Label map, or target image, <-> state.
        law: How training times are drawn.
        config: What the output means and what enters the denoiser.
        objective: Weights of the losses.
        source: Planes of the image that a path which ends in a source image ends in.
    """

    # Steers a trajectory's denoiser, given how to follow a context; set by `inference/guided.py`.
    steer: Callable[[Callable[[Context], Denoise], Denoise, Context], Denoise] | None = None

    def __init__(
        self,
        denoiser: nn.Module,
        conditioner: nn.Module | None,
        path: Path,
        codec: Codec,
        law: TimeLaw,
        config: ModelConfig,
        objective: ObjectiveConfig,
        source: slice = slice(0, 1),
    ) -> None:
        super().__init__()
        self.denoiser, self.conditioner = denoiser, conditioner
        self.path, self.codec, self.law = path, codec, law
        self.config, self.objective = config, objective
        self.source_planes = source
        # Where the source itself is the noise, every draw is the same.
        self.stochastic = not path.source_as_noise
        self.logits = config.output in ("clean", "correction") and isinstance(codec, OneHotCodec)
        # Logits become a clean state in `clean`; every other output is converted by the path.
        self.meaning: Parameterisation = "clean" if config.output == "correction" else config.output

    def context(self, image: Tensor) -> Context:
        """See :meth:`SegmentationModel.context`."""
        return Context(image) if self.conditioner is None else self.conditioner(image)

    def source(self, context: Context) -> Tensor | None:
        """Source image (B, K, *S) of a path that ends in one, in the state's units."""
        return context.image[:, self.source_planes] if self.path.uses_source else None

    def raw(
        self, x_t: Tensor, t: Tensor, context: Context, previous: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The denoiser's output and its raw variance, each (B, K, *S).

        A correction is already added to the anchor. ``previous`` is the last clean estimate, for
        self-conditioning; None stands for zeros.
        """
        x = x_t * spread(self.path.input_gain(t), x_t)
        parts = [x]
        if self.config.concat_image:
            parts.append(context.image)
        if self.config.self_conditioning:
            parts.append(torch.zeros_like(x) if previous is None else previous)
        features = context.features or None
        output: Tensor = self.denoiser(torch.cat(parts, dim=1), t.to(x.device), features)
        variance = None
        if self.config.learned_variance:
            output, variance = output.chunk(2, dim=1)
        if self.config.output == "correction":
            output = anchor_of(context) + output
        return output, variance

    def denoised(
        self, x_t: Tensor, t: Tensor, context: Context, previous: Tensor | None = None
    ) -> Denoised:
        """Estimate of the clean state, (B, K, *S), and its raw variance."""
        output, variance = self.raw(x_t, t, context, previous)
        return Denoised(self.clean(output, x_t, t, self.source(context)), variance)

    def clean(self, output: Tensor, x_t: Tensor, t: Tensor, source: Tensor | None = None) -> Tensor:
        """Clean state in [-1, 1] from a raw output: the one place where logits become a state."""
        if self.logits:
            return self.mask_codec.state_from_logits(output)
        return self.estimate(output, x_t, t, source).clamp(-1, 1)

    def estimate(
        self, output: Tensor, x_t: Tensor, t: Tensor, source: Tensor | None = None
    ) -> Tensor:
        """Clean state, unbounded, from an output that is no logits."""
        return clean_from(self.meaning, self.path, output, x_t, t, source)

    def mask_logits(self, output: Tensor, x_t: Tensor, t: Tensor, size: torch.Size) -> Tensor:
        """Logits (B, K, *S) of the mask that a raw output means."""
        if self.logits:
            return output
        return self.mask_codec.logits_from_state(self.estimate(output, x_t, t))

    # Training

    def loss(self, batch: Batch) -> Loss:
        """Denoising loss at the batch's own times and noise, plus the anchor's."""
        if self.coupling is not None:
            return self.denoising_loss(batch, self.coupling(batch), batch.noise)
        return self.denoising_loss(batch, self.codec.encode(batch.labels), batch.noise)

    def denoising_loss(
        self, batch: Batch, clean: Tensor, noise: Tensor, others: Mapping[str, Tensor] | None = None
    ) -> Loss:
        """Loss of one denoising step of the given clean state and noise, and of ``others``."""
        t, importance = self.law(batch.t)
        t = self.path.snap(t)
        if not isinstance(self.law, Importance):
            return total({**(others or {}), **self._losses(batch, clean, noise, t, importance)})
        importance = importance.detach().requires_grad_(torch.is_grad_enabled())
        parts = self._losses(batch, clean, noise, t, importance)
        loss = total({**(others or {}), **parts})
        if not loss.total.requires_grad:
            return loss
        # A loss is a mean over samples, linear in their weights: its slope has each one's share.
        whole = torch.stack(list(parts.values())).sum()
        (slope,) = torch.autograd.grad(whole, importance, retain_graph=True, materialize_grads=True)
        return replace(loss, times=t, samples=slope * len(slope))

    def remember(self, times: Tensor, samples: Tensor) -> None:
        """See :meth:`SegmentationModel.remember`; losses of NaN or Inf are left out."""
        if isinstance(self.law, Importance):
            finite = torch.isfinite(samples)
            self.law.update(times[finite], samples[finite])

    def memory(self) -> dict[str, Tensor]:
        """See :meth:`SegmentationModel.memory`."""
        return self.law.state() if isinstance(self.law, Importance) else {}

    def recall(self, memory: Mapping[str, Tensor]) -> None:
        """See :meth:`SegmentationModel.recall`; a history of another size is begun anew."""
        if not isinstance(self.law, Importance) or "losses" not in memory:
            return
        if memory["losses"].shape == self.law.losses.shape:
            self.law.load(memory)

    def _losses(
        self, batch: Batch, clean: Tensor, noise: Tensor, t: Tensor, importance: Tensor
    ) -> dict[str, Tensor]:
        """Weighted losses at times ``t``; all but the anchor's are linear in ``importance``."""
        context = self._seen(batch)
        x_t = self._state(clean, noise, t, context, batch.coins[:, 0])
        previous = self._previous(x_t, t, context, batch.coins[:, 1])
        output, variance = self.raw(x_t, t, context, previous)
        parts: dict[str, Tensor] = {}
        if not self.logits:
            wanted = target(self.meaning, self.path, clean, noise, t, self.source(context))
            weights = Weights(importance, self._weight(batch))
            parts |= self._errors(output, wanted, t, weights)
        if variance is not None and self.objective.variational_bound > 0:
            bound = self._bound(output, variance, clean, x_t, t)
            bound = (bound * importance.to(bound)).mean()
            parts["variational_bound"] = self.objective.variational_bound * bound
        parts |= self._mask_losses(output, x_t, t, batch, importance)
        if self.objective.anchor > 0:
            parts |= anchor_losses(context, t, batch, self.mask_codec, self.objective)
        return parts

    def _seen(self, batch: Batch) -> Context:
        """Context in training, of some images blank: what classifier-free guidance leans on."""
        if self.config.condition_dropout == 0:
            return self.context(batch.image)
        shown = batch.coins[:, 0] >= self.config.condition_dropout
        return self.context(batch.image * spread(shown, batch.image))

    def _weight(self, batch: Batch) -> Tensor | None:
        """Weights (B, 1, *S) of voxels in errors of the network's own target; None counts all."""
        marked = self.config.latent is None and self.coupling is None
        return self.codec.weight(batch.labels) if marked else None

    def _state(
        self, clean: Tensor, noise: Tensor, t: Tensor, context: Context, coins: Tensor
    ) -> Tensor:
        """Noised states; some are made from the model's own estimate (ImgX's recycling)."""
        recycled, source = coins < self.objective.recycling, self.source(context)
        if not bool(recycled.any()):
            return self.path.noised(clean, noise, t, source)
        end = torch.ones_like(t)
        with torch.no_grad():
            # The same field mirrored: as good as independent, and it costs no second one.
            other = noise.flip(tuple(range(2, noise.ndim)))
            far = self.path.noised(clean, other, end, source)
            own = self.denoised(far, end, context).clean
        mixed = torch.where(spread(recycled, clean) > 0, own, clean)
        return self.path.noised(mixed, noise, t, source)

    def _previous(self, x_t: Tensor, t: Tensor, context: Context, coins: Tensor) -> Tensor | None:
        """A first estimate for half of the samples (Chen et al. 2023, Analog Bits, Sec. 3.2)."""
        if not self.config.self_conditioning:
            return None
        chosen = coins < 0.5
        if not bool(chosen.any()):
            return None
        with torch.no_grad():
            return self.denoised(x_t, t, context).clean * spread(chosen, x_t)

    def _errors(
        self, output: Tensor, wanted: Tensor, t: Tensor, weights: Weights
    ) -> dict[str, Tensor]:
        """Weighted errors of the network's own target."""
        objective, parts = self.objective, dict[str, Tensor]()
        if objective.squared_error > 0:
            samples = weights.samples
            if objective.min_snr_gamma is not None:
                gamma = objective.min_snr_gamma
                samples = samples * objectives.snr_weight(self.path, t, self.meaning, gamma)
            if objective.squared_error_of == "noise":
                samples = samples * objectives.noise_weight(self.path, t, self.meaning)
            error = objectives.squared_error(output, wanted, weights.voxels, samples)
            parts["squared_error"] = objective.squared_error * error
        if objective.absolute_error > 0:
            error = objectives.absolute_error(output, wanted, weights.voxels, weights.samples)
            parts["absolute_error"] = objective.absolute_error * error
        return parts

    def _bound(
        self, output: Tensor, variance: Tensor, clean: Tensor, x_t: Tensor, t: Tensor
    ) -> Tensor:
        """L_vlb (B,) with the mean held fixed, so that it trains the variance alone."""
        s = self.path.snap((t - 1 / BOUND_STEPS).clamp_min(0))
        estimate = self.clean(output.detach(), x_t, t)
        return objectives.variational_bound(self.path, clean, estimate, variance, x_t, t, s)

    def _mask_losses(
        self, output: Tensor, x_t: Tensor, t: Tensor, batch: Batch, samples: Tensor
    ) -> dict[str, Tensor]:
        wanted = self.objective
        if not self.logits and wanted.dice == wanted.cross_entropy == wanted.focal == 0:
            return {}
        logits = self.mask_logits(output, x_t, t, batch.labels.shape[2:])
        return mask_losses(
            logits, batch.labels, self.mask_codec, wanted, squared=self.logits, samples=samples
        )

    # Sampling

    def trajectory(
        self,
        context: Context,
        noise: Tensor,
        sampling: Sampling,
        fresh_noise: FreshNoise | None = None,
    ) -> Iterator[Estimate]:
        """See :meth:`SegmentationModel.trajectory`."""
        if sampling.sampler == "anchor":
            own = self.anchor_state(context)
            yield Estimate(0, sampling.t_max, own, own, 0, self.decoder(context))
            return
        calls = _Counter()
        problem = Problem(
            self.path,
            self._steered(context, sampling, calls),
            noise,
            time_grid(self.path, sampling.steps, sampling.grid, sampling.t_max),
            fresh_noise,
            self.source(context),
            self.error_table,
        )
        for step in sample(sampling.sampler, problem):
            yield Estimate(
                step.index, step.t, step.clean, step.state, calls.count, self.decoder(context)
            )

    def anchor_state(self, context: Context) -> Tensor:
        """The state that sampler ``anchor`` answers with, (B, K, *S)."""
        return self.mask_codec.state_from_logits(anchor_of(context))

    def check(self, sampling: Sampling) -> None:
        """See :meth:`SegmentationModel.check`."""
        if sampling.sampler == "anchor" and not self.config.has_anchor:
            raise ValueError("sampler 'anchor' needs a model with conditioner: anchored, or coarse")
        if sampling.sampler != "anchor":
            check_fit(sampling.sampler, self.path)
        time_grid(self.path, sampling.steps, sampling.grid, sampling.t_max)
        if sampling.guidance != 1 and self.config.condition_dropout == 0:
            raise ValueError(
                "guidance needs a model that was trained with model.condition_dropout above 0"
            )
        if sampling.sampler == "analytic":
            self._check_analytic(sampling)
        if sampling.start == "image" and self.config.latent is None:
            raise ValueError("start 'image' needs a model with latent.of: features")
        if self.steer is None:
            return
        signal = self.path.coefficients(torch.tensor([sampling.t_max], dtype=torch.float64)).a
        if float(signal) < SMALLEST_GAIN:
            raise ValueError("a guide needs signal: set prediction.t_max below 1")
        if self.config.self_conditioning:
            raise ValueError("a guide does not reach through self-conditioning: leave it out")

    def _check_analytic(self, sampling: Sampling) -> None:
        if self.error_table is None:
            raise ValueError(
                "sampler 'analytic' needs the error of these weights' clean estimate: run "
                "`medseg-diff estimate-variance --model RUN` once"
            )
        plain = sampling.guidance == 1 and sampling.dynamic_threshold is None
        if not plain or self.steer is not None:
            raise ValueError(
                "sampler 'analytic' knows the error of the plain estimate: leave out guides, "
                "guidance and dynamic_threshold"
            )

    def decoder(self, context: Context) -> Callable[[Tensor], Tensor]:
        """``clean state -> probabilities`` on the context's own grid."""
        return self.codec.probabilities_from_state

    def _steered(self, context: Context, sampling: Sampling, calls: _Counter) -> Denoise:
        """The denoiser with its guidance and thresholds."""
        denoise = self._follow(context, calls)
        if sampling.guidance != 1:
            blank = self.context(torch.zeros_like(context.image[:1])).repeat(len(context.image))
            denoise = guidance.classifier_free(
                denoise, self._follow(blank, calls), sampling.guidance
            )
        if self.steer is not None:
            denoise = self.steer(lambda held: self._follow(held, calls), denoise, context)
        if sampling.dynamic_threshold is not None:
            denoise = guidance.clip_dynamic(denoise, sampling.dynamic_threshold)
        return denoise

    def _follow(self, context: Context, calls: _Counter) -> Denoise:
        """Denoise along one trajectory, remembering the last estimate for self-conditioning."""
        previous: Tensor | None = None

        def denoise(x: Tensor, t: Tensor) -> Denoised:
            nonlocal previous
            calls.count += 1
            answer = self.denoised(x, t, context, previous)
            previous = answer.clean
            return answer

        return denoise


class Weights(NamedTuple):
    """Weights of samples (B,) and of voxels (B, 1, *S) in a squared error."""

    samples: Tensor
    voxels: Tensor | None


class _Counter:
    """Calls of a network."""

    count = 0
