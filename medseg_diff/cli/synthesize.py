"""The command that makes scans; see ``main.py``, which gives it its name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg_diff.cli.cases import BatchSize, Device, GoOn, Seed, run_cases
from medseg_diff.errors import UsageError

if TYPE_CHECKING:
    from medseg_diff.batch.synthetic_list import Wanted
    from medseg_diff.synthesis import Synthesizer


def synthesize(
    model: Annotated[str, typer.Option(help="Run folder of recipe image_prior or mask_to_image.")],
    out: Annotated[Path, typer.Option(help="Folder for scans, masks, JSONs and cases.json.")],
    count: Annotated[
        int | None,
        typer.Option(min=1, help="Scans to make; with --masks one for each case by default."),
    ] = None,
    masks: Annotated[
        Path | None, typer.Option(help="Case list whose masks the scans are made from.")
    ] = None,
    part: Annotated[
        str, typer.Option(help="Part of --masks: train, validation or test.")
    ] = "train",
    real: Annotated[
        Path | None,
        typer.Option("--with", help="Case list whose cases cases.json is to hold besides."),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(help="Folder that the lists' paths start from; each list's own by default."),
    ] = None,
    seed: Seed = 0,
    steps: Annotated[int | None, typer.Option(help="Sampler steps per scan.")] = None,
    sampler: Annotated[str | None, typer.Option(help="As for `predict`.")] = None,
    size: Annotated[
        list[int] | None,
        typer.Option(help="Voxels along an axis, once for each; the patch's. Without --masks."),
    ] = None,
    go_on: GoOn = False,
    batch_size: BatchSize = None,
    device: Device = "auto",
) -> None:
    """Make SYNTHETIC scans, from noise or from label maps, and a case list that trains on them."""
    from medseg_diff.batch.synthetic_list import write_list
    from medseg_diff.data.caselist import load_caselist
    from medseg_diff.synthesis import load_synthesizer

    maker = load_synthesizer(model, device)
    wanted = _wanted(maker, masks, root, part, count)
    beside = None if real is None else load_caselist(real, root)
    code = run_cases(
        maker,
        [one.case for one in wanted],
        out,
        go_on=go_on,
        seed=seed,
        steps=steps,
        sampler=sampler,
        size=size or None,
        batch_size=batch_size,
    )
    if code != 1:
        print(f"case list: {write_list(maker, wanted, out, beside)}")
    raise typer.Exit(code)


def _wanted(
    maker: Synthesizer, masks: Path | None, root: Path | None, part: str, count: int | None
) -> list[Wanted]:
    """The scans that the options ask for."""
    from medseg_diff.batch.synthetic_list import check_masks, from_masks, from_noise
    from medseg_diff.data.caselist import PARTS, load_caselist

    if (masks is not None) != maker.takes_masks:
        raise UsageError(
            "this model makes scans from label maps: give their case list" if maker.takes_masks
            else "this model makes scans from noise alone: leave it out",
            field="--masks",
        )  # fmt: skip
    if masks is None:
        if count is None:
            raise UsageError("say how many scans to make", field="--count")
        return from_noise(count)
    chosen = next((known for known in PARTS if known == part), None)
    if chosen is None:
        raise UsageError("unknown part", field="--part", found=part, expected=", ".join(PARTS))
    cases = load_caselist(masks, root)
    check_masks(maker, cases, masks)
    return from_masks(cases, chosen, count)
