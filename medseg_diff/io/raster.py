"""PNG, JPEG, TIFF and BMP images: arrays in and out, values as stored, rows before columns.

Shapes: P pages, H rows, W columns, C channels.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import tifffile
from numpy.typing import NDArray
from PIL import Image

from medseg_diff.errors import InputError
from medseg_diff.files import atomic_file
from medseg_diff.io import safety
from medseg_diff.io.options import ReadOptions
from medseg_diff.io.stored import Stored

Pixels = NDArray[Any]
DEFAULT = ReadOptions()
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_EXIF_ORIENTATION = 274
# What Pillow and tifffile raise on damaged files; neither promises a type of its own.
_BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError,
    struct.error, zlib.error, tifffile.TiffFileError, Image.DecompressionBombError,
)  # fmt: skip


def format_of(head: bytes) -> str | None:
    """``"png"``, ``"jpeg"``, ``"tiff"`` or ``"bmp"``, from a file's first bytes."""
    if head.startswith(PNG_MAGIC):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(_TIFF_MAGICS):
        return "tiff"
    # Two letters alone are too common: the next field is the size, then come four zeros.
    return "bmp" if head.startswith(b"BM") and head[6:10] == b"\0\0\0\0" else None


def read_raster(
    path: str | Path, options: ReadOptions = DEFAULT, *, as_label: bool = False
) -> Stored:
    """Read one image as (C, H, W) with its stored values; alpha goes if it is all opaque.

    Args:
        path: A PNG, JPEG, TIFF or BMP file, told by its content.
        options: ``volume`` chooses the page of a TIFF, ``max_voxels`` bounds H x W x C.
        as_label: Keep palette indices as values, and make one channel of three equal ones.

    Raises:
        InputError: if the file is none of these, damaged, too large, partly transparent, or for
            labels lossy or in colour.
    """
    path = Path(path)
    head = safety.file_head(path)
    kind = format_of(head)
    if kind is None:
        known = safety.describe(head)
        raise InputError(
            f"is not a raster image but {known}" if known else "is not a raster image",
            file=path,
            expected="PNG, JPEG, TIFF or BMP",
            remedy="check what wrote this file",
        )
    if as_label and kind == "jpeg":
        raise InputError(
            "JPEG changes the values of a mask", file=path, expected="PNG or TIFF",
            remedy="export the mask again without loss",
        )  # fmt: skip
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images; the limit here is max_voxels.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if kind == "tiff":
                pixels, notes = _read_tiff(path, options)
            else:
                pixels, notes = _read_pillow(path, kind, options, as_label=as_label)
    except InputError:
        raise
    except _BROKEN as error:
        raise InputError(
            f"image data is damaged or cut short: {error}", file=path,
            remedy="copy or download it again",
        ) from None  # fmt: skip
    if as_label:
        pixels = _one_channel(pixels, path, notes)
    header = {"shape": tuple(pixels.shape[1:])}
    return Stored(path, "raster", pixels, np.eye(4), header, notes)


def _read_pillow(
    path: Path, kind: str, options: ReadOptions, *, as_label: bool
) -> tuple[Pixels, list[str]]:
    notes: list[str] = []
    data = path.read_bytes()
    depth, colour = _check_png(data, path) if kind == "png" else (8, -1)
    with Image.open(io.BytesIO(data), formats=[kind.upper()]) as opened:
        image: Image.Image = opened
        _check_size((len(image.getbands()), image.height, image.width), options, path)
        if kind == "png" and depth == 16 and colour != 0:
            # Pillow would silently halve the depth of 16-bit colour.
            return _drop_alpha(_channels_first(_read_itk(path)), path, notes), notes
        if image.mode == "P" and not as_label:
            image = image.convert("RGBA" if "transparency" in image.info else "RGB")
        if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B", "I"):
            raise InputError(
                "unsupported colour model", file=path, field="mode", found=image.mode,
                expected="grey or RGB", remedy="convert it to RGB",
            )  # fmt: skip
        turned = image.getexif().get(_EXIF_ORIENTATION, 1)
        if turned != 1:
            notes.append(f"EXIF orientation {turned} is not applied; masks must match the pixels")
        pixels = np.asarray(image)
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8)
    elif kind == "png" and colour == 0 and depth < 8:
        pixels = pixels // (255 // (2**depth - 1))  # Pillow stretches 2 and 4 bits to 8
    return _drop_alpha(_channels_first(pixels), path, notes), notes


