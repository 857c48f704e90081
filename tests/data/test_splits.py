"""Splits: no patient straddles parts, shares are kept, order and platform do not matter."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg_diff.data.caselist import Case, CaseList, Part, build_caselist
from medseg_diff.data.splits import kfold, ranked, split_by_patient
from medseg_diff.errors import InputError

THREE: dict[Part, float] = {"train": 0.7, "validation": 0.1, "test": 0.2}


def cases(n_patients: int, visits: int = 3, part: Part = "train") -> list[Case]:
    return [
        Case(
            case=f"{part}-{p}-{v}", patient=f"{part}-{p}", part=part,
            channels={"T1": f"{part}-{p}-{v}.nii"}, references=(f"{part}-{p}-{v}_seg.nii",),
        )
        for p in range(n_patients)
        for v in range(1 + p % visits)
    ]  # fmt: skip


def listed(n_patients: int, n_test: int = 2) -> CaseList:
    return build_caselist(
        {
            "name": "Toy", "licence": "CC0", "modality": "MR", "channels": ["T1"],
            "labels": {"background": 0, "x": 1},
            "cases": [*cases(n_patients), *cases(n_test, part="test")],
        }
    )  # fmt: skip


@given(
    n=st.integers(3, 60),
    weights=st.lists(st.floats(0.01, 1), min_size=3, max_size=3),
    seed=st.integers(0, 5),
)
def test_split_keeps_patients_whole_and_shares_close(
    n: int, weights: list[float], seed: int
) -> None:
    total = sum(weights)
    names: tuple[Part, ...] = ("train", "validation", "test")
    shares = {part: w / total for part, w in zip(names, weights, strict=True)}
    given_cases = cases(n)
    result = split_by_patient(given_cases, shares, seed)
    assert [c.case for c in result] == [c.case for c in given_cases]
    parts_of: dict[str, set[str]] = {}
    for case in result:
        parts_of.setdefault(case.patient, set()).add(case.part)
    assert all(len(parts) == 1 for parts in parts_of.values())
    counts = Counter(next(iter(parts)) for parts in parts_of.values())
    for part, share in shares.items():
        assert counts[part] >= 1
        # One patient of rounding, and up to two given to parts that would have had none.
        assert abs(counts[part] - share * n) <= 3


def test_exact_counts() -> None:
    result = split_by_patient(cases(10), THREE, 0)
    counts = Counter(part for _, part in {(c.patient, c.part) for c in result})
    assert counts == {"train": 7, "validation": 1, "test": 2}


def test_order_does_not_matter_but_the_seed_does() -> None:
    forward, backward = cases(12), cases(12)[::-1]
    parts = {c.case: c.part for c in split_by_patient(forward, THREE, 3)}
    assert parts == {c.case: c.part for c in split_by_patient(backward, THREE, 3)}
    assert parts != {c.case: c.part for c in split_by_patient(forward, THREE, 4)}


def test_ranking_is_pinned() -> None:
    """The order is part of the contract: published splits must not move between versions.

    Expected: `for x in a b c d; do echo "$(printf 0:$x | sha256sum) $x"; done | sort`.
    """
    assert ranked(["a", "b", "c", "d", "a"], 0) == ["d", "a", "c", "b"]


def test_a_part_without_share_stays_empty() -> None:
    shares: dict[Part, float] = {"train": 0.5, "test": 0.5, "validation": 0.0}
    assert {c.part for c in split_by_patient(cases(4), shares)} == {"train", "test"}


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ({"train": 0.5, "test": 0.4}, "sum to 1"),
        ({"train": 1.5, "test": -0.5}, "from 0 to 1"),
        ({"train": float("nan"), "test": 1.0}, "from 0 to 1"),
        ({"train": 0.5, "tets": 0.5}, "unknown part"),
    ],
)
def test_bad_shares(shares: dict[Part, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        split_by_patient(cases(5), shares)


def test_too_few_patients() -> None:
    with pytest.raises(InputError, match="fewer patients than parts"):
        split_by_patient(cases(2), THREE)


@pytest.mark.parametrize(("n", "k"), [(5, 5), (11, 3), (20, 2)])
def test_every_patient_is_validated_once(n: int, k: int) -> None:
    caselist = listed(n)
    validated: Counter[str] = Counter()
    for fold in range(k):
        result = kfold(caselist, k, fold, seed=1)
        assert result.part("test") == caselist.part("test")
        assert len(result.cases) == len(caselist.cases)
        patients = {c.patient for c in result.part("validation")}
        assert n // k <= len(patients) <= -(-n // k)
        assert patients.isdisjoint(c.patient for c in result.part("train"))
        validated.update(patients)
    assert validated == {c.patient: 1 for c in caselist.cases if c.part != "test"}


def test_fold_ignores_the_order_of_cases_and_earlier_parts() -> None:
    caselist = listed(9)
    once = {c.case: c.part for c in kfold(caselist, 3, 1, seed=5).cases}
    shuffled = caselist.with_cases(caselist.cases[::-1])
    assert once == {c.case: c.part for c in kfold(shuffled, 3, 1, seed=5).cases}
    again = kfold(kfold(caselist, 3, 2, seed=5), 3, 1, seed=5)
    assert once == {c.case: c.part for c in again.cases}
    assert once != {c.case: c.part for c in kfold(caselist, 3, 1, seed=6).cases}


@pytest.mark.parametrize(("k", "fold"), [(3, 3), (3, -1), (1, 0), (10, 0), (0, 0)])
def test_impossible_folds(k: int, fold: int) -> None:
    with pytest.raises(InputError, match=r"no such fold|cannot make that many folds"):
        kfold(listed(9), k, fold)
