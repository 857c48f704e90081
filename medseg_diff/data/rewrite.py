"""What a layout may do to a file on its way: copy, renumber a mask, cut out a channel.

A `Rule` maps a mask's values, an integer array of any shape, to labels; a writer takes a
source file to a target file. Both refuse what they do not understand with an `InputError`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from skimage.color import rgb2gray
from skimage.io import imsave

from medseg_diff.errors import InputError
from medseg_diff.files import atomic_file
from medseg_diff.io import (
    ReadOptions,
    read_image,
    read_label,
    write_label,
    write_map,
)
from medseg_diff.io.raster import write_png

Writer = Callable[[Path, Path], None]
Rule = Callable[[NDArray[np.int64]], NDArray[np.int64]]


def renumbered(values: Mapping[int, int]) -> Rule:
    """A rule that gives each listed value its new one, keeps 0, and refuses all else."""
    return values_of({0: 0, **values})


def values_of(meaning: Mapping[int, int]) -> Rule:
    """A rule that gives each listed value its new one and refuses all else."""

    def rule(mask: NDArray[np.int64]) -> NDArray[np.int64]:
        strange = sorted(set(np.unique(mask).tolist()) - set(meaning))
        if strange:
            raise InputError(
                "unknown mask values", found=strange,
                expected=", ".join(map(str, sorted(meaning))),
                remedy="correct the mask: no structure of the set has that value",
            )  # fmt: skip
        result = np.zeros_like(mask)
        for old, new in meaning.items():
            result[mask == old] = new
        return result

    return rule


def copy_file(source: Path, target: Path) -> None:
    """Copy byte for byte; the target appears whole or not at all."""
    if target.exists() and target.samefile(source):
        return
    with source.open("rb") as read, atomic_file(target) as write:
        shutil.copyfileobj(read, write)


def relabel(rule: Rule, n_classes: int) -> Writer:
    """A writer that sends a mask's values through ``rule`` and stores labels 0 .. n_classes-1."""

    def write(source: Path, target: Path) -> None:
        label = read_label(source)
        try:
            values = rule(np.asarray(label, dtype=np.int64))
        except InputError as error:
            raise InputError(
                error.problem, file=source, found=error.found, expected=error.expected,
                remedy=error.remedy,
            ) from None  # fmt: skip
        write_label(target, values, label, n_classes=n_classes)

    return write


def binary(threshold: int | None = None) -> Rule:
    """Foreground = 1. Without a threshold the mask must hold at most one value besides 0."""

    def rule(values: NDArray[np.int64]) -> NDArray[np.int64]:
        if threshold is not None:
            return (values >= threshold).astype(np.int64)
        foreground = np.unique(values[values != 0])
        if foreground.size > 1:
            raise InputError(
                "mask is not binary", found=f"{foreground.size} values besides 0",
                expected="one value besides 0",
                remedy="give a threshold, or name the labels",
            )  # fmt: skip
        return (values != 0).astype(np.int64)

    return rule


def checked_copy(allowed: Iterable[int]) -> Writer:
    """A writer that copies a mask byte for byte after checking its values."""
    values = sorted(allowed)

    def write(source: Path, target: Path) -> None:
        read_label(source, allowed=values)
        copy_file(source, target)

    return write


def one_volume(index: int, count: int) -> Writer:
    """A writer that cuts volume ``index`` out of a 4-D image that must have ``count`` of them."""

    def write(source: Path, target: Path) -> None:
        volumes = read_image(source, ReadOptions(volume="all"))
        if volumes.shape[0] != count:
            raise InputError(
                "volumes differ from the channel names", file=source, field="dim",
                found=volumes.shape[0], expected=count,
            )  # fmt: skip
        write_map(target, volumes[index : index + 1], volumes)

    return write


def any_instance(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Every instance number above 0 becomes 1."""
    return (values > 0).astype(np.int64)


def grey_to_rgb(source: Path, target: Path) -> None:
    """Write an 8-bit grey image as colour, three equal channels."""
    grey = np.asarray(read_image(source))[0]
    if grey.max() > 255:
        raise InputError("not an 8-bit image", file=source, found=f"{grey.max():g}")
    imsave(target, np.stack([grey.astype(np.uint8)] * 3, axis=-1), check_contrast=False)


def rgb_to_grey(source: Path, target: Path) -> None:
    """Write an 8-bit image as one grey channel: luminance of colour, a grey image as it is.

    Weights of red, green and blue are skimage's ``rgb2gray``: 0.2125, 0.7154, 0.0721. Nothing is
    inverted: stained nuclei stay dark on bright, fluorescent ones bright on dark.
    """
    planes = np.asarray(read_image(source))
    if planes.max() > 255:
        raise InputError("not an 8-bit image", file=source, found=f"{planes.max():g}")
    grey = planes[0] if len(planes) == 1 else 255 * rgb2gray(planes / 255, channel_axis=0)
    write_png(target, np.rint(grey).astype(np.uint8)[None])


def one_reader(index: int) -> Rule:
    """The mask of one of four readers, packed as bit ``index`` of a value from 0 to 15."""

    def rule(values: NDArray[np.int64]) -> NDArray[np.int64]:
        if values.min() < 0 or values.max() > 15:
            raise InputError("not four bits", found=int(values.max()), expected="0 to 15")
        return (values >> index) & 1

    return rule


def brats_old(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Masks until 2021: enhancing tumour moves from 4 to 3; already moved ones stay."""
    present = set(np.unique(values).tolist())
    if not (present <= {0, 1, 2, 4} or present <= {0, 1, 2, 3}):
        raise InputError("not a BraTS mask", found=sorted(present), expected="0, 1, 2, 4")
    return np.where(values == 4, 3, values)


def brats_new(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Masks from 2023 on: enhancing tumour is 3 and nothing changes."""
    present = set(np.unique(values).tolist())
    if not present <= {0, 1, 2, 3}:
        raise InputError(
            "not a BraTS mask", found=sorted(present), expected="0, 1, 2, 3",
            remedy="label 4 is the resection cavity after treatment, not enhancing tumour: "
            "decide what it shall be and rewrite the masks",
        )  # fmt: skip
    return values
