"""Training: one loop on Hugging Face Accelerate, counted in optimiser steps.

Everything random about a step is fixed by its number (see ``data/dataset.py``), so the loop's own
state is the weights, their running average, the optimiser and the step.
"""

from __future__ import annotations

import itertools
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from medseg_diff import adapters
from medseg_diff.checkpoint import (
    WEIGHTS,
    LoadedRun,
    load_tensors,
    save_model,
    transfer_weights,
)
from medseg_diff.config import Config, TrainingConfig
from medseg_diff.data.caselist import CaseList
from medseg_diff.data.dataset import Preprocessed, TrainingSet, batches, preprocessed
from medseg_diff.data.prepare import open_targets, prepare
from medseg_diff.data.records import Batch
from medseg_diff.data.unpaired import training_set
from medseg_diff.data.unreadable import Skipped
from medseg_diff.errors import InputError, UsageError
from medseg_diff.model import Loss, SegmentationModel, build_model
from medseg_diff.posthoc.reflow import attach_teacher
from medseg_diff.training import frozen
from medseg_diff.training import resume as resuming
from medseg_diff.training.companion import Companion
from medseg_diff.training.log import TrainingLog, model_card
from medseg_diff.training.processes import accelerator as make_accelerator
from medseg_diff.training.processes import deaths_named, signals
from medseg_diff.training.resume import Average, Progress
from medseg_diff.training.validation import (
    in_units,
    validation_dice,
    validation_error,
    validation_loss,
)

Report = Callable[[Progress, dict[str, float]], None]


