"""Models of scans whose answers are known: Gaussian data, and painted label maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medseg_diff.checkpoint import LoadedRun
from medseg_diff.config import Config, merged, parse_config
from medseg_diff.diffusion.paths import Path as Noising
from medseg_diff.diffusion.paths import spread
from medseg_diff.model import build_model
from medseg_diff.networks.autoencoder import latent_noise
from medseg_diff.networks.conditioners import Context

KEYS: dict[str, Any] = {
    "name": "stub",
    "recipe": "image_prior",
    "task": {
        "modality": "MR",
        "channels": ["T1"],
        "labels": {"background": 0, "inner": 1, "outer": 2},
        "input_channels": [1],
    },
    "plan": {
        "spatial_dims": 3,
        "spacing_mm": [1.2, 0.9, 2.0],
        "orientation": "RAS",
        "patch_size": [8, 8, 6],
        "normalisation": [{"kind": "range", "clip": [0, 100]}],
        "image_ranges": [[20, 300]],
        "raster": False,
        "batch_size": 1,
    },
    "model": {"features": [4, 8], "time_channels": 16, "output": "clean"},
    "prediction": {"steps": 3, "overlap": 0.5, "batch_size": 4},
}


class Gaussian(nn.Module):
    """E[clean | x_t] for data N(mean, sd^2): the network of a perfectly trained prior."""

    def __init__(self, path: Noising, mean: float, sd: float) -> None:
        super().__init__()
        self.path, self.mean, self.sd = path, mean, sd
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, t: Tensor, features: Any = None) -> Tensor:
        """Clean estimate (B, C, *S)."""
        a, _, sigma = self.path.coefficients(t)
        gain = spread(a * self.sd**2 / (a**2 * self.sd**2 + sigma**2), x)
        return self.mean + gain * (x - spread(a, x) * self.mean)


class Painter(nn.Module):
    """Every class in its own grey, whatever the state: background -0.5, then 0, then 0.5."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, t: Tensor, features: Any = None) -> Tensor:
        """Clean estimate (B, 1, *S) from the three planes behind the state."""
        present = (x[:, 1:4] + 1) / 2
        greys = torch.tensor([-0.5, 0.0, 0.5]).reshape(1, 3, *[1] * (x.ndim - 2))
        return (present * greys).sum(1, keepdim=True)


class Blocks(nn.Module):
    """An autoencoder whose latent is every second voxel."""

    factor, book = 2, None

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def noise(self, field: Tensor) -> Tensor:
        """As the real one's, for two channels."""
        return latent_noise(field, 2, self.factor)

    def snap(self, z: Tensor) -> Tensor:
        """Itself."""
        return z

    def decode(self, z: Tensor, size: Any) -> Tensor:
        """The latent's first channel, two voxels a cell along every axis."""
        whole = z[:, :1]
        for axis, length in enumerate(size, start=2):
            whole = whole.repeat_interleave(2, axis).narrow(axis, 0, length)
        return whole


class Halved(nn.Module):
    """A conditioner that shows every second voxel of its planes."""

    def forward(self, image: Tensor) -> Context:
        """Maps (B, P, *L)."""
        return Context(image, (image[(..., *[slice(None, None, 2)] * (image.ndim - 2))],))


class LatentPainter(nn.Module):
    """As :class:`Painter`, from the condition's maps, as the velocity that means it."""

    def __init__(self, path: Noising) -> None:
        super().__init__()
        self.path, self.painter = path, Painter()

    def forward(self, x: Tensor, t: Tensor, features: Any) -> Tensor:
        """Velocity a noise - sigma clean = (a x - clean) / sigma."""
        a, _, sigma = (spread(value, x) for value in self.path.coefficients(t))
        return (a * x - self.painter(torch.cat([x[:, :1], features[0]], dim=1), t)) / sigma


def stub_run(**changes: Any) -> LoadedRun:
    """A run without files, its network still to be put in."""
    config: Config = parse_config(merged(KEYS, changes))
    card = {
        "name": config.name,
        "data": {"name": "stub", "licence": "CC0"},
        "sha256": {"model.safetensors": config.name},
    }
    return LoadedRun(Path(config.name), build_model(config).eval(), config, card)


def gaussian_run(mean: float, sd: float, **changes: Any) -> LoadedRun:
    """A perfectly trained prior of Gaussian data."""
    run = stub_run(**changes)
    run.model.denoiser = Gaussian(run.model.path, mean, sd)
    return run


def latent_run(**changes: Any) -> LoadedRun:
    """A model whose label maps decide too, in a latent of half the resolution."""
    latent = {"features": [4, 8], "channels": 2, "steps": 1}
    keys = {"conditioner": "pyramid", "concat_image": False, "output": "velocity"}
    keys |= {"latent": latent}
    run = stub_run(**merged({"recipe": "latent_synthesis", "model": keys}, changes))
    run.model.autoencoder, run.model.conditioner = Blocks(), Halved()
    run.model.denoiser = LatentPainter(run.model.path)
    return run


def painting_run(**changes: Any) -> LoadedRun:
    """A perfectly trained model of scans that their label maps decide."""
    run = stub_run(**merged({"recipe": "mask_to_image"}, changes))
    run.model.denoiser = Painter()
    return run
