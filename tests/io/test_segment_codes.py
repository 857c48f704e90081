"""Names of structures and their codes, against the concept dictionary that pydicom ships."""

from __future__ import annotations

import pytest
from pydicom.sr._concepts_dict import concepts

from medseg_diff.errors import InputError
from medseg_diff.io import segment_codes as sc
from medseg_diff.io.segment_codes import GENERIC, Code, StructureCode, structure_codes

# Code -> meanings, from PS3.16 by way of pydicom.
KNOWN: dict[str, set[str]] = {}
for _entries in concepts["SCT"].values():
    for _value, (_meaning, *_) in _entries.items():
        KNOWN.setdefault(_value, set()).add(_meaning.lower())

ALL = [
    *sc.ANATOMICAL.values(),
    *sc.ABNORMALITIES.values(),
    *sc.MODIFIERS.values(),
    *(sc.TISSUE, sc.ANATOMY, sc.ABNORMAL),
]


@pytest.mark.parametrize("code", ALL, ids=lambda c: c.meaning)
def test_every_code_means_what_the_standard_says(code: Code):
    assert code.scheme == "SCT"
    assert code.meaning.lower() in KNOWN[code.value]


def test_phrases_agree_with_their_meanings():
    """No code stands in another one's row."""
    for phrase, code in sc.ANATOMICAL.items():
        assert set(phrase.split()) <= set(code.meaning.lower().split()), phrase
    assert len({c.value for c in ALL}) == len(ALL)


@pytest.mark.parametrize(
    ("name", "kind", "modifiers", "regions"),
    [
        ("hippocampus", "Hippocampus", [], []),
        ("anterior_hippocampus", "Hippocampus", ["Anterior"], []),
        ("Hippocampus posterior", "Hippocampus", ["Posterior"], []),
        ("Kidneys", "Kidney", [], []),
        ("kidney-left", "Kidney", ["Left"], []),
        ("left ventricle", "Left ventricle", [], []),
        ("right atrium", "Right atrium", [], []),
        ("left_lateral_ventricle", "Lateral Ventricle", ["Left"], []),
        ("nuclei", "Nucleus", [], []),
        ("caudate nucleus", "Caudate Nucleus", [], []),
        ("tumour", "Neoplasm", [], []),
        ("liver tumor", "Neoplasm", [], ["Liver"]),
        ("brain lesion", "Lesion", [], ["Brain"]),
        ("nodule", "Nodule", [], []),
        ("prostate", "Prostate", [], []),
        ("spleen", "Spleen", [], []),
    ],
)
def test_names(name: str, kind: str, modifiers: list[str], regions: list[str]):
    code = structure_codes([name])[name]
    assert code.type.meaning == kind
    assert [c.meaning for c in code.modifiers] == modifiers
    assert [c.meaning for c in code.regions] == regions
    abnormal = kind in ("Neoplasm", "Lesion", "Nodule")
    assert code.category == (sc.ABNORMAL if abnormal else sc.ANATOMY)


@pytest.mark.parametrize(
    "name", ["anterior", "ball", "liver vessel thing", "liver spleen", "left nodule", "", "1", "肝"]
)
def test_unknown_names_claim_nothing(name: str):
    assert structure_codes([name]) == {name: GENERIC}


def test_a_card_may_name_its_codes():
    given = {
        "a": "hippocampus anterior",
        "b": {
            "category": ["91723000", "SCT", "Anatomical Structure"],
            "type": ["110702", "DCM", "White Matter T2 Hyperintensity"],
            "regions": [["12738006", "SCT", "Brain"]],
        },
        "unused": "liver",
    }
    codes = structure_codes(["a", "b", "spleen"], given)
    assert codes["a"] == sc.structure_code("anterior hippocampus")
    assert codes["b"] == StructureCode(
        sc.ANATOMY,
        Code("110702", "DCM", "White Matter T2 Hyperintensity"),
        (),
        (Code("12738006", "SCT", "Brain"),),
    )
    assert codes["spleen"].type.value == "78961009"


CATEGORY = ["91723000", "SCT", "Anatomical Structure"]


@pytest.mark.parametrize(
    "given",
    [
        "no such thing",
        17,
        {"type": CATEGORY},
        {"category": CATEGORY, "type": "liver"},
        {"category": CATEGORY, "type": ["1", "SCT"]},
        {"category": CATEGORY, "type": ["1", "SCT", "x" * 65]},
        {"category": CATEGORY, "type": ["1" * 17, "SCT", "x"]},
        {"category": CATEGORY, "type": ["1", "SCT", ""]},
        {"category": CATEGORY, "type": [1, "SCT", "x"]},
        {"category": CATEGORY, "type": CATEGORY, "modifiers": "left"},
        {"category": CATEGORY, "type": CATEGORY, "colour": "red"},
    ],
)
def test_bad_codes_are_refused_by_name(given: object):
    with pytest.raises(InputError, match=r"codes\.a"):
        structure_codes(["a"], {"a": given})


def test_codes_must_be_a_table():
    with pytest.raises(InputError, match="codes"):
        structure_codes(["a"], ["liver"])  # type: ignore[arg-type]
