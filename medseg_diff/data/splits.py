"""Splits by patient: deterministic, and independent of the order in which cases come.

Patients are ranked by a hash of seed and id rather than by a random generator, so a split is
the same on every machine and with every version of every library.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence

from medseg_diff.data.caselist import PARTS, Case, CaseList, Part
from medseg_diff.errors import InputError


def split_by_patient(
    cases: Sequence[Case], fractions: Mapping[Part, float], seed: int = 0
) -> list[Case]:
    """Assign every case to a part so that no patient straddles two.

    Args:
        cases: Cases in any part; the parts they come with are ignored.
        fractions: Share of the patients per part, summing to 1.
        seed: Chooses the split.

    Returns:
        The cases in the given order, with their new parts.

    Raises:
        InputError: as `deal_patients`.
    """
    part_of = deal_patients((case.patient for case in cases), fractions, seed)
    return [case.model_copy(update={"part": part_of[case.patient]}) for case in cases]


def deal_patients(
    patients: Iterable[str], fractions: Mapping[Part, float], seed: int = 0
) -> dict[str, Part]:
    """Give each patient a part.

    Each part with a positive fraction gets at least one patient; the others are dealt one by
    one to the part that is furthest below its share.

    Raises:
        InputError: if the fractions are no shares, or there are fewer patients than parts.
    """
    _check_fractions(fractions)
    parts = [part for part in PARTS if fractions.get(part, 0.0) > 0.0]
    order = ranked(patients, seed)
    if len(order) < len(parts):
        raise InputError(
            "fewer patients than parts", found=f"{len(order)} patients",
            expected=f"at least {len(parts)} for {', '.join(parts)}",
            remedy="ask for fewer parts (validation 0), or add patients",
        )  # fmt: skip
    counts = dict.fromkeys(parts, 1)
    for _ in range(len(order) - len(parts)):
        behind = max(parts, key=lambda part: fractions[part] * len(order) - counts[part])
        counts[behind] += 1
    dealt = iter(order)
    return {next(dealt): part for part in parts for _ in range(counts[part])}


def kfold(caselist: CaseList, n_folds: int, fold: int, seed: int = 0) -> CaseList:
    """Redistribute training and validation cases for one fold of a cross-validation.

    Over ``fold = 0 .. n_folds - 1`` every patient is validated exactly once. Test cases stay
    as they are.

    Raises:
        InputError: if the fold does not exist or there are fewer patients than folds.
    """
    if not 0 <= fold < n_folds:
        raise InputError("no such fold", field="fold", found=fold, expected=f"0 to {n_folds - 1}")
    patients = ranked((c.patient for c in caselist.cases if c.part != "test"), seed)
    if not 2 <= n_folds <= len(patients):
        raise InputError(
            "cannot make that many folds", field="n_folds", found=n_folds,
            expected=f"2 to {len(patients)}, the number of patients outside test",
        )  # fmt: skip
    validated = set(patients[fold::n_folds])

    def part(case: Case) -> Part:
        if case.part == "test":
            return "test"
        return "validation" if case.patient in validated else "train"

    return caselist.with_cases(
        case.model_copy(update={"part": part(case)}) for case in caselist.cases
    )


def ranked(names: Iterable[str], seed: int) -> list[str]:
    """Distinct names in the pseudo-random order that belongs to ``seed``."""
    return sorted(
        set(names), key=lambda name: (hashlib.sha256(f"{seed}:{name}".encode()).digest(), name)
    )


def _check_fractions(fractions: Mapping[Part, float]) -> None:
    unknown = [part for part in fractions if part not in PARTS]
    if unknown:
        raise InputError(
            "unknown part", field="fractions", found=", ".join(unknown), expected=", ".join(PARTS)
        )
    shares = list(fractions.values())
    valid = all(math.isfinite(share) and 0.0 <= share <= 1.0 for share in shares)
    if not valid or not math.isclose(sum(shares), 1.0, abs_tol=1e-9):
        raise InputError(
            "fractions are no shares of a whole", field="fractions", found=shares,
            expected="numbers from 0 to 1 that sum to 1",
        )  # fmt: skip