class Stopped(Exception):
    """A signal asked the training to stop; its state is saved.

    Attributes:
        exit_code: 130 for Ctrl-C, 143 for SIGTERM.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; `--resume` goes on from here")
        self.exit_code = 128 + signum


@dataclass(frozen=True)
class Options:
    """How to start.

    Attributes:
        resume: Go on from the run's last whole checkpoint.
        allow_mismatch: Resume although the configuration or the data changed.
        init: Run folder or safetensors file to fine-tune from; the run that stays frozen, where
            the configuration has ``training.lora`` or ``model.control_planes``.
        report: Called after every step with the progress and the values to show.
        skip_bad: How many cases that cannot be read may be passed over.
        companion: Makes a second loss from the complete configuration; for one process.
    """

    resume: bool = False
    allow_mismatch: bool = False
    init: Path | None = None
    report: Report | None = None
    skip_bad: int = 0
    companion: Callable[[Config], Companion] | None = None


@dataclass
class _Run:
    """What the loop works on."""

    config: Config
    cases: CaseList
    out: Path
    accelerator: Accelerator
    model: SegmentationModel
    wrapped: nn.Module
    state: resuming.State
    card: dict[str, object]
    training_set: TrainingSet
    validation: list[Preprocessed]
    log: TrainingLog
    report: Report | None
    skipped: Skipped
    base: LoadedRun | None
    companion: Companion | None

    @property
    def progress(self) -> Progress:
        """Where the training stands."""
        return self.state.progress


def fit(config: Config, out: str | Path, options: Options | None = None) -> Path:
    """Train a model and write its run folder.

    Args:
        config: What to train; open keys of ``task`` and ``plan`` are filled in from the data.
        out: Run folder; must be new or empty unless resuming.
        options: How to start.

    Returns:
        The run folder, which :func:`medseg_diff.load` reads.

    Raises:
        InputError: on bad data, a used folder, nothing to resume, or a loss that stays NaN.
        Stopped: after a signal, with the state saved.
    """
    options, out = options or Options(), Path(out)
    resuming.check_folder(out, resume=options.resume)
    accelerator = make_accelerator(config)
    set_seed(config.seed)
    main = accelerator.is_main_process
    skipped = Skipped(options.skip_bad, out if main else None)
    base = frozen.base_of(options.init, config)
    if base is not None:
        config = frozen.on_plan_of(base, config)
    config, cases, facts = prepare(config, skipped)
    if base is not None:
        config = frozen.normalised_as(base, config)
    model = build_model(config)
    if base is not None:
        frozen.start(model, base, config)
    elif options.init is not None:
        _start_from(options.init, model)
    training = config.training
    companion = _companion(options, config, accelerator)
    own = [p for p in model.parameters() if base is None or p.requires_grad]
    optimiser = torch.optim.AdamW(
        [*own, *(() if companion is None else companion.parameters())],
        lr=training.learning_rate,
        betas=training.betas,
        weight_decay=training.weight_decay,
    )
    model.train().to(accelerator.device)
    average = Average(model, training.ema_decay)
    wrapped, optimiser = accelerator.prepare(model, optimiser)
    others = open_targets(config)
    identity = resuming.identity(config, cases, others) | frozen.identity(base)
    identity |= attach_teacher(model, config, accelerator.device)
    state = resuming.State(
        model, average, optimiser, Progress(), identity, resuming.assumed(config), companion
    )
    warnings = (
        resuming.restore(out, state, allow_mismatch=options.allow_mismatch)
        if options.resume
        else []
    )
    # Without pairs there is no truth to compare a validation case's image with.
    part = cases.part("validation")[: training.validation_cases] if others is None else []
    validation = preprocessed(cases, part, config.known_task, config.plan, skipped) if main else []
    run = _Run(
        config,
        cases,
        out,
        accelerator,
        model,
        wrapped,
        state,
        model_card(config, facts, model),
        training_set(config, cases, others, model.noise_channels, skipped),
        validation,
        TrainingLog(out, state.progress.step, enabled=main),
        options.report if main else None,
        skipped,
        base,
        companion,
    )
    skipped.save()
    for sentence in warnings:
        run.log.warn(sentence)
    try:
        world = accelerator.num_processes
        with deaths_named(run.training_set, world), signals() as caught:
            _loop(run, caught)
    finally:
        run.log.close()
    return out


def _companion(options: Options, config: Config, accelerator: Accelerator) -> Companion | None:
    if options.companion is None:
        return None
    if accelerator.num_processes > 1:
        raise UsageError(
            "a training with a companion runs in one process",
            found=f"{accelerator.num_processes} processes",
        )
    return options.companion(config).train().to(accelerator.device)


def _start_from(init: Path, model: SegmentationModel) -> None:
    """Fine-tune: take over the weights that fit."""
    source = init / WEIGHTS if init.is_dir() else init
    fresh = transfer_weights(model, load_tensors(source))
    if len(fresh) == len(model.state_dict()):
        raise InputError(
            "no weight fits this model",
            file=source,
            field="--init",
            remedy="use a run of the same recipe and widths",
        )


def _loop(run: _Run, caught: list[int]) -> None:
    training, progress = run.config.training, run.progress
    main = run.accelerator.is_main_process
    stream = batches(
        run.training_set,
        progress.step * training.accumulate,
        training.steps * training.accumulate,
        rank=run.accelerator.process_index,
        world=run.accelerator.num_processes,
        skipped=run.skipped,
    )
    while progress.step < training.steps:
        began = time.perf_counter()
        if run.base is None:
            run.model.begin(progress.step)
        else:
            frozen.begin(run.model, progress.step, run.config)
        values = _step(run, stream)
        _count_bad(run, values["loss"])
        progress.step += 1
        last = progress.step == training.steps
        # Before its last stage a model has no masks to draw.
        drawing = progress.step > stages(run.config)[-2]
        if (progress.step % training.validate_every == 0 and drawing) or last:
            if main:
                _validate(run, values)
            run.accelerator.wait_for_everyone()
        values["seconds"] = time.perf_counter() - began
        # Read once, by all processes together: a signal that comes later, or to one process
        # first, is seen and saved for in the same step everywhere.
        flag = torch.tensor(float(bool(caught)), device=run.accelerator.device)
        stop = bool(run.accelerator.reduce(flag) > 0) and not last
        if main:
            run.log.row(progress.step, values)
            if progress.step % training.save_every == 0 or last or stop:
                resuming.save(run.out, run.state)
        if run.report is not None:
            run.report(progress, values)
        if stop:
            raise Stopped(caught[0] if caught else signal.SIGTERM)


def _step(run: _Run, stream: Iterator[Batch]) -> dict[str, float]:
    """One optimiser step over its micro-batches; the losses as means over all processes."""
    training, accelerator = run.config.training, run.accelerator
    rate = learning_rate(run.progress.step, training, stages(run.config))
    optimiser = run.state.optimiser
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad()
    sums: dict[str, float] = {}
    for micro in range(training.accumulate):
        batch = next(stream).to(accelerator.device)
        final = micro == training.accumulate - 1
        with nullcontext() if final else accelerator.no_sync(run.wrapped):
            with accelerator.autocast():
                loss: Loss = run.wrapped(batch)
                if run.companion is not None:
                    number = run.progress.step * training.accumulate + micro
                    loss = _joined(loss, run, batch, number)
            accelerator.backward(loss.total / training.accumulate)
        if loss.times is not None and loss.samples is not None:
            # In the order of the ranks, which is that of the global batch: the history is one and
            # the same for any number of processes.
            run.model.remember(accelerator.gather(loss.times), accelerator.gather(loss.samples))
        total = accelerator.reduce(loss.total.detach(), reduction="mean")
        for name, value in {"loss": float(total), **loss.parts}.items():
            sums[name] = sums.get(name, 0.0) + value / training.accumulate
    norm = accelerator.clip_grad_norm_(run.wrapped.parameters(), training.clip_norm)
    if math.isfinite(sums["loss"]) and bool(torch.isfinite(torch.as_tensor(norm))):
        optimiser.step()
        run.state.average.update(run.model, run.progress.step)
    return {**sums, "learning_rate": rate}


def _joined(loss: Loss, run: _Run, batch: Batch, number: int) -> Loss:
    """A loss with the companion's added."""
    if run.companion is None:
        return loss
    more = run.companion.losses(run.model, batch, number, run.state.average.tensors)
    whole = torch.stack([loss.total, *more.values()]).sum()
    parts = {name: float(value.detach()) for name, value in more.items()}
    return replace(loss, total=whole, parts={**loss.parts, **parts})


