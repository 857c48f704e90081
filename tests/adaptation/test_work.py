"""What a finished training is known by, and by whom it may be taken up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from medseg_diff.adaptation import work as module
from medseg_diff.adaptation.work import DONE, Work
from medseg_diff.data.caselist import load_caselist
from medseg_diff.errors import UsageError
from tests.adaptation.fixtures import unet_config, work_on

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Work, Path]:
    torch.set_num_threads(1)
    work = work_on(tmp_path_factory.mktemp("work"), training={"steps": 1})
    return work, work.train("plain", work.source)


@pytest.fixture
def again(made: tuple[Work, Path], monkeypatch: pytest.MonkeyPatch):
    """Ask for the training once more, of whose record something may have been edited."""
    work, run = made
    monkeypatch.setattr(module, "fit", None)
    whole = (run / DONE).read_text()

    def ask(edit: Edit, **changes: Any) -> Path:
        record = json.loads(whole)
        edit(record)
        (run / DONE).write_text(json.dumps(record))
        return work.train("plain", work.source, **changes)

    yield ask
    (run / DONE).write_text(whole)


def untouched(record: dict[str, Any]) -> None:
    """Nothing is edited."""


def test_a_training_is_taken_up_and_no_other(again, made: tuple[Work, Path]):
    assert again(untouched) == made[1]
    with pytest.raises(UsageError, match="other settings"):
        again(untouched, training={"learning_rate": 0.5})
    with pytest.raises(UsageError, match="other settings"):
        again(lambda record: record.update(cases="0" * 16))


def test_a_key_that_was_not_known_may_stay_at_its_default(again, made: tuple[Work, Path]):
    def older(record: dict[str, Any]) -> None:
        del record["settings"]["training.betas"]

    assert again(older) == made[1]
    with pytest.raises(UsageError, match="other settings"):
        again(older, training={"betas": [0.5, 0.9]})
    # The other way round: chosen then, at its default now.
    with pytest.raises(UsageError, match="other settings"):
        again(lambda record: record["settings"].update({"training.betas": "[0.5, 0.9]"}))


def test_a_hash_of_older_versions_is_checked_by_the_runs_own_settings(
    again, made: tuple[Work, Path]
):
    work, run = made
    cases = load_caselist(work.shared / "lists" / "plain.json", work.source.root)
    config = unet_config(work.source.root / "cases.json", training={"steps": 1}, name="plain")
    keys = config.model_dump(mode="json")
    keys.pop("data")
    # As it was written when nobody knew of `training.betas`.
    del keys["training"]["betas"]
    listed = [[c.case, c.part, sorted(c.channels.items()), list(c.references)] for c in cases.cases]
    text = json.dumps([keys, listed], sort_keys=True).encode()
    stored = {"key": hashlib.sha256(text).hexdigest()[:16], "seconds": 2.5}
    saved = run / "config.yaml"
    whole = saved.read_text()

    def older(record: dict[str, Any]) -> None:
        record.clear()
        record.update(stored)

    betas = "  betas:\n  - 0.9\n  - 0.999\n"
    assert betas in whole
    saved.write_text(whole.replace(betas, ""))
    try:
        assert again(older) == run
        assert work.seconds >= 2.5
        with pytest.raises(UsageError, match="other settings"):
            again(older, training={"betas": [0.5, 0.9]})
        # A run whose settings are not those of the hash says nothing.
        saved.write_text(whole)
        with pytest.raises(UsageError, match="other settings"):
            again(older)
        saved.unlink()
        with pytest.raises(UsageError, match="other settings"):
            again(older)
    finally:
        saved.write_text(whole)


def test_an_older_hash_of_what_the_data_filled_in_later_is_known_too(tmp_path: Path, monkeypatch):
    """A model of scans plans for itself: hashed with an open plan, saved with a whole one."""
    torch.set_num_threads(1)
    work = work_on(tmp_path, training={"steps": 1})
    changes: dict[str, Any] = {"plan": {"normalisation": None}, "training": {"steps": 1}}
    run = work.train("open", work.source, **changes)
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["plan"]["normalisation"]
    cases = load_caselist(work.shared / "lists" / "open.json", work.source.root)
    saved.pop("data")
    listed = [[c.case, c.part, sorted(c.channels.items()), list(c.references)] for c in cases.cases]

    def hashed(plan: dict[str, Any]) -> None:
        keys = {**saved, "plan": {**saved["plan"], **plan}}
        text = json.dumps([keys, listed], sort_keys=True).encode()
        record = {"key": hashlib.sha256(text).hexdigest()[:16], "seconds": 1.0}
        (run / DONE).write_text(json.dumps(record))

    monkeypatch.setattr(module, "fit", None)
    hashed({"normalisation": None})
    assert work.train("open", work.source, **changes) == run
    # Another key that was left open is another training.
    hashed({"normalisation": None, "patch_size": None})
    with pytest.raises(UsageError, match="other settings"):
        work.train("open", work.source, **changes)
