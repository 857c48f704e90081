"""Raster images in and out: stored values in every depth and colour, refusals, MONAI's forms."""

from __future__ import annotations

import io as stdio
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import torch
from monai.transforms import LoadImage, SaveImage
from numpy.random import default_rng
from numpy.typing import NDArray
from PIL import Image

from medseg_diff import io
from medseg_diff.errors import InputError

# `LoadImage` registers all of MONAI's readers, one of which looks for a codec of GPUs.
pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")

RNG = default_rng(3)
GREY8 = RNG.integers(0, 256, (5, 7), np.uint8)
GREY16 = RNG.integers(0, 65536, (5, 7), np.uint16)
RGB8 = RNG.integers(0, 256, (5, 7, 3), np.uint8)
RGB16 = RNG.integers(0, 65536, (5, 7, 3), np.uint16)


def save_png(path: Path, pixels: NDArray[Any]) -> Path:
    if pixels.dtype == np.uint16 and pixels.ndim == 3:
        sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=True), str(path))
    else:
        Image.fromarray(pixels).save(path)
    return path


def channels_first(pixels: NDArray[Any]) -> NDArray[Any]:
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)


@pytest.mark.parametrize("pixels", [GREY8, GREY16, RGB8, RGB16], ids=["g8", "g16", "rgb8", "rgb16"])
@pytest.mark.parametrize("suffix", [".png", ".tif", "_lzw.tif", "_planar.tif", "_big.tif", ".PNG"])
def test_values_as_stored(tmp_path: Path, pixels: NDArray[Any], suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".tif":
        tifffile.imwrite(path, pixels, compression="zlib")
    elif suffix == "_planar.tif":
        planes = channels_first(pixels)
        tifffile.imwrite(
            path, planes if len(planes) > 1 else pixels, planarconfig="separate" if len(planes) > 1
            else None, photometric="rgb" if len(planes) > 1 else "minisblack",
        )  # fmt: skip
    elif suffix == "_big.tif":
        tifffile.imwrite(path, pixels, bigtiff=True, byteorder=">")
    elif suffix == "_lzw.tif":
        writer = sitk.ImageFileWriter()
        writer.SetFileName(str(path))
        writer.UseCompressionOn()
        writer.SetCompressor("LZW")
        writer.Execute(sitk.GetImageFromArray(pixels, isVector=pixels.ndim == 3))
        with tifffile.TiffFile(path) as written:
            assert written.pages[0].compression == tifffile.COMPRESSION.LZW
    else:
        save_png(path, pixels)
    image = io.read_image(path)
    assert image.dtype == torch.float32
    np.testing.assert_array_equal(image.numpy(), channels_first(pixels))
    np.testing.assert_array_equal(image.affine.numpy(), np.eye(4))
    assert image.meta["kind"] == "raster"
    assert image.meta["warnings"] == []
    assert tuple(image.meta["header"]["shape"]) == (5, 7)
    assert io.read_spacing(path) == (1.0, 1.0)
    assert io.label_suffix(image) == ".png"
    assert io.map_suffix(image) == ".tif"


def test_jpeg_and_bmp(tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 64 * 48).reshape(64, 48).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    image = io.read_image(tmp_path / "a.jpg")
    assert image.shape == (1, 64, 48)
    assert np.abs(image[0].numpy() - smooth).max() < 12
    Image.fromarray(RGB8).save(tmp_path / "a.bmp")
    np.testing.assert_array_equal(io.read_image(tmp_path / "a.bmp"), channels_first(RGB8))


def test_float_tiff_and_its_holes(tmp_path: Path) -> None:
    values = RNG.random((5, 7), np.float32)
    tifffile.imwrite(tmp_path / "a.tif", values)
    np.testing.assert_array_equal(io.read_image(tmp_path / "a.tif")[0].numpy(), values)
    values[2, 3] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", values)
    with pytest.raises(InputError, match=r"1 NaN .* \(2, 3\)"):
        io.read_image(tmp_path / "a.tif")


def test_white_is_zero(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY16, photometric="miniswhite")
    np.testing.assert_array_equal(io.read_image(tmp_path / "a.tif")[0], 65535 - GREY16.astype(int))


@pytest.mark.parametrize("pixels", [GREY8, RGB8, RGB16], ids=["g8", "rgb8", "rgb16"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_alpha(tmp_path: Path, pixels: NDArray[Any], suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    stack = pixels if pixels.ndim == 3 else pixels[..., None]
    opaque = np.full((5, 7, 1), np.iinfo(pixels.dtype).max, pixels.dtype)

    def save(alpha: NDArray[Any]) -> None:
        if suffix == ".png":
            save_png(path, np.concatenate([stack, alpha], axis=-1))
        else:
            kind = "rgb" if len(stack[0, 0]) == 3 else "minisblack"
            tifffile.imwrite(
                path, np.concatenate([stack, alpha], axis=-1), photometric=kind,
                planarconfig="contig", extrasamples=["unassalpha"],
            )  # fmt: skip

    save(opaque)
    image = io.read_image(path)
    np.testing.assert_array_equal(image.numpy(), channels_first(pixels))
    assert "alpha" in image.meta["warnings"][0]
    opaque[1, 2] -= 1
    save(opaque)
    with pytest.raises(InputError, match="partly transparent"):
        io.read_image(path)


def test_palette(tmp_path: Path) -> None:
    """An image's palette gives colours, a mask's gives class numbers."""
    classes = RNG.integers(0, 4, (5, 7), np.uint8)
    colours = RNG.integers(0, 256, (4, 3), np.uint8)
    image = Image.fromarray(classes).convert("P")
    image.putdata(classes.ravel().tolist())
    image.putpalette(colours.ravel().tolist())
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(
        io.read_image(tmp_path / "a.png").numpy(), channels_first(colours[classes])
    )
    np.testing.assert_array_equal(io.read_label(tmp_path / "a.png")[0].numpy(), classes)


def grey_png(pixels: NDArray[np.uint8], depth: int) -> bytes:
    """A grey PNG of 1, 2 or 4 bits, put together by hand."""
    bits = np.unpackbits(pixels[..., None], axis=-1)[..., 8 - depth :].reshape(len(pixels), -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in bits)
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], depth, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_few_bits(tmp_path: Path, depth: int) -> None:
    classes = RNG.integers(0, 2**depth, (5, 7), np.uint8)
    (tmp_path / "a.png").write_bytes(grey_png(classes, depth))
    np.testing.assert_array_equal(io.read_label(tmp_path / "a.png")[0].numpy(), classes)
    np.testing.assert_array_equal(io.read_image(tmp_path / "a.png")[0].numpy(), classes)


def test_masks_in_colour(tmp_path: Path) -> None:
    path = save_png(tmp_path / "a.png", np.stack([GREY8] * 3, axis=-1))
    label = io.read_label(path)
    np.testing.assert_array_equal(label[0].numpy(), GREY8)
    assert "equal channels" in label.meta["warnings"][0]
    with pytest.raises(InputError, match="mask in colour"):
        io.read_label(save_png(path, RGB8))
    Image.fromarray(GREY8).save(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="JPEG changes"):
        io.read_label(tmp_path / "a.jpg")


def test_label_values_and_shape(tmp_path: Path) -> None:
    path = save_png(tmp_path / "m.png", (GREY8 > 99).astype(np.uint8) * 255)
    with pytest.raises(InputError, match="found 255"):
        io.read_label(path, allowed=[0, 1])
    image = io.read_image(save_png(tmp_path / "a.png", RGB8))
    assert io.read_label(path, like=image).shape == (1, 5, 7)
    small = save_png(tmp_path / "s.png", GREY8[1:])
    with pytest.raises(InputError, match=r"\(4, 7\).*\(5, 7\) as in a.png"):
        io.read_label(small, like=image)
    with pytest.raises(InputError, match="too flat"):
        io.require_volume(image)


def test_exif_orientation_warns(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(RGB8).save(tmp_path / "a.jpg", exif=exif)
    image = io.read_image(tmp_path / "a.jpg")
    assert image.shape == (3, 5, 7)
    assert "EXIF orientation 6" in image.meta["warnings"][0]


def test_pages_of_a_tiff(tmp_path: Path) -> None:
    pages = RNG.random((4, 5, 7), np.float32)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pages, photometric="minisblack", metadata=None)
    with pytest.raises(InputError, match="4 pages; choose --volume"):
        io.read_image(path)
    np.testing.assert_array_equal(io.read_image(path, io.ReadOptions(volume=2))[0], pages[2])
    np.testing.assert_array_equal(io.read_image(path, io.ReadOptions(volume="all")), pages)
    with pytest.raises(InputError, match="0 to 3"):
        io.read_image(path, io.ReadOptions(volume=4))
    first, *others = (Image.fromarray((page * 255).astype(np.uint8)) for page in pages)
    first.save(tmp_path / "lzw.tif", compression="tiff_lzw", save_all=True, append_images=others)
    third = io.read_image(tmp_path / "lzw.tif", io.ReadOptions(volume=2))
    np.testing.assert_array_equal(third[0], np.asarray(others[1]))
    tifffile.imwrite(path, pages[0])
    tifffile.imwrite(path, pages[0, 1:], append=True)
    with pytest.raises(InputError, match="pages differ in size"):
        io.read_image(path, io.ReadOptions(volume="all"))


def png(pixels: NDArray[Any]) -> bytes:
    stream = stdio.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def tiff(pixels: NDArray[Any]) -> bytes:
    stream = stdio.BytesIO()
    tifffile.imwrite(stream, pixels)
    return stream.getvalue()


def jpeg(pixels: NDArray[Any]) -> bytes:
    stream = stdio.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


BIG = RNG.integers(0, 256, (60, 70), np.uint8)


@pytest.mark.parametrize(("suffix", "make"), [(".png", png), (".tif", tiff), (".jpg", jpeg)])
@pytest.mark.parametrize("share", [0.02, 0.25, 0.5, 0.99])
def test_cut_short(
    tmp_path: Path, suffix: str, make: Callable[[NDArray[Any]], bytes], share: float
) -> None:
    whole = make(BIG)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError, match=f"a{suffix}: .*(damaged|short|early)") as caught:
        io.read_image(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_strips_past_the_end(tmp_path: Path, compression: str | None) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, BIG, rowsperstrip=4, compression=compression)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="file ends early"):
        io.read_image(path)


def test_every_flipped_byte_of_a_png_is_noticed(tmp_path: Path) -> None:
    whole = png(GREY8)
    path = tmp_path / "a.png"
    for at in range(8, len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"a\.png"):
            io.read_image(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "0 bytes"),
        (b"<html>404</html>", "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"GIF89a" + bytes(99), "GIF"),
        (bytes(999), "not a raster image"),
    ],
)
def test_impostors(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words):
        io.read_image(path)


