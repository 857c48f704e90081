"""Scans translated by priors: known answers on the scan's own grid, files, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from medseg_diff import io
from medseg_diff.cli.main import main
from medseg_diff.config import parse_config
from medseg_diff.diffusion.grids import time_grid
from medseg_diff.diffusion.samplers import Denoise, Denoised
from medseg_diff.diffusion.transport import with_recovered_noise
from medseg_diff.errors import InputError, UsageError
from medseg_diff.training.fit import fit
from medseg_diff.translation.prior import Prior
from medseg_diff.translation.translator import Translator
from medseg_diff.translation.unpaired import UnpairedTranslator, load_any_translator, translate_scan
from medseg_diff.translation.way import Way
from tests.prior_fixtures import gaussian_run, latent_run, painting_run
from tests.training_fixtures import write_dataset
from tests.translation_fixtures import AFFINE, tiny_translator, write_pairs

# Optimal transport between the two: y = 0.2 + 0.5 x, in the model's units.
SOURCE, TARGET = (0.0, 0.4), (0.2, 0.2)


def scan_file(folder: Path, size: tuple[int, ...] = (11, 13, 9)) -> tuple[Path, np.ndarray]:
    """A scan of 0 to 100 on an oblique grid of permuted axes."""
    grid = np.indices(size)
    values = 50 + 45 * np.sin(grid[0] / 2.0) * np.cos(grid[1] / 3.0 + grid[2])
    file = folder / "head.nii.gz"
    nib.save(nib.Nifti1Image(values.astype(np.float32), AFFINE), file)
    return file, values.astype(np.float32)


def priors(**plan: Any) -> tuple[Prior, Prior]:
    """The target's prior, 20 to 300, and the source's, 0 to 100."""
    target = gaussian_run(*TARGET, name="target", plan=plan)
    source = gaussian_run(*SOURCE, name="source", plan={**plan, "image_ranges": [[0, 100]]})
    return Prior([target]), Prior([source])


@pytest.mark.parametrize("units", ["target", "source"])
def test_inversion_gives_the_optimal_transport_in_units_on_the_scans_grid(
    tmp_path: Path, units: Any
):
    file, values = scan_file(tmp_path)
    _, source = priors()
    # The scan is normalised as its own domain is, whatever the target's range.
    other = {"normalisation": [{"kind": "range", "clip": [-500, 500]}]}
    target = Prior([gaussian_run(*TARGET, name="target", plan=other)])
    way = Way(1.0, "inversion", units)
    made = translate_scan(target, io.read_image(file), source=source, way=way, steps=400)
    low, high = (20, 300) if units == "target" else (0, 100)
    moved = 0.2 + 0.5 * (values / 50 - 1)
    wanted = low + (moved + 1) / 2 * (high - low)
    assert made.shape == (1, *values.shape)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made[0], wanted, atol=0.03 * (high - low))
    assert np.abs(made[0] - values).mean() > 5


def test_the_same_prior_twice_returns_the_scan(tmp_path: Path):
    """Recovered noise decodes to what it came from, in a handful of steps."""
    file, values = scan_file(tmp_path)
    _, source = priors()
    for strength in (0.3, 0.8):
        way = Way(strength, "noise", "source")
        made = translate_scan(source, io.read_image(file), source=source, way=way, steps=3)
        np.testing.assert_allclose(made[0], values, atol=0.01)


def test_strength_0_returns_the_scan(tmp_path: Path):
    file, values = scan_file(tmp_path)
    target, source = priors(spacing_mm=[2.0, 2.0, 2.0])
    made = translate_scan(target, io.read_image(file), source=source, way=Way(0.0))
    np.testing.assert_array_equal(made[0], values)
    answer = UnpairedTranslator(target).translate(file, strength=0.0)
    np.testing.assert_array_equal(np.asarray(answer.image)[0], values)
    assert answer.record["network_calls"]["denoiser"] == 0


def test_partial_noising_pulls_towards_the_target_with_strength(tmp_path: Path):
    """All of the scan's own spread is left at 0, the target's at 1."""
    file, values = scan_file(tmp_path)
    target, _ = priors()
    spreads = []
    for strength in (0.003, 0.3, 1.0):
        way = Way(strength, units="source")
        made = translate_scan(target, io.read_image(file), way=way, steps=200)
        spreads.append(float(made.std()))
    assert spreads[0] == pytest.approx(float(values.std()), rel=0.05)
    assert spreads[0] > spreads[1] > spreads[2]
    # N(0.2, 0.2^2) in a range of 100.
    assert spreads[2] == pytest.approx(10, rel=0.1)
    assert float(made.mean()) == pytest.approx(60, abs=2)


def test_seeds_and_draws(tmp_path: Path):
    file, _ = scan_file(tmp_path)
    target, source = priors()
    translator = UnpairedTranslator(target)
    first, again, other = (translator.translate(file, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first.image, again.image)
    assert not np.array_equal(first.image, other.image)
    assert not np.asarray(first.spread).any()
    several = translator.translate(file, draws=3)
    assert (several.record["draws_made"], several.record["network_calls"]["denoiser"]) == (
        3, 3 * first.record["network_calls"]["denoiser"],
    )  # fmt: skip
    assert float(np.asarray(several.spread).mean()) > 1
    assert np.asarray(several.spread).shape == np.asarray(first.image).shape
    flow = UnpairedTranslator(target, source).translate(file, draws=3, encoder="inversion")
    assert flow.record["draws_made"] == 1
    with_source = UnpairedTranslator(target, source)
    assert not np.array_equal(
        with_source.translate(file, seed=0).image, with_source.translate(file, seed=1).image
    )


def test_every_step_has_its_own_field_of_noise(tmp_path: Path):
    """The answer is that of the walk itself with the case's fields, one a step."""
    file, values = scan_file(tmp_path, (8, 8, 6))
    nib.save(nib.Nifti1Image(values, np.diag([1.2, 0.9, 2.0, 1])), file)
    target, source = priors()
    way, path = Way(0.7, "noise", "source"), target.model.path
    made = translate_scan(target, io.read_image(file), source=source, way=way, steps=3, case="a")
    clean = torch.from_numpy(values / 50 - 1)[None, None]
    fields = target.noise("a", 0, 0, (8, 8, 6))
    moved = with_recovered_noise(
        path, *(gaussian_of(prior) for prior in (source, target)), clean, fields(0),
        time_grid(path, 3, target.defaults.grid, 0.7), lambda index: fields(index + 1),
    )  # fmt: skip
    np.testing.assert_allclose(made, (moved[0].numpy() + 1) * 50, atol=1e-2)