def _check_png(data: bytes, path: Path) -> tuple[int, int]:
    """Bit depth and colour type, after comparing every chunk's checksum.

    Pillow skips the checksums of the image data, and a damaged image may decode without error.
    """
    at = len(PNG_MAGIC)
    names = []
    while at < len(data) and b"IEND" not in names:
        if at + 12 > len(data):
            break
        (length,) = struct.unpack_from(">I", data, at)
        name, end = data[at + 4 : at + 8], at + 8 + length
        if end + 4 > len(data):
            break
        (stated,) = struct.unpack_from(">I", data, end)
        if zlib.crc32(data[at + 4 : end]) != stated:
            raise InputError(
                "image data is damaged: checksum differs", file=path,
                field=f"chunk {name.decode('latin-1')!a}", remedy="copy or download it again",
            )  # fmt: skip
        names.append(name)
        at = end + 4
    if names[:1] != [b"IHDR"] or names[-1] != b"IEND":
        raise InputError("file ends early", file=path, remedy="copy or download it again")
    return data[24], data[25]


def _read_itk(path: Path) -> Pixels:
    try:
        return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(path))))
    except RuntimeError as error:
        raise OSError(str(error).splitlines()[-1]) from None


def _read_tiff(path: Path, options: ReadOptions) -> tuple[Pixels, list[str]]:
    with tifffile.TiffFile(path) as tiff:
        chosen = [tiff.pages[k] for k in _choose_pages(len(tiff.pages), options, path)]
        pages = [p if isinstance(p, tifffile.TiffPage) else p.aspage() for p in chosen]
        first = pages[0].shape
        if any(page.shape != first for page in pages):
            raise InputError(
                "pages differ in size", file=path, field="pages", found=len(pages),
                expected=f"all of {' x '.join(map(str, first))}", remedy="choose one with --volume",
            )  # fmt: skip
        _check_size((len(pages), *first), options, path)
        notes: list[str] = []
        planes = [_drop_alpha(_tiff_page(page, path), path, notes) for page in pages]
        return np.concatenate(planes), sorted(set(notes))


def _choose_pages(n: int, options: ReadOptions, path: Path) -> list[int]:
    if options.volume == "all" or (n == 1 and options.volume is None):
        return list(range(n))
    if options.volume is not None and 0 <= options.volume < n:
        return [options.volume]
    raise InputError(
        f"{n} pages; choose --volume k", file=path, field="pages", found=n,
        expected=f"one page, or k from 0 to {n - 1}",
    )  # fmt: skip


def _tiff_page(page: Any, path: Path) -> Pixels:
    """Pixels of one page, (C, H, W)."""
    ends = zip(page.dataoffsets, page.databytecounts, strict=True)
    if max((at + n for at, n in ends), default=0) > safety.file_size(path):
        raise InputError("file ends early", file=path, remedy="copy or download it again")
    pixels = _tiff_pixels(page, path)
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and pixels.dtype.kind == "u":
        pixels = np.iinfo(pixels.dtype).max - pixels
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8)
    if page.axes in ("YX", "YXS"):
        return _channels_first(pixels)
    if page.axes == "SYX":
        return pixels
    raise InputError(
        "not a flat image", file=path, field="axes", found=page.axes, expected="YX or YXS"
    )