def test_name_does_not_decide(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(png(RGB8))
    np.testing.assert_array_equal(io.read_image(tmp_path / "a.jpg"), channels_first(RGB8))


def test_size_is_checked_before_decoding(tmp_path: Path) -> None:
    limit = io.ReadOptions(max_voxels=34)
    for name, content in (("a.png", png(GREY8)), ("a.tif", tiff(GREY8)), ("a.jpg", jpeg(GREY8))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="more pixels than allowed"):
            io.read_image(tmp_path / name, limit)
        assert io.read_image(tmp_path / name, io.ReadOptions(max_voxels=35)).shape == (1, 5, 7)
    # A header that claims 60000 x 60000 pixels, over a few bytes.
    head = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    bomb = png(GREY8)[:8] + b"\0\0\0\r" + head + struct.pack(">I", zlib.crc32(head))
    (tmp_path / "a.png").write_bytes(bomb + png(GREY8)[33:])
    with pytest.raises(InputError, match=r"a\.png"):
        io.read_image(tmp_path / "a.png")


def test_unsupported_colours(tmp_path: Path) -> None:
    Image.new("CMYK", (4, 4)).save(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="found CMYK"):
        io.read_image(tmp_path / "a.jpg")
    Image.fromarray(GREY8).convert("P").save(tmp_path / "a.tif")
    with pytest.raises(InputError, match="indexed colours"):
        io.read_image(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "c.tif", np.zeros((4, 4), np.complex64))
    with pytest.raises(InputError, match="unsupported pixel type"):
        io.read_image(tmp_path / "c.tif")


@pytest.mark.parametrize(("n_classes", "dtype"), [(2, np.uint8), (255, np.uint8), (256, np.uint16)])
def test_labels_come_back(tmp_path: Path, n_classes: int, dtype: type) -> None:
    image = io.read_image(save_png(tmp_path / "a.png", RGB8))
    labels = (GREY16 % n_classes).astype(np.int32)[None]
    io.write_label(tmp_path / "o.png", labels, image, n_classes=n_classes)
    with Image.open(tmp_path / "o.png") as written:
        pixels = np.asarray(written)
    assert pixels.dtype == dtype
    np.testing.assert_array_equal(pixels, labels[0])
    again = io.read_label(tmp_path / "o.png", allowed=range(n_classes), like=image)
    np.testing.assert_array_equal(again.numpy(), labels)
    with pytest.raises(InputError, match="not a name for a PNG"):
        io.write_label(tmp_path / "o.jpg", labels, image, n_classes=n_classes)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_maps_come_back(tmp_path: Path, k: int) -> None:
    image = io.read_image(save_png(tmp_path / "a.png", RGB8))
    maps = RNG.random((k, 5, 7), np.float32)
    io.write_map(tmp_path / "o.tif", maps, image)
    again = io.read_image(tmp_path / "o.tif", io.ReadOptions(volume="all"))
    np.testing.assert_array_equal(again.numpy(), maps)
    with tifffile.TiffFile(tmp_path / "o.tif") as written:
        assert [page.shape for page in written.pages] == [(5, 7)] * k
        assert written.pages[0].dtype == np.float32
    with pytest.raises(InputError, match="not a name for a TIFF"):
        io.write_map(tmp_path / "o.png", maps, image)
    with pytest.raises(ValueError, match="do not fit"):
        io.write_map(tmp_path / "o.tif", maps[:, 1:], image)


def test_monai_reads_and_saves(tmp_path: Path) -> None:
    path = save_png(tmp_path / "a.png", RGB8)
    image = LoadImage(io.RasterReader, ensure_channel_first=True)(path)
    np.testing.assert_array_equal(image.numpy(), channels_first(RGB8))
    kwargs = {"separate_folder": False, "writer": io.RasterWriter, "print_log": False}
    SaveImage(tmp_path, "png", ".png", np.uint8, **kwargs)(image)
    np.testing.assert_array_equal(io.read_image(tmp_path / "a_png.png"), image)
    SaveImage(tmp_path, "tif", ".tif", **kwargs)(image / 255)
    again = io.read_image(tmp_path / "a_tif.tif", io.ReadOptions(volume="all"))
    np.testing.assert_array_equal(again, image / 255)
    SaveImage(tmp_path, "mask", ".png", np.uint16, **kwargs)(image[:1] * 200)
    label = LoadImage(io.RasterReader(label=True), dtype=None)(tmp_path / "a_mask.png")
    np.testing.assert_array_equal(label[0].numpy(), RGB8[..., 0].astype(int) * 200)
    with pytest.raises(RuntimeError, match="as PNG"):
        SaveImage(tmp_path, "two", ".png", np.uint8, **kwargs)(image[:2])


def test_monai_cannot_load_what_we_refuse(tmp_path: Path) -> None:
    """MONAI's own reader would take a transparent image for one of four channels."""
    path = save_png(tmp_path / "a.png", np.concatenate([RGB8, RGB8[..., :1]], axis=-1))
    assert LoadImage()(path).shape[-1] == 4
    with pytest.raises(InputError, match="transparent"):
        LoadImage(io.RasterReader)(path)


def test_real_images(shared_data: Path) -> None:
    """Every raster image of the shared sets reads to what Pillow decodes."""
    found = [next(folder.rglob("*.png"), None) for folder in sorted(shared_data.iterdir())]
    paths = [path for path in found if path is not None]
    assert len(paths) >= 3
    for path in paths:
        with Image.open(path) as expected:
            pixels = np.asarray(expected)
        alpha = pixels.ndim == 3 and pixels.shape[-1] in (2, 4)
        pixels = pixels[..., :-1] if alpha else pixels
        np.testing.assert_array_equal(io.read_image(path).numpy(), channels_first(pixels))