def gaussian_of(prior: Prior) -> Denoise:
    """The prior's network without its windows."""
    return lambda x, t: Denoised(prior.model.denoiser(x, t).clamp(-1, 1))


def test_a_spread_is_the_deviation_of_the_draws(tmp_path: Path):
    """Draw 0 and draw 1 from one call of two are those of the walk, one by one."""
    file, _ = scan_file(tmp_path)
    translator = UnpairedTranslator(priors()[0])
    both = translator.translate(file, draws=2)
    one = translator.translate(file, draws=1)
    # Mean of two and its distance to the first: with two draws that distance is the spread.
    distance = np.abs(np.asarray(both.image) - np.asarray(one.image))
    np.testing.assert_allclose(np.asarray(both.spread), distance, atol=1e-3)


def test_two_dimensional_priors_walk_through_the_slices(tmp_path: Path):
    file, values = scan_file(tmp_path)
    target, source = priors(spatial_dims=2, patch_size=[8, 8])
    way = Way(1.0, "inversion", "source")
    made = translate_scan(target, io.read_image(file), source=source, way=way, steps=300)
    wanted = (0.2 + 0.5 * (values / 50 - 1) + 1) / 2 * 100
    np.testing.assert_allclose(made[0], wanted, atol=3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"schedule": "cosine"}}, "model.schedule is not the target's"),
        ({"model": {"input_scale": 0.5}}, "model.input_scale"),
        ({"plan": {"spacing_mm": [1, 1, 1]}}, "plan.spacing_mm"),
        ({"plan": {"patch_size": [16, 8, 6]}}, "prediction.window"),
        (
            {
                "task": {"channels": ["T1", "T2"], "input_channels": [1, 1]},
                "plan": {
                    "normalisation": [{"kind": "percentile"}] * 2,
                    "image_ranges": [[0, 1], [0, 1]],
                },
            },
            "planes",
        ),
    ],
)
def test_priors_that_cannot_share_noise_are_refused(change: dict[str, Any], words: str):
    other = Prior([gaussian_run(*SOURCE, **change)])
    with pytest.raises(UsageError, match=words):
        UnpairedTranslator(priors()[0], other)


def test_what_does_not_fit_is_refused(tmp_path: Path):
    file, _ = scan_file(tmp_path)
    target, source = priors()
    with pytest.raises(UsageError, match="from label maps"):
        UnpairedTranslator(Prior([painting_run()]))
    bare = {"conditioner": "none"}
    with pytest.raises(UsageError, match="--strength"):
        Way(1.5)
    with pytest.raises(UsageError, match="--encoder"):
        Way(0.5, "euler")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="lives in a latent"):
        UnpairedTranslator(Prior([latent_run(model={"prior": "unconditional", **bare})]))
    alone, both = UnpairedTranslator(target), UnpairedTranslator(target, source)
    for translator, words, given in (
        (alone, "--encoder", {"encoder": "noise"}),
        (alone, "--flip", {"flips": [0]}),
        (alone, "--mask", {"mask": file}),
        (both, "--degrade", {"degrade": 2}),
        (alone, "--units", {"units": "mine"}),
        (both, "--sampler", {"sampler": "ddim"}),
    ):
        with pytest.raises(UsageError, match=words):
            translator.translate(file, **given)
    twice = io.read_image(file).repeat(2, 1, 1, 1)
    with pytest.raises(InputError, match="image planes"):
        translate_scan(target, twice)
    flat = np.zeros((8, 8, 8), np.float32)
    nib.save(nib.Nifti1Image(flat, AFFINE), file)
    with pytest.raises(InputError, match="constant"):
        alone.translate(file)


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Exit code of ``medseg-diff words...``."""
    monkeypatch.setattr(sys, "argv", ["medseg-diff", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Case list in ``data`` and two priors, ``one`` and ``two``."""
    folder = tmp_path_factory.mktemp("unpaired")
    cases = write_dataset(folder / "data", size=10)
    for name, seed in (("one", 0), ("two", 1)):
        keys: dict[str, Any] = {
            "name": name, "recipe": "image_prior", "seed": seed, "data": {"cases": str(cases)},
            "plan": {"patch_size": [8, 8, 8], "batch_size": 2},
            "model": {"features": [4, 8], "time_channels": 16},
            "training": {"steps": 2, "validate_every": 2, "save_every": 2},
            "prediction": {"steps": 2},
        }  # fmt: skip
        fit(parse_config(keys), folder / name)
    return folder


