"""Low-rank adapters: nothing changes at first, only they learn, and they belong to one base."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import medseg_diff as md
from medseg_diff import recipes
from medseg_diff.adapters import adapted, load_adapter
from medseg_diff.checkpoint import load_run, load_tensors
from medseg_diff.cli.describe import describe
from medseg_diff.cli.main import main
from medseg_diff.config import Config, merged, parse_config
from medseg_diff.errors import InputError, UsageError
from medseg_diff.model import LatentModel, SegmentationModel
from medseg_diff.networks import lora
from medseg_diff.training.fit import Options, fit
from tests.recipes.test_recipes import batch, built, drawn
from tests.training_fixtures import tiny, write_dataset

recipe_of = pytest.mark.parametrize("recipe", recipes.RECIPES)
dims_of = pytest.mark.parametrize("dims", [2, 3])


def attached(recipe: str, dims: int, **options: object) -> SegmentationModel:
    """A recipe's model with adapters of rank 2, beyond its first stage."""
    model = copy.deepcopy(built(recipe, dims))
    model.begin(1)
    lora.attach(model, 2, 4.0, without="autoencoder", **options)
    return model


def stirred(model: nn.Module) -> None:
    """Adapters that have learned something."""
    torch.manual_seed(1)
    with torch.no_grad():
        for change in lora.adapters(model).values():
            change.b.normal_(std=0.1)


@recipe_of
@dims_of
def test_a_new_adapter_changes_no_bit(recipe: str, dims: int) -> None:
    plain, model = built(recipe, dims), attached(recipe, dims)
    given = batch(model, dims)
    before, after = (drawn(m, given.image, given.noise)[-1].probabilities for m in (plain, model))
    assert torch.equal(before, after)


@recipe_of
@dims_of
def test_only_adapters_learn_and_every_one_does(recipe: str, dims: int) -> None:
    model = attached(recipe, dims)
    stirred(model)
    if isinstance(model, LatentModel):
        model.first_stage = False
    before = {name: value.clone() for name, value in model.state_dict().items()}
    free = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(free, lr=1e-2, weight_decay=0)
    model(batch(model, dims)).total.backward()
    optimiser.step()
    changes = lora.adapters(model)
    assert sum(len(list(c.parameters())) for c in changes.values()) == len(free)
    for name, change in changes.items():
        assert float(change.a.grad.abs().max()) > 0, name
        assert float(change.b.grad.abs().max()) > 0, name
    moved = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    assert moved
    assert all(n.endswith((".0.a", ".0.b")) for n in moved)


@recipe_of
@dims_of
def test_merged_equals_attached(recipe: str, dims: int) -> None:
    """In the base's own weights, and by torch's own removal of a parametrization."""
    model, base = attached(recipe, dims), copy.deepcopy(built(recipe, dims))
    stirred(model)
    given = batch(model, dims)
    apart, plain = (
        drawn(m, given.image, given.noise)[-1].probabilities.detach() for m in (model, base)
    )
    assert float((apart - plain).abs().max()) > 1e-4
    lora.merge(base, lora.tensors(model), 2.0)
    removed = copy.deepcopy(model)
    for place in [*lora.places(removed)]:
        if nn.utils.parametrize.is_parametrized(place.layer, place.weight):
            nn.utils.parametrize.remove_parametrizations(place.layer, place.weight)
    for whole in (base, removed):
        assert not lora.adapters(whole)
        p = drawn(whole, given.image, given.noise)[-1].probabilities.detach()
        torch.testing.assert_close(p, apart, rtol=0, atol=1e-5)


def test_the_change_is_of_the_rank_and_gain_that_was_asked_for() -> None:
    """A convolution's change, as a matrix of outputs by the rest, has rank 3 and gain alpha / 3."""
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 6, 3)
    before = layer.weight.detach().clone()
    assert lora.attach(layer, 3, 12.0) == ["weight"]
    (change,) = lora.adapters(layer).values()
    assert (change.a.shape, change.b.shape) == ((3, 72), (6, 3))
    stirred(layer)
    difference = (layer.weight - before).detach().reshape(6, 72)
    assert int(torch.linalg.matrix_rank(difference, atol=1e-4)) == 3
    torch.testing.assert_close(difference, 4 * (change.b @ change.a).detach())


def test_a_rank_is_bounded_by_the_weight() -> None:
    layer = nn.Linear(5, 2)
    lora.attach(layer, 4, 4.0)
    (change,) = lora.adapters(layer).values()
    assert (change.a.shape, change.b.shape, change.gain) == ((2, 5), (2, 2), 1.0)


