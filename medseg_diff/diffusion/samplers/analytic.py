"""The clean estimate's own error, which Analytic-DPM's variance is made of (Bao et al. 2022).

They estimate the score's mean square norm once after training; in terms of the clean estimate the
same number is its mean squared error per element, measured on noised training data.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from medseg_diff.diffusion.paths import Path
from medseg_diff.diffusion.samplers.base import Denoise


@torch.no_grad()
def estimate_error_variance(
    path: Path, denoise: Denoise, batches: Iterable[tuple[Tensor, ...]], times: Tensor
) -> Tensor:
    """E |clean - estimate|^2 / d at each time, (T,) float64, as a mean over all samples.

    Args:
        path: The noising process.
        denoise: As for a sampler.
        batches: Of (clean, noise) or (clean, noise, source), each (B, C, *S).
        times: Times to measure at, (T,), such as a sampler's grid without its 0.

    Raises:
        ValueError: if there is no batch.
    """
    total, count = torch.zeros(len(times), dtype=torch.float64), 0
    for clean, noise, *rest in batches:
        source = rest[0] if rest else None
        for k, time in enumerate(times):
            t = time.to(clean.device).expand(len(clean))
            estimate = denoise(path.noised(clean, noise, t, source), t).clean
            error = (clean - estimate).double().square().flatten(1).mean(1)
            total[k] += error.sum().cpu()
        count += len(clean)
    if count == 0:
        raise ValueError("the error of an estimate needs at least one batch to be measured on")
    return total / count


@dataclass(frozen=True, eq=False)
class ErrorTable:
    """Measured errors as a function of time: linear between times, constant beyond them.

    Attributes:
        times: Strictly rising, (T,).
        values: Mean squared errors, (T,).
    """

    times: Tensor
    values: Tensor

    def __post_init__(self) -> None:
        """Check both tensors."""
        if self.times.ndim != 1 or self.times.shape != self.values.shape or not len(self.times):
            raise ValueError("an error table needs as many times as values, at least one of each")
        if not bool((self.times[1:] > self.times[:-1]).all()):
            raise ValueError("the times of an error table must rise strictly: sort them")
        if not bool((self.values >= 0).all()):
            raise ValueError("mean squared errors must be 0 or more")

    def __call__(self, t: Tensor) -> Tensor:
        """Errors at times (B,), float64, on their device."""
        times, values = (x.to(t.device, torch.float64) for x in (self.times, self.values))
        t = t.double().clamp(times[0], times[-1])
        if len(times) == 1:
            return values.expand(len(t))
        right = torch.searchsorted(times, t).clamp_min(1)
        left = right - 1
        share = (t - times[left]) / (times[right] - times[left])
        return torch.lerp(values[left], values[right], share)
