"""Two sets of scans without pairs or masks, small enough to train on in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from medseg_diff.config import Config, parse_config
from medseg_diff.data.caselist import build_caselist, save_caselist
from tests.translation_fixtures import AFFINE, PARTS, paired


def write_domain(folder: Path, channel: str, size: tuple[int, ...], *, target: bool) -> Path:
    """Scans of one domain, 0 to 4 of the source's or 10 to 14 of the target's; the list's path."""
    listed: list[dict[str, Any]] = []
    for number, part in enumerate(PARTS):
        values = paired(size, number + 10 * target)[int(target)]
        name = f"{folder.name}_{number}"
        file = folder / f"{name}{'.nii.gz' if len(size) == 3 else '.png'}"
        folder.mkdir(parents=True, exist_ok=True)
        if len(size) == 3:
            nib.save(nib.Nifti1Image(values, AFFINE), file)
        else:
            Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(file)
        listed.append(
            {"case": name, "patient": name, "part": part, "channels": {channel: file.name}}
        )
    content = {"name": folder.name, "licence": "CC0", "modality": "MR", "channels": [channel]}
    save_caselist(build_caselist({**content, "cases": listed}, root=folder), folder / "cases.json")
    return folder / "cases.json"


def write_domains(folder: Path, size: tuple[int, ...] = (14, 17)) -> tuple[Path, Path]:
    """Case lists of both domains."""
    return (
        write_domain(folder / "ours", "T1", size, target=False),
        write_domain(folder / "theirs", "FLAIR", size, target=True),
    )


def unpaired_keys(ours: Path, theirs: Path, dims: int = 2, **training: Any) -> dict[str, Any]:
    """The recipe at a width and length for tests."""
    return {
        "name": "tiny_syndiff",
        "recipe": "syndiff",
        "data": {"cases": str(ours), "target_cases": str(theirs)},
        "plan": {"patch_size": [8] * dims, "batch_size": 2, "spatial_dims": dims},
        "model": {
            "features": [4, 8], "time_channels": 16,
            "adversarial": {"discriminator_features": [4, 8], "r1_every": 2},
        },
        "training": {
            "steps": 6, "warmup_steps": 2, "validate_every": 3, "save_every": 3, **training,
        },
        "prediction": {"draws": 2},
    }  # fmt: skip


def tiny_unpaired(ours: Path, theirs: Path, dims: int = 2, **training: Any) -> Config:
    """:func:`unpaired_keys`, checked."""
    return parse_config(unpaired_keys(ours, theirs, dims, **training))