def test_patterns_choose_layers_and_whole_parameters() -> None:
    model = attached("diff_unet", 2, layers=("denoiser.up.*",), whole=("denoiser.*.adn.N.*",))
    assert all(name.startswith("denoiser.up.") for name in lora.adapters(model))
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    norms = {name for name in names if ".adn.N." in name}
    assert norms
    assert names - norms == {n for n in names if n.endswith((".0.a", ".0.b"))}
    pairs = {f"{name}.lora_{half}" for name in lora.adapters(model) for half in "ab"}
    assert set(lora.tensors(model)) == norms | pairs


def test_a_layer_that_is_trained_whole_has_no_adapter() -> None:
    """Also of a latent model, whose autoencoder no pattern reaches."""
    model = attached("diff_unet", 2, whole=("denoiser.head.*",))
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {"denoiser.head.weight", "denoiser.head.bias"} < names
    assert "denoiser.head.weight" not in lora.adapters(model)
    stirred(model)
    with torch.no_grad():
        model.denoiser.head.bias += 1
    base = copy.deepcopy(built("diff_unet", 2))
    lora.merge(base, lora.tensors(model), 2.0)
    given = batch(model, 2)
    first, second = (
        drawn(m, given.image, given.noise)[-1].probabilities.detach() for m in (model, base)
    )
    torch.testing.assert_close(first, second, rtol=0, atol=1e-5)
    latent = attached("lsegdiff", 2, whole=("*.bias",))
    free = [name for name, p in latent.named_parameters() if p.requires_grad]
    assert free
    assert not [name for name in free if name.startswith("autoencoder")]


@pytest.mark.parametrize("options", [{"layers": ("denoser.*",)}, {"whole": ("norms",)}])
def test_a_pattern_that_fits_nothing_is_refused(options: dict[str, tuple[str]]) -> None:
    with pytest.raises(ValueError, match="is named"):
        attached("diff_unet", 2, **options)


# From training to prediction


def adapting(cases: Path, **training: object) -> Config:
    """The tiny model's configuration, with adapters."""
    keys = {"lora": {"rank": 2, "alpha": 4.0}, "steps": 4, "save_every": 1, "validate_every": 4}
    return tiny(cases, **{**keys, **training})


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("balls"))


