"""Answers as DICOM: masks as a Segmentation, doubt as a Parametric Map, beside their source.

Frames are placed by the mask's affine. Names of series and instances follow from what the answer
is made of (sources, model, seed, content), so the same prediction gives the same UIDs and another
one does not.

Legend: K structures, *S the three spatial axes (i along a row, j down a column, k across slices).
"""

from __future__ import annotations

import hashlib
import uuid
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import highdicom as hd
import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from numpy.typing import ArrayLike, NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes as dictionary

from medseg_diff.errors import InputError
from medseg_diff.files import atomic_file
from medseg_diff.io.dicom_reference import Reference, read_reference, set_text
from medseg_diff.io.segment_codes import Code, StructureCode, structure_codes

Kind = Literal["binary", "fractional", "labelmap"]

MAXIMUM_FRACTION = 255
SEG_SERIES, MAP_SERIES = 1, 2
_NAMESPACE = uuid.UUID("b1a3b8f2-6f63-5a55-9c53-8a1d1d0f6d5e")
_LONG_STRING, _SHORT_STRING = 64, 16


@dataclass(frozen=True)
class Algorithm:
    """What made an answer.

    Args:
        version: Version of the software.
        models: SHA-256 of each model's weights, in hexadecimal.
        seed: Seed of the prediction.
        name: Name of the software.
    """

    version: str
    models: tuple[str, ...]
    seed: int
    name: str = "medseg_diff"

    @property
    def serial(self) -> str:
        """One short text for all models: 16 hexadecimal digits."""
        return hashlib.sha256("\n".join(self.models).encode()).hexdigest()[:16]


def write_seg(
    path: str | Path,
    labels: ArrayLike,
    like: MetaTensor,
    structures: Mapping[str, int | Sequence[int]],
    *,
    algorithm: Algorithm,
    codes: Mapping[str, Any] | None = None,
    kind: Kind = "binary",
) -> None:
    """Write a mask as a DICOM Segmentation (PS3.3, A.51) that points at its source series.

    Every structure becomes one segment, in the order given; structures may share label values
    unless ``kind`` is ``"labelmap"``. Planes without a structure get no frame for it. A mask with
    no structure at all is written with every plane as an empty frame: the standard wants at least
    one frame, and a file that says "nothing found" differs from no file.

    Args:
        path: Where to; ends in ``.dcm``.
        labels: Whole numbers (1, *S); for ``"fractional"`` probabilities (K, *S) in [0, 1].
        like: The image as it was read from DICOM.
        structures: Name -> its label value, or the values of all it consists of.
        algorithm: What made the mask.
        codes: A model card's codes, see `structure_codes`; names in the shipped table need none.
        kind: ``"binary"``, ``"fractional"`` (probability, stored within 1/510) or ``"labelmap"``
            (one frame per plane, a newer storage class that few viewers know).

    Raises:
        InputError: if the source is not DICOM, is not the series of ``like``, or the file cannot
            be written.
        ValueError: if shapes or values do not fit ``kind`` and ``structures``.
    """
    if not structures:
        raise ValueError("a segmentation needs at least one structure")
    reference = read_reference(like)
    members = {n: [v] if isinstance(v, int) else list(v) for n, v in structures.items()}
    pixels = _segments(_on_grid(labels, like), members, kind)
    meanings = structure_codes(list(members), codes)
    uids = _uids(reference, algorithm, SEG_SERIES, [kind, *map(repr, meanings.items())], pixels)
    arguments: dict[str, Any] = {
        "segmentation_type": kind.upper(),
        "segment_descriptions": [
            _description(number, name, meanings[name], algorithm)
            for number, name in enumerate(members, 1)
        ],
        "omit_empty_frames": bool(pixels.any()),
        "content_label": "SEGMENTATION",
    }
    if kind == "fractional":
        arguments |= {"fractional_type": "PROBABILITY", "max_fractional_value": MAXIMUM_FRACTION}
    stacked = kind != "labelmap"
    channels = {"SegmentNumber": list(range(1, len(members) + 1))} if stacked else None
    _write(
        path,
        hd.seg.Segmentation,
        reference,
        _volume(pixels, reference, channels),
        {**arguments, **_common(reference, algorithm, SEG_SERIES, uids, "segmentation")},
        uids,
    )