def _tiff_pixels(page: Any, path: Path) -> Pixels:
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
        raise InputError(
            "indexed colours in a TIFF", file=path, expected="grey or RGB",
            remedy="convert it to PNG",
        )  # fmt: skip
    if page.dtype is None or page.dtype.kind not in "buif":
        raise InputError("unsupported pixel type", file=path, found=page.dtype)
    try:
        return np.asarray(page.asarray())
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
    # SimpleITK brings the decoders (LZW, JPEG) that tifffile leaves to another package.
    pixels = _read_itk(path)
    if len(page.parent.pages) > 1:
        pixels = pixels[page.index]
    inverted = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
    if inverted or pixels.shape != page.shape or pixels.dtype != page.dtype:
        raise InputError(
            "compression not supported for this pixel type", file=path, field="compression",
            found=f"{page.compression.name} of {page.dtype}",
            remedy="save it with deflate compression or none",
        )  # fmt: skip
    return pixels


def _check_size(shape: tuple[int, ...], options: ReadOptions, path: Path) -> None:
    total = 1
    for length in shape:
        total *= int(length)
    if total > options.max_voxels or total < 1:
        raise InputError(
            "more pixels than allowed" if total else "has no pixels", file=path, field="size",
            found=" x ".join(map(str, shape)), expected=f"1 to {options.max_voxels} values",
            remedy="check the file, or raise max_voxels",
        )  # fmt: skip


def _channels_first(pixels: Pixels) -> Pixels:
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)


def _drop_alpha(pixels: Pixels, path: Path, notes: list[str]) -> Pixels:
    if len(pixels) not in (2, 4):
        return pixels
    alpha = pixels[-1]
    opaque = np.iinfo(alpha.dtype).max if alpha.dtype.kind in "iu" else 1.0
    if (alpha != opaque).any():
        raise InputError(
            "partly transparent", file=path, field="alpha",
            found=f"{int((alpha != opaque).sum())} pixels below {opaque}", expected="opaque pixels",
            remedy="flatten it onto a background first",
        )  # fmt: skip
    notes.append("an opaque alpha channel was dropped")
    return pixels[:-1]


def _one_channel(pixels: Pixels, path: Path, notes: list[str]) -> Pixels:
    if len(pixels) == 1:
        return pixels
    if (pixels != pixels[:1]).any():
        raise InputError(
            "a mask in colour", file=path, field="channels", found=len(pixels),
            expected="one channel", remedy="save class numbers as grey values",
        )  # fmt: skip
    notes.append(f"{len(pixels)} equal channels were taken as one")
    return pixels[:1]


def write_png(path: str | Path, pixels: Pixels) -> None:
    """Write (1, H, W) uint8 or uint16, or (3, H, W) uint8, losslessly and atomically.

    Raises:
        InputError: if the file cannot be written or has another suffix.
        ValueError: for other shapes and types.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError("not a name for a PNG", file=path, expected=".png")
    types = {1: (np.uint8, np.uint16), 3: (np.uint8,)}.get(len(pixels), ())
    if pixels.ndim != 3 or pixels.dtype not in types:
        raise ValueError(f"cannot write {pixels.dtype} of shape {pixels.shape} as PNG")
    flat = pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1)
    with atomic_file(path) as stream:
        Image.fromarray(np.ascontiguousarray(flat)).save(stream, format="PNG")


def write_tiff(path: str | Path, values: Pixels, description: str = "") -> None:
    """Write (P, H, W) as pages of a TIFF, atomically: uint8 and uint16 as they are, else float32.

    A description becomes the tag ImageDescription.

    Raises:
        InputError: if the file cannot be written or has another suffix.
    """
    path = Path(path)
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise InputError("not a name for a TIFF", file=path, expected=".tif")
    whole = values.dtype in (np.uint8, np.uint16)
    data = np.ascontiguousarray(values, values.dtype if whole else np.float32)
    with atomic_file(path) as stream:
        tifffile.imwrite(
            stream, data[0] if len(data) == 1 else data, photometric="minisblack",
            compression="zlib", metadata=None, description=description or None,
        )  # fmt: skip
