"""Self-training: trained on the source and on the source model's masks of target scans."""

from __future__ import annotations

import shutil
from pathlib import Path

from medseg_diff import io
from medseg_diff.adaptation.work import SOURCE_ONLY, Adapted, Work
from medseg_diff.batch.run import Case as Asked
from medseg_diff.batch.run import predict_many
from medseg_diff.data.caselist import Case, CaseList, build_caselist
from medseg_diff.inference.predictor import load


def adapt(work: Work) -> Adapted:
    """One round of pseudo-labels (Lee 2013): hard masks, trained from scratch on both domains."""
    run = work.train(SOURCE_ONLY, work.source)
    target = work.unlabelled
    folder = work.folder / "self_training"
    answers = folder / "predictions"
    asked = [Asked(c.case, target.channel_paths(c)) for c in target.cases]
    predict_many(load(run, "cpu"), asked, answers, go_on=True, maps=False)
    both = pseudo_labelled(work.source, target, answers, folder)
    return Adapted(work.train("self_training", both))


def pseudo_labelled(source: CaseList, target: CaseList, answers: Path, folder: Path) -> CaseList:
    """Source training and validation cases, and target scans with predicted masks, as one list.

    Args:
        source: With masks.
        target: Whose masks, if there are any, are not looked at.
        answers: Predictions of all target scans.
        folder: Gets copies of all files.
    """
    kept = [_copied(source, c, folder, "source", None) for c in source.cases if c.part != "test"]
    found = {io.case_stem(p): p for p in answers.iterdir() if p.name.endswith((".nii.gz", ".png"))}
    kept += [_copied(target, c, folder, "target", found[c.case]) for c in target.cases]
    content = {name: getattr(source, name) for name in type(source).model_fields}
    return build_caselist({**content, "cases": tuple(kept)}, root=folder)


def _copied(cases: CaseList, case: Case, folder: Path, kind: str, mask: Path | None) -> Case:
    """A case whose files lie below ``folder``; one with a given mask is for training."""
    images = cases.channel_paths(case)
    masks = cases.reference_paths(case) if mask is None else [mask]
    names = {}
    for path in (*images.values(), *masks):
        group = "labels" if path in masks else "images"
        names[path] = f"{kind}/{group}/{path.name}"
        (folder / kind / group).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / names[path])
    return case.model_copy(
        update={
            "case": f"{kind}_{case.case}",
            "part": case.part if mask is None else "train",
            "channels": {channel: names[path] for channel, path in images.items()},
            "references": tuple(names[path] for path in masks),
            "sha256": {},
        }
    )
