"""Public sets of several sites, scanners or modalities -> cases.json, with a site per case.

python data_prep/domains.py --set mmwhs --data MM-WHS --out DIR
python data_prep/domains.py --set prostate --data FOLDER_OF_SITES --out DIR
python data_prep/domains.py --set spinal_cord --data FOLDER --out DIR
python data_prep/domains.py --set mnms --data M&Ms --table INFORMATION.csv [--by Centre] --out DIR
python data_prep/domains.py --set retina --data FOLDER_OF_DRIVE_STARE_CHASE_DB1 --out DIR
python data_prep/domains.py --set folders --data FOLDER_OF_SITES --labels liver,kidney --out DIR

`folders` is for what has no function of its own, once it lies in SITE/images/X and SITE/labels/X
with masks of 0, 1, 2 ... in the order of --labels. Data are the user's own download.
"""

from __future__ import annotations

from pathlib import Path

from common import arguments, finish, split_of

from medseg_diff.data import domains
from medseg_diff.data.caselist import CaseList
from medseg_diff.data.gather import About, Labels

PLAIN = {
    "mmwhs": domains.from_mmwhs,
    "prostate": domains.from_prostate_sites,
    "spinal_cord": domains.from_spinal_cord,
    "retina": domains.from_retina,
}


def main() -> None:
    """Parse the command line and build."""
    parser = arguments(__doc__, test=0.2)
    parser.add_argument("--set", choices=[*PLAIN, "mnms", "folders"], required=True)
    parser.add_argument("--table", type=Path, help="mnms: the set's CSV")
    parser.add_argument("--by", choices=["Vendor", "Centre"], default="Vendor", help="mnms: site")
    parser.add_argument("--labels", help="folders: names of the values 1, 2 ..., comma separated")
    parser.add_argument("--modality", choices=["MR", "CT", "RGB", "other"], default="other")
    given = parser.parse_args()
    split = split_of(given)

    def build() -> CaseList:
        if given.set in PLAIN:
            return PLAIN[given.set](given.data, given.out, split=split)
        if given.set == "mnms":
            return domains.from_mnms(
                given.data, given.out, table=given.table, by=given.by, split=split
            )
        names = ["background", *given.labels.split(",")]
        labels = Labels({name: value for value, name in enumerate(names)})
        about = About(given.data.name, modality=given.modality)
        return domains.from_site_folders(
            given.data, given.out, about=about, labels=labels, split=split
        )

    if (given.set == "mnms") != (given.table is not None):
        parser.error("--table belongs to --set mnms, which needs it")
    if (given.set == "folders") != (given.labels is not None):
        parser.error("--labels belongs to --set folders, which needs it")
    finish(build)


if __name__ == "__main__":
    main()
