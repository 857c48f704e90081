"""What options of `predict` mean, checked before anything heavy is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medseg_diff.errors import UsageError

if TYPE_CHECKING:
    from medseg_diff.io import ReadOptions


def parse_shapes(text: str | None) -> dict[str, object] | None:
    """What `--shapes` says; its keys are checked where structures are known."""
    if text is None:
        return None
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict):
        raise UsageError(
            "not a mapping",
            field="--shapes",
            found=repr(text),
            expected="'{name: {keep_largest: true, fill_holes: true, min_volume_mm3: 20}}'",
        )
    return found


def read_options(
    affine: str,
    assume_axcodes: str | None,
    nan: float | None,
    volume: int | None,
    series: str | None,
) -> ReadOptions:
    """How to read scans that do not speak for themselves."""
    if affine not in ("auto", "sform", "qform"):
        raise UsageError(
            "unknown choice", field="--affine", found=affine, expected="auto, sform or qform"
        )
    from medseg_diff.io import ReadOptions

    try:
        return ReadOptions(
            affine=affine,  # type: ignore[arg-type]  # checked above
            assume_axcodes=assume_axcodes,
            nan_fill=nan,
            volume=volume,
            series=series,
        )
    except ValueError:
        raise UsageError(
            "not an orientation",
            field="--assume-axcodes",
            found=repr(assume_axcodes),
            expected="each of R/L, A/P, S/I once, e.g. RAS",
        ) from None
