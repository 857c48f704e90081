"""What a method is given and what it hands back.

A method is a file in `rows/` with one function, ``adapt(work) -> Adapted``; the file's name is its
name in the table, the first line of its docstring its description. It sees target scans without
masks (``work.unlabelled``); asking for ``work.labelled`` is what the table calls target labels.

Legend: C channels, *S spatial axes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from monai.data import MetaTensor
from numpy.typing import NDArray

from medseg_diff import io
from medseg_diff.checkpoint import CHECKPOINTS, CONFIG
from medseg_diff.config import Config, compare, merged
from medseg_diff.data.caselist import Case, CaseList, save_caselist
from medseg_diff.errors import UsageError
from medseg_diff.files import atomic_text
from medseg_diff.inference.predictor import Around
from medseg_diff.training.fit import Options, fit

Array = NDArray[np.float32]
# Target or source scan as read (C, *S) -> what the model is shown, same shape.
Restyle = Callable[[MetaTensor, Case], Array]
DONE = "done.json"
SOURCE_ONLY = "source_only"
ALONE = Options()


@dataclass(frozen=True)
class Adapted:
    """A method's answer: how scans are segmented from now on.

    Attributes:
        run: Trained model.
        restyle: Changes every scan before the model sees it.
        around: Changes the model for every scan; see ``Predictor.around``.
        passes: Passes through the network for each that prediction makes by itself.
        baseline: Row that the gap is counted from: the same network without adaptation.
        style: What ``restyle`` depends on, as JSON knows it.
        settings: Of prediction, in the place of the run's own.
    """

    run: Path
    restyle: Restyle | None = None
    around: Around | None = None
    passes: int = 1
    baseline: str = SOURCE_ONLY
    style: object = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Work:
    """Data, budget and folders of one row, target and seed.

    Attributes:
        config: Complete: task, plan (of the source's training scans), budget and seed.
        source: Source cases with masks.
        target: Target cases; methods use ``unlabelled`` and ``labelled``.
        shared: Folder of trainings that saw nothing of the target.
        folder: Folder of what did, and of this row's own files.
        labels_used: Whether ``labelled`` was asked for.
        target_used: Whether any target scan was.
        seconds: Seconds of all trainings that the row rests on.
    """

    config: Config
    source: CaseList
    target: CaseList
    shared: Path
    folder: Path
    labels_used: bool = False
    target_used: bool = False
    seconds: float = 0.0
    trainings: list[str] = field(default_factory=list)

    @property
    def unlabelled(self) -> CaseList:
        """Target training scans without masks; as ``test``, the only part that may lack them."""
        self.target_used = True
        cases = self.target.part("train")
        return self.target.with_cases(
            c.model_copy(update={"references": (), "part": "test", "sha256": {}}) for c in cases
        )

    @property
    def labelled(self) -> CaseList:
        """Target training and validation cases with their masks; the table says who asked."""
        self.target_used = self.labels_used = True
        return self.target

    def train(
        self,
        name: str,
        cases: CaseList,
        options: Options = ALONE,
        **changes: Any,
    ) -> Path:
        """Train on the row's budget, or take up what an earlier call did.

        Args:
            name: Of the run's folder; trainings of one name must be the same.
            cases: Its ``train`` and ``validation`` parts are used.
            options: A companion or a run to start from.
            changes: Sections of the configuration, e.g. ``model={"norm": "batch"}``.

        Raises:
            UsageError: if a training of that name was made otherwise.
        """
        home = self.folder if self.target_used else self.shared
        run, listed = home / "runs" / name, home / "lists" / f"{name}.json"
        listed.parent.mkdir(parents=True, exist_ok=True)
        cases = cases.with_cases(c for c in cases.cases if c.part != "test")
        save_caselist(cases, listed)
        listing = {"cases": str(listed), "root": str(cases.root)}
        data = {**changes.get("data", {}), **listing}
        keys = merged(self.config.model_dump(mode="json"), {**changes, "data": data, "name": name})
        config = Config.model_validate(keys)
        done = run / DONE
        if done.is_file():
            known = json.loads(done.read_text(encoding="utf-8"))
            if not _same_training(known, run, config, cases):
                raise UsageError(
                    "was trained with other settings",
                    file=run,
                    remedy="give the experiment a new --out, or remove that folder",
                )
        else:
            resume = (run / CHECKPOINTS).is_dir() and any((run / CHECKPOINTS).iterdir())
            if not resume:
                shutil.rmtree(run, ignore_errors=True)
            fit(config, run, replace(options, resume=resume))
            # The log knows the steps before a stop, too.
            seconds = float(pd.read_csv(run / "log.csv")["seconds"].sum())
            known = {**_training(config, cases), "seconds": seconds}
            atomic_text(done, json.dumps(known, indent=1) + "\n")
        self.seconds += known["seconds"]
        self.trainings.append(name)
        return run


def images_of(cases: CaseList) -> Iterator[Array]:
    """Scans as read, (C, *S), one by one."""
    for case in cases.cases:
        yield np.asarray(io.read_channels(cases.channel_paths(case)), dtype=np.float32)


def _training(config: Config, cases: CaseList) -> dict[str, Any]:
    """What a training is known by; its lists may move."""
    return {
        "settings": compare.settings(config, ["data"]),
        "cases": _digest(_listed(cases)),
    }


def _same_training(known: Mapping[str, Any], run: Path, config: Config, cases: CaseList) -> bool:
    """Whether what ``done.json`` holds is this training."""
    now = _training(config, cases)
    if "key" in known:
        # Older versions wrote a hash of settings and cases alone, but the run holds its settings.
        file = run / CONFIG
        keys = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
        keys.pop("data", None)
        # A run's own configuration is complete; what was left open to its data was hashed open.
        either = (keys, _reopened(keys, config.model_dump(mode="json")))
        matching = [one for one in either if known["key"] == _digest([one, _listed(cases)])]
        if not matching:
            return False
        known = {"settings": compare.flat(matching[0]), "cases": now["cases"]}
    differing = compare.changed(known["settings"], now["settings"], compare.defaults(config))
    return not differing and known["cases"] == now["cases"]


def _reopened(complete: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """A complete configuration with None wherever the asked one leaves the value to the data."""
    found: dict[str, Any] = {}
    for name, value in complete.items():
        wanted = asked.get(name)
        if isinstance(value, Mapping) and isinstance(wanted, Mapping):
            found[name] = _reopened(value, wanted)
        else:
            found[name] = None if wanted is None else value
    return found


def _listed(cases: CaseList) -> list[Any]:
    return [[c.case, c.part, sorted(c.channels.items()), list(c.references)] for c in cases.cases]


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
