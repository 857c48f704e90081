"""Paired scans small enough to train a translator on in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from medseg_diff.config import Config, parse_config
from medseg_diff.data.caselist import build_caselist, save_caselist

# Axes permuted, oblique, anisotropic and off centre, so that a lost transform shows.
TURN = np.array([[0, -np.cos(0.3), np.sin(0.3)], [1, 0, 0], [0, np.sin(0.3), np.cos(0.3)]])
AFFINE = np.eye(4)
AFFINE[:3, :3] = TURN * [0.9, 1.2, 2.0]
AFFINE[:3, 3] = [11, -7, 5]
PARTS = ("train", "train", "train", "validation", "test")


def paired(size: tuple[int, ...], number: int) -> tuple[np.ndarray, np.ndarray]:
    """A bright ball on air and its translation, 300 - 2 x inside the ball and 20 outside."""
    rng = np.random.default_rng(number)
    grid = np.indices(size)
    centre = np.array([n * rng.uniform(0.42, 0.58) for n in size]).reshape(-1, *[1] * len(size))
    inside = np.square((grid - centre) / np.array(size).reshape(centre.shape)).sum(0) < 0.11
    source = np.where(inside, 60 + 40 * np.sin(grid[0] / 2.0) + rng.normal(0, 2, size), 0)
    target = np.where(inside, 300 - 2 * source, 20)
    return source.astype(np.float32), target.astype(np.float32)


def write_pairs(folder: Path, size: tuple[int, ...] = (15, 18, 13)) -> Path:
    """Paired cases, NIfTI in 3-D and PNG in 2-D; returns the case list's path."""
    listed: list[dict[str, Any]] = []
    for number, part in enumerate(PARTS):
        files = {}
        for kind, values in zip(("T1", "FLAIR"), paired(size, number), strict=True):
            if len(size) == 3:
                file = folder / kind / f"head_{number}.nii.gz"
                file.parent.mkdir(parents=True, exist_ok=True)
                nib.save(nib.Nifti1Image(values, AFFINE), file)
            else:
                file = folder / kind / f"head_{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(file)
            files[kind] = file.relative_to(folder).as_posix()
        listed.append(
            {
                "case": f"head_{number}", "patient": f"p{number}", "part": part,
                "channels": {"T1": files["T1"]}, "target": files["FLAIR"],
            }
        )  # fmt: skip
    content = {
        "name": "balls", "licence": "CC0", "modality": "MR", "channels": ["T1"],
        "target": "FLAIR", "cases": listed,
    }  # fmt: skip
    save_caselist(build_caselist(content, root=folder), folder / "cases.json")
    return folder / "cases.json"


def tiny_translator(recipe: str, cases: Path, dims: int = 3, **training: Any) -> Config:
    """A recipe at a width and length for tests."""
    keys: dict[str, Any] = {
        "name": f"tiny_{recipe}",
        "recipe": recipe,
        "data": {"cases": str(cases)},
        "plan": {"patch_size": [8] * dims, "batch_size": 2, "spatial_dims": dims},
        "model": {"features": [4, 8]},
        "training": {
            "steps": 6, "warmup_steps": 2, "validate_every": 3, "save_every": 3, **training,
        },
        "prediction": {"draws": 2, "steps": 2},
    }  # fmt: skip
    if recipe == "bbdm_latent":
        keys["model"]["latent"] = {"features": [4, 8], "channels": 2, "steps": 3}
    if recipe != "one_step":
        keys["model"]["time_channels"] = 16
    return parse_config(keys)
