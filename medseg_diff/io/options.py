"""What a caller may ask of a reader."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ReadOptions:
    """How to read files that do not speak for themselves. Nothing here is guessed.

    Args:
        affine: Which of a NIfTI file's two affines to believe. ``"auto"`` takes either where
            they agree (or the only one there is) and refuses where they do not.
        assume_axcodes: Axis codes such as ``"RAS"`` for NIfTI files that state no orientation
            (both codes 0); the volume is centred on the origin. ``None`` refuses them.
        nan_fill: Value that replaces NaN and infinite voxels of an image. ``None`` refuses.
        volume: Which volume of a 4-D file or series (or page of a TIFF) to read, from 0; ``"all"``
            reads them all as channels. ``None`` refuses files that hold more than one.
        series: SeriesInstanceUID, or its last digits, of the DICOM series to read. ``None``
            refuses folders and archives that hold more than one.
        max_voxels: Largest number of voxels a file may claim, checked before memory is taken.
    """

    affine: Literal["auto", "sform", "qform"] = "auto"
    assume_axcodes: str | None = None
    nan_fill: float | None = None
    volume: int | Literal["all"] | None = None
    series: str | None = None
    max_voxels: int = 2**31

    def __post_init__(self) -> None:
        """Refuse options that mean nothing."""
        if self.affine not in ("auto", "sform", "qform"):
            raise ValueError(f"affine must be auto, sform or qform, not {self.affine!r}")
        if self.assume_axcodes is not None and not _is_axcodes(self.assume_axcodes):
            raise ValueError(
                f"assume_axcodes must name each of R/L, A/P, S/I once, not {self.assume_axcodes!r}"
            )
        if self.max_voxels < 1:
            raise ValueError(f"max_voxels must be positive, not {self.max_voxels}")


def _is_axcodes(codes: str) -> bool:
    pairs = ["RL", "AP", "SI"]
    return len(codes) == 3 and all(sum(code in pair for code in codes) == 1 for pair in pairs)
