"""A further condition of a frozen denoiser: nothing changes at first, and only the copy learns."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import medseg_diff as md
from medseg_diff.checkpoint import LoadedRun, load_run, load_tensors
from medseg_diff.config import Config, merged, parse_config
from medseg_diff.data.caselist import build_caselist, save_caselist
from medseg_diff.errors import InputError, UsageError
from medseg_diff.model import DiffusionModel, build_model
from medseg_diff.networks.controlnet import ControlledUNet
from medseg_diff.training.fit import Options, fit
from medseg_diff.training.frozen import start
from tests.recipes.test_recipes import TASKS, batch, built, drawn, keys
from tests.training_fixtures import tiny, write_dataset

# With the image beside the state, with and without a conditioner.
RECIPES = ("anchored", "diff_unet", "ensemdiff")
recipe_of = pytest.mark.parametrize("recipe", RECIPES)
dims_of = pytest.mark.parametrize("dims", [2, 3])
PARTS = ("denoiser.copy.", "denoiser.enter.", "denoiser.leave.")


def with_condition(recipe: str, dims: int) -> tuple[DiffusionModel, Config]:
    """A recipe's model on four planes, the last a condition, of the base on three."""
    more = keys(recipe, dims, control_planes=1)
    more["task"] = more["task"] | {"input_channels": [4]}
    config, torch_model = parse_config(more), built(recipe, dims)
    torch.manual_seed(3)
    model = build_model(config)
    assert isinstance(model, DiffusionModel)
    start(model, LoadedRun(Path("base"), torch_model, parse_config(keys(recipe, dims)), {}), config)
    return model.eval(), config


def four_planes(dims: int) -> tuple[Any, Tensor]:
    """The common batch with a fourth plane, and the batch's own image."""
    given = batch(built("anchored", dims), dims)
    extra = torch.randn(given.labels.shape, generator=torch.Generator().manual_seed(9))
    return replace(given, image=torch.cat([given.image, extra], 1)), given.image


def stirred(model: nn.Module) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(PARTS[1:]):
                parameter.add_(0.1 * torch.randn_like(parameter))


@recipe_of
@dims_of
def test_it_begins_as_its_base_bit_for_bit(recipe: str, dims: int) -> None:
    model, _ = with_condition(recipe, dims)
    given, image = four_planes(dims)
    ours = drawn(model, given.image, given.noise)[-1].probabilities
    theirs = drawn(built(recipe, dims), image, given.noise)[-1].probabilities
    assert torch.equal(ours, theirs)


