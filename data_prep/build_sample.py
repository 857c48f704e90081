"""Build the sample that the package embeds, from the hippocampus data's training part.

    python data_prep/build_sample.py --data MSD_HIPPOCAMPUS --out medseg_diff/data/sample

Cases are ranked by the sha256 of their id: the first 20 are for testing, the next 6 for
validation, and from there on as many as the size allows for training. Files are byte-for-byte
copies. The folder is rebuilt as a whole.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from medseg_diff.data.caselist import FILE_NAME, build_caselist, hash_files, save_caselist
from medseg_diff.data.gather import check_pairs, list_files
from medseg_diff.data.layouts import HIPPOCAMPUS, HIPPOCAMPUS_LABELS
from medseg_diff.errors import InputError
from medseg_diff.files import atomic_text

N_TEST, N_VALIDATION = 20, 6
MAX_BYTES = 5_900_000
# What cases.json and LICENSE.md may take of that.
TEXT_BYTES = 100_000

LICENCE_TEXT = """\
# Licence and sources of the embedded sample

The images and masks in this folder are part of **Task04 Hippocampus of the Medical
Segmentation Decathlon** (http://medicaldecathlon.com): T1-weighted MR crops around the
hippocampus with masks of its anterior (1) and posterior (2) part. The data are licensed under
the Creative Commons Attribution-ShareAlike 4.0 International licence (CC-BY-SA 4.0),
https://creativecommons.org/licenses/by-sa/4.0/. This licence covers this folder, including
what is made of these files; the rest of the package has its own licence.

Please cite:

- Simpson A. L. et al. (2019). A large annotated medical image dataset for the development and
  evaluation of segmentation algorithms. arXiv:1902.09063.
- Antonelli M. et al. (2022). The Medical Segmentation Decathlon. Nature Communications 13:4128.

The files were taken from https://github.com/udacity/nd320-c3-3d-imaging-starter, commit
895fee683624aafe2033521f4d9b6d99accd66d5, folder `data/TrainingSet`.

## Changes

- A subset: {count} cases.
- File names: images and masks of a case share one name.
- Nothing else: every file is a byte-for-byte copy. Their sha256 are in `cases.json`.

The parts (train, validation, test) in `cases.json` are this package's own, not the Decathlon's.
"""


def ranked_ids(ids: Sequence[str]) -> list[str]:
    """Case ids in the order of the sha256 of the id."""
    return sorted(ids, key=lambda case: hashlib.sha256(case.encode()).hexdigest())


def choose(sizes: dict[str, int], budget: int) -> dict[str, str]:
    """Part of each chosen case: ranked, none skipped, until the next would exceed ``budget``."""
    parts: dict[str, str] = {}
    spent = 0
    for rank, case in enumerate(ranked_ids(list(sizes))):
        spent += sizes[case]
        if spent > budget:
            break
        in_test, held_out = rank < N_TEST, rank < N_TEST + N_VALIDATION
        parts[case] = "test" if in_test else "validation" if held_out else "train"
    if "train" not in parts.values():
        raise InputError(
            "too few cases for the sample", found=len(sizes), expected=f"> {N_TEST + N_VALIDATION}"
        )
    return parts


def build(data: Path, out: Path) -> int:
    """Write the sample and return its size in bytes."""
    images = {s.removesuffix("_0000"): p for s, p in list_files(data / "imagesTr").items()}
    masks = list_files(data / "labelsTr")
    check_pairs(images, masks)
    sizes = {case: images[case].stat().st_size + masks[case].stat().st_size for case in images}
    parts = choose(sizes, MAX_BYTES - TEXT_BYTES)
    for below, sources in (("images", images), ("labels", masks)):
        shutil.rmtree(out / below, ignore_errors=True)
        (out / below).mkdir(parents=True)
        for case in parts:
            target = out / below / f"{case}.nii.gz"
            shutil.copyfile(sources[case], target)
            target.chmod(0o644)
    content = {
        "name": f"{HIPPOCAMPUS.name}, embedded sample",
        "licence": HIPPOCAMPUS.licence,
        "modality": HIPPOCAMPUS.modality,
        "channels": ["T1"],
        "labels": dict(HIPPOCAMPUS_LABELS.values),
        "cases": [
            {
                "case": case,
                "patient": case,
                "part": parts[case],
                "channels": {"T1": f"images/{case}.nii.gz"},
                "references": [f"labels/{case}.nii.gz"],
            }
            for case in sorted(parts)
        ],
    }
    save_caselist(hash_files(build_caselist(content, root=out)), out / FILE_NAME)
    atomic_text(out / "LICENSE.md", LICENCE_TEXT.format(count=len(parts)))
    total = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if total > MAX_BYTES:
        raise InputError("sample is too large", found=total, expected=f"at most {MAX_BYTES} bytes")
    return total


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with imagesTr, labelsTr")
    parser.add_argument("--out", type=Path, required=True, help="folder of the sample")
    given = parser.parse_args()
    try:
        total = build(given.data, given.out)
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{given.out}: {total} bytes")


if __name__ == "__main__":
    main()
