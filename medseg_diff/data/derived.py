"""Case lists whose images were changed and whose masks were not: shifted, restyled, translated.

Legend: C image channels, *S spatial axes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from monai.data import MetaTensor
from numpy.typing import NDArray

from medseg_diff import io
from medseg_diff.data.caselist import FILE_NAME, Case, CaseList, load_caselist, save_caselist
from medseg_diff.data.shifts import Shift
from medseg_diff.data.transforms import spacing_of
from medseg_diff.errors import InputError
from medseg_diff.files import atomic_file, atomic_text

# Image as read (C, *S) and its case -> changed image, same shape.
Change = Callable[[MetaTensor, Case], NDArray[Any]]
STAMP = "derived.json"


def derive(
    cases: CaseList, chosen: Sequence[Case], folder: Path, change: Change, *, made_from: object
) -> CaseList:
    """Write changed images, byte-for-byte copies of the masks, and the case list that names them.

    What an earlier call left is kept if it was made from the same.

    Args:
        cases: Where the images come from.
        chosen: Which of them.
        folder: Made if missing; a new one if it holds something that was made otherwise.
        change: Of each image, on its own grid.
        made_from: All that ``change`` depends on, as JSON knows it.

    Raises:
        InputError: if an image cannot be read, written or changed.
    """
    key = _key(cases, chosen, made_from)
    stamp = folder / STAMP
    if stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")).get("key") == key:
        return load_caselist(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    listed = cases.with_cases(_derived_case(cases, case, folder, change) for case in chosen)
    save_caselist(listed, folder / FILE_NAME)
    # Last: it vouches for the images.
    atomic_text(stamp, json.dumps({"key": key, "made_from": made_from}, indent=1) + "\n")
    return load_caselist(folder)


def shifted(
    cases: CaseList, chosen: Sequence[Case], folder: Path, shift: Shift, *, seed: int = 0
) -> CaseList:
    """Cases as the scanner model of a shift would show them; see :func:`derive`."""

    def change(image: MetaTensor, case: Case) -> NDArray[Any]:
        spacing = spacing_of(image)[: image.ndim - 1]
        return shift(np.asarray(image), spacing, case=case.case, seed=seed)

    made_from = {
        "shift": shift.name,
        shift.parameter: shift.value,
        "fixed": dict(shift.fixed),
        "seed": seed,
    }
    return derive(cases, chosen, folder, change, made_from=made_from)


def _derived_case(cases: CaseList, case: Case, folder: Path, change: Change) -> Case:
    paths = cases.channel_paths(case)
    image = io.read_channels(paths)
    try:
        values = np.asarray(change(image, case), dtype=np.float32)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(str(error), file=next(iter(paths.values()))) from None
    if values.shape != tuple(image.shape):
        raise ValueError(f"a change keeps the shape: {tuple(image.shape)} became {values.shape}")
    channels: dict[str, str] = {}
    for name, path in paths.items():
        one = io.read_image(path)
        if one.meta["kind"] == "raster" and len(one) > 1:
            raise InputError(
                "changed colour images have no file format here",
                file=path,
                found=f"{len(one)} planes",
                expected="one grey plane",
                remedy="convert the images to grey first",
            )
        planes = np.flatnonzero([listed == name for listed in image.meta["channels"]])
        relative = f"images/{case.case}_{len(channels):04d}{io.map_suffix(one)}"
        (folder / "images").mkdir(exist_ok=True)
        io.write_map(folder / relative, values[planes], one)
        channels[name] = relative
    references = []
    for number, path in enumerate(cases.reference_paths(case)):
        suffix = "".join(PurePosixPath(path.name).suffixes[-2:])
        suffix = suffix if suffix.startswith(".nii") else path.suffix
        relative = f"labels/{case.case}{f'_{number}' if number else ''}{suffix}"
        (folder / "labels").mkdir(exist_ok=True)
        with path.open("rb") as source, atomic_file(folder / relative) as copy:
            shutil.copyfileobj(source, copy)
        references.append(relative)
    return case.model_copy(
        update={"channels": channels, "references": tuple(references), "sha256": {}}
    )


def _key(cases: CaseList, chosen: Sequence[Case], made_from: object) -> str:
    """Hash of the images' names, sizes and dates and of what is done to them.

    Not of their folders: whoever names the same files by another path must find what is there, not
    replace it under a process that reads it.
    """
    files = [
        [case.case, case.part, [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in paths]]
        for case in chosen
        for paths in (cases.paths(case),)
    ]
    text = json.dumps([files, made_from], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