def write_parametric_map(
    path: str | Path,
    maps: ArrayLike,
    like: MetaTensor,
    names: Mapping[str, str],
    *,
    algorithm: Algorithm,
) -> None:
    """Write maps without unit, such as doubt in [0, 1], as a Parametric Map (PS3.3, A.75).

    Values are stored as float32, unchanged.

    Args:
        path: Where to; ends in ``.dcm``.
        maps: (K, *S), finite.
        like: The image as it was read from DICOM.
        names: Short label (at most 16 characters) -> what the map holds, in the order of ``maps``.
        algorithm: What made the maps.

    Raises:
        InputError: as `write_seg`.
        ValueError: if shapes do not fit, or a value is not finite.
    """
    reference = read_reference(like)
    values = _on_grid(maps, like).astype(np.float32, copy=False)
    if len(values) != len(names):
        raise ValueError(f"{len(values)} maps but {len(names)} names")
    if not np.isfinite(values).all():
        raise ValueError("a parametric map holds finite values only")
    if any(not 0 < len(label) <= _SHORT_STRING for label in names):
        raise ValueError(f"labels of maps have 1 to {_SHORT_STRING} characters")
    pixels = np.ascontiguousarray(values.transpose(3, 2, 1, 0))
    uids = _uids(reference, algorithm, MAP_SERIES, ["map", *map(repr, names.items())], pixels)
    mappings = [
        [
            hd.pm.RealWorldValueMapping(
                lut_label=label,
                lut_explanation=_long(text),
                unit=dictionary.UCUM.NoUnits,
                value_range=(float(plane.min()), float(plane.max())),
                slope=1.0,
                intercept=0.0,
            )
        ]
        for (label, text), plane in zip(names.items(), values, strict=True)
    ]
    arguments = {
        "contains_recognizable_visual_features": False,
        "real_world_value_mappings": mappings,
        "voi_lut_transformations": [hd.VOILUTTransformation(window_center=0.5, window_width=1.0)],
        "content_label": "DOUBT",
    }
    _write(
        path,
        hd.pm.ParametricMap,
        reference,
        _volume(pixels, reference, {"LUTLabel": list(names)}),
        {**arguments, **_common(reference, algorithm, MAP_SERIES, uids, "doubt")},
        uids,
    )


def _on_grid(values: ArrayLike, like: MetaTensor) -> NDArray[Any]:
    """As numpy (K, i, j, k), after making sure that the values lie where ``like`` lies."""
    shape = (*(int(n) for n in like.shape[1:]), 1)[:3]
    if isinstance(values, MetaTensor) and not np.allclose(values.affine, like.affine, atol=1e-3):
        raise ValueError("values lie on another grid than the image")
    array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values
    result = np.asarray(array)
    if result.shape[1:] != tuple(like.shape[1:]):
        raise ValueError(f"values of shape {result.shape} do not fit the image's {shape}")
    return result.reshape(len(result), *shape)


def _segments(
    values: NDArray[Any], members: Mapping[str, Sequence[int]], kind: Kind
) -> NDArray[Any]:
    """Planes first, as highdicom takes them: (k, j, i, K), or (k, j, i) for a label map."""
    if kind == "fractional":
        if len(values) != len(members):
            raise ValueError(f"{len(values)} probabilities for {len(members)} structures")
        # Not a number fails this, too.
        if not (values.min() >= 0 and values.max() <= 1):
            raise ValueError("probabilities lie in [0, 1]")
        return np.ascontiguousarray(values.transpose(3, 2, 1, 0), np.float32)
    if kind not in ("binary", "labelmap"):
        raise ValueError(f"kind must be binary, fractional or labelmap, not {kind!r}")
    if len(values) != 1:
        raise ValueError(f"a label map has one channel, not {len(values)}")
    planes = values[0].transpose(2, 1, 0)
    if kind == "binary":
        return np.stack([np.isin(planes, m) for m in members.values()], axis=-1)
    listed = [value for m in members.values() for value in m]
    if len(set(listed)) < len(listed):
        raise ValueError("a label map cannot hold structures that overlap; use binary")
    merged = np.zeros(planes.shape, np.uint8 if len(members) < 256 else np.uint16)
    for number, m in enumerate(members.values(), 1):
        merged[np.isin(planes, m)] = number
    return merged


def _volume(
    pixels: NDArray[Any], reference: Reference, channels: dict[str, list[Any]] | None
) -> hd.Volume:
    affine = reference.affine[:, [2, 1, 0, 3]]  # highdicom counts slices, rows, columns
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
    return hd.Volume(
        pixels,
        affine,
        coordinate_system="PATIENT",
        frame_of_reference_uid=reference.frame_of_reference,
        channels=channels,  # type: ignore[arg-type]  # dict is invariant in its key
    )


