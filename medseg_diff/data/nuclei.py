"""Data Science Bowl 2018 -> case list, with the imaging domain as site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medseg_diff.data.caselist import CaseList
from medseg_diff.data.gather import (
    About,
    Draft,
    Item,
    Labels,
    Split,
    assemble,
    check_pairs,
    list_files,
)
from medseg_diff.data.layouts import PARTS, SPLIT, mask_item
from medseg_diff.data.rewrite import any_instance, grey_to_rgb, relabel, rgb_to_grey
from medseg_diff.io import read_image

DSB2018 = About("Data Science Bowl 2018 nuclei (BBBC038)", "CC0", "other")


def from_dsb2018(
    folder: Path, out: Path, *, domains: Sequence[str] | None = None, grey: bool = False,
    split: Split = SPLIT,
) -> CaseList:  # fmt: skip
    """Data Science Bowl 2018 nuclei: one folder per imaging domain, instance masks.

    Every instance becomes label 1, and the domain the case's site. Where grey and colour
    images meet, grey ones are written as colour, so that one model can read all; with ``grey``
    every image is written as one grey channel.
    """
    names = domains or sorted(p.parent.name for p in folder.glob("*/imagesTr"))
    drafts = []
    for domain in names:
        for suffix, part in PARTS:
            images = list_files(folder / domain / f"images{suffix}")
            masks = list_files(folder / domain / f"labels{suffix}")
            check_pairs(images, masks)
            drafts += [
                Draft(
                    case,
                    case,
                    part,
                    {"image": Item(path, f"images/{path.name}")},
                    [mask_item(masks[case], case, relabel(any_instance, 2))],
                    domain,
                )
                for case, path in images.items()
            ]
    depths = {d.case: read_image(d.channels["image"].source).shape[0] for d in drafts}
    if grey:
        drafts, depths = [_in_grey(d) for d in drafts], dict.fromkeys(depths, 1)
    if len(set(depths.values())) > 1:
        drafts = [
            replace(d, channels={"image": replace(d.channels["image"], write=grey_to_rgb)})
            if depths[d.case] == 1
            else d
            for d in drafts
        ]
    about = replace(DSB2018, modality="RGB" if 3 in depths.values() else "other")
    labels = Labels({"background": 0, "nucleus": 1})
    return assemble(drafts, about, ["image"], labels, root=out, split=split)


def _in_grey(draft: Draft) -> Draft:
    image = Item(draft.channels["image"].source, f"images/{draft.case}.png", rgb_to_grey)
    return replace(draft, channels={"image": image})
