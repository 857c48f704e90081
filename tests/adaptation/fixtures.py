"""A row's work on balls, without an experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medseg_diff.adaptation.work import Work
from medseg_diff.config import Config, merged, parse_config
from medseg_diff.data.caselist import load_caselist
from medseg_diff.data.prepare import prepare
from tests.training_fixtures import write_dataset


def unet_config(cases: Path, **changes: Any) -> Config:
    """A complete configuration of a plain U-Net in 2-D, of a few hundred parameters."""
    keys = {
        "name": "balls",
        "recipe": "unet",
        "data": {"cases": str(cases)},
        "plan": {"spatial_dims": 2, "patch_size": [16, 16], "batch_size": 2},
        "model": {"features": [4, 8]},
        "training": {"steps": 4, "warmup_steps": 1, "validate_every": 4, "save_every": 1},
    }
    return prepare(parse_config(merged(keys, changes)))[0]


def work_on(folder: Path, cases: int = 5, **changes: Any) -> Work:
    """Balls as source and target."""
    listed = write_dataset(folder / "data", cases=cases)
    balls = load_caselist(listed)
    config = unet_config(listed, **changes)
    return Work(config, balls, balls, folder / "shared", folder / "own")
