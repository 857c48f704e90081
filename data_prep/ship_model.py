"""Trained run -> the small model inside the package: half precision, no optimiser state.

python data_prep/ship_model.py --run runs/hippocampus_anchored --out medseg_diff/models/hippocampus
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from medseg_diff.checkpoint import (
    CARD,
    CONFIG,
    WEIGHTS,
    load_tensors,
    read_card,
    save_tensors,
)
from medseg_diff.files import atomic_text, file_sha256

LICENCE = """# Licence of these weights

The weights in this folder were trained on images and masks of the Medical Segmentation Decathlon,
Task04 Hippocampus, and are shared under the same licence as those data:
Creative Commons Attribution-ShareAlike 4.0 International (CC-BY-SA 4.0),
https://creativecommons.org/licenses/by-sa/4.0/

Data: Simpson et al. 2019, arXiv:1902.09063; Antonelli et al. 2022, Nature Communications 13:4128.

Changes: the data were used to train a network; no image and no mask is contained in the weights'
file. The 20 test cases of the sample that ships with this package took no part in training or in
choosing the weights. Stored in half precision.

Research use only. Not a medical device.
"""


def main() -> None:
    """Convert one run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    tensors = load_tensors(given.run / WEIGHTS)
    half = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    save_tensors(given.out / WEIGHTS, half)
    atomic_text(given.out / CONFIG, (given.run / CONFIG).read_text(encoding="utf-8"))
    card = read_card(given.run)
    card["codes"] = {k: f"{k} hippocampus" for k in ("anterior", "posterior")}
    card |= {"licence": "CC-BY-SA-4.0", "sha256": {WEIGHTS: file_sha256(given.out / WEIGHTS)}}
    atomic_text(given.out / CARD, json.dumps(card, indent=2) + "\n")
    atomic_text(given.out / "LICENSE.md", LICENCE)
    size = sum(p.stat().st_size for p in given.out.iterdir()) / 2**20
    print(f"{given.out}: {size:.1f} MiB")


if __name__ == "__main__":
    main()
