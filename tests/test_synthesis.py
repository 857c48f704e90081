"""Scans that are made: known answers, geometry, files, the case list, and what is refused."""

from __future__ import annotations

import copy
import json
import os
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tifffile
import torch

from medseg_diff import io
from medseg_diff.batch.one_case import made_from
from medseg_diff.batch.synthetic_list import from_masks, from_noise
from medseg_diff.checkpoint import read_card
from medseg_diff.cli.main import main
from medseg_diff.config import load_config, parse_config
from medseg_diff.data.caselist import build_caselist, load_caselist, save_caselist
from medseg_diff.data.dataset import TrainingSet, preprocessed
from medseg_diff.data.prepare import prepare
from medseg_diff.errors import InputError, UsageError
from medseg_diff.inference.noise import SLICE, NoiseField
from medseg_diff.inference.predictor import Predictor
from medseg_diff.model import build_model
from medseg_diff.synthesis import Synthesizer, write_synthesis
from medseg_diff.training.fit import Options, fit
from medseg_diff.training.validation import validation_loss
from medseg_diff.translation.prior import Prior, WholeDenoiser
from tests.prior_fixtures import gaussian_run, latent_run, painting_run, stub_run
from tests.recipes.test_every_yaml import CONFIGS, overrides, write_discs
from tests.training_fixtures import write_dataset
from tests.translation_fixtures import AFFINE

# -0.5, 0 and 0.5 of the painter, in a range of 20 to 300.
GREYS = np.array([90.0, 160.0, 230.0])


def mask_file(folder: Path, size: tuple[int, ...] = (11, 13, 9)) -> tuple[Path, np.ndarray]:
    """A label map of three classes on an oblique grid of permuted axes."""
    grid = np.indices(size)
    labels = (grid[0] > 3).astype(np.uint8) + ((grid[1] > 5) & (grid[0] > 6) & (grid[2] < 5))
    file = folder / "map.nii.gz"
    nib.save(nib.Nifti1Image(labels, AFFINE), file)
    return file, labels


@pytest.mark.parametrize(
    "plan", [{}, {"spatial_dims": 2, "patch_size": [8, 8]}, {"orientation": "LPS"}]
)
def test_a_painted_map_has_the_maps_grid_and_the_trainings_units(
    tmp_path: Path, plan: dict[str, Any]
):
    """Windows overlap, the map's axes are permuted and oblique: every voxel keeps its place."""
    file, labels = mask_file(tmp_path)
    made = Synthesizer([painting_run(plan=plan)]).synthesize({"mask": file}, case="a")
    np.testing.assert_allclose(np.asarray(made.image)[0], GREYS[labels], atol=1e-3)
    write_synthesis(made, tmp_path, "a_SYNTHETIC_01")
    written, given = nib.load(tmp_path / "a_SYNTHETIC_01.nii.gz"), nib.load(file)
    np.testing.assert_array_equal(written.affine, given.affine)
    np.testing.assert_allclose(np.asarray(written.dataobj), GREYS[labels], atol=1e-3)
    assert bytes(written.header["descrip"]).startswith(b"SYNTHETIC T1")
    copied = tmp_path / "a_SYNTHETIC_01_mask.nii.gz"
    assert copied.read_bytes() == file.read_bytes()
    record = json.loads((tmp_path / "a_SYNTHETIC_01.json").read_text())
    assert record["synthetic"] is True
    assert set(record["hashes"]["written"]) == {"a_SYNTHETIC_01.nii.gz", copied.name}


def test_a_coarser_plan_comes_back_to_the_maps_grid(tmp_path: Path):
    file, labels = mask_file(tmp_path, (12, 14, 10))
    run = painting_run(plan={"spacing_mm": [2.4, 1.8, 4.0], "patch_size": [4, 4, 4]})
    made = Synthesizer([run]).synthesize({"mask": file}, case="a")
    assert made.image.shape == (1, *labels.shape)
    # Interpolated at the borders of classes; the same inside.
    assert (np.abs(np.asarray(made.image)[0] - GREYS[labels]) < 1).mean() > 0.6


