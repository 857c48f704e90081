"""A data set, configuration and script small enough to train in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from medseg_diff.config import Config, parse_config
from medseg_diff.data.caselist import build_caselist, save_caselist

SCRIPT = """
import os, sys, torch
torch.set_num_threads(1)
from medseg_diff.config import load_config
from medseg_diff.training.fit import Options, fit
config, out, die_at, resume = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "resume"
def report(progress, values):
    if progress.step == die_at:
        os.kill(os.getpid(), 9)
fit(load_config(config), out, Options(resume=resume, report=report))
"""


def write_dataset(folder: Path, cases: int = 5, size: int = 16) -> Path:
    """Bright balls on noise, with their masks and a case list; returns the list's path."""
    rng = np.random.default_rng(0)
    listed: list[dict[str, Any]] = []
    grid = np.indices((size, size, size))
    for number in range(cases):
        centre = rng.uniform(size * 0.35, size * 0.65, 3)[:, None, None, None]
        ball = (np.square(grid - centre).sum(0) < (size * 0.25) ** 2).astype(np.uint8)
        image = ball * 2.0 + rng.normal(0, 0.3, ball.shape) + 5
        name = f"ball_{number}"
        for kind, values in (("images", image.astype(np.float32)), ("labels", ball)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(values, np.eye(4)), folder / kind / f"{name}.nii.gz")
        part = "train" if number < cases - 2 else ("validation" if number < cases - 1 else "test")
        listed.append(
            {
                "case": name,
                "patient": name,
                "part": part,
                "channels": {"T1": f"images/{name}.nii.gz"},
                "references": [f"labels/{name}.nii.gz"],
            }
        )
    content = {
        "name": "balls",
        "licence": "CC0",
        "modality": "MR",
        "channels": ["T1"],
        "labels": {"background": 0, "ball": 1},
        "cases": listed,
    }
    save_caselist(build_caselist(content, root=folder), folder / "cases.json")
    return folder / "cases.json"


def tiny(cases: Path, **training: Any) -> Config:
    """An anchored diffusion model of a few thousand parameters."""
    keys = {
        "name": "tiny",
        "recipe": "anchored",
        "data": {"cases": str(cases)},
        "plan": {"patch_size": [8, 8, 8], "batch_size": 2},
        "model": {"features": [4, 8], "conditioner_features": [4, 8], "time_channels": 16},
        "training": {
            "steps": 10,
            "warmup_steps": 2,
            "validate_every": 5,
            "save_every": 5,
            **training,
        },
        "prediction": {"draws": 2, "steps": 2},
    }
    return parse_config(keys)
