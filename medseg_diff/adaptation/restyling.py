"""Models of scans alone that give target scans the source's look, for the rows that do so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medseg_diff.adaptation.source_diffusion import sections
from medseg_diff.adaptation.work import Restyle, Work
from medseg_diff.data.caselist import CaseList, build_caselist, save_caselist
from medseg_diff.recipes import seed
from medseg_diff.translation.prior import Prior, load_prior
from medseg_diff.translation.translator import load_translator
from medseg_diff.translation.unpaired import translate_scan
from medseg_diff.translation.way import Way

# Denoiser steps a scan, in the place of the recipe's 50, for two CPU cores.
STEPS = 10
# What a model of scans has to plan for itself: its own range of intensities.
OPEN = {"normalisation": None, "image_ranges": None, "target_range": None}


def images_alone(cases: CaseList) -> CaseList:
    """The training and validation scans of a list without any mask."""
    kept = [
        # Target scans come as `test`, the part that may lack masks.
        c.model_copy(
            update={
                "references": (),
                "sha256": {},
                "part": "validation" if c.part == "validation" else "train",
            }
        )
        for c in cases.cases
    ]
    content = {name: getattr(cases, name) for name in type(cases).model_fields}
    own = {"labels": {"background": 0}, "regions": None, "ignore_label": None}
    return build_caselist({**content, **own, "cases": tuple(kept)}, root=cases.root)


def source_prior(work: Work) -> Prior:
    """Recipe `image_prior` on the source's scans."""
    chosen = (c for c in work.source.cases if c.part != "test")
    return _prior(work, "image_prior_source", images_alone(work.source.with_cases(chosen)))


def target_prior(work: Work) -> Prior:
    """The same on the target's training scans."""
    return _prior(work, "image_prior_target", images_alone(work.unlabelled))


def _prior(work: Work, name: str, cases: CaseList) -> Prior:
    changes = sections(work.config, "image_prior", prediction={"steps": STEPS})
    return load_prior(work.train(name, cases, **_bare(changes)), "cpu")


def _bare(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Sections for a training without masks, which makes its own task and ranges."""
    return {**changes, "plan": OPEN, "task": None, "data": {"foreground_crops": 0.0}}


def walked(way: Way, target: Prior, source: Prior | None = None) -> Restyle:
    """Scans as ``target`` knows them; see ``translation.unpaired.translate_scan``."""
    return lambda image, case: translate_scan(
        target, image, source=source, way=way, steps=STEPS, case=case.case
    )


def adversarial(work: Work) -> Restyle:
    """Recipe `syndiff` from target scans to source scans."""
    target = images_alone(work.unlabelled)
    others = work.folder / "lists" / "syndiff_source.json"
    others.parent.mkdir(parents=True, exist_ok=True)
    chosen = (c for c in work.source.cases if c.part == "train")
    save_caselist(images_alone(work.source.with_cases(chosen)), others)
    keys = seed("syndiff")
    changes = _bare(sections(work.config, keys))
    changes["data"] |= {"target_cases": str(others), "target_root": str(work.source.root)}
    changes["training"] = keys["training"]
    translator = load_translator(work.train("syndiff", target, **changes), "cpu")
    return lambda image, case: translator.restyle(image, case.case)
