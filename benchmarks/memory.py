"""Memory of one training step against the fingerprint's estimate, one process a row.

    python benchmarks/memory.py

`medseg_diff.data.fingerprint.MAPS_PER_LEVEL` is the ratio that this prints, rounded up.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import warnings

warnings.filterwarnings("ignore")

ROWS = [
    ("unet", [40, 56, 40], 4),
    ("anchored", [40, 56, 40], 4),
    ("diff_unet", [40, 56, 40], 4),
    ("unet", [64, 64, 64], 2),
    ("anchored", [256, 256], 4),
]


def measure(recipe: str, patch: list[int], batch: int) -> dict[str, float]:
    """Peak memory of two steps, less what was resident before the first."""
    import torch

    from medseg_diff.config import parse_config
    from medseg_diff.data.fingerprint import MAPS_PER_LEVEL, step_bytes
    from medseg_diff.data.records import Batch
    from medseg_diff.model import build_model

    config = parse_config(
        {
            "recipe": recipe,
            "task": {"channels": ["T1"], "labels": {"background": 0, "a": 1, "b": 2}},
            "plan": {"spatial_dims": len(patch), "spacing_mm": [1, 1, 1], "patch_size": patch},
        }
    )
    model = build_model(config)
    data = Batch(
        torch.randn(batch, 1, *patch),
        torch.zeros(batch, 1, *patch, dtype=torch.int16),
        torch.full((batch,), 0.5, dtype=torch.float64),
        torch.randn(batch, 3, *patch),
        torch.rand(batch, 2),
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(2):
        model(data).total.backward()
    used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    one = step_bytes(patch, config.model) * batch / MAPS_PER_LEVEL
    return {"gib": used / 2**30, "maps_per_level": used / one}


def main() -> None:
    """Print one line a row."""
    if len(sys.argv) > 1:
        print(json.dumps(measure(*json.loads(sys.argv[1]))))
        return
    print("recipe      patch          batch   GiB   maps per level")
    for row in ROWS:
        command = [sys.executable, __file__, json.dumps(row)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        patch = "x".join(map(str, row[1]))
        measured = f"{found['gib']:5.2f}  {found['maps_per_level']:5.1f}"
        print(f"{row[0]:<11} {patch:<14} {row[2]:<5} {measured}")


if __name__ == "__main__":
    main()
