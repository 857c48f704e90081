"""What a structure's name means in the terms of DICOM: a category, a type, and what narrows it.

Codes are SNOMED CT's and DICOM's own as PS3.16 lists them in CID 7150 (categories) and CID 7151
(types). A name is matched by its words, in any order: ``left_kidney`` is the kidney with the
modifier left, ``anterior hippocampus`` the hippocampus with the modifier anterior, ``brain lesion``
a lesion within the region brain.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medseg_diff.errors import InputError


@dataclass(frozen=True)
class Code:
    """An entry of a coding scheme, e.g. ``Code("10200004", "SCT", "Liver")``."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class StructureCode:
    """What a segment shows.

    Args:
        category: CID 7150: tissue, anatomical structure, morphologically abnormal structure ...
        type: CID 7151: the structure itself.
        modifiers: What narrows the type: left, anterior ...
        regions: Where in the body it lies, for abnormal structures.
    """

    category: Code
    type: Code
    modifiers: tuple[Code, ...] = ()
    regions: tuple[Code, ...] = ()


def _sct(value: str, meaning: str) -> Code:
    return Code(value, "SCT", meaning)


TISSUE = _sct("85756007", "Tissue")
ANATOMY = _sct("91723000", "Anatomical Structure")
ABNORMAL = _sct("49755003", "Morphologically Abnormal Structure")
GENERIC = StructureCode(TISSUE, TISSUE)
"""For names that are not in the table: claims no anatomy; the segment's label is the name."""

ANATOMICAL = {
    "left ventricle myocardium": _sct("49848007", "Left Ventricle Myocardium"),
    "lateral ventricle": _sct("66720007", "Lateral Ventricle"),
    "third ventricle": _sct("49841001", "Third ventricle"),
    "fourth ventricle": _sct("35918002", "Fourth Ventricle"),
    "left ventricle": _sct("87878005", "Left ventricle"),
    "right ventricle": _sct("53085002", "Right ventricle"),
    "left atrium": _sct("82471001", "Left atrium"),
    "right atrium": _sct("73829009", "Right atrium"),
    "pulmonary artery": _sct("81040000", "Pulmonary artery"),
    "blood vessel": _sct("59820001", "Blood Vessel"),
    "caudate nucleus": _sct("11000004", "Caudate Nucleus"),
    "nucleus accumbens": _sct("427667007", "Nucleus Accumbens"),
    "transition zone prostate": _sct("399384005", "Transition zone of the prostate"),
    "peripheral zone prostate": _sct("279706003", "Peripheral zone of the prostate"),
    "adrenal gland": _sct("23451007", "Adrenal gland"),
    "hippocampus": _sct("5366008", "Hippocampus"),
    "amygdala": _sct("4958002", "Amygdala"),
    "putamen": _sct("89278009", "Putamen"),
    "thalamus": _sct("119406000", "Thalamus"),
    "brain": _sct("12738006", "Brain"),
    "nucleus": _sct("84640000", "Nucleus"),
    "heart": _sct("80891009", "Heart"),
    "aorta": _sct("15825003", "Aorta"),
    "lung": _sct("39607008", "Lung"),
    "liver": _sct("10200004", "Liver"),
    "spleen": _sct("78961009", "Spleen"),
    "kidney": _sct("64033007", "Kidney"),
    "pancreas": _sct("15776009", "Pancreas"),
    "gallbladder": _sct("28231008", "Gallbladder"),
    "stomach": _sct("69695003", "Stomach"),
    "duodenum": _sct("38848004", "Duodenum"),
    "esophagus": _sct("32849002", "Esophagus"),
    "colon": _sct("71854001", "Colon"),
    "bladder": _sct("89837001", "Bladder"),
    "prostate": _sct("41216001", "Prostate"),
}
ABNORMALITIES = {
    "nodule": _sct("27925004", "Nodule"),
    "tumor": _sct("108369006", "Neoplasm"),
    "lesion": _sct("52988006", "Lesion"),
    "mass": _sct("4147007", "Mass"),
    "cyst": _sct("367643001", "Cyst"),
    "edema": _sct("79654002", "Edema"),
    "necrosis": _sct("6574001", "Necrosis"),
}
MODIFIERS = {
    "left": _sct("7771000", "Left"),
    "right": _sct("24028007", "Right"),
    "anterior": _sct("255549009", "Anterior"),
    "posterior": _sct("255551008", "Posterior"),
}
_SPELLINGS = {
    "tumour": "tumor", "neoplasm": "tumor", "tumours": "tumor", "tumors": "tumor",
    "oedema": "edema", "oesophagus": "esophagus", "nuclei": "nucleus", "nodules": "nodule",
    "lesions": "lesion", "cysts": "cyst", "masses": "mass", "kidneys": "kidney", "lungs": "lung",
    "hippocampi": "hippocampus", "ventricles": "ventricle", "vessels": "vessel",
}  # fmt: skip
# Lengths in characters: value SH, scheme SH, meaning LO (PS3.5, 6.2).
_LIMITS = (16, 16, 64)


