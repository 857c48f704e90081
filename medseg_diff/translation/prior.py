"""A trained model of scans, and its denoiser over a whole grid.

Legend: C planes of a state, P planes of its condition, W windows, *S the grid (three axes).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
from medseg_diff.inference.loading import load_runs
from medseg_diff.inference.noise import CUBE, SLICE, NoiseField
from medseg_diff.inference.predictor import Predictor
from medseg_diff.inference.windows import Place, grouped, importance, is_flat, pad_to, windows
from medseg_diff.model import LatentPriorModel, PriorModel

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
        if len(runs) != 1 or not isinstance(model, PriorModel | LatentPriorModel):
            raise InputError("models of scans form no ensemble: give one", file=runs[0].folder)
        self.model = model
        if self.plan.image_ranges is None:
            raise InputError("the run's plan has no image_ranges", file=runs[0].folder)
        self.ranges = self.plan.image_ranges
        # Voxels of a cell of the state's grid, along each axis; a 2-D network keeps the third.
        size = model.autoencoder.factor if isinstance(model, LatentPriorModel) else 1
        self.cell = (size, size, 1 if self.patch[2] == 1 else size)
        if any(n % k for n, k in zip(self.patch, self.cell, strict=True)):
            raise InputError(
                "its window is no multiple of the latent's cell", file=runs[0].folder,
                field="prediction.window", found=self.patch, expected=f"multiples of {size}",
            )  # fmt: skip

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
            (P, *S'), padded to whole cells, and where a window is larger than the grid.
        """
        shown = np.zeros((0, *shape), np.float32) if labels is None else labels.astype(np.float32)
        least = [max(n, p) for n, p in zip(shape, self.patch, strict=True)]
        whole = [-(-n // k) * k for n, k in zip(least, self.cell, strict=True)]
        return pad_to(network_input(shown, self.plan), whole)[0]

    def denoiser(self, condition: Array, settings: PredictionConfig) -> WholeDenoiser:
        """The denoiser of states (1, C, *S') on the grid of a condition."""
        return WholeDenoiser(self, condition, settings.overlap, settings.batch_size)

    def noise(self, case: str, seed: int, draw: int, shape: Sequence[int]) -> FreshNoise:
        """``step -> standard normal (1, C, *S')`` of a state whose condition has ``shape`` voxels.

        They are the case's fields, see `NoiseField`.
        """
        flat = self.patch[2] == 1

        def field(step: int) -> Tensor:
            tile = SLICE if flat else CUBE
            made = NoiseField(seed, case, draw, step, self.model.noise_channels, tile)
            values = torch.from_numpy(made.window((0, 0, 0), shape))[None].to(self.device)
            if isinstance(self.model, PriorModel):
                return values
            if not flat:
                return self.model.noise_on_grid(values)
            slices = self.model.noise_on_grid(values[0].movedim(-1, 0))
            return slices.movedim(0, -1)[None]

        return field


class Tiling:
    """Groups of windows over a grid, cut and blended.

    Args:
        shape: Cells along the grid's three axes.
        patch: Size of a window; depth 1 for 2-D networks.
        groups: The windows, which cover the grid.
        device: Where values lie.
    """

    def __init__(
        self,
        shape: Sequence[int],
        patch: Sequence[int],
        groups: Sequence[Sequence[Place]],
        device: torch.device,
    ) -> None:
        self.shape, self.groups, self.flat = tuple(shape), groups, is_flat(groups[0][0])
        self.weight = torch.from_numpy(importance(patch)).to(device)
        self.total = torch.zeros(self.shape, device=device)
        for place in (place for group in groups for place in group):
            self.total[place] += self.weight

    def cut(self, values: Tensor, group: Sequence[Place]) -> Tensor:
        """Windows (W, C, *patch) of values (C, *shape); slices lose their depth."""
        cut = torch.stack([values[:, *place] for place in group])
        return cut[..., 0] if self.flat else cut

    def blended(self, answers: Iterable[Tensor]) -> Tensor:
        """Weighted mean (C, *shape) of the windows of all groups, each (W, C, *patch)."""
        sums: Tensor | None = None
        for group, answer in zip(self.groups, answers, strict=True):
            if sums is None:
                sums = answer.new_zeros((answer.shape[1], *self.shape))
            for place, window in zip(group, answer, strict=True):
                sums[:, *place] += self.weight * (window[..., None] if self.flat else window)
        if sums is None:
            raise RuntimeError("a grid without windows")
        return sums / self.total


class WholeDenoiser:
    """A model's clean estimate over a whole grid: that of its windows, blended at every call.

    So all windows agree at every step of a walk, where windows drawn one by one would each show
    another scan (MultiDiffusion, Bar-Tal et al. 2023, arXiv 2302.08113, Eq. 5).

    Args:
        prior: Model of scans.
        condition: (P, *S), P may be 0; whole cells.
        overlap: Share of a window that its neighbour covers.
        batch_size: Windows in one network call.

    Attributes:
        calls: Windows denoised so far.
    """

    def __init__(self, prior: Prior, condition: Array, overlap: float, batch_size: int) -> None:
        self.model, self.calls = prior.model, 0
        voxels, cell, device = condition.shape[1:], prior.cell, prior.device
        cells = [n // k for n, k in zip(voxels, cell, strict=True)]
        window = [n // k for n, k in zip(prior.patch, cell, strict=True)]
        coarse = list(grouped(windows(cells, window, overlap), batch_size))
        fine = [[_scaled(place, cell) for place in group] for group in coarse]
        # The same windows on the state's grid and on the voxels'.
        self.cells = Tiling(cells, window, coarse, device)
        self.voxels = Tiling(voxels, prior.patch, fine, device)
        told = torch.from_numpy(np.ascontiguousarray(condition)).to(device)
        self.contexts = [self.model.context(self.voxels.cut(told, group)) for group in fine]
        self.window = prior.patch[:2] if self.cells.flat else prior.patch

    def __call__(self, x: Tensor, t: Tensor) -> Denoised:
        """Clean estimate (1, C, *S) of a state at its time t, (1,)."""

        def answers() -> Iterator[Tensor]:
            for group, context in zip(self.cells.groups, self.contexts, strict=True):
                crops = self.cells.cut(x[0], group)
                self.calls += len(group)
                yield self.model.denoised(crops, t[:1].expand(len(group)), context).clean

        return Denoised(self.cells.blended(answers())[None])

    def scan(self, clean: Tensor) -> Tensor:
        """The scan (C, *S) in [-1, 1] that a clean state (1, ...) means, on the voxels' grid."""
        if isinstance(self.model, PriorModel):
            return clean[0].clamp(-1, 1)
        model = self.model
        return self.voxels.blended(
            model.scan(self.cells.cut(clean[0], group), self.window) for group in self.cells.groups
        )


def _scaled(place: Place, cell: Sequence[int]) -> Place:
    """A window of cells as the window of voxels that they hold."""
    return tuple(slice(s.start * k, s.stop * k) for s, k in zip(place, cell, strict=True))
