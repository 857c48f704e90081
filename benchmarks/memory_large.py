"""Peak memory of one large CT with many structures against the estimate, one process a row.

    python benchmarks/memory_large.py                      # 512 x 512 x 400, 20 classes
    python benchmarks/memory_large.py --depth 800 --rows 2 # in 24 GiB, without probability maps
    python benchmarks/memory_large.py --estimate           # the estimates alone, at once

The network is untrained and tiny: what is measured is what the pipeline holds, not the network.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")

CLASSES, PATCH = 20, (128, 128, 128)
# Whether probability maps are asked for, and whether memory is so short that 16 bits are taken.
ROWS = [(True, False), (False, False), (False, True)]


def config_of() -> object:
    """A tiny U-Net of 20 classes on the scan's own grid."""
    from medseg_diff.config import parse_config

    labels = {"background": 0, **{f"organ{n}": n for n in range(1, CLASSES)}}
    return parse_config(
        {
            "recipe": "unet",
            "task": {"modality": "CT", "channels": ["CT"], "labels": labels},
            "plan": {
                "spatial_dims": 3,
                "spacing_mm": [1, 1, 1],
                "patch_size": PATCH,
                "normalisation": [{"kind": "ct", "clip": [-1000, 1000], "mean": 0, "sd": 500}],
                "batch_size": 1,
            },
            "model": {"features": [2, 2]},
            "prediction": {"overlap": 0.0, "batch_size": 1},
        }
    )


def estimate(side: int, depth: int, *, maps: bool, compact: bool) -> float:
    """GiB that `medseg_diff.memory` expects beyond the process that has just started."""
    from medseg_diff.data.fingerprint import DRAWING_MAPS_PER_LEVEL, step_bytes
    from medseg_diff.memory import GIB, Need

    shape = (side, side, depth)
    sample = step_bytes(PATCH, config_of().model, DRAWING_MAPS_PER_LEVEL)  # type: ignore[attr-defined]
    need = Need(
        shape, side * side * depth, 1, CLASSES, CLASSES - 1, 1, PATCH, 1, sample, compact, maps
    )
    return need.host_bytes() / GIB


def measure(side: int, depth: int, maps: bool, short: bool) -> dict[str, object]:
    """Predict one synthetic scan and write its answer; peak resident memory."""
    import numpy as np
    import torch

    from medseg_diff import io
    from medseg_diff.batch.run import write_answer
    from medseg_diff.checkpoint import LoadedRun
    from medseg_diff.inference.predictor import Predictor
    from medseg_diff.io.nifti import fresh_grid, write_nifti
    from medseg_diff.model import build_model

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config, given = config_of(), estimate(side, depth, maps=maps, compact=short) + 0.1
    model = build_model(config).eval()  # type: ignore[arg-type]
    run = LoadedRun(Path("stub"), model, config, {"sha256": {"model.safetensors": "0"}})  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        file, shape = Path(folder) / "ct.nii", (side, side, depth)
        values = np.random.default_rng(0).integers(
            -1000, 1000, (1, side // 8, side // 8, 1), np.int16
        )
        values = np.broadcast_to(values, (*values.shape[:3], depth)).repeat(8, 1).repeat(8, 2)
        write_nifti(file, values, fresh_grid(np.eye(4), shape))
        del values
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.perf_counter()
        answer = Predictor([run]).predict(
            file,
            maps=maps,
            memory_gb=given if short else 1e6,
            options=io.ReadOptions(affine="sform"),
        )
        seconds = time.perf_counter() - began
        predicted = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if not maps:  # gzip of 19 float maps takes longer than everything else
            write_answer(answer, Path(folder), "ct")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    notes = [line for line in answer.record["warnings"] if line.startswith("memory")]
    return {
        "before": before / 2**20,
        "predicted": predicted / 2**20,
        "peak": peak / 2**20,
        "seconds": seconds,
        "compact": any("16 bits" in line for line in notes),
    }


def main() -> None:
    """Print one line a row."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--depth", type=int, default=400)
    parser.add_argument("--rows", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--estimate", action="store_true")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.row:
        print(json.dumps(measure(*json.loads(given.row))))
        return
    if given.estimate:
        for maps in (True, False):
            for compact in (False, True):
                needs = estimate(given.side, given.depth, maps=maps, compact=compact)
                print(
                    f"{given.side}x{given.side}x{given.depth}, maps {maps}, "
                    f"16 bits {compact}: {needs:.1f} GiB"
                )
        return
    print("shape            maps   16 bits  estimate  measured  whole process  seconds")
    for maps, short in (ROWS[n] for n in given.rows):
        row = json.dumps([given.side, given.depth, maps, short])
        shape = f"{given.side}x{given.side}x{given.depth}"
        command = [sys.executable, __file__, "--row", row]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        needs = estimate(given.side, given.depth, maps=maps, compact=found["compact"])
        print(
            f"{shape:<16} {maps!s:<6} {found['compact']!s:<8} {needs:6.1f} GiB "
            f"{found['peak'] - found['before']:6.1f} GiB {found['peak']:8.1f} GiB "
            f"{found['seconds']:11.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
