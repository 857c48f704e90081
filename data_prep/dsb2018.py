"""Data Science Bowl 2018 nuclei, one folder per imaging domain -> cases.json, domain as site.

python data_prep/dsb2018.py --data DSB2018 --out DIR [--domains fluo256,histo320] [--grey]
"""

from __future__ import annotations

from common import arguments, finish, split_of

from medseg_diff.data.nuclei import from_dsb2018


def main() -> None:
    """Parse the command line and build."""
    parser = arguments(__doc__)
    parser.add_argument("--domains", help="folders to take, comma separated (all)")
    parser.add_argument(
        "--grey", action="store_true", help="one grey channel, the luminance of colour images"
    )
    given = parser.parse_args()
    domains = given.domains.split(",") if given.domains else None
    finish(
        lambda: from_dsb2018(
            given.data, given.out, domains=domains, grey=given.grey, split=split_of(given)
        )
    )


if __name__ == "__main__":
    main()
