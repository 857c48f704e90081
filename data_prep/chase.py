"""CHASE_DB1 retinal vessels with two readers (original or Tr/Ts folders) -> cases.json.

python data_prep/chase.py --data CHASE_DB1 --out DIR
"""

from __future__ import annotations

from common import arguments, finish, split_of

from medseg_diff.data.layouts import from_chase


def main() -> None:
    """Parse the command line and build."""
    given = arguments(__doc__).parse_args()
    finish(lambda: from_chase(given.data, given.out, split=split_of(given)))


if __name__ == "__main__":
    main()