def test_noise_alone_makes_the_gaussian_it_was_trained_on():
    maker = Synthesizer([gaussian_run(0.2, 0.1, prediction={"grid": "quadratic"})])
    given = {"case": "a", "size": (16, 16, 12), "steps": 60}
    made = maker.synthesize({}, **given, sampler="ancestral")
    values = np.asarray(made.image)
    assert values.shape == (1, 16, 16, 12)
    # N(0.2, 0.1^2) of -1 to 1 in a range of 280.
    assert values.mean() == pytest.approx(20 + 0.6 * 280, abs=2)
    assert values.std() == pytest.approx(14, rel=0.15)
    np.testing.assert_allclose(np.abs(np.diag(made.image.affine)[:3]), [1.2, 0.9, 2.0])
    assert np.array_equal(values, maker.synthesize({}, **given, sampler="ancestral").image)
    for change in ({"seed": 1}, {"case": "b"}, {"sampler": "ddim"}):
        other = maker.synthesize({}, **{**given, "sampler": "ancestral", **change})
        assert not np.array_equal(values, other.image), change
    batched = maker.synthesize({}, **given, sampler="ancestral", batch_size=1)
    np.testing.assert_allclose(np.asarray(batched.image), values, atol=1e-3)


def test_the_size_is_the_windows_unless_it_is_given():
    maker = Synthesizer([gaussian_run(0.0, 0.2, prediction={"steps": 1})])
    assert maker.synthesize({}, case="a").image.shape == (1, 8, 8, 6)
    flat = Synthesizer([gaussian_run(0.0, 0.2, plan={"spatial_dims": 2, "patch_size": [8, 8]})])
    assert flat.synthesize({}, case="a").image.shape == (1, 8, 8, 1)
    photo = {"spatial_dims": 2, "patch_size": [8, 8], "raster": True}
    made = Synthesizer([gaussian_run(0.0, 0.2, plan=photo)]).synthesize({}, case="a")
    assert (made.image.shape, made.image.meta["kind"]) == ((1, 8, 8), "raster")
    with pytest.raises(UsageError, match="--size"):
        maker.synthesize({}, case="a", size=(8, 8))


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PIR"])
def test_an_empty_grid_points_where_it_says(tmp_path: Path, orientation: str):
    grid = io.empty_image((4, 5, 6), (1, 2, 3), orientation)
    io.write_map(tmp_path / "a.nii.gz", grid, grid)
    loaded = nib.load(tmp_path / "a.nii.gz")
    assert "".join(nib.aff2axcodes(loaded.affine)) == orientation
    np.testing.assert_allclose(loaded.header.get_zooms(), [1, 2, 3])


def test_windows_are_blended_at_every_step():
    """A window's answer counts most in its middle; the weights add up to 1."""
    prior = Prior([gaussian_run(0.2, 0.1)])
    model = prior.model
    told, t = np.zeros((0, 13, 9, 7), np.float32), torch.tensor([0.5], dtype=torch.float64)
    x = torch.randn(1, 1, 13, 9, 7, generator=torch.Generator().manual_seed(0))
    whole = WholeDenoiser(prior, told, 0.5, 3)
    with torch.no_grad():
        # A pointwise network: windows agree, and blending changes nothing.
        alone = model.denoised(x, t, model.context(torch.from_numpy(told)[None])).clean
        torch.testing.assert_close(whole(x, t).clean, alone)
    assert whole.calls == sum(len(group) for group in whole.cells.groups) > 8

    class Middle(torch.nn.Module):
        """Each window answers with its own mean: neighbours differ."""

        def forward(self, x, t, features=None):
            return x.mean((1, 2, 3, 4), keepdim=True).expand_as(x)

    model.denoiser = Middle()
    model.register_parameter("weight", torch.nn.Parameter(torch.zeros(1)))
    with torch.no_grad():
        blended = WholeDenoiser(prior, told, 0.5, 3)(x, t).clean[0, 0]
    corner = x[0, 0, :8, :8, :6].mean()
    assert float(blended[0, 0, 0]) == pytest.approx(float(corner), abs=1e-5)
    assert float((blended[4:9] - corner).abs().max()) > 1e-3


