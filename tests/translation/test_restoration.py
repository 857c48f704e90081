"""Scans restored from themselves: how sources are made, what is never looked at, what is kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from medseg_diff.checkpoint import load_tensors
from medseg_diff.cli.main import main
from medseg_diff.config import Config, load_config, merged, parse_config
from medseg_diff.data.dataset import TrainingSet, cached_cases
from medseg_diff.data.prepare import prepare
from medseg_diff.data.records import Batch
from medseg_diff.data.restoration import (
    degraded,
)
from medseg_diff.errors import InputError, UsageError
from medseg_diff.model import InpaintingModel, NoisedConditionModel, Sampling, build_model
from medseg_diff.recipes.cascades import RESTORERS
from medseg_diff.training.fit import Options, fit
from medseg_diff.translation.translator import Translator, load_translator
from tests.training_fixtures import write_dataset
from tests.translation_fixtures import AFFINE

kind_of = pytest.mark.parametrize("recipe", RESTORERS)
dims_of = pytest.mark.parametrize("dims", [2, 3])
SIZES = {2: (21, 26), 3: (11, 14, 9)}


# Training


def tiny(recipe: str, cases: Path, dims: int = 3, **changes: Any) -> Config:
    keys: dict[str, Any] = {
        "name": f"tiny_{recipe}",
        "recipe": recipe,
        "data": {"cases": str(cases)},
        "plan": {"patch_size": [8] * dims, "batch_size": 2, "spatial_dims": dims},
        "model": {"features": [4, 8], "time_channels": 16},
        "training": {"steps": 4, "warmup_steps": 1, "validate_every": 4, "save_every": 2},
        "prediction": {"draws": 2, "steps": 2, "overlap": 0.25},
    }
    return parse_config(merged(keys, changes))


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of masks, without a target."""
    return write_dataset(tmp_path_factory.mktemp("balls"))


def samples(config: Config) -> TrainingSet:
    complete, listed, _ = prepare(config)
    found = cached_cases(listed, listed.part("train"), complete.known_task, complete.plan)
    return TrainingSet(found, complete, 1)


def test_a_list_of_masks_becomes_one_of_images(cases: Path):
    config, _, _ = prepare(tiny("inpainting", cases))
    task = config.known_task
    assert (task.target, task.labels, task.target_planes) == ("T1", {}, 1)
    assert task.restores
    assert config.plan.target_range is None
    assert config.input_planes == 2
    assert prepare(tiny("super_resolution", cases))[0].input_planes == 1


def test_a_samples_source_is_its_own_target_made_coarser(cases: Path):
    wanted = {"restoration": {"axes": [2], "factors": [4]}, "training": {"augment": False}}
    found = samples(tiny("super_resolution", cases, **wanted))
    for number in range(4):
        sample = found[number]
        target = sample["label"].numpy()
        np.testing.assert_allclose(sample["image"].numpy(), degraded(target, 4, (2,)), atol=1e-6)
        assert float(np.abs(target).max()) <= 1
        assert not np.allclose(sample["image"].numpy(), target)


def test_a_samples_hole_is_fixed_by_its_number_and_hides_the_target(cases: Path):
    found, again = (samples(tiny("inpainting", cases)) for _ in range(2))
    holes = []
    for number in range(6):
        image, target = found[number]["image"], found[number]["label"]
        assert torch.equal(image, again[number]["image"])
        hole = image[1:] > 0
        assert bool(hole.any())
        assert not bool(hole.all())
        assert float(image[:1][hole].abs().max()) == 0
        assert torch.equal(image[:1][~hole], target[~hole])
        holes.append(hole)
    assert any(not torch.equal(holes[0], hole) for hole in holes[1:])