def test_from_the_command_line(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cases, out = trained / "data" / "cases.json", tmp_path / "out"
    words = (
        "translate", "--model", trained / "two", "--source-model", trained / "one",
        "--input", cases, "--out", out, "--strength", 0.6, "--units", "source",
    )  # fmt: skip
    assert call(monkeypatch, *words) == 0
    file = out / "ball_4_SYNTHETIC.nii.gz"
    assert bytes(nib.load(file).header["descrip"]).startswith(b"SYNTHETIC two")
    record = json.loads((out / "ball_4.json").read_text())
    assert record["synthetic"] is True
    assert (record["strength"], record["source_model"], record["encoder"]) == (0.6, "one", "noise")
    before = file.stat().st_mtime_ns
    assert call(monkeypatch, *words, "--continue") == 0
    assert file.stat().st_mtime_ns == before
    # Another strength is another result.
    assert call(monkeypatch, *words, "--continue", "--strength", 0.3) == 0
    assert file.stat().st_mtime_ns > before
    sdedit = (
        "translate", "--model", trained / "two", "--input", cases, "--out", tmp_path / "sdedit",
        "--strength", 0.4,
    )  # fmt: skip
    assert call(monkeypatch, *sdedit) == 0
    assert json.loads((tmp_path / "sdedit/ball_4.json").read_text())["source_model"] is None
    assert call(monkeypatch, *sdedit[:-1], 4) == 2
    predict = ("predict", "--model", trained / "one", "--input", cases, "--out", tmp_path / "p")
    assert call(monkeypatch, *predict) == 2


def test_a_translator_of_pairs_takes_no_source_and_no_strength(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    pairs = write_pairs(tmp_path / "pairs")
    run = fit(tiny_translator("one_step", pairs, steps=1), tmp_path / "paired")
    assert type(load_any_translator(run)) is Translator
    with pytest.raises(UsageError, match="is a translator"):
        load_any_translator(run, source_model=trained / "one")
    words = ("translate", "--model", run, "--input", pairs, "--out", tmp_path / "out")
    assert call(monkeypatch, *words, "--strength", 0.5) == 2
    assert "--strength" in capsys.readouterr().err


def test_priors_know_no_direction(trained: Path):
    with pytest.raises(UsageError, match="--direction"):
        load_any_translator(trained / "one", direction="backward")


def test_a_scan_in_memory_is_restyled_as_a_file_is(tmp_path: Path):
    """The way in of adaptation rows is that of every translator."""
    file, _ = scan_file(tmp_path)
    translator = UnpairedTranslator(*priors())
    made = translator.restyle(io.read_image(file), "scan", seed=3)
    wanted = translator.translate(file, draws=1, seed=3, case="scan").image
    np.testing.assert_array_equal(made, np.asarray(wanted))
    with pytest.raises(UsageError, match="one draw"):
        translator.restyle(io.read_image(file), "scan", draws=2)
    with pytest.raises(InputError, match="constant"):
        translator.restyle(io.read_image(file) * 0, "scan")


def test_images_alone_have_a_prior(tmp_path: Path):
    """Neither labels nor masks: a list that can only be learned, or translated without pairs."""
    cases = write_dataset(tmp_path / "data", size=10)
    content = json.loads(cases.read_text())
    for key in ("labels", "regions", "ignore_label"):
        content.pop(key, None)
    for case in content["cases"]:
        case["references"] = []
    cases.write_text(json.dumps(content))
    keys: dict[str, Any] = {
        "name": "alone", "recipe": "image_prior", "data": {"cases": str(cases)},
        "plan": {"patch_size": [8, 8, 8], "batch_size": 2},
        "model": {"features": [4, 8], "time_channels": 16},
        "training": {"steps": 1, "validate_every": 1, "save_every": 1},
        "prediction": {"steps": 2},
    }  # fmt: skip
    run = fit(parse_config(keys), tmp_path / "run")
    assert (run / "model.safetensors").is_file()
    with pytest.raises(InputError, match="images alone"):
        fit(parse_config(keys | {"recipe": "unet", "model": {}}), tmp_path / "segmenter")