def stages(config: Config) -> tuple[int, ...]:
    """Steps at which a stage of the training begins, and the last one's end."""
    latent, steps = config.model.latent, config.training.steps
    if latent is None or latent.end_to_end or config.training.lora is not None:
        return (0, steps)
    return (0, min(latent.steps, steps), steps)


def learning_rate(step: int, training: TrainingConfig, ends: Sequence[int] | None = None) -> float:
    """Linear warm-up, then cosine or polynomial (power 0.9) decay to 0, or constant.

    Args:
        step: Number of the optimiser step, from 0.
        training: Rate, warm-up and schedule.
        ends: Where stages begin and end; each has a warm-up and a decay of its own.
    """
    ends = (0, training.steps) if ends is None else ends
    first, last = next((pair for pair in itertools.pairwise(ends) if step < pair[1]), ends[-2:])
    step, steps = step - first, last - first
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    done = (step - training.warmup_steps) / max(1, steps - training.warmup_steps)
    if training.schedule == "cosine":
        return training.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    if training.schedule == "polynomial":
        return float(training.learning_rate * (1 - done) ** 0.9)
    return training.learning_rate


def _count_bad(run: _Run, loss: float) -> None:
    """Stop after several NaN or Inf losses in a row, naming the cases they came from."""
    progress, training = run.progress, run.config.training
    if math.isfinite(loss):
        progress.bad_cases = []
        return
    share = (run.config.plan.batch_size or 1) * training.accumulate
    numbers = range(progress.step * share, (progress.step + 1) * share)
    train = run.cases.part("train")
    progress.bad_cases.append([train[run.training_set.case_of(n)[0]].case for n in numbers])
    if len(progress.bad_cases) >= training.stop_after_bad_losses:
        if run.accelerator.is_main_process:
            resuming.save_bad_cases(run.out, progress)
        raise InputError(
            "the loss is not finite",
            field=f"step {progress.step}",
            found=f"{len(progress.bad_cases)} losses of NaN or Inf in a row",
            remedy="look at the cases in bad_losses.json, or lower training.learning_rate; the "
            "last good checkpoint is kept",
        )


def _validate(run: _Run, values: dict[str, float]) -> None:
    """Sample with the averaged weights; keep them if Dice, or the error, is the best so far.

    A model of scans has nothing to sample towards: its loss decides.
    """
    with run.state.average.applied_to(run.model):
        if run.config.makes == "scans":
            name, shown = "validation_loss", validation_loss(run.model, run.validation, run.config)
            score = 1 / (1 + shown)
        elif run.config.makes == "translations":
            error = validation_error(run.model, run.validation, run.config)
            # Errors lie in [0, 2]: the best score starts below all of them.
            score, name, shown = 1 - error, "validation_mae", in_units(error, run.config)
        else:
            score = shown = validation_dice(run.model, run.validation, run.config)
            name = "validation_dice"
        values[name] = shown
        known = not math.isnan(score)
        if not known or score >= run.progress.best_dice:
            run.progress.best_dice = score if known else -1.0
            run.progress.best_step = run.progress.step
            training = {
                "steps": run.progress.step,
                name: shown if known else None,
            }
            card = {**run.card, "training": training}
            if run.base is None or run.config.training.lora is None:
                save_model(run.out, run.model, run.config, card)
            else:
                adapters.save_adapter(run.out, run.model, run.config, card, run.base)