def test_factors_are_drawn_for_each_sample(cases: Path):
    wanted = {"restoration": {"axes": [0], "factors": [2, 4]}, "training": {"augment": False}}
    found = samples(tiny("super_resolution", cases, **wanted))
    used = set()
    for number in range(12):
        image, target = (found[number][key].numpy() for key in ("image", "label"))
        used |= {f for f in (2, 4) if np.allclose(image, degraded(target, f, (0,)), atol=1e-6)}
    assert used == {2, 4}


@pytest.mark.parametrize(
    ("recipe", "change", "words"),
    [
        ("inpainting", {"restoration": {"hole_sides": [0.5, 0.2]}}, "two shares"),
        ("inpainting", {"plan": {"centre_crop": [8, 8, 8]}}, "whole scan"),
        ("inpainting", {"plan": {"normalisation": [{"kind": "zscore"}]}}, "percentile or range"),
        ("inpainting", {"model": {"condition_noise": 0.1}}, "as it is"),
        ("inpainting", {"model": {"concat_image": False}}, "concat_image"),
        ("super_resolution", {"restoration": {"axes": [2]}, "plan": {"spatial_dims": 2}}, "axes"),
        ("super_resolution", {"restoration": {"factors": [1]}}, "greater than or equal to 2"),
        ("super_resolution", {"plan": {"coordinates": True}}, "coordinates"),
    ],
)
def test_what_does_not_fit_is_refused(cases: Path, recipe: str, change: dict[str, Any], words: str):
    dims = change.get("plan", {}).pop("spatial_dims", 3)
    with pytest.raises(UsageError, match=words):
        tiny(recipe, cases, dims, **change)


def test_a_list_of_images_alone_will_do(cases: Path):
    listed = json.loads(cases.read_text())
    listed.pop("labels")
    for case in listed["cases"]:
        case.pop("references")
    alone = cases.with_name("alone.json")
    alone.write_text(json.dumps(listed))
    ours, theirs = (prepare(tiny("inpainting", each))[0] for each in (alone, cases))
    assert ours.known_task == theirs.known_task
    assert ours.plan == theirs.plan


def test_several_channels_are_refused(cases: Path):
    listed = json.loads(cases.read_text())
    listed["channels"].append("T2")
    for case in listed["cases"]:
        case["channels"]["T2"] = case["channels"]["T1"]
    other = cases.with_name("two.json")
    other.write_text(json.dumps(listed))
    with pytest.raises(UsageError, match="one channel"):
        prepare(tiny("inpainting", other))


# Models


def built(recipe: str, dims: int) -> Any:
    torch.manual_seed(0)
    keys = {
        "recipe": recipe,
        "task": {"channels": ["T1"], "target": "T1", "input_channels": [1]},
        "plan": {"spatial_dims": dims},
        "model": {"features": [8, 16, 16, 16], "time_channels": 16},
    }
    model = build_model(parse_config(keys))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def batch(model: Any, dims: int) -> Batch:
    generator, size = torch.Generator().manual_seed(1), SIZES[dims]
    target = torch.randn((2, 1, *size), generator=generator).tanh()
    image = target
    if isinstance(model, InpaintingModel):
        hole = torch.zeros(2, 1, *size)
        hole[:, :, 3:9, 4:8] = 1
        image = torch.cat([target * (1 - hole), hole], dim=1)
    noise = torch.randn((2, model.noise_channels, *size), generator=generator)
    times = torch.tensor([0.6, 0.25], dtype=torch.float64)
    return Batch(image, target, times, noise, torch.tensor([[0.9, 0.2], [0.1, 0.8]]).double())


def drawn(model: Any, given: Batch, image: torch.Tensor | None = None) -> torch.Tensor:
    context = model.context(given.image if image is None else image)
    with torch.no_grad():
        steps = list(model.trajectory(context, given.noise, Sampling("ddim", 2)))
    return steps[-1].probabilities


@kind_of
@dims_of
def test_gradients_reach_every_parameter(recipe: str, dims: int):
    model = built(recipe, dims).train()
    model(batch(model, dims)).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name


