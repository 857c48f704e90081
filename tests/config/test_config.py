"""Configuration: what is refused, and how; what comes back unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from medseg_diff.config import load_config, merged, parse_config
from medseg_diff.errors import UsageError
from medseg_diff.model import build_model
from medseg_diff.recipes import RECIPES
from tests.tiny import KEYS, tiny_config

MINIMAL = {"model": {"features": [4, 4]}}


@pytest.mark.parametrize(
    ("keys", "place", "near"),
    [
        ({"trainning": {}}, "trainning", "training"),
        ({"training": {"step": 5}}, "training.step", "steps"),
        ({"plan": {"patchsize": [8, 8]}}, "plan.patchsize", "patch_size"),
        ({"plan": {"normalisation": [{"kind": "unit", "scal": 2}]}}, "scal", "scale"),
        ({"task": {**KEYS["task"], "label": {}}}, "task.label", "labels"),
    ],
)
def test_an_unknown_key_offers_the_nearest(keys, place: str, near: str):
    with pytest.raises(UsageError) as caught:
        parse_config(merged(MINIMAL, keys))
    assert "unknown key" in str(caught.value)
    assert place in str(caught.value)
    assert f"'{near}'" in str(caught.value)


def test_an_unknown_key_far_from_all_lists_them():
    with pytest.raises(UsageError, match=r"Known keys: .*learning_rate"):
        parse_config({**MINIMAL, "training": {"qqqqq": 1}})


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("training", "steps", 0),
        ("training", "learning_rate", -1e-3),
        ("training", "ema_decay", 1.0),
        ("prediction", "overlap", 1.0),
        ("prediction", "sampler", "magic"),
        ("model", "input_scale", 0.0),
        ("model", "input_scale", 1.5),
        ("model", "time_channels", 6),
        ("model", "betas", [0.1, 1.0]),
        ("model", "betas", []),
        ("data", "foreground_crops", 1.1),
        ("training", "steps", "many"),
    ],
)
def test_values_out_of_range_are_named(section: str, key: str, value):
    with pytest.raises(UsageError, match=rf"{section}\.{key}"):
        parse_config(merged(MINIMAL, {section: {key: value}}))


def test_parts_must_fit_together():
    with pytest.raises(UsageError, match="conditioner: anchored"):
        parse_config({"model": {"features": [4, 4], "output": "correction"}})
    with pytest.raises(UsageError, match="levels"):
        parse_config({"model": {"features": [4, 4], "conditioner_features": [4, 4, 4]}})
    for widths, sentence in (([24, 36], "one width"), ([20, 20], "multiple of heads and of 12")):
        with pytest.raises(UsageError, match=sentence):
            parse_config({"model": {"features": widths, "denoiser": "dit"}})
    with pytest.raises(UsageError, match="model"):
        parse_config({})


def test_overrides():
    config = parse_config(
        MINIMAL,
        [
            "training.steps=7",
            "training.learning_rate=1e-4",
            "name=x",
            "model.betas=[0.1, 0.2]",
            "training.augment=false",
            "data.fold=null",
        ],
    )
    assert config.training.steps == 7
    assert config.training.learning_rate == 1e-4
    assert config.name == "x"
    assert config.model.betas == (0.1, 0.2)
    assert config.training.augment is False
    assert config.training.warmup_steps == 50
    assert config.model.features == (4, 4)


def test_later_overrides_win_and_beat_the_recipe():
    config = parse_config({"recipe": "unet", "prediction": {"draws": 3}}, ["prediction.draws=4"])
    assert config.prediction.draws == 4
    assert config.model.kind == "unet"
    assert parse_config(MINIMAL, ["name=a", "name=b"]).name == "b"
    assert parse_config({}, ["recipe=anchored"]).model.output == "correction"


@pytest.mark.parametrize("override", ["training.steps", "=3", "training.steps=[1", "a.b=1"])
def test_broken_overrides_are_refused(override: str):
    with pytest.raises(UsageError):
        parse_config(MINIMAL, [override])


@pytest.mark.parametrize("name", RECIPES)
def test_yaml_round_trip(tmp_path: Path, name: str):
    config = parse_config({"recipe": name, "task": KEYS["task"], "plan": KEYS["plan"]})
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert load_config(path) == config
    changed = load_config(path, ["seed=9"])
    assert changed != config
    assert changed.seed == 9


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds(name: str):
    # MedSegDiff's two encoders need four levels; a transformer's places need a multiple of 12.
    widths = [12 if name == "dit" else 8] * 4
    small = {"model": {"features": widths}}
    if name != "unet":
        small["model"] |= {"conditioner_features": widths, "blocks": [1, 1, 1, 1]}
    model = build_model(parse_config({**KEYS, "model": {}, "recipe": name} | small))
    assert model.codec.channels == 4


def test_an_unknown_recipe_offers_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'anchored'"):
        parse_config({"recipe": "anchord"})


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2", "just words", "\x00"])
def test_broken_files_are_refused(tmp_path: Path, text: str):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"c\.yaml"):
        load_config(path)


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match=r"none\.yaml: no such"):
        load_config(tmp_path / "none.yaml")


def test_python_objects_in_yaml_are_not_made(tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text("name: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(UsageError, match="not valid YAML"):
        load_config(path)


def test_structures_go_by_value_and_regions_by_order():
    task = tiny_config().task.model_copy(update={"labels": {"b": 2, "background": 0, "a": 1}})
    assert list(task.structures.items()) == [("a", (1,)), ("b", (2,))]
    nested = task.model_copy(update={"regions": {"whole": (1, 2), "core": (2,)}})
    assert list(nested.structures) == ["whole", "core"]


def test_a_configuration_is_frozen():
    config = parse_config(MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        config.training.steps = 3
    assert yaml.safe_load(config.to_yaml())["training"]["steps"] == 1000


@pytest.mark.parametrize(
    ("model", "objective", "sentence"),
    [
        ({"output": "velocity"}, {"recycling": 0.5}, "use output clean or correction"),
        ({"output": "clean"}, {"squared_error_of": "noise"}, "leave out objective.squared_error"),
        (
            {"output": "velocity"},
            {"squared_error_of": "noise", "min_snr_gamma": 5},
            "min_snr_gamma another",
        ),
        ({}, {"variational_bound": 1}, "learned_variance"),
        ({"output": "noise", "path": "linear"}, {}, "no signal"),
        ({"output": "flow_velocity"}, {}, "path: linear"),
        ({"latent": {}}, {}, "use output noise or velocity"),
        ({"latent": {}, "output": "noise"}, {}, "set concat_image: false"),
        ({"denoiser": "medsegdiff_v1"}, {}, "needs conditioner: medsegdiff_v1"),
        ({"conditioner": "anchored", "condition_dropout": 0.1}, {}, "anchor is made from it"),
    ],
)
def test_what_cannot_stand_together_is_refused(model, objective, sentence: str):
    keys = {**KEYS, "model": {"features": [4, 4], **model}, "objective": objective}
    with pytest.raises(UsageError, match=sentence):
        parse_config(keys)