def _description(
    number: int, name: str, meaning: StructureCode, algorithm: Algorithm
) -> hd.seg.SegmentDescription:
    identification = hd.AlgorithmIdentificationSequence(
        name=algorithm.name,
        family=dictionary.cid7162.ArtificialIntelligence,
        version=algorithm.version,
        parameters={
            "model_sha256": ",".join(algorithm.models),
            "seed": str(algorithm.seed),
        },
    )
    angle = 2.4 * number  # the golden angle: neighbours differ most
    segment = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=_long(name),
        segmented_property_category=_concept(meaning.category),
        segmented_property_type=_concept(meaning.type),
        algorithm_type="AUTOMATIC",
        algorithm_identification=identification,
        anatomic_regions=[_concept(c) for c in meaning.regions] or None,
        display_color=hd.color.CIELabColor(65.0, 60 * np.cos(angle), 60 * np.sin(angle)),
    )
    if meaning.modifiers:
        kind = segment.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [_concept(c) for c in meaning.modifiers]
    return segment


def _concept(code: Code) -> hd.sr.CodedConcept:
    return hd.sr.CodedConcept(code.value, code.scheme, code.meaning)


def _common(
    reference: Reference, algorithm: Algorithm, series: int, uids: tuple[str, ...], what: str
) -> dict[str, Any]:
    """Arguments of every SOP class."""
    return {
        "series_instance_uid": uids[0],
        "series_number": 100 * reference.series_number + series,
        "sop_instance_uid": uids[1],
        "instance_number": 1,
        "manufacturer": algorithm.name,
        "manufacturer_model_name": algorithm.name,
        "software_versions": algorithm.version,
        "device_serial_number": algorithm.serial,
        "series_description": f"{algorithm.name} {what} (research only)",
        "content_description": f"{algorithm.name} {algorithm.version}, models {algorithm.serial}",
        "specific_character_set": "ISO_IR 192",
    }


def _uids(
    reference: Reference,
    algorithm: Algorithm,
    series: int,
    words: Sequence[str],
    pixels: NDArray[Any],
) -> tuple[str, ...]:
    """UIDs of the series, the instance and its dimensions."""
    origin = [*reference.sop_uids, *algorithm.models, str(algorithm.seed), str(series)]
    content = hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()
    made = [algorithm.version, content, *words]
    return _uid(origin), _uid([*origin, *made]), _uid([*origin, *made, "dimensions"])


def _uid(parts: Sequence[str]) -> str:
    """A UID that follows from ``parts``: a name-based UUID below 2.25 (PS3.5, B.2)."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, repr(list(parts))).int}"


def _write(
    path: str | Path,
    kind: Any,
    reference: Reference,
    volume: hd.Volume,
    arguments: Mapping[str, Any],
    uids: tuple[str, ...],
) -> None:
    with warnings.catch_warnings():
        # Only about odd values of the source, which they would quote.
        warnings.simplefilter("ignore")
        try:
            image = kind(list(reference.images), volume, **arguments)
        except (KeyError, AttributeError):  # highdicom's tables do not know the class
            raise InputError(
                "source images are of a class that DICOM answers cannot point at",
                file=path,
                field="SOPClassUID",
                found=reference.images[0].SOPClassUID,
                remedy="use the NIfTI outputs",
            ) from None
        _name_dimensions(image, uids[2])
        image.ContentCreatorName = ""  # type 2: present, and nobody
        for keyword, value in reference.identity.items():
            set_text(image, keyword, value)
        with atomic_file(path) as stream:
            image.save_as(stream, enforce_file_format=True)


def _name_dimensions(image: Dataset, uid: str) -> None:
    """Replace the one random UID, so that the same answer has the same bytes but for its dates."""
    image.DimensionOrganizationSequence[0].DimensionOrganizationUID = uid
    for item in image.get("DimensionIndexSequence", ()):
        item.DimensionOrganizationUID = uid


def _long(text: str) -> str:
    """Text as a Long String takes it (PS3.5, 6.2): 64 characters, no backslash or control."""
    clean = "".join(c if c.isprintable() else " " for c in text).replace("\\", "/").strip()
    return clean[:_LONG_STRING] or "segment"
