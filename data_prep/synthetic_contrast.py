"""Any list of one MR channel -> the same scans paired with a synthetic contrast of themselves.

    python data_prep/synthetic_contrast.py --cases LIST.json --out FOLDER [--as-channel]

The target (with --as-channel a second channel of a list that segments, as ControlNet takes it):
each scan is brought to one scale (its percentiles 0.5 and 99.5 become 0 and 1000, and what is
beyond is clipped), since one range holds for all targets; then frozen scanner models
(medseg_diff/data/shifts.yaml) follow one another: contrast_inversion strong, bias_field moderate,
rician_noise mild, each seeded by the case. So the truth is known, many cases are paired without
registration, and translators may be ranked on them; what is learned says nothing about real T2.
Parts, patients and masks are those of the list.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
from common import finish
from monai.data import MetaTensor

from medseg_diff.adaptation.style import Array
from medseg_diff.data.caselist import Case, CaseList, build_caselist, hash_files, load_caselist
from medseg_diff.data.derived import derive
from medseg_diff.data.frozen_shifts import load_shifts
from medseg_diff.data.gather import suffix_of
from medseg_diff.data.transforms import spacing_of
from medseg_diff.errors import InputError

CHAIN = (("contrast_inversion", "strong"), ("bias_field", "moderate"), ("rician_noise", "mild"))
TARGET = "synthetic"


def paired(cases: CaseList, out: Path, *, as_channel: bool = False) -> CaseList:
    """Write sources and targets, and the list that pairs them or has both as channels.

    Raises:
        InputError: if the list has several channels, or an image cannot be read.
    """
    if len(cases.channels) != 1:
        raise InputError(
            "several channels", field="channels", found=len(cases.channels), expected=1
        )
    frozen = load_shifts()

    def change(image: MetaTensor, case: Case) -> Array:
        spacing = spacing_of(image)[: image.ndim - 1]
        low, high = np.percentile(np.asarray(image), (0.5, 99.5))
        values = 1000 * ((np.asarray(image) - low) / max(float(high - low), 1e-6)).clip(0, 1)
        for name, level in CHAIN:
            values = frozen.get(name, level)(values, spacing, case=case.case, seed=frozen.seed)
        return np.asarray(values, np.float32)

    made_from = [list(CHAIN), frozen.version, "percentiles"]
    made = derive(cases, cases.cases, out / TARGET, change, made_from=made_from)
    (channel,) = cases.channels
    (out / "sources").mkdir(parents=True, exist_ok=True)
    pairs = []
    for case, other in zip(cases.cases, made.cases, strict=True):
        source = cases.channel_paths(case)[channel]
        # Cases of one file name lie in folders of their own.
        copy = f"sources/{case.case}{suffix_of(source)}"
        shutil.copyfile(source, out / copy)
        channels = {channel: copy}
        image = f"{TARGET}/{other.channels[channel]}"
        own = {
            "channels": channels | ({TARGET: image} if as_channel else {}),
            "target": None if as_channel else image,
            "references": tuple(f"{TARGET}/{name}" for name in other.references),
        }
        pairs.append(other.model_copy(update={**own, "sha256": {}}))
    content = {name: getattr(cases, name) for name in type(cases).model_fields}
    kind = {"channels": (channel, TARGET)} if as_channel else {"target": TARGET}
    return hash_files(build_caselist({**content, **kind, "cases": tuple(pairs)}, root=out))


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=Path, required=True, help="case list of one channel")
    parser.add_argument("--root", help="folder that the list's paths start from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--as-channel", action="store_true", help="a channel in place of a target")
    given = parser.parse_args()
    cases, root, out = given.cases, given.root, given.out
    finish(lambda: paired(load_caselist(cases, root), out, as_channel=given.as_channel))


if __name__ == "__main__":
    main()
