"""AdaBN: batch statistics of unlabelled target scans in the source model."""

from __future__ import annotations

from dataclasses import replace

from medseg_diff.adaptation.rows.source_only_batchnorm import NAME
from medseg_diff.adaptation.rows.source_only_batchnorm import adapt as source_only
from medseg_diff.adaptation.test_time import adapt_statistics, scan_windows
from medseg_diff.adaptation.work import Adapted, Work
from medseg_diff.checkpoint import load_run, save_model
from medseg_diff.data.dataset import preprocessed
from medseg_diff.data.transforms import network_input


def adapt(work: Work) -> Adapted:
    """Replace the statistics once, by those of all target training scans."""
    run = load_run(source_only(work).run)
    target, plan = work.unlabelled, run.config.plan
    scans = preprocessed(target, target.cases, run.config.known_task, plan)
    windows = (
        scan_windows(network_input(scan["image"], plan), run.config.window) for scan in scans
    )
    adapt_statistics(run.model, windows)
    card = {k: v for k, v in run.card.items() if k != "sha256"}
    folder = work.folder / "runs" / "adabn"
    save_model(folder, run.model, run.config, {**card, "adaptation": "AdaBN"})
    return replace(Adapted(folder), baseline=NAME)
