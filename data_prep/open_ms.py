"""Open MS data (Lesjak et al. 2016, 2017): T1W, T2W, FLAIR of each visit -> paired lists.

    python data_prep/open_ms.py --data FOLDER [--target FLAIR | T2] [--out FOLDER/...]

FOLDER holds the longitudinal set, imagesTr/ms_long_patient01_s1_0000.nii.gz ..., or the
cross-sectional one, imagesTr/ms_patient07_0000.nii.gz ... (skull-stripped, in MNI space): _0000
T1W, _0002 T2W, _0003 FLAIR, on one grid. One list a patient is written, T1 -> target with that
patient as test and all others as training (leave one patient out): cases_FLAIR_without_01.json ...
Nothing is validated: with two patients there is nobody left. Files are not copied; the lists go
into FOLDER or --out, and name images relative to FOLDER (train with data.root: FOLDER where --out
is another).
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from medseg_diff.data.caselist import CaseList, build_caselist, hash_files, save_caselist
from medseg_diff.errors import InputError

SUFFIX = {"T1": "_0000", "T2": "_0002", "FLAIR": "_0003"}
NAME = re.compile(r"(ms_(?P<long>long_)?patient(?P<patient>\d+)(?:_s\d+)?)_0000\.nii\.gz")

SETS = {
    "long_": "longitudinal (Lesjak et al. 2016)",
    None: "cross-sectional (Lesjak et al. 2017)",
}


def lists(folder: Path, target: str) -> Iterator[tuple[str, CaseList]]:
    """Each patient's id with the list that leaves the patient out.

    Raises:
        InputError: if there are fewer than two patients, two sets, or a visit lacks an image.
    """
    files = sorted((folder / "imagesTr").glob("*"))
    visits = [match for file in files if (match := NAME.fullmatch(file.name))]
    patients = sorted({visit["patient"] for visit in visits})
    sets = {SETS[visit["long"]] for visit in visits}
    if len(sets) > 1:
        raise InputError(
            "both sets in one folder", file=folder / "imagesTr", found=", ".join(sorted(sets)),
            expected="one of them", remedy="give each its own folder: their grids differ",
        )  # fmt: skip
    if len(patients) < 2:
        raise InputError(
            "fewer than two patients", file=folder / "imagesTr", found=len(patients),
            expected="ms_long_patient01_s1_0000.nii.gz or ms_patient07_0000.nii.gz ... of two",
        )  # fmt: skip
    for left_out in patients:
        cases = [
            {
                "case": visit[1],
                "patient": visit["patient"],
                "part": "test" if visit["patient"] == left_out else "train",
                "channels": {"T1": f"imagesTr/{visit[1]}{SUFFIX['T1']}.nii.gz"},
                "target": f"imagesTr/{visit[1]}{SUFFIX[target]}.nii.gz",
            }
            for visit in visits
        ]
        content = {
            "name": f"open_ms_data {next(iter(sets))}",
            "licence": "CC-BY",
            "modality": "MR",
            "channels": ["T1"],
            "target": target,
            "cases": cases,
        }
        yield left_out, hash_files(build_caselist(content, root=folder))


def main() -> None:
    """Parse the command line and write the lists."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder that holds imagesTr")
    parser.add_argument("--target", choices=("FLAIR", "T2"), default="FLAIR")
    parser.add_argument("--out", type=Path, help="folder of the lists; --data by default")
    given = parser.parse_args()
    out = given.out or given.data
    try:
        out.mkdir(parents=True, exist_ok=True)
        for patient, cases in lists(given.data, given.target):
            path = out / f"cases_{given.target}_without_{patient}.json"
            save_caselist(cases, path)
            train, test = len(cases.part("train")), len(cases.part("test"))
            print(f"{path}: train {train}, test {test}")
    except (InputError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
