"""Largest difference between this package's STAPLE and ITK's, over random sets of votes.

    OMP_NUM_THREADS=1 python benchmarks/staple.py --sets 200

Half of the sets are a truth that each draw gets wrong in its own share of voxels, half are
independent random votes, in which there is nothing to find and EM creeps or runs off a saddle.
Both filters stop by their own rules, or after as many updates.

Several labels are compared without the voxels whose votes tie, because ITK 5.4 counts these for
the wrong label in its start, and with them, where the start is all that differs. ITK leaves
voxels open where its product of rates is 0 or ties: they are counted. A label that no voxel is
left to has no rates there, and is not compared.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import time

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from medseg_diff.fusion import label_votes, staple_labels, staple_mask

Labels = NDArray[np.uint8]
SHAPE = (12, 14, 10)
UNDECIDED = 255
UPDATES = 2000
KINDS = ("truth", "chance")


def random_votes(rng: np.random.Generator, classes: int, kind: str) -> Labels:
    """Two to ten label maps, (N, *S)."""
    draws = int(rng.integers(2, 11))
    if kind == "chance":
        share = rng.dirichlet(np.ones(classes))
        return rng.choice(classes, (draws, *SHAPE), p=share).astype(np.uint8)
    truth = rng.integers(0, classes, [-(-n // 3) for n in SHAPE])
    for axis, length in enumerate(SHAPE):
        truth = truth.repeat(3, axis).take(range(length), axis)
    wrong = rng.random((draws, *SHAPE)) < rng.uniform(0, 0.4, (draws, 1, 1, 1))
    other = (truth + rng.integers(1, classes, (draws, *SHAPE))) % classes
    return np.where(wrong, other, truth).astype(np.uint8)


def images(draws: Labels) -> list[SimpleITK.Image]:
    """Draws as ITK images."""
    return [SimpleITK.GetImageFromArray(draw) for draw in draws]


def binary(draws: Labels) -> dict[str, float]:
    """Largest differences of one set of masks."""
    rule = SimpleITK.STAPLEImageFilter()
    # ITK counts the rates at the start as an update.
    rule.SetMaximumIterations(UPDATES + 1)
    theirs = SimpleITK.GetArrayFromImage(rule.Execute(images(draws)))
    ours = staple_mask(draws, max_iterations=UPDATES)
    return {
        "posterior": np.abs(ours.probability - theirs).max(),
        "sensitivity": np.abs(ours.sensitivity - rule.GetSensitivity()).max(),
        "specificity": np.abs(ours.specificity - rule.GetSpecificity()).max(),
        "updates": abs(ours.iterations - min(rule.GetElapsedIterations(), UPDATES)),
        "sets cut off": float(not ours.converged),
    }


def several(draws: Labels) -> dict[str, float]:
    """Largest differences of one set of label maps, without ties and with them."""
    votes = label_votes(draws, int(draws.max()) + 1)
    decided = (votes == votes.max(0)).sum(0) == 1
    found = {}
    for words, maps in (("", draws[:, decided][:, None]), (", with ties", draws)):
        classes = int(maps.max()) + 1
        rule = SimpleITK.MultiLabelSTAPLEImageFilter()
        rule.SetLabelForUndecidedPixels(UNDECIDED)
        rule.SetMaximumNumberOfIterations(UPDATES)
        theirs = SimpleITK.GetArrayFromImage(rule.Execute(images(maps)))
        ours = staple_labels(maps, classes, max_iterations=UPDATES)
        matrices = [np.reshape(rule.GetConfusionMatrix(n), (-1, classes)) for n in range(len(maps))]
        rates = np.stack(matrices)[:, :classes].transpose(0, 2, 1)
        apart = np.abs(ours.confusion - rates)[rates.sum(2) > 0].max()
        closed = theirs != UNDECIDED
        found[f"confusion{words}"] = float(apart)
        found[f"other labels{words}"] = float((ours.labels != theirs)[closed].mean())
        found[f"left open by ITK{words}"] = float((~closed).mean())
    return found


def main() -> None:
    """Print the differences, largest and median over the sets, then versions and machine."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sets", type=int, default=200, help="of each filter, both kinds together")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(f"{'filter':<12}{'votes':<8}{'difference':<28}{'largest':>9}{'median':>9}  sets")
    for name, compare in (("binary", binary), ("multi-label", several)):
        rng, began = np.random.default_rng(given.seed), time.perf_counter()
        found: dict[tuple[str, str], list[float]] = {}
        for number in range(given.sets):
            kind = KINDS[number % 2]
            classes = 2 if compare is binary else int(rng.integers(3, 6))
            for key, value in compare(random_votes(rng, classes, kind)).items():
                found.setdefault((kind, key), []).append(float(value))
        for (kind, key), values in sorted(found.items(), reverse=True):
            print(
                f"{name:<12}{kind:<8}{key:<28}{max(values):9.2g}"
                f"{statistics.median(values):9.2g}  {len(values)}"
            )
        print(f"{name}: {time.perf_counter() - began:.1f} s, both filters", flush=True)
    print(f"SimpleITK {SimpleITK.__version__}, {platform.platform()}, {datetime.date.today()}")


if __name__ == "__main__":
    main()