@kind_of
@dims_of
def test_equal_calls_agree_and_the_condition_decides(recipe: str, dims: int):
    model = built(recipe, dims)
    given = batch(model, dims)
    first, again = drawn(model, given), drawn(model, given)
    assert torch.equal(first, again)
    assert first.shape == given.labels.shape
    blank = given.image.clone()
    blank[:, :1] = 0
    assert float((drawn(model, given, blank) - first).abs().max()) > 1e-4


def test_super_resolution_shows_the_image_under_noise():
    model = built("super_resolution", 2)
    assert isinstance(model, NoisedConditionModel)
    assert model.coarse is None
    assert model.noise_channels == 2
    given = batch(model, 2)
    seen = model._seen(given)
    level = 0.3 * given.coins[:, 1].reshape(2, 1, 1, 1).float()
    expected = (1 - level**2).sqrt() * given.image + level * given.noise[:, :1]
    torch.testing.assert_close(seen.condition, expected)


def test_only_the_hole_is_learned_and_the_state_outside_it_is_not_seen():
    model = built("inpainting", 2)
    given = batch(model, 2)
    hole = given.image[:, 1:]
    elsewhere = given.labels + (1 - hole) * torch.randn_like(given.labels)
    inside = given.labels + 0.5 * hole
    with torch.no_grad():
        losses = [
            float(model(Batch(given.image, labels, given.t, given.noise, given.coins)).total)
            for labels in (given.labels, elsewhere, inside)
        ]
        context = model.context(given.image)
        x, t = given.noise, given.t
        outputs = [model.raw(x + change, t, context)[0] for change in (0 * x, (1 - hole) * x)]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]
    assert torch.equal(*outputs)


# From training to score


class Cut(Exception):
    pass


def cut(progress: Any, values: Any) -> None:
    if progress.step == 3:
        raise Cut


@kind_of
def test_an_interrupted_training_ends_with_the_same_weights(
    recipe: str, cases: Path, tmp_path: Path
):
    config = tiny(recipe, cases)
    whole = fit(config, tmp_path / "whole")
    with pytest.raises(Cut):
        fit(config, tmp_path / "parts", Options(report=cut))
    parts = fit(config, tmp_path / "parts", Options(resume=True))
    ours, theirs = (load_tensors(run / "model.safetensors") for run in (whole, parts))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def filler(cases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(tiny("inpainting", cases), tmp_path_factory.mktemp("filler") / "run")


@pytest.fixture(scope="module")
def finer(cases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(tiny("super_resolution", cases), tmp_path_factory.mktemp("finer") / "run")


def oblique(folder: Path, inside: float = 0.0) -> tuple[Path, Path, np.ndarray, np.ndarray]:
    """A scan on a grid that is not the model's, with ``inside`` added in its hole; and the hole."""
    rng = np.random.default_rng(3)
    values = (rng.normal(500, 90, (17, 15, 12))).astype(np.float32)
    hole = np.zeros(values.shape, np.uint8)
    hole[5:10, 4:9, 3:8] = 1
    values = values + np.float32(inside) * hole * rng.normal(size=values.shape).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, AFFINE), folder / "head.nii.gz")
    (folder / "masks").mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(hole, AFFINE), folder / "masks" / "head.nii.gz")
    return folder / "head.nii.gz", folder / "masks" / "head.nii.gz", values, hole > 0


def test_outside_the_hole_the_answer_is_the_scan_bit_for_bit(filler: Path, tmp_path: Path):
    scan, mask, values, hole = oblique(tmp_path)
    answer = load_translator(filler).translate(scan, mask=mask)
    made = answer.image[0].numpy()
    assert made.dtype == values.dtype
    np.testing.assert_array_equal(made[~hole], values[~hole])
    assert (made[hole] != values[hole]).all()
    spread = answer.spread[0].numpy()
    assert float(np.abs(spread[~hole]).max()) == 0
    assert float(spread[hole].max()) > 0
    assert answer.record["filled_voxels"] == hole.sum()
    assert answer.record["restoration"] == "inpainting"
    np.testing.assert_allclose(np.asarray(answer.image.affine), AFFINE, atol=1e-5)