@pytest.fixture(scope="module")
def base(cases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(tiny(cases, steps=3, validate_every=3), tmp_path_factory.mktemp("base") / "run")


@pytest.fixture(scope="module")
def adapter(cases: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adapter") / "run"
    return fit(adapting(cases), out, Options(init=base))


def test_a_run_of_adapters_is_small_and_names_its_base(base: Path, adapter: Path) -> None:
    hashed = json.loads((base / "card.json").read_text())["sha256"]["model.safetensors"]
    card = json.loads((adapter / "card.json").read_text())
    assert card["sha256"]["base"] == card["adapter"]["base"] == hashed
    learned = load_tensors(adapter / "adapter.safetensors")
    assert card["adapter"]["parameters"] == sum(t.numel() for t in learned.values())
    assert card["adapter"]["parameters"] < card["parameters"]
    assert not (adapter / "model.safetensors").exists()
    assert any(float(t.abs().max()) > 0 for n, t in learned.items() if n.endswith("lora_b"))
    assert f"of tiny ({hashed[:12]})" in describe(str(adapter))


def test_the_shipped_models_adapter_is_a_few_hundred_kilobytes(tmp_path: Path) -> None:
    """Rank 4 on every layer of the shipped model of 2 million parameters."""
    model = load_run(Path(md.__file__).parent / "models" / "hippocampus").model
    lora.attach(model, 4, 8.0)
    save_file(lora.tensors(model), tmp_path / "a.safetensors")
    assert 100_000 < (tmp_path / "a.safetensors").stat().st_size < 700_000


def test_prediction_needs_both_and_file_and_folder_agree(
    cases: Path, base: Path, adapter: Path
) -> None:
    scan = cases.parent / "images" / "ball_4.nii.gz"
    answers = [
        md.load(base, "cpu", adapter=given).predict(scan, seed=1)
        for given in (None, adapter, adapter / "adapter.safetensors")
    ]
    plain, first, second = (answer.probability.as_tensor() for answer in answers)
    assert not torch.equal(plain, first)
    assert torch.equal(first, second)
    assert "adapter" not in answers[0].record["hashes"]
    card = json.loads((adapter / "card.json").read_text())
    assert answers[1].record["hashes"]["adapter"] == [card["sha256"]["adapter.safetensors"]]
    with pytest.raises(InputError, match="an adapter, not a whole model"):
        md.load(adapter, "cpu")
    with pytest.raises(UsageError, match="belongs to one model"):
        md.load([base, base], "cpu", adapter=adapter)


def test_the_command_line_takes_an_adapter(
    cases: Path, base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks of the base and of the adapted base are two answers, in one folder for each."""
    hashes = []
    for name, more in (("plain", []), ("adapted", ["--adapter", str(adapter)])):
        words = ["predict", "--model", str(base), "--input", str(cases), "--out"]
        monkeypatch.setattr("sys.argv", ["medseg-diff", *words, str(tmp_path / name), *more])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert not stopped.value.code
        hashes.append(json.loads((tmp_path / name / "ball_4.json").read_text())["hashes"])
    assert hashes[0]["model"] == hashes[1]["model"]
    assert ["adapter" in each for each in hashes] == [False, True]


def test_another_base_is_refused(cases: Path, adapter: Path, tmp_path: Path) -> None:
    other = fit(tiny(cases, steps=1, validate_every=1, warmup_steps=1), tmp_path / "other")
    with pytest.raises(InputError, match="belongs to another base") as refused:
        md.load(other, "cpu", adapter=adapter)
    assert "\n" not in str(refused.value)


def test_numbers_that_changed_are_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    file = tmp_path / "adapter.safetensors"
    tensors, found = load_file(adapter / "adapter.safetensors"), load_adapter(adapter)
    metadata = {"base": found.base, "config": found.config.model_dump_json(), "digest": "0"}
    metadata["card"] = json.dumps(found.card)
    save_file(tensors, file, metadata)
    with pytest.raises(InputError, match="not those that were written"):
        adapted(load_run(base), file)
    for broken in ({}, {"config": "[]"}, {"config": "{"}, {"card": "{}"}, {"card": "[" * 10**5}):
        save_file(tensors, file, {**metadata, **broken} if broken else None)
        with pytest.raises(InputError, match="not an adapter"):
            load_adapter(file)


class _Cut(Exception):
    pass


def test_a_cut_training_of_adapters_goes_on_bit_for_bit(
    cases: Path, base: Path, adapter: Path, tmp_path: Path
) -> None:
    def cut(progress, values):
        if progress.step == 3:
            raise _Cut

    run = tmp_path / "run"
    with pytest.raises(_Cut):
        fit(adapting(cases), run, Options(init=base, report=cut))
    with pytest.raises(UsageError, match="belongs to a trained run"):
        fit(adapting(cases), run, Options(resume=True))
    other = fit(tiny(cases, steps=1, validate_every=1, warmup_steps=1), tmp_path / "other")
    with pytest.raises(InputError, match="base: "):
        fit(adapting(cases), run, Options(resume=True, init=other))
    fit(adapting(cases), run, Options(resume=True, init=base))
    whole, resumed = (load_tensors(r / "adapter.safetensors") for r in (adapter, run))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_base_is_left_as_it_was(cases: Path, base: Path, adapter: Path) -> None:
    """Adapters and their average aside, the last resume point holds the base's own weights."""
    kept = load_tensors(base / "model.safetensors")
    point = load_tensors(adapter / "checkpoints" / "step_00000004" / "tensors.safetensors")
    for kind in ("model", "average"):
        held = {
            name.removeprefix(f"{kind}/")
            .replace("parametrizations.", "")
            .replace(".original", ""): value
            for name, value in point.items()
            if name.startswith(f"{kind}/") and not name.endswith((".0.a", ".0.b"))
        }
        assert held.keys() == kept.keys()
        assert all(torch.equal(held[name], kept[name]) for name in kept)


def test_open_keys_of_the_plan_are_the_bases(cases: Path, base: Path, adapter: Path) -> None:
    ours, theirs = load_adapter(adapter).config.plan, load_run(base).config.plan
    assert ours.normalisation == theirs.normalisation
    assert ours.spacing_mm == theirs.spacing_mm


def test_what_cannot_be_adapted_is_refused(cases: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="belongs to a trained run"):
        fit(adapting(cases), tmp_path / "a")
    wider = parse_config(merged(adapting(cases).model_dump(), {"model": {"time_channels": 8}}))
    with pytest.raises(InputError, match=r"model\.time_channels: its model is not the one"):
        fit(wider, tmp_path / "b", Options(init=base))
    more = merged(
        adapting(cases).model_dump(),
        {"task": {"channels": ["T1"], "labels": {"background": 0, "ball": 1, "no": 2}}},
    )
    with pytest.raises(InputError, match="other channels or structures"):
        fit(parse_config(more), tmp_path / "c", Options(init=base))


def test_a_latents_autoencoder_stays_frozen(cases: Path, tmp_path: Path) -> None:
    keys = tiny(cases, steps=3, validate_every=3).model_dump(exclude={"model", "objective"})
    model = {"features": [4, 8], "time_channels": 16, "latent": {"features": [4, 8], "steps": 1}}
    keys |= {"recipe": "lsegdiff", "model": model}
    first = fit(parse_config(keys), tmp_path / "base")
    keys["training"] |= {"lora": {"rank": 2}, "steps": 2, "validate_every": 2}
    second = fit(parse_config(keys), tmp_path / "run", Options(init=first))
    names = load_tensors(second / "adapter.safetensors").keys()
    assert names
    assert not [name for name in names if name.startswith("autoencoder")]
