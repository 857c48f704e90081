"""A trained source model and a few labelled target scans."""

from __future__ import annotations

from medseg_diff.adaptation.work import SOURCE_ONLY, Adapted, Work
from medseg_diff.adapters import adapted
from medseg_diff.checkpoint import load_run, save_model
from medseg_diff.data.caselist import CaseList
from medseg_diff.errors import InputError
from medseg_diff.training.fit import Options


def low_rank_adapters(work: Work, name: str, shots: int) -> Adapted:
    """LoRA (Hu et al. 2021, arXiv 2106.09685) of every convolution, merged into the source model.

    The source model is frozen; thin matrices beside its weights (``training.lora``, rank 4) are
    trained on the first ``shots`` labelled target cases for the row's budget, which comes on top of
    the source model's own. There is no validation: nobody who has one labelled scan has sixteen
    more to choose weights on, so the last averaged weights are taken.

    Args:
        work: Of the row.
        name: Of the row.
        shots: Labelled target cases.

    Raises:
        InputError: if the target has fewer.
    """
    base = work.train(SOURCE_ONLY, work.source)
    lora = {"rank": 4, "alpha": 8.0, "layers": ["*"], "whole": []}
    options = Options(init=base)
    run = work.train(name, _shots(work, name, shots), options, training={"lora": lora})
    whole = adapted(load_run(base), run)
    # A folder of its own that predicts like any other: the adapter's needs its base.
    folder = work.folder / "runs" / f"{name}_merged"
    card = {k: v for k, v in whole.card.items() if k not in ("sha256", "adapter")}
    config = whole.config.model_copy(
        update={"training": whole.config.training.model_copy(update={"lora": None})}
    )
    save_model(folder, whole.model, config, {**card, "adaptation": f"LoRA, {shots} cases"})
    return Adapted(folder)


def fine_tuning(work: Work, name: str, shots: int) -> Adapted:
    """All weights of the source model, trained on: what adapters are compared with.

    Args, budget, validation and refusals as :func:`low_rank_adapters`.
    """
    base = work.train(SOURCE_ONLY, work.source)
    return Adapted(work.train(name, _shots(work, name, shots), Options(init=base)))


def _shots(work: Work, name: str, shots: int) -> CaseList:
    """The first labelled training cases of the target, alone."""
    target = work.labelled
    chosen = target.part("train")[:shots]
    if len(chosen) < shots:
        raise InputError(
            "the target has too few labelled training cases",
            field=f"rows.{name}",
            found=len(chosen),
            expected=shots,
        )
    return target.with_cases(chosen)
