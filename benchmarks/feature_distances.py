"""How far target features lie from the source's, before and after latent feature translation.

    python benchmarks/feature_distances.py --experiment EXPERIMENT.yaml --out OUT_OF_ADAPT

Reads the trainings that `medseg-diff adapt` left in --out. Of the validation cases' windows:
squared Frechet distance between the Gaussians of feature vectors (one a voxel of the latent) of
source scans and
  target    of the same scans under the shift, as the source's network encodes them;
  drawn     of what the row draws for them, ten steps;
  one step  the same in one.
The first line of each row, `source`, is what the row draws for scans that were not shifted. Beside
each distance, in brackets: mean squared difference from the features of the same scan unshifted, of
which 0 is the same and 2 unrelated (features have mean 0 and variance 1). Distributions can agree
while every single feature is wrong; the brackets tell.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.linalg import sqrtm
from tables import markdown
from torch import Tensor

from medseg_diff import io
from medseg_diff.adaptation.definition import load_experiment
from medseg_diff.adaptation.experiment import domain_cases
from medseg_diff.adaptation.test_time import scan_windows
from medseg_diff.checkpoint import LoadedRun, load_run
from medseg_diff.data.caselist import CaseList
from medseg_diff.inference.scan import read_scan
from medseg_diff.model import FeatureModel, Sampling

CONDITIONS = ("image", "edges", "features")


def windows(cases: CaseList, run: LoadedRun, count: int) -> Tensor:
    """All windows of the first validation cases, as the network sees them."""
    task, plan = run.config.known_task, run.config.plan
    found = []
    for case in cases.part("validation")[:count]:
        placed = read_scan(cases.channel_paths(case), task, plan, io.ReadOptions(), 2**40)
        patch = (*(plan.patch_size or ()), 1)[:3]
        found.append(scan_windows(np.asarray(placed.values, np.float32), patch))
    return torch.cat(found)


def encoded(model: FeatureModel, images: Tensor) -> Tensor:
    """The network's own features, (W, Z, *L)."""
    return model.autoencoder.encode(images).z


def drawn(model: FeatureModel, images: Tensor, steps: int) -> Tensor:
    """Features that the model draws for these images."""
    noise = torch.randn(
        (len(images), model.noise_channels, *images.shape[2:]),
        generator=torch.Generator().manual_seed(0),
    )
    walk = model.trajectory(model.context(images), noise, Sampling("ddim", steps))
    return list(walk)[-1].clean


def vectors(
    model: FeatureModel, images: Tensor, of: Callable[[FeatureModel, Tensor], Tensor]
) -> np.ndarray:
    """Feature vectors (N, Z) of all voxels, in batches."""
    with torch.inference_mode():
        parts = [of(model, batch).movedim(1, -1).flatten(0, -2) for batch in images.split(32)]
    return torch.cat(parts).double().numpy()


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Frechet distance between the Gaussians of two sets of vectors (N, Z)."""
    one, other = np.cov(a.T), np.cov(b.T)
    mixed = np.real(sqrtm(one @ other))
    gap = a.mean(0) - b.mean(0)
    return float(gap @ gap + np.trace(one + other - 2 * mixed))


def main() -> None:
    """One line for each condition and domain."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experiment", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=8)
    given = parser.parse_args()
    wanted = load_experiment(given.experiment)
    domains = {"source": wanted.source, **wanted.targets}
    seen = {
        name: domain_cases(wanted, one, given.out / "domains" / name)
        for name, one in domains.items()
    }
    lines = []
    for condition in CONDITIONS:
        run = load_run(given.out / "seed0" / "runs" / f"features_{condition}")
        model = run.model
        assert isinstance(model, FeatureModel)
        images = {name: windows(cases, run, given.cases) for name, cases in seen.items()}
        true = vectors(model, images["source"], encoded)
        for name in seen:
            line = {"condition": condition, "domain": name}
            ways = {"target": encoded, "drawn": _steps(10), "one step": _steps(1)}
            for way, of in ways.items():
                found = vectors(model, images[name], of)
                line[way] = f"{frechet(true, found):.3f} ({np.square(found - true).mean():.2f})"
            lines.append(line)
    print(markdown(lines))


def _steps(count: int) -> Callable[[FeatureModel, Tensor], Tensor]:
    return lambda model, images: drawn(model, images, count)


if __name__ == "__main__":
    main()