def test_the_holes_content_never_reaches_the_network(filler: Path, tmp_path: Path):
    """Whatever stands in the hole, however bright: the same answer, bit for bit."""
    restorer = load_translator(filler)
    answers = []
    for number, inside in enumerate((0.0, 300.0, 1e6)):
        scan, mask, _, hole = oblique(tmp_path / str(number), inside)
        answers.append(restorer.translate(scan, mask=mask))
    for other in answers[1:]:
        np.testing.assert_array_equal(other.image[:, hole], answers[0].image[:, hole])
        np.testing.assert_array_equal(other.spread.numpy(), answers[0].spread.numpy())


def test_a_degraded_scan_is_what_is_restored(finer: Path, tmp_path: Path):
    """A network that copies its condition gives the scan made coarser, in its own units."""
    restorer = load_translator(finer)
    from tests.translation.test_translation import Copy

    run = restorer.runs[0]
    stub = Translator([type(run)(run.folder, Copy().eval(), run.config, run.card)])
    rng = np.random.default_rng(1)
    values = (rng.uniform(0, 1000, (16, 16, 16))).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "scan.nii.gz")
    low, high = np.percentile(values, (0.5, 99.5))
    plain = stub.translate(tmp_path / "scan.nii.gz").image[0].numpy()
    np.testing.assert_allclose(plain, values.clip(low, high), atol=0.02)
    coarse = stub.translate(tmp_path / "scan.nii.gz", degrade=4)
    expected = degraded(values.clip(low, high)[None], 4, (0, 1))[0]
    np.testing.assert_allclose(coarse.image[0].numpy(), expected, atol=0.02)
    assert coarse.record["degraded_by"] == 4
    assert coarse.record["range"] == pytest.approx([low, high])


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Exit code of ``medseg-diff words...``."""
    monkeypatch.setattr(sys, "argv", ["medseg-diff", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def test_finer_from_the_command_line_to_the_score(
    finer: Path, cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out, score = tmp_path / "out", tmp_path / "score"
    words = ("translate", "--model", finer, "--input", cases, "--out", out, "--degrade", 2)
    assert call(monkeypatch, *words) == 0
    assert (out / "ball_4_SYNTHETIC.nii.gz").is_file()
    assert call(monkeypatch, "evaluate", "--pred", out, "--ref", cases, "--out", score) == 0
    assert json.loads((score / "summary.json").read_text())["n_cases"] == 1
    assert call(monkeypatch, "info", finer) == 0


def test_filling_from_the_command_line(
    filler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    """A folder of masks; another mask is another result; what is missing is one line."""
    scan, mask, values, hole = oblique(tmp_path / "data")
    out = tmp_path / "out"
    words = ("translate", "--model", filler, "--input", scan, "--out", out)
    assert call(monkeypatch, *words, "--mask", mask.parent) == 0
    made = np.asarray(nib.load(out / "head_SYNTHETIC.nii.gz").dataobj, np.float32)
    np.testing.assert_array_equal(made[~hole], values[~hole])
    before = (out / "head_SYNTHETIC.nii.gz").stat().st_mtime_ns
    assert call(monkeypatch, *words, "--mask", mask.parent, "--continue") == 0
    assert (out / "head_SYNTHETIC.nii.gz").stat().st_mtime_ns == before
    nib.save(nib.Nifti1Image(np.roll(hole, 2, 0).astype(np.uint8), AFFINE), mask)
    assert call(monkeypatch, *words, "--mask", mask.parent, "--continue") == 0
    assert (out / "head_SYNTHETIC.nii.gz").stat().st_mtime_ns != before
    capsys.readouterr()
    assert call(monkeypatch, *words) == 2
    assert "--mask" in capsys.readouterr().err
    assert call(monkeypatch, *words, "--mask", mask, "--degrade", 2) == 2
    mask.unlink()
    assert call(monkeypatch, *words, "--mask", mask.parent) == 1
    assert "no mask of this case" in json.loads((out / "head.json").read_text())["error"]


@pytest.mark.parametrize(("fill", "words"), [(0, "nothing to fill"), (1, "leaves nothing")])
def test_a_mask_of_nothing_or_of_all_is_refused(
    filler: Path, tmp_path: Path, fill: int, words: str
):
    scan, mask, values, _ = oblique(tmp_path)
    nib.save(nib.Nifti1Image(np.full(values.shape, fill, np.uint8), AFFINE), mask)
    with pytest.raises(InputError, match=words):
        load_translator(filler).translate(scan, mask=mask)
    moved = AFFINE.copy()
    moved[0, 3] += 5
    nib.save(nib.Nifti1Image(np.ones(values.shape, np.uint8), moved), mask)
    with pytest.raises(InputError):
        load_translator(filler).translate(scan, mask=mask)


def test_only_a_restorer_takes_a_mask(finer: Path, tmp_path: Path):
    from tests.translation.test_translation import copying

    scan, mask, *_ = oblique(tmp_path)
    for translator, given in (
        (copying(), {"mask": mask}),
        (copying(), {"degrade": 2}),
        (load_translator(finer), {"mask": mask}),
    ):
        with pytest.raises(UsageError, match=r"--mask|--degrade"):
            translator.translate(scan, **given)


def test_a_photo_is_filled_in_its_own_colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Three planes, slices of two axes: every plane outside the hole is the photo's."""
    rng, listed = np.random.default_rng(0), []
    for number in range(3):
        name = f"photo_{number}.png"
        Image.fromarray(rng.integers(0, 256, (20, 22, 3), dtype=np.uint8)).save(tmp_path / name)
        listed.append(
            {
                "case": name[:-4], "patient": name, "channels": {"photo": name},
                "part": ("train", "validation", "test")[number], "target": None,
                "references": ["mask.png"],
            }
        )  # fmt: skip
    Image.fromarray(np.zeros((20, 22), np.uint8)).save(tmp_path / "mask.png")
    content = {
        "name": "photos", "licence": "CC0", "modality": "RGB", "channels": ["photo"],
        "labels": {"background": 0, "a": 1}, "cases": listed,
    }  # fmt: skip
    (tmp_path / "cases.json").write_text(json.dumps(content))
    run = fit(tiny("inpainting", tmp_path / "cases.json", 2), tmp_path / "run")
    hole = np.zeros((20, 22), np.uint8)
    hole[6:12, 5:11] = 1
    Image.fromarray(hole).save(tmp_path / "hole.png")
    answer = load_translator(run).translate(tmp_path / "photo_2.png", mask=tmp_path / "hole.png")
    photo = np.moveaxis(np.asarray(Image.open(tmp_path / "photo_2.png"), np.float32), -1, 0)
    made = answer.image.numpy()
    assert made.shape == photo.shape
    np.testing.assert_array_equal(made[:, hole == 0], photo[:, hole == 0])
    assert answer.spread.shape == (1, 20, 22)


@pytest.mark.parametrize("name", ["super_resolution_hippocampus", "inpainting_slices"])
def test_the_shipped_yamls_train(name: str, repository: Path, cases: Path, tmp_path: Path):
    file = repository / "configs" / f"{name}.yaml"
    dims = len(load_config(file).plan.patch_size or ())
    small = {
        "data.cases": json.dumps(str(cases)), "plan.patch_size": [16] * dims,
        "model.features": [4, 8], "training.steps": 2, "training.warmup_steps": 1,
        "training.validate_every": 2, "prediction.steps": 1,
    }  # fmt: skip
    run = fit(load_config(file, [f"{k}={v}" for k, v in small.items()]), tmp_path / "run")
    assert load_translator(run).restoration is not None