@pytest.mark.parametrize("plan", [{}, {"spatial_dims": 2, "patch_size": [8, 8]}])
def test_a_latent_is_walked_on_its_own_grid_and_decoded_on_the_voxels(
    tmp_path: Path, plan: dict[str, Any]
):
    """Blocks of two voxels keep their place through cells, odd sizes and overlapping windows."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 3, (6, 7, 5)).astype(np.uint8)
    labels = np.repeat(np.repeat(coarse, 2, 0), 2, 1)
    labels = labels if plan else np.repeat(labels, 2, 2)
    labels = labels[:11, :13, : 9 if not plan else 5]
    file = tmp_path / "blocks.nii.gz"
    nib.save(nib.Nifti1Image(labels, np.diag([1.2, 0.9, 2.0, 1])), file)
    made = Synthesizer([latent_run(plan=plan)]).synthesize({"mask": file}, case="a")
    np.testing.assert_allclose(np.asarray(made.image)[0], GREYS[labels], atol=1e-2)


def test_noise_of_a_latent_is_that_of_its_slices():
    flat = Prior([latent_run(plan={"spatial_dims": 2, "patch_size": [8, 8]})])
    noise = flat.noise("a", 0, 0, (10, 8, 3))(0)
    assert noise.shape == (1, 2, 5, 4, 3)
    field = NoiseField(0, "a", 0, 0, 1, SLICE).window((0, 0, 1), (10, 8, 1))[..., 0]
    wanted = flat.model.noise_on_grid(torch.from_numpy(field)[None])[0]
    assert torch.equal(noise[0, ..., 1], wanted)
    assert Prior([latent_run()]).noise("a", 0, 0, (10, 8, 6))(0).shape == (1, 2, 5, 4, 3)
    with pytest.raises(InputError, match="latent's cell"):
        Prior([latent_run(prediction={"window": [9, 8, 6]})])


# Training


def keys_of(recipe: str, cases: Path, **training: Any) -> dict[str, Any]:
    return {
        "name": recipe,
        "recipe": recipe,
        "data": {"cases": str(cases)},
        "plan": {"patch_size": [8, 8, 8], "batch_size": 2},
        "model": {"features": [4, 8], "time_channels": 16},
        "training": {"steps": 4, "validate_every": 2, "save_every": 2, **training},
        "prediction": {"steps": 2},
    }


@pytest.mark.parametrize("recipe", ["image_prior", "mask_to_image"])
def test_a_sample_holds_the_scan_and_its_label_map(tmp_path: Path, recipe: str):
    """Moves reach both; nothing changes intensities, so bright stays where the label is."""
    cases = write_dataset(tmp_path)
    config, listed, _ = prepare(parse_config(keys_of(recipe, cases)))
    assert config.plan.raster is False
    train = preprocessed(listed, listed.part("train"), config.known_task, config.plan)
    samples = TrainingSet(train, config, 1)
    for number in range(12):
        sample = samples[number]
        scan, told = sample["label"].numpy(), sample["image"].numpy()
        assert scan.shape == (1, 8, 8, 8)
        assert scan.dtype == np.float32
        assert np.abs(scan).max() <= 1
        assert told.shape == ((1 if recipe == "mask_to_image" else 0), 8, 8, 8)
        if recipe == "image_prior":
            continue
        assert set(np.unique(told)) <= {0, 1}
        # Balls are 2 brighter than the rest at a noise of 0.3.
        if 50 < told.sum() < 450:
            assert scan[told == 1].mean() > scan[told == 0].mean() + 0.6
    assert np.array_equal(samples[3]["label"], samples[3]["label"])
    assert samples.sample_bytes == 8**3 * 4 * (1 + len(told) + 1)


def test_the_plan_keeps_the_units_of_what_is_made(tmp_path: Path):
    cases = write_dataset(tmp_path)
    config, listed, _ = prepare(parse_config(keys_of("image_prior", cases)))
    known = listed.part("train") + listed.part("validation")
    scans = [np.asarray(io.read_image(listed.channel_paths(c)["T1"])) for c in known]
    wanted = np.median([np.percentile(scan, [0.5, 99.5]) for scan in scans], axis=0)
    assert config.plan.image_ranges == (pytest.approx(tuple(wanted)),)
    assert [n.kind for n in config.plan.normalisation or ()] == ["percentile"]
    content = json.loads(cases.read_text()) | {"modality": "CT"}
    cases.write_text(json.dumps(content))
    config, _, _ = prepare(parse_config(keys_of("image_prior", cases)))
    (spec,) = config.plan.normalisation or ()
    assert spec.kind == "range"
    # All of the scan, not what is labelled alone; that range is what comes back.
    assert spec.clip == pytest.approx(tuple(wanted))
    assert config.plan.image_ranges == (spec.clip,)


def test_validation_is_by_a_loss_that_repeats_itself(tmp_path: Path):
    cases = write_dataset(tmp_path)
    config, listed, _ = prepare(parse_config(keys_of("mask_to_image", cases)))
    held = preprocessed(listed, listed.part("validation"), config.known_task, config.plan)
    torch.manual_seed(0)
    model = build_model(config).train()
    first = validation_loss(model, held, config)
    assert first == validation_loss(model, held, config)
    assert model.training
    assert np.isnan(validation_loss(model, [], config))
    # A network that knows the answer has less to lose than one that does not.
    better = copy.deepcopy(model)
    fit_steps = torch.optim.Adam(better.parameters(), 3e-3)
    samples = TrainingSet(held, config, 1)
    from torch.utils.data import default_collate

    from medseg_diff.data.records import Batch

    for step in range(40):
        whole = default_collate([samples[4 * step + k] for k in range(4)])
        loss = better(Batch(*(whole[k] for k in ("image", "label", "t", "noise", "coins")))).total
        fit_steps.zero_grad()
        loss.backward()
        fit_steps.step()
    assert validation_loss(better, held, config) < 0.95 * first


def test_a_list_without_structures_trains_a_prior_alone(tmp_path: Path):
    cases = write_dataset(tmp_path)
    content = json.loads(cases.read_text()) | {"labels": {"background": 0}}
    for case in content["cases"]:
        case["references"] = []
    cases.write_text(json.dumps(content))
    run = fit(parse_config(keys_of("image_prior", cases)), tmp_path / "run")
    assert read_card(run)["prior"]["condition"] == "unconditional"
    for recipe in ("mask_to_image", "unet"):
        keys = keys_of(recipe, cases)
        keys["model"] = {"features": [4, 8]}
        with pytest.raises(UsageError, match="no structure"):
            fit(parse_config(keys), tmp_path / recipe)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"kind": "unet"}}, "diffuses scans alone"),
        ({"model": {"conditioner": "pyramid"}}, "no scan to start from"),
        ({"model": {"path": "bridge", "output": "residual"}}, "no scan to start from"),
        ({"model": {"learned_variance": True}}, "learned_variance"),
        ({"model": {"self_conditioning": True}}, "self_conditioning"),
        ({"model": {"condition_dropout": 0.1}}, "condition_dropout"),
        ({"model": {"prior": "mask", "concat_image": False}}, "concat_image: true"),
        ({"model": {"condition_noise": 0.5}}, "leave out adversarial"),
        (
            {"model": {"latent": {"of": "features"}, "output": "noise", "concat_image": False}},
            "latent.of",
        ),
        ({"restoration": {"kind": "inpainting"}}, "makes scans from nothing"),
        ({"objective": {"dice": 1.0}}, "compare masks"),
        ({"training": {"augmentation": "strong"}}, "how scans look"),
        ({"prediction": {"fuse": "staple"}}, "drawn one by one"),
        ({"prediction": {"sampler": "analytic"}}, "drawn one by one"),
        ({"plan": {"normalisation": [{"kind": "zscore"}]}}, "units back"),
        ({"task": {"target": "FLAIR", "labels": {}}}, "without target"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], words: str):
    with pytest.raises(UsageError, match=words):
        stub_run(**change)


def test_other_doors_are_closed(tmp_path: Path):
    with pytest.raises(UsageError, match="medseg-diff synthesize"):
        Predictor([stub_run()])
    with pytest.raises(InputError, match="no ensemble"):
        Prior([stub_run(), stub_run()])
    photo = {"task": {"input_channels": [3]}, "plan": {"image_ranges": [[0, 1]] * 3}}
    with pytest.raises(UsageError, match="several planes"):
        Synthesizer([stub_run(**photo)])
    file, _ = mask_file(tmp_path)
    with pytest.raises(UsageError, match="from noise alone"):
        Synthesizer([stub_run()]).synthesize({"mask": file}, case="a")
    with pytest.raises(UsageError, match="from label maps"):
        Synthesizer([painting_run()]).synthesize({}, case="a")
    nib.save(nib.Nifti1Image(np.full((8, 8, 8), 7, np.uint8), AFFINE), file)
    with pytest.raises(InputError, match="no class has"):
        Synthesizer([painting_run()]).synthesize({"mask": file}, case="a")


# The command and its list


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Exit code of ``medseg-diff words...``."""
    monkeypatch.setattr(sys, "argv", ["medseg-diff", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Case list in ``data`` and a run of each recipe."""
    folder = tmp_path_factory.mktemp("synthesis")
    cases = write_dataset(folder / "data", size=10)
    for recipe in ("image_prior", "mask_to_image"):
        fit(parse_config(keys_of(recipe, cases)), folder / recipe)
    return folder


def test_pairs_that_train(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """From masks to labelled scans, beside the real ones, and a segmenter that trains on both."""
    cases, out = trained / "data" / "cases.json", tmp_path / "out"
    words = (
        "synthesize", "--model", trained / "mask_to_image", "--masks", cases, "--out", out,
        "--with", cases, "--steps", 2,
    )  # fmt: skip
    assert call(monkeypatch, *words, "--count", 4) == 0
    listed = load_caselist(out, verify=False)
    made = [case for case in listed.cases if case.site == "synthetic"]
    assert [c.case for c in made] == [
        "ball_0_SYNTHETIC_01", "ball_1_SYNTHETIC_01", "ball_2_SYNTHETIC_01", "ball_0_SYNTHETIC_02",
    ]  # fmt: skip
    assert {c.part for c in made} == {"train"}
    assert made[3].patient == "ball_0"
    assert made[0].channels == {"T1": "ball_0_SYNTHETIC_01.nii.gz"}
    assert [len(listed.part(p)) for p in ("train", "validation", "test")] == [7, 1, 1]
    real = out / "real" / "images" / "ball_0.nii.gz"
    assert real.read_bytes() == (trained / "data/images/ball_0.nii.gz").read_bytes()
    label = io.read_label(listed.reference_paths(made[0])[0])
    io.require_same_grid(io.read_image(listed.channel_paths(made[0])["T1"]), label)
    # Two rounds of one map are two scans.
    first, again = (np.asarray(io.read_image(listed.channel_paths(made[k])["T1"])) for k in (0, 3))
    assert not np.array_equal(first, again)
    before = (out / made[0].channels["T1"]).stat().st_mtime_ns
    assert call(monkeypatch, *words, "--count", 5, "--continue") == 0
    assert (out / made[0].channels["T1"]).stat().st_mtime_ns == before
    assert len(load_caselist(out).part("train")) == 8
    keys = keys_of("unet", out / "cases.json", steps=2)
    keys["model"] = {"features": [4, 8]}
    run = fit(parse_config(keys), tmp_path / "segmenter")
    assert read_card(run)["data"]["training_cases"] == 8


def test_scans_from_noise(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    out, model = tmp_path / "out", trained / "image_prior"
    words = ("synthesize", "--model", model, "--out", out)
    size = ("--size", 9, "--size", 8, "--size", 10)
    assert call(monkeypatch, *words, "--count", 2, *size) == 0
    listed = load_caselist(out)
    assert [c.case for c in listed.cases] == ["SYNTHETIC_0001", "SYNTHETIC_0002"]
    assert nib.load(out / "SYNTHETIC_0001.nii.gz").shape == (9, 8, 10)
    assert listed.labels == {"background": 0}
    fit(parse_config(keys_of("image_prior", out / "cases.json")), tmp_path / "again")
    capsys.readouterr()
    for more, line in (
        ((), "--count"),
        (("--count", 2, "--masks", trained / "data"), "leave it out"),
        (("--count", 2, "--with", trained / "data"), "no labels"),
    ):
        assert call(monkeypatch, *words, *more) == 2
        assert line in capsys.readouterr().err
    given = ("synthesize", "--model", trained / "mask_to_image", "--out", tmp_path / "m")
    assert call(monkeypatch, *given, "--count", 2) == 2
    assert call(monkeypatch, *given, "--masks", trained / "data", "--part", "tests") == 2
    segmenter = ("synthesize", "--model", "hippocampus", "--out", tmp_path / "m", "--count", 1)
    capsys.readouterr()
    assert call(monkeypatch, *segmenter) == 2
    assert "medseg-diff predict" in capsys.readouterr().err


def test_masks_of_other_meaning_are_refused(trained: Path, tmp_path: Path, monkeypatch, capsys):
    cases = write_dataset(tmp_path / "data", size=10)
    content = json.loads(cases.read_text()) | {"labels": {"background": 0, "cube": 1}}
    cases.write_text(json.dumps(content))
    words = ("synthesize", "--model", trained / "mask_to_image", "--out", tmp_path / "out")
    assert call(monkeypatch, *words, "--masks", cases) == 1
    assert "not those that the model knows" in capsys.readouterr().err
    given = (*words, "--masks", trained / "data" / "cases.json", "--with", cases)
    assert call(monkeypatch, *given) == 2
    assert "its labels is not that" in capsys.readouterr().err


def test_a_test_patients_mask_makes_no_training_case(trained: Path, tmp_path: Path, monkeypatch):
    """The merged list is refused: a scan made from a patient's mask is the patient's."""
    cases = trained / "data" / "cases.json"
    words = (
        "synthesize", "--model", trained / "mask_to_image", "--masks", cases, "--part", "test",
        "--with", cases, "--steps", 1, "--out", tmp_path / "out",
    )  # fmt: skip
    assert call(monkeypatch, *words) == 1
    assert not (tmp_path / "out" / "cases.json").exists()


def test_a_failed_case_is_left_out_of_the_list(trained: Path, tmp_path: Path, monkeypatch):
    cases = write_dataset(tmp_path / "data", size=10)
    broken = tmp_path / "data" / "labels" / "ball_1.nii.gz"
    broken.write_bytes(b"no mask")
    out = tmp_path / "out"
    words = ("synthesize", "--model", trained / "mask_to_image", "--masks", cases, "--out", out)
    assert call(monkeypatch, *words, "--steps", 1) == 8
    assert [c.patient for c in load_caselist(out).cases] == ["ball_0", "ball_2"]
    assert not (out / "ball_1_SYNTHETIC_01.nii.gz").exists()


def test_rounds_take_one_annotator_after_the_other(tmp_path: Path):
    cases = load_caselist(write_dataset(tmp_path))
    first, second = cases.part("train")[:2]
    twice = (first.references[0], second.references[0])
    listed = cases.with_cases([first.model_copy(update={"references": twice})])
    wanted = from_masks(listed, "train", 3)
    named = [(one.case.name, one.case.channels["mask"].name) for one in wanted]
    assert named == [
        ("ball_0_SYNTHETIC_01", "ball_0.nii.gz"),
        ("ball_0_SYNTHETIC_02", "ball_1.nii.gz"),
        ("ball_0_SYNTHETIC_03", "ball_0.nii.gz"),
    ]
    assert len(from_masks(cases, "train", None)) == 3
    assert len({one.patient for one in from_noise(4)}) == 4
    with pytest.raises(InputError, match="no test case"):
        from_masks(listed, "test", 1)


def test_what_a_result_depends_on(tmp_path: Path):
    """Another map, or other weights, is another result."""
    file, labels = mask_file(tmp_path)
    maker = Synthesizer([painting_run()])
    (one,) = from_noise(1)
    case = type(one.case)("a", {"mask": file})
    before = made_from(maker, case, {"seed": 0})
    assert before == made_from(maker, case, {"seed": 0})
    assert before != made_from(maker, case, {"seed": 1})
    nib.save(nib.Nifti1Image(1 - (labels > 0).astype(np.uint8), AFFINE), file)
    assert before != made_from(maker, case, {"seed": 0})


def test_lists_may_lie_apart_from_their_files(trained: Path, tmp_path: Path, monkeypatch):
    here, out = trained / "data" / "cases.json", tmp_path / "out"
    apart = tmp_path / "cases.json"
    apart.write_bytes(here.read_bytes())
    words = (
        "synthesize", "--model", trained / "mask_to_image", "--masks", apart, "--with", apart,
        "--count", 1, "--steps", 1, "--out", out,
    )  # fmt: skip
    assert call(monkeypatch, *words) == 1
    assert call(monkeypatch, *words, "--root", here.parent) == 0
    (made,) = [case for case in load_caselist(out).cases if case.site == "synthetic"]
    mask = load_caselist(out).reference_paths(made)[0]
    assert mask.read_bytes() == (trained / "data/labels/ball_0.nii.gz").read_bytes()


def test_a_real_file_is_linked_or_copied_and_never_replaced(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cases, out = trained / "data" / "cases.json", tmp_path / "out"

    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    words = (
        "synthesize", "--model", trained / "mask_to_image", "--masks", cases, "--count", 1,
        "--with", cases, "--steps", 1, "--out", out,
    )  # fmt: skip
    assert call(monkeypatch, *words) == 0
    copied = out / "real" / "images" / "ball_0.nii.gz"
    assert copied.read_bytes() == (trained / "data/images/ball_0.nii.gz").read_bytes()
    assert call(monkeypatch, *words, "--continue") == 0
    copied.write_bytes(b"another")
    assert call(monkeypatch, *words, "--continue") == 1
    assert copied.read_bytes() == b"another"


def test_raster_maps_make_tiff_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cases = write_discs(tmp_path / "data")
    keys = keys_of("mask_to_image", cases)
    keys["plan"] = {"patch_size": [16, 16], "batch_size": 2}
    run, out = fit(parse_config(keys), tmp_path / "run"), tmp_path / "out"
    words = ("synthesize", "--model", run, "--masks", cases, "--out", out, "--steps", 1)
    assert call(monkeypatch, *words) == 0
    with tifffile.TiffFile(out / "disc_0_SYNTHETIC_01.tif") as file:
        assert file.pages[0].description.startswith("SYNTHETIC grey")
        assert file.asarray().shape == (24, 24)
    assert (out / "disc_0_SYNTHETIC_01_mask.png").is_file()
    assert load_config(run / "config.yaml").plan.raster is True
    keys = keys_of("mask_to_image", out / "cases.json")
    keys["plan"] = {"patch_size": [16, 16], "batch_size": 2}
    fit(parse_config(keys), tmp_path / "again")


class _Cut(Exception):
    pass


@pytest.mark.parametrize(
    "name", ["nuclei_image_prior", "slices_mask_to_image", "slices_latent_synthesis"]
)
def test_a_yaml_trains_resumes_and_makes_scans(name: str, tmp_path: Path, monkeypatch):
    data = tmp_path / "data"
    cases = write_dataset(data) if name.startswith("slices") else write_discs(data)
    settings = overrides(name, cases)

    def cut(progress, values):
        if progress.step == 3:
            raise _Cut

    run, file = tmp_path / "run", CONFIGS / f"{name}.yaml"
    with pytest.raises(_Cut):
        fit(load_config(file, settings), run, Options(report=cut))
    words = [word for setting in settings for word in ("--set", setting)]
    assert call(monkeypatch, "train", file, "--out", run, *words, "--resume") == 0
    makes = ("synthesize", "--model", run, "--out", tmp_path / "out", "--count", 2, "--steps", 2)
    more = ("--masks", cases) if name.startswith("slices") else ()
    assert call(monkeypatch, *makes, *more) == 0
    assert len(load_caselist(tmp_path / "out").cases) == 2


def test_a_resumed_training_is_the_same(tmp_path: Path):
    cases = write_dataset(tmp_path / "data")
    config = parse_config(keys_of("mask_to_image", cases))
    whole = fit(config, tmp_path / "whole")

    def cut(progress, values):
        if progress.step == 3:
            raise _Cut

    with pytest.raises(_Cut):
        fit(config, tmp_path / "cut", Options(report=cut))
    again = fit(config, tmp_path / "cut", Options(resume=True))
    name = "model.safetensors"
    assert (whole / name).read_bytes() == (again / name).read_bytes()


def test_a_list_of_a_prior_is_saved_and_read(tmp_path: Path):
    """Without structures no mask is asked for; with them one is."""
    (tmp_path / "a.nii").write_bytes(b"")
    content: dict[str, Any] = {
        "name": "scans", "licence": "CC0", "modality": "MR", "channels": ["T1"],
        "labels": {"background": 0},
        "cases": [{"case": "a", "patient": "a", "part": "train", "channels": {"T1": "a.nii"}}],
    }  # fmt: skip
    save_caselist(build_caselist(content, root=tmp_path), tmp_path / "cases.json")
    assert load_caselist(tmp_path).structures == {}
    with pytest.raises(InputError, match="without a reference mask"):
        build_caselist(content | {"labels": {"background": 0, "a": 1}})
