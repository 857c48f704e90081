"""MSD Task04 Hippocampus in nnU-Net raw layout -> cases.json; the Ts folders are the test part.

    python data_prep/hippocampus.py --data MSD_HIPPOCAMPUS [--out DIR] [--hold-out-sample]

With --hold-out-sample the test cases of the embedded sample are left out altogether, so that a
model trained on this list has never seen them.
"""

from __future__ import annotations

from common import arguments, finish, split_of

from medseg_diff.data.caselist import CaseList
from medseg_diff.data.layouts import from_hippocampus
from medseg_diff.data.sample import sample_caselist


def main() -> None:
    """Parse the command line and build."""
    parser = arguments(__doc__, in_place=True)
    parser.add_argument(
        "--hold-out-sample", action="store_true", help="leave the sample's test cases out"
    )
    given = parser.parse_args()

    def build() -> CaseList:
        held_out = sample_caselist().part("test") if given.hold_out_sample else []
        return from_hippocampus(
            given.data, given.out, leave_out=[c.case for c in held_out], split=split_of(given)
        )

    finish(build)


if __name__ == "__main__":
    main()
