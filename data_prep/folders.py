r"""A folder of images and a folder of masks (ISIC and many others) -> cases.json.

    python data_prep/folders.py --data IMAGES --masks MASKS --out DIR --name "ISIC 2018" \
        --modality RGB --table patients.csv

Masks are binary (0 and one other value) and named like their image, or with _segmentation or
_mask behind. The table has a column case and any of patient, site, part; without patients in
it, every image counts as a patient of its own.
"""

from __future__ import annotations

from pathlib import Path

from common import arguments, finish, split_of

from medseg_diff.data.gather import About
from medseg_diff.data.layouts import from_folders


def main() -> None:
    """Parse the command line and build."""
    parser = arguments(__doc__, test=0.2)
    parser.add_argument("--masks", type=Path, required=True, help="folder of masks")
    parser.add_argument("--name", required=True, help="name of the dataset")
    parser.add_argument("--licence", default="unknown", help="licence of the data")
    parser.add_argument("--modality", default="other", choices=["MR", "CT", "RGB", "other"])
    parser.add_argument("--table", type=Path, help="CSV: case, and any of patient, site, part")
    parser.add_argument("--threshold", type=int, help="foreground is at least this value")
    given = parser.parse_args()
    finish(
        lambda: from_folders(
            given.data,
            given.masks,
            given.out,
            about=About(given.name, given.licence, given.modality),
            table=given.table,
            threshold=given.threshold,
            split=split_of(given),
        )
    )


if __name__ == "__main__":
    main()