def structure_code(name: str) -> StructureCode | None:
    """Code of a structure by its name, None if a word of it is not in the table.

    American and British spellings, plurals, underscores and hyphens are understood. A name may
    hold one anatomical structure, one abnormality, or both (an abnormality within a structure);
    modifiers narrow anatomical structures only.
    """
    words = {_SPELLINGS.get(word, word) for word in re.findall(r"[a-z0-9]+", name.lower())}
    anatomy = _take(words, ANATOMICAL)
    abnormal = _take(words, ABNORMALITIES)
    modifiers = _take(words, MODIFIERS)
    if words or len(anatomy) > 1 or len(abnormal) > 1:
        return None
    if abnormal and not modifiers:
        return StructureCode(ABNORMAL, abnormal[0], regions=tuple(anatomy))
    if anatomy and not abnormal:
        return StructureCode(ANATOMY, anatomy[0], modifiers=tuple(modifiers))
    return None


def structure_codes(
    names: Sequence[str], given: Mapping[str, Any] | None = None
) -> dict[str, StructureCode]:
    """Code of every structure; `GENERIC` where neither ``given`` nor the table has one.

    Args:
        names: Structures, in the order of the segments.
        given: A model card's ``codes``: structure -> a name of the table ("hippocampus anterior"),
            or ``{"category": [value, scheme, meaning], "type": [...], "modifiers": [[...], ...],
            "regions": [[...], ...]}``, the last two optional.

    Raises:
        InputError: if ``given`` holds anything else.
    """
    known = given or {}
    if not isinstance(known, Mapping):
        raise _not_a_code("codes", known)
    return {
        name: _parse(f"codes.{name}", known[name])
        if name in known
        else structure_code(name) or GENERIC
        for name in names
    }


def _take(words: set[str], table: Mapping[str, Code]) -> list[Code]:
    """Remove the table's phrases from ``words``, in the table's order; their codes."""
    found = []
    for phrase, code in table.items():
        parts = set(phrase.split())
        if parts <= words:
            words -= parts
            found.append(code)
    return found


def _parse(field: str, given: object) -> StructureCode:
    if isinstance(given, str):
        code = structure_code(given)
        if code is None:
            raise _not_a_code(field, given)
        return code
    if not isinstance(given, Mapping) or not {"category", "type"} <= set(given):
        raise _not_a_code(field, given)
    if set(given) - {"category", "type", "modifiers", "regions"}:
        raise _not_a_code(field, given)
    lists = {key: given.get(key, ()) for key in ("modifiers", "regions")}
    if any(isinstance(v, str) or not isinstance(v, Sequence) for v in lists.values()):
        raise _not_a_code(field, given)
    return StructureCode(
        _code(f"{field}.category", given["category"]),
        _code(f"{field}.type", given["type"]),
        *(tuple(_code(f"{field}.{k}", item) for item in v) for k, v in lists.items()),
    )


def _code(field: str, given: object) -> Code:
    fits = (
        isinstance(given, Sequence)
        and not isinstance(given, str)
        and len(given) == 3
        and all(
            isinstance(part, str) and 0 < len(part) <= limit and "\\" not in part
            for part, limit in zip(given, _LIMITS, strict=True)
        )
    )
    if not fits:
        raise _not_a_code(field, given)
    assert isinstance(given, Sequence)
    return Code(*given)


def _not_a_code(field: str, found: object) -> InputError:
    return InputError(
        "not a code for a structure",
        field=field,
        found=repr(found),
        expected='a name such as "liver", or category and type as ["10200004", "SCT", "Liver"]',
        remedy="correct the codes of the model card",
    )
