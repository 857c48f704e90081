"""LIDC-IDRI nodule slices with four readers packed into one PNG -> cases.json, four masks per case.

python data_prep/lidc.py --data LIDC_SLICES --out DIR
"""

from __future__ import annotations

from common import arguments, finish, split_of

from medseg_diff.data.layouts import from_lidc


def main() -> None:
    """Parse the command line and build."""
    given = arguments(__doc__).parse_args()
    finish(lambda: from_lidc(given.data, given.out, split=split_of(given)))


if __name__ == "__main__":
    main()
