"""Decodes compressed frames in a process of its own, so that a bad codec stops only itself.

Run as a script by `pixels.decode_apart`, which explains why; it imports nothing of the package.
One JSON job on standard input:

    {"memory": bytes or 0, "out": path, "out_bytes": n, "jobs": [
        {"path", "frames": [index ...], "how": "pydicom" | "simpleitk",
         "shape": [rows, columns] or [rows, columns, 3], "dtype", "scratch": folder}, ...]}

Frames go to ``out`` one after another as little-endian numbers. Standard output gets the number of
each job as it begins, then the name of the exception if one ends it.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def main() -> int:
    """Do the job; 0 if all frames were written."""
    job = json.load(sys.stdin)
    _limit(job["memory"], job["out_bytes"])
    warnings.simplefilter("ignore")
    with Path(job["out"]).open("wb") as out:
        for number, one in enumerate(job["jobs"]):
            print(number, flush=True)
            try:
                frames = _by_pydicom(one) if one["how"] == "pydicom" else _by_simpleitk(one)
                for frame in frames:
                    if list(frame.shape) != one["shape"]:
                        raise ValueError("another shape")
                    out.write(frame.astype(one["dtype"], casting="same_kind").tobytes())
            # Codecs raise what they like, and their texts may quote the file's content.
            except BaseException as error:
                print(type(error).__name__, flush=True)
                return 3
    return 0


def _limit(memory: int, out_bytes: int) -> None:
    """Cap memory and output where the system can; no core file may hold pixels."""
    with contextlib.suppress(ImportError):
        import resource

        if memory:
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_FSIZE, (out_bytes, out_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _by_pydicom(one: dict[str, Any]) -> Iterator[Any]:
    import pydicom
    from pydicom.pixels.decoders.base import get_decoder

    dataset = pydicom.dcmread(one["path"], force=True)
    decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
    for index in one["frames"]:
        yield decoder.as_array(dataset, index=index)[0]


def _by_simpleitk(one: dict[str, Any]) -> Iterator[Any]:
    """GDCM on a copy that holds pixels and nothing else: no scaling, no inversion, no name."""
    import pydicom
    import SimpleITK as sitk
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate, generate_frames

    whole = pydicom.dcmread(one["path"], force=True)
    n = int(whole.get("NumberOfFrames") or 1)
    frames = list(generate_frames(whole.PixelData, number_of_frames=n))
    bare = Dataset()
    for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit",
                    "PixelRepresentation", "SamplesPerPixel"):  # fmt: skip
        setattr(bare, keyword, whole[keyword].value)
    bare.PhotometricInterpretation = "MONOCHROME2"
    bare.SOPClassUID, bare.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "2.25.1"
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = whole.file_meta.TransferSyntaxUID
    for index in one["frames"]:
        bare.PixelData = encapsulate([frames[index]])
        bare["PixelData"].is_undefined_length = True
        with tempfile.TemporaryDirectory(dir=Path(one["scratch"])) as folder:
            name = str(Path(folder) / "frame.dcm")
            bare.save_as(name, enforce_file_format=True)
            image = sitk.ReadImage(name, imageIO="GDCMImageIO")
        yield sitk.GetArrayFromImage(image)[0]


if __name__ == "__main__":
    sys.exit(main())
