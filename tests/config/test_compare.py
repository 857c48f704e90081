"""What a stored configuration and today's share: new keys pass, changed values never do."""

from __future__ import annotations

import json
from typing import Any

import pytest

from medseg_diff.config import Config, compare
from tests.tiny import tiny_config

LATENT: dict[str, Any] = {
    "latent": {"channels": 3},
    "output": "velocity",
    "concat_image": False,
}


def differing(before: Config, now: Config, *, gone: tuple[str, ...] = ()) -> set[str]:
    """Names that differ, where the older version did not know the keys ``gone``."""
    stored = {k: v for k, v in compare.settings(before).items() if k not in gone}
    return set(compare.changed(stored, compare.settings(now), compare.defaults(now)))


def test_a_configuration_is_its_own():
    for config in (tiny_config(), tiny_config(model=LATENT)):
        assert differing(config, config) == set()


def test_values_by_dotted_name_but_those_left_out():
    found = compare.settings(tiny_config(), ["task", "plan.spacing_mm", "training.steps"])
    assert found["model.features"] == "[4, 4]"
    assert found["plan.normalisation.0.kind"] == '"zscore"'
    assert found["model.latent"] == "null"
    gone = {"plan.spacing_mm", "training.steps"}
    assert not any(k.startswith("task.") or k in gone for k in found)
    assert "training.save_every" in found


def test_a_key_that_was_not_known_counts_as_todays_default():
    config = tiny_config(model=LATENT)
    news = ("model.latent.kl", "training.betas", "plan.normalisation.0.sd", "restoration")
    assert differing(config, config, gone=news) == set()
    # Chosen since, it is a change.
    other = tiny_config(model={**LATENT, "latent": {"channels": 3, "kl": 0.5}})
    assert differing(config, other, gone=news) == {"model.latent.kl"}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"seed": 1}, {"seed"}),
        ({"training": {"learning_rate": 0.5}}, {"training.learning_rate"}),
        ({"plan": {"normalisation": [{"kind": "zscore", "sd": 2.0}]}}, {"plan.normalisation.0.sd"}),
    ],
)
def test_values_from_a_default_and_back_to_it_differ(
    changes: dict[str, Any], names: set[str], turned: bool
):
    pair = tiny_config(), tiny_config(**changes)
    assert differing(*(pair[::-1] if turned else pair)) == names


@pytest.mark.parametrize("turned", [False, True])
def test_a_section_of_nothing_but_defaults_is_not_none(turned: bool):
    none = {k: v for k, v in LATENT.items() if k != "latent"}
    pair = tiny_config(model=none), tiny_config(model={**none, "latent": {}})
    found = differing(*(pair[::-1] if turned else pair))
    assert found
    assert all(name.startswith("model.latent") for name in found)


def test_a_default_that_has_changed_since_is_noticed():
    config = tiny_config()
    stored = compare.settings(config) | {"training.warmup_steps": "51"}
    now = compare.settings(config)
    assert compare.changed(stored, now, compare.defaults(config)) == {
        "training.warmup_steps": ("51", "50")
    }


def test_a_key_that_is_gone_is_noticed():
    config = tiny_config()
    stored = compare.settings(config) | {"model.wings": json.dumps(2)}
    found = compare.changed(stored, compare.settings(config), compare.defaults(config))
    assert found == {"model.wings": ("2", None)}


def test_what_somebody_chose_may_not_be_missing():
    config = tiny_config(seed=3)
    assert differing(config, config, gone=("seed", "model.features")) == {"seed", "model.features"}
