"""Count flipped and shifted masks over 48 axis orders, 4 obliques and 3 readers (F09, F10).

    python -m tests.orientations [--every N]

A phantom of three balls, which no flip or swap of axes maps to itself, is sampled on each grid and
written as NIfTI, as a DICOM series and as an enhanced multi-frame file. A model that reads the
labels off the grey values predicts it through the whole pipeline, and nibabel alone says where in
the world the written mask lies.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

from medseg_diff import io
from medseg_diff.inference.predictor import Predictor
from tests.io.dicoms import enhanced, plane, save
from tests.phantoms import BALLS, NiftiFile, all_axcodes, centroid, grid_affine, make_phantom, turn
from tests.tiny import threshold_predictor, tiny_config

OBLIQUES = (10, 30, 44, 46)
READERS = ("nifti", "dicom series", "enhanced multi-frame")
# Of the world's axes; a grid's follow its own order of them.
SPACING, SHAPE = (3.0, 3.2, 3.6), (17, 15, 13)


class Combination(NamedTuple):
    """One grid and how it is stored."""

    codes: str
    degrees: int
    reader: str


def combinations() -> list[Combination]:
    """All 576 of them."""
    return [Combination(*c) for c in itertools.product(all_axcodes(), OBLIQUES, READERS)]


def reading_predictor(degrees: int) -> Predictor:
    """Model whose mask is the phantom's own labels, on the grid's own spacing.

    Between voxels grey values blend, and a blend of two labels reads as a third. From 45 degrees on
    a grid's second axis lies nearest to the world's third, and the third to its second.
    """
    spacing = SPACING if degrees < 45 else (SPACING[0], SPACING[2], SPACING[1])
    bright = [{"kind": "ct", "mean": 0.0, "sd": 100.0}]
    return threshold_predictor(
        tiny_config(
            plan={"normalisation": bright, "spacing_mm": spacing},
            prediction={"draws": 1, "steps": 1},
        )
    )


def outcome(predictor: Predictor, case: Combination, folder: Path) -> str:
    """``"right"``, ``"shifted"`` by more than half a voxel, or ``"flipped"``."""
    world = ["RL".find, "AP".find, "SI".find]
    axes = [next(i for i, find in enumerate(world) if find(code) >= 0) for code in case.codes]
    spacing = tuple(SPACING[axis] for axis in axes)
    shape = tuple(SHAPE[axis] for axis in axes)
    rotation = turn(case.degrees, 0) @ turn(case.degrees / 3, 2)
    affine = grid_affine(case.codes, spacing, shape, rotation=rotation)  # type: ignore[arg-type]
    phantom = make_phantom(affine, shape)  # type: ignore[arg-type]
    file = folder / "scan"
    if case.reader == "nifti":
        file = NiftiFile(phantom.image, affine).write(folder / "scan.nii")
    elif case.reader == "dicom series":
        values = phantom.image.astype(np.uint16)
        save([plane(values[..., k], affine, k) for k in range(shape[2])], file)
    else:
        save([enhanced(affine, phantom.image.astype(np.uint16))], file)
    answer = predictor.predict(file, case="phantom", calibrated=False)
    mask = folder / "mask.nii.gz"
    io.write_label(mask, answer.mask, answer.mask, n_classes=4)
    written = nib.load(mask)
    found = np.asarray(written.dataobj)
    if case.reader == "nifti" and not np.allclose(written.affine, affine, atol=1e-4):
        return "shifted"
    distances = [
        float(np.linalg.norm(centroid(found, k, written.affine) - phantom.centroid(k)))
        if (found == k).any()
        else np.inf
        for k in BALLS
    ]
    if max(distances) <= min(SPACING) / 2:
        return "right"
    return "shifted" if max(distances) < 2 * max(SPACING) else "flipped"


def count(cases: list[Combination]) -> Counter[str]:
    """Outcomes of some combinations; names each that is not right."""
    outcomes = Counter[str]()
    predictors = {degrees: reading_predictor(degrees) for degrees in OBLIQUES}
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            found = outcome(predictors[case.degrees], case, Path(folder))
        outcomes[found] += 1
        if found != "right":
            print(f"{found}: {case}", flush=True)
    return outcomes


def main() -> int:
    """Print the count; 1 if any mask is not where it belongs."""
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--every", type=int, default=1, help="only every N-th combination")
    cases = combinations()[:: parser.parse_args().every]
    found = count(cases)
    print(f"{len(cases)} grids: {found['flipped']} flipped, {found['shifted']} shifted")
    return int(found["right"] != len(cases))


if __name__ == "__main__":
    sys.exit(main())
