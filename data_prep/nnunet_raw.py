"""nnU-Net raw layout (imagesTr, labelsTr, imagesTs, labelsTs) -> cases.json.

    python data_prep/nnunet_raw.py --data DatasetXXX_Name [--out DIR]

Without a dataset.json name the channels and the labels:

    python data_prep/nnunet_raw.py --data FOLDER --channels T1,FLAIR --labels background,lesion
"""

from __future__ import annotations

from common import arguments, finish, split_of

from medseg_diff.data.gather import Labels
from medseg_diff.data.layouts import from_nnunet_raw


def main() -> None:
    """Parse the command line and build."""
    parser = arguments(__doc__, in_place=True)
    parser.add_argument("--channels", help="names of _0000, _0001 ..., comma separated")
    parser.add_argument("--labels", help="names of the values 0, 1 ..., comma separated")
    parser.add_argument("--patient-pattern", help="regular expression: case id -> patient")
    given = parser.parse_args()
    labels = None
    if given.labels:
        labels = Labels({name.strip(): i for i, name in enumerate(given.labels.split(","))})
    channels = [name.strip() for name in given.channels.split(",")] if given.channels else None
    finish(
        lambda: from_nnunet_raw(
            given.data,
            given.out,
            channels=channels,
            labels=labels,
            patient_pattern=given.patient_pattern,
            split=split_of(given),
        )
    )


if __name__ == "__main__":
    main()
