"""BraTS (one folder per case, old or new names) -> cases.json, masks renumbered 0 to 3.

    python data_prep/brats.py --data BraTS2021_TrainingSet --out DIR

The challenge gives out no test masks, so --test takes test patients from the training cases.
"""

from __future__ import annotations

from common import arguments, finish, split_of

from medseg_diff.data.layouts import from_brats


def main() -> None:
    """Parse the command line and build."""
    given = arguments(__doc__, test=0.1).parse_args()
    finish(lambda: from_brats(given.data, given.out, split=split_of(given)))


if __name__ == "__main__":
    main()
