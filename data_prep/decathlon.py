"""Medical Segmentation Decathlon (dataset.json) -> cases.json; 4-D images are split.

    python data_prep/decathlon.py --data Task01_BrainTumour --out DIR

4-D images become one file per channel; tasks with one modality need no --out. The Decathlon's
test cases come without masks; --test takes labelled test patients from the training cases.
"""

from __future__ import annotations

from common import arguments, finish, split_of

from medseg_diff.data.layouts import from_decathlon


def main() -> None:
    """Parse the command line and build."""
    parser = arguments(__doc__, in_place=True, test=0.0)
    parser.add_argument("--patient-pattern", help="regular expression: case id -> patient")
    given = parser.parse_args()
    finish(
        lambda: from_decathlon(
            given.data, given.out, patient_pattern=given.patient_pattern, split=split_of(given)
        )
    )


if __name__ == "__main__":
    main()
