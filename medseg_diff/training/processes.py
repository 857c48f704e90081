"""The processes of a training: how they find each other, and what happens when one dies."""

from __future__ import annotations

import re
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from medseg_diff.config import Config
from medseg_diff.data.dataset import TrainingSet
from medseg_diff.data.workers import BROKEN_PIPE
from medseg_diff.errors import InputError, UsageError

# What gloo and NCCL say when a process of the group is gone, or has not answered in time.
_PEER_GONE = re.compile(
    r"gloo|nccl|connection (closed|reset)|broken pipe|timed out|timeout", re.IGNORECASE
)


def accelerator(config: Config) -> Accelerator:
    """What moves tensors and sums gradients; a process that does not answer is given up on."""
    training = config.training
    gpu = torch.cuda.is_available()
    if training.precision != "no" and not gpu:
        raise UsageError(
            "mixed precision needs a GPU",
            field="training.precision",
            found=training.precision,
            expected="no",
            remedy="on most CPUs half precision is many times slower",
        )
    # A model trained in stages leaves the other stages' parameters without a gradient.
    staged = DistributedDataParallelKwargs(find_unused_parameters=config.model.latent is not None)
    patience = InitProcessGroupKwargs(timeout=timedelta(minutes=training.patience_minutes))
    return Accelerator(
        mixed_precision=training.precision, cpu=not gpu, kwargs_handlers=[staged, patience]
    )


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collect the first SIGINT or SIGTERM; a second one acts at once."""
    caught: list[int] = []
    previous: dict[signal.Signals, Any] = {}

    def note(signum: int, frame: FrameType | None) -> None:
        caught.append(signum)
        for each, handler in previous.items():
            signal.signal(each, handler)

    for each in (signal.SIGINT, signal.SIGTERM):
        try:
            previous[each] = signal.signal(each, note)
        except ValueError:  # not the main thread: signals are somebody else's
            break
    try:
        yield caught
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


@contextmanager
def deaths_named(training_set: TrainingSet, world: int) -> Iterator[None]:
    """Turn the death of a data-loading process (K07, K16) or of a rank (K18) into one line.

    Raises:
        InputError: naming the cases that a killed data-loading process was at, or saying that a
            process of the training is gone.
    """

    def named(error: Exception) -> InputError:
        found = _loader_died(training_set, error) or _rank_died(world, error)
        if found is None:
            raise error
        _let_go(error)
        return found

    failure: InputError | None = None
    try:
        try:
            yield
        except (RuntimeError, *BROKEN_PIPE) as error:
            failure = named(error)
    except (RuntimeError, *BROKEN_PIPE) as error:
        # torch raises where a signal finds the program, also while an earlier death is handled.
        failure = named(error)
    if failure is not None:
        raise failure


def _let_go(error: BaseException | None) -> None:
    """End the loader that an error's frames hold: until then torch may report a death once more.

    Its handler raises wherever the next signal of a process that ends finds the program: in the
    closing of the log, say, after the line for the user is made.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def _loader_died(training_set: TrainingSet, error: Exception) -> InputError | None:
    numbers = training_set.watch.lost(error)
    if numbers is None:
        return None
    names = sorted({training_set.case_name(n) for n in numbers if n >= 0})
    return InputError(
        "a data-loading process was killed by the operating system, probably memory",
        field=f"case {', '.join(names)}" if names else "training.workers",
        remedy="use fewer training.workers or free memory, then train with --resume",
    )


def _rank_died(world: int, error: Exception) -> InputError | None:
    if world == 1 or not _PEER_GONE.search(str(error)):
        return None
    return InputError(
        f"another of the {world} processes of this training is gone or does not answer",
        found=str(error).splitlines()[0][:120],
        remedy="see what it said, then train with --resume",
    )
