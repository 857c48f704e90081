"""nnU-Net's file names, and the ``dataset.json`` of nnU-Net and of the Decathlon."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg_diff.data.gather import About, Labels, Modality, list_files, suffix_of
from medseg_diff.errors import InputError


def read_description(folder: Path, *, required: bool) -> dict[str, Any]:
    """Content of ``dataset.json``; empty where it is absent and not required."""
    path = folder / "dataset.json"
    if not path.is_file():
        if required:
            raise InputError(
                "no dataset.json", file=folder, remedy="name the channels and labels yourself"
            )
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError("not a JSON file", file=path, found=str(error)) from None
    if not isinstance(content, dict):
        raise InputError("not a dataset description", file=path, expected="a JSON object")
    return content


def channel_names(description: Mapping[str, Any]) -> list[str]:
    """Names in the order of their numbers; nnU-Net says channel_names, older files modality."""
    named = description.get("channel_names", description.get("modality"))
    if not isinstance(named, dict) or sorted(named) != sorted(str(i) for i in range(len(named))):
        raise InputError(
            "no channel names", file="dataset.json", field="channel_names", found=repr(named)[:80],
            expected='{"0": "T1", ...}',
        )  # fmt: skip
    return [str(named[str(i)]) for i in range(len(named))]


def label_meaning(description: Mapping[str, Any]) -> Labels:
    """Labels of a dataset.json: name -> value or region (nnU-Net), or value -> name (Decathlon).

    With regions, a value that is not itself a named region is called ``label <value>``.
    """
    given = description.get("labels")
    if not isinstance(given, dict) or not given:
        raise InputError("no labels", file="dataset.json", field="labels")
    try:
        if all(str(key).isdigit() for key in given):
            return Labels({str(name): int(value) for value, name in given.items()})
        given = dict(given)
        ignore = int(given.pop("ignore")) if "ignore" in given else None
        sets = {k: [int(v) for v in ([x] if isinstance(x, int) else x)] for k, x in given.items()}
    except (TypeError, ValueError):
        raise InputError(
            "labels are not whole numbers", file="dataset.json", field="labels",
            found=repr(given)[:80],
        ) from None  # fmt: skip
    regions = {name: values for name, values in sets.items() if values != [0]}
    if all(len(values) == 1 for values in sets.values()):
        return Labels({name: values[0] for name, values in sets.items()}, None, ignore)
    names = {values[0]: name for name, values in sets.items() if len(values) == 1}
    every = sorted({value for values in sets.values() for value in values})
    return Labels({names.get(v, f"label {v}"): v for v in every}, regions, ignore)


def about_from(folder: Path, description: Mapping[str, Any], channels: Sequence[str]) -> About:
    """Name and licence from the description; modality guessed from the channel names."""
    first = channels[0].upper() if channels else ""
    modality: Modality = "other"
    if first.startswith("CT"):
        modality = "CT"
    elif first.startswith("RGB"):
        modality = "RGB"
    elif re.match(r"(MR|T1|T2|FLAIR|ADC|DWI|PD\b)", first):
        modality = "MR"
    licence = description.get("licence", description.get("license", "unknown"))
    name = description.get("name") or folder.resolve().name
    return About(str(name), str(licence), modality)


def numbered(folder: Path) -> dict[str, dict[int, Path]]:
    """nnU-Net image files by case and channel number."""
    cases: dict[str, dict[int, Path]] = defaultdict(dict)
    for stem, path in list_files(folder).items():
        match = re.fullmatch(r"(.+)_(\d{4})", stem)
        if match is None:
            raise InputError(
                "image name without a channel number", file=path, expected="<case>_0000.nii.gz"
            )
        cases[match[1]][int(match[2])] = path
    return dict(cases)


def name_channels(case: str, files: Mapping[int, Path], names: Sequence[str]) -> dict[str, Path]:
    """Name a case's files; one colour file for three channels is a single channel RGB."""
    if list(files) == [0] and len(names) == 3 and ".nii" not in suffix_of(files[0]):
        return {"RGB": files[0]}
    if sorted(files) != list(range(len(names))):
        raise InputError(
            "channel files differ from the channel names", field=case,
            found=", ".join(f"_{number:04d}" for number in sorted(files)),
            expected=", ".join(f"_{i:04d} ({name})" for i, name in enumerate(names)),
        )  # fmt: skip
    return {name: files[index] for index, name in enumerate(names)}
