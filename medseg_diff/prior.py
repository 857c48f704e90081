"""A trained model of scans, and its denoiser over a whole grid.

Legend: C planes of a scan, P planes of its condition, *S the model's grid (three axes).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg_diff.checkpoint import LoadedRun
from medseg_diff.config import PredictionConfig
from medseg_diff.data.transforms import network_input
from medseg_diff.diffusion.samplers import Denoised, FreshNoise
from medseg_diff.errors import InputError
from medseg_diff.inference import Predictor
from medseg_diff.loading import load_runs
from medseg_diff.model import PriorModel
from medseg_diff.noise import CUBE, SLICE, NoiseField
from medseg_diff.windows import Place, grouped, importance, is_flat, pad_to, windows

Array = NDArray[np.float32]


def load_prior(model: str | Path, device: str = "auto") -> Prior:
    """Load a trained model of scans.

    Raises:
        UsageError: if it makes masks or translations.
    """
    return Prior(load_runs(model, device))


class Prior(Predictor):
    """A trained model of scans, one run, loaded and checked as predictors are."""

    makes = "scans"
    translates = True

    def __init__(self, runs: Sequence[LoadedRun]) -> None:
        super().__init__(runs)
        model = runs[0].model
        if len(runs) != 1 or not isinstance(model, PriorModel):
            raise InputError("models of scans form no ensemble: give one", file=runs[0].folder)
        self.model = model
        if self.plan.image_ranges is None:
            raise InputError("the run's plan has no image_ranges", file=runs[0].folder)
        self.ranges = self.plan.image_ranges

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.model.parameters()).device

    def condition(self, shape: Sequence[int], labels: NDArray[np.int16] | None) -> Array:
        """What the model is told of a grid: the label map (1, *S) if it takes one, coordinates.

        Args:
            shape: Voxels along the grid's three axes.
            labels: (1, *S), for a model that is conditioned on masks.

        Returns:
            (P, *S'), padded where a window is larger than the grid.
        """
        shown = np.zeros((0, *shape), np.float32) if labels is None else labels.astype(np.float32)
        return pad_to(network_input(shown, self.plan), self.patch)[0]

    def denoiser(self, condition: Array, settings: PredictionConfig) -> WholeDenoiser:
        """The denoiser of states (1, C, *S') on the grid of a condition."""
        return WholeDenoiser(
            self.model, condition, self.patch, settings.overlap, settings.batch_size
        )

    def noise(self, case: str, seed: int, draw: int, shape: Sequence[int]) -> FreshNoise:
        """``step -> standard normal (1, C, *shape)``, the case's fields; see `NoiseField`."""

        def field(step: int) -> Tensor:
            tile = SLICE if self.patch[2] == 1 else CUBE
            made = NoiseField(seed, case, draw, step, self.model.noise_channels, tile)
            return torch.from_numpy(made.window((0, 0, 0), shape))[None].to(self.device)

        return field


class WholeDenoiser:
    """A model's clean estimate over a whole grid: that of its windows, blended at every call.

    So all windows agree at every step of a walk, where windows drawn one by one would each show
    another scan (MultiDiffusion, Bar-Tal et al. 2023, arXiv 2302.08113, Eq. 5).

    Args:
        model: Model of scans.
        condition: (P, *S), P may be 0.
        patch: Window, three axes; depth 1 for 2-D networks.
        overlap: Share of a window that its neighbour covers.
        batch_size: Windows in one network call.

    Attributes:
        calls: Windows denoised so far.
    """

    def __init__(
        self,
        model: PriorModel,
        condition: Array,
        patch: Sequence[int],
        overlap: float,
        batch_size: int,
    ) -> None:
        self.model, self.calls = model, 0
        device = next(model.parameters()).device
        places = windows(condition.shape[1:], patch, overlap)
        self.flat = is_flat(places[0])
        self.groups = list(grouped(places, batch_size))
        self.weight = torch.from_numpy(importance(patch)).to(device)
        self.total = torch.zeros(condition.shape[1:], device=device)
        for place in places:
            self.total[place] += self.weight
        told = torch.from_numpy(np.ascontiguousarray(condition))
        self.contexts = [model.context(self._cut(told, g).to(device)) for g in self.groups]

    def __call__(self, x: Tensor, t: Tensor) -> Denoised:
        """Clean estimate (1, C, *S) of a state at its time t, (1,)."""
        blended = torch.zeros_like(x[0])
        for group, context in zip(self.groups, self.contexts, strict=True):
            crops = self._cut(x[0], group)
            clean = self.model.denoised(crops, t[:1].expand(len(group)), context).clean
            for place, window in zip(group, clean, strict=True):
                blended[:, *place] += self.weight * (window[..., None] if self.flat else window)
            self.calls += len(group)
        return Denoised((blended / self.total)[None])

    def _cut(self, values: Tensor, group: Sequence[Place]) -> Tensor:
        cut = torch.stack([values[:, *place] for place in group])
        return cut[..., 0] if self.flat else cut
