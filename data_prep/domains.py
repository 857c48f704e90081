"""Public sets of several sites, scanners or modalities -> cases.json, with a site per case.

python data_prep/domains.py --set mmwhs --data MM-WHS --out DIR
python data_prep/domains.py --set prostate --data FOLDER_OF_SITES --out DIR
python data_prep/domains.py --set spinal_cord --data FOLDER --out DIR
python data_prep/domains.py --set mnms --data M&Ms --table INFORMATION.csv [--by Centre] --out DIR
python data_prep/domains.py --set retina --data FOLDER_OF_DRIVE_STARE_CHASE_DB1 --out DIR
python data_prep/domains.py --set abdomen --data FOLDER_OF_BOTH [--sequence T2SPIR] --out DIR
python data_prep/domains.py --set crossmoda --data FOLDER_OF_SOURCE_AND_TARGET --out DIR
python data_prep/domains.py --set optic_discs --data FOLDER_OF_REFUGE_AND_DRISHTI_GS --out DIR
python data_prep/domains.py --set disc_folders --data FOLDER_OF_SITES [--coding labels] --out DIR
python data_prep/domains.py --set folders --data FOLDER_OF_SITES --labels liver,kidney --out DIR

`abdomen` is CHAOS and BTCV: CHAOS's MR scans, DICOM with a PNG mask a slice, become NIfTI; BTCV's
CT scans keep the four organs that CHAOS has. `crossmoda`: target scans have no masks and are test
cases that cannot be scored; DIR/target.json lists them for training without masks. `optic_discs`
writes masks of 1 (rim) and 2 (cup). `disc_folders` is for one's own pictures of the optic disc and
`folders` for what has no function of its own, once either lies in SITE/images/X and SITE/labels/X.
Masks of `folders` hold 0, 1, 2 ... in the order of --labels, those of `disc_folders` 0 (cup), 128
(rim) and 255, or with --coding labels 0, 1 (rim) and 2 (cup).

Data are the user's own download. No layout was tried on more than made-up files.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import arguments, finish, split_of

from medseg_diff.data import domains, fundus
from medseg_diff.data.abdomen import CHAOS_SEQUENCES, from_abdomen
from medseg_diff.data.caselist import CaseList
from medseg_diff.data.crossmoda import from_crossmoda
from medseg_diff.data.gather import About, Labels

PLAIN = {
    "mmwhs": domains.from_mmwhs,
    "prostate": domains.from_prostate_sites,
    "spinal_cord": domains.from_spinal_cord,
    "retina": domains.from_retina,
    "crossmoda": from_crossmoda,
    "optic_discs": fundus.from_optic_discs,
}
# Sets with an option of their own, which no other set has.
OPTIONS = {"mnms": "table", "folders": "labels", "abdomen": "sequence", "disc_folders": "coding"}
NEEDED = ("mnms", "folders")


def main() -> None:
    """Parse the command line and build."""
    parser = _parser()
    given = parser.parse_args()
    for name, option in OPTIONS.items():
        there = getattr(given, option) is not None
        if there != (given.set == name) and (there or name in NEEDED):
            needs = ", which needs it" if name in NEEDED else ""
            parser.error(f"--{option} belongs to --set {name}{needs}")
    finish(lambda: _build(given))


def _parser() -> argparse.ArgumentParser:
    parser = arguments(__doc__, test=0.2)
    parser.add_argument("--set", choices=[*PLAIN, *OPTIONS], required=True)
    parser.add_argument("--table", type=Path, help="mnms: the set's CSV")
    parser.add_argument("--by", choices=["Vendor", "Centre"], default="Vendor", help="mnms: site")
    parser.add_argument("--sequence", choices=CHAOS_SEQUENCES, help="abdomen: CHAOS's (T2SPIR)")
    parser.add_argument("--coding", choices=fundus.CODINGS, help="disc_folders: masks (refuge)")
    parser.add_argument("--labels", help="folders: names of the values 1, 2 ..., comma separated")
    parser.add_argument("--modality", choices=["MR", "CT", "RGB", "other"], default="other")
    return parser


def _build(given: argparse.Namespace) -> CaseList:
    where, split = (given.data, given.out), split_of(given)
    if given.set in PLAIN:
        return PLAIN[given.set](*where, split=split)
    if given.set == "mnms":
        return domains.from_mnms(*where, table=given.table, by=given.by, split=split)
    if given.set == "abdomen":
        return from_abdomen(*where, sequence=given.sequence or "T2SPIR", split=split)
    if given.set == "disc_folders":
        return fundus.from_disc_folders(*where, coding=given.coding or "refuge", split=split)
    names = ["background", *given.labels.split(",")]
    labels = Labels({name: value for value, name in enumerate(names)})
    about = About(given.data.name, modality=given.modality)
    return domains.from_site_folders(*where, about=about, labels=labels, split=split)


if __name__ == "__main__":
    main()