@recipe_of
@dims_of
def test_only_the_copy_learns_and_all_of_it_does(recipe: str, dims: int) -> None:
    model, _ = with_condition(recipe, dims)
    stirred(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    free = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(name.startswith(PARTS) for name in free)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    given, _ = four_planes(dims)
    losses = []
    for step in range(10):
        optimiser.zero_grad()
        loss = model.train()(given).total
        loss.backward()
        if step == 0:
            silent = {n for n, p in model.named_parameters() if n in free and not p.grad.any()}
            assert not silent
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    moved = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    assert moved == free


@recipe_of
@dims_of
def test_the_condition_changes_the_answer_through_every_part(recipe: str, dims: int) -> None:
    """A learned copy answers by its condition; without its ways in or out it is the base."""
    model, _ = with_condition(recipe, dims)
    stirred(model)
    given, image = four_planes(dims)
    blank = torch.cat([image, torch.zeros_like(image[:, :1])], 1)

    def answer(of: DiffusionModel, planes: Tensor) -> Tensor:
        return drawn(of, planes, given.noise)[-1].clean

    with_it = answer(model, given.image)
    assert float((with_it - answer(model, blank)).abs().max()) > 1e-4
    assert torch.equal(with_it, answer(model, given.image))
    plain = answer(built(recipe, dims), image)
    assert float((with_it - plain).abs().max()) > 1e-4
    denoiser = model.denoiser
    assert isinstance(denoiser, ControlledUNet)
    for level in range(len(denoiser.leave)):
        shorter = copy.deepcopy(model)
        nn.init.zeros_(shorter.denoiser.leave[level].weight)
        nn.init.zeros_(shorter.denoiser.leave[level].bias)
        assert float((with_it - answer(shorter, given.image)).abs().max()) > 1e-5, level
    for layer in denoiser.leave:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    assert torch.equal(answer(model, given.image), plain)


# From training to prediction


def write_pairs(folder: Path) -> tuple[Path, Path]:
    """Case lists of the same balls with T1 alone, and with T2, their smeared mask, besides."""
    first = write_dataset(folder)
    listed = []
    for number in range(5):
        name = f"ball_{number}"
        mask = np.asarray(nib.load(folder / "labels" / f"{name}.nii.gz").dataobj)
        second = mask * 3.0 + np.random.default_rng(number).normal(0, 0.2, mask.shape)
        image = nib.Nifti1Image(second.astype(np.float32), np.eye(4))
        nib.save(image, folder / "images" / f"{name}_t2.nii.gz")
        part = "train" if number < 3 else ("validation" if number < 4 else "test")
        files = {"T1": f"images/{name}.nii.gz", "T2": f"images/{name}_t2.nii.gz"}
        listed.append({"case": name, "patient": name, "part": part, "channels": files})
        listed[-1]["references"] = [f"labels/{name}.nii.gz"]
    content = {"name": "pairs", "licence": "CC0", "modality": "MR", "channels": ["T1", "T2"]}
    content |= {"labels": {"background": 0, "ball": 1}, "cases": listed}
    save_caselist(build_caselist(content, root=folder), folder / "pairs.json")
    return first, folder / "pairs.json"


def controlled(cases: Path, **more: Any) -> Config:
    training = {"steps": 4, "save_every": 1, "validate_every": 4}
    whole = merged(tiny(cases, **training).model_dump(), {"model": {"control_planes": 1}})
    return parse_config(merged(whole, more))


class _Cut(Exception):
    pass


def test_from_a_base_to_a_prediction_with_two_channels(tmp_path: Path) -> None:
    first, both = write_pairs(tmp_path / "data")
    base = fit(tiny(first, steps=3, validate_every=3), tmp_path / "base")
    with pytest.raises(UsageError, match="belongs to a trained run"):
        fit(controlled(both), tmp_path / "none")
    with pytest.raises(InputError, match="the base's channels first"):
        fit(controlled(both, model={"control_planes": 2}), tmp_path / "two", Options(init=base))

    def cut(progress, values):
        if progress.step == 2:
            raise _Cut

    run = tmp_path / "run"
    with pytest.raises(_Cut):
        fit(controlled(both), run, Options(init=base, report=cut))
    fit(controlled(both), run, Options(init=base, resume=True))
    whole = fit(controlled(both), tmp_path / "whole", Options(init=base))
    kept, found, again = (load_tensors(f / "model.safetensors") for f in (base, run, whole))
    assert all(torch.equal(found[name], again[name]) for name in again)
    for name, value in kept.items():
        ours = name.replace("denoiser.", "denoiser.base.").replace(
            "conditioner.", "conditioner.inner."
        )
        assert torch.equal(found[ours], value), name
    plan, theirs = load_run(run).config.plan, load_run(base).config.plan
    assert plan.normalisation[:1] == theirs.normalisation
    assert len(plan.normalisation) == 2
    files = {
        "T1": both.parent / "images" / "ball_4.nii.gz",
        "T2": both.parent / "images" / "ball_4_t2.nii.gz",
    }
    answer = md.load(run, "cpu").predict(files, seed=1)
    assert answer.mask.shape == (1, 16, 16, 16)


@pytest.mark.parametrize(
    ("model", "more", "complaint"),
    [
        ({"concat_image": False}, {}, "set concat_image: true"),
        ({"self_conditioning": True}, {}, "leave out self_conditioning"),
        ({}, {"training": {"lora": {"rank": 2}}}, "leave one out"),
    ],
)
def test_what_does_not_fit_a_further_condition_is_refused(
    model: dict[str, Any], more: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint):
        parse_config({**keys("diff_unet", 2, control_planes=1, **model), **more})


def test_a_condition_that_leaves_no_image_is_refused() -> None:
    config = parse_config(keys("diff_unet", 2, task="one", control_planes=1))
    assert TASKS["one"]["input_channels"] == [1]
    with pytest.raises(UsageError, match="no plane of the image is left"):
        build_model(config)
