"""The first scored case of a target: as the source shows it, as the target does, and every row."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medseg_diff import io
from medseg_diff.adaptation.experiment import Experiment, domain_cases, scores_folder
from medseg_diff.data.caselist import FILE_NAME, Case, CaseList, load_caselist
from medseg_diff.figures import Panel, domain_panels


def target_picture(experiment: Experiment, target: str, out: Path) -> bytes:
    """PNG of one slice: source, target, then what each row was shown and answered.

    Args:
        experiment: That was run.
        target: Name of one of its targets.
        out: The experiment's folder.

    Raises:
        InputError: if a scan or a prediction is missing.
    """
    source = domain_cases(experiment, experiment.source, out / "domains" / "source")
    cases = domain_cases(experiment, experiment.targets[target], out / "domains" / target)
    case = next(c for c in cases.part(experiment.part) if c.references)
    reference = np.asarray(io.read_label(cases.reference_paths(case)[0]))[0]
    cut = _cut(reference)
    panels = []
    # Domains of other patients have no picture of this one.
    twin = next((c for c in source.cases if c.case == case.case), None)
    if twin is not None:
        panels.append(Panel("source", _image(source, twin)[cut].T, reference[cut].T))
    panels.append(Panel("target", _image(cases, case)[cut].T, reference[cut].T))
    for row in experiment.rows:
        folder = scores_folder(out, target, experiment.seeds[0], row, "target")
        shown = folder / "images" / FILE_NAME
        listed = load_caselist(shown.parent) if shown.is_file() else cases
        own = next(c for c in listed.cases if c.case == case.case)
        image = _image(listed, own)
        path = next(
            p
            for p in (folder / "predictions").iterdir()
            if io.case_stem(p) == case.case and p.name.endswith((".nii.gz", ".png"))
        )
        mask = np.asarray(io.read_label(path))[0]
        panels.append(Panel(row.replace("_", " "), image[cut].T, reference[cut].T, mask[cut].T))
    return domain_panels(panels, [v for values in cases.structures.values() for v in values])


def _cut(reference: np.ndarray) -> tuple[slice | int, ...]:
    """The slice of the last axis with most of the reference; all of a 2-D image."""
    if reference.ndim == 2:
        return (slice(None), slice(None))
    return (slice(None), slice(None), int((reference > 0).sum((0, 1)).argmax()))


def _image(cases: CaseList, case: Case) -> np.ndarray:
    return np.asarray(io.read_channels(cases.channel_paths(case)))[0]
