"""One scan translated: units, geometry, seeds, windows, files, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medseg_diff.checkpoint import LoadedRun, read_card, save_model
from medseg_diff.cli.main import main
from medseg_diff.codecs import ImageCodec
from medseg_diff.config import Config, parse_config
from medseg_diff.data.caselist import build_caselist, load_caselist
from medseg_diff.data.prepare import prepare
from medseg_diff.data.transforms import normalise, to_range
from medseg_diff.errors import InputError, UsageError
from medseg_diff.inference.predictor import Predictor
from medseg_diff.model import Estimate, SegmentationModel, build_model
from medseg_diff.networks.conditioners import Context
from medseg_diff.training.fit import fit
from medseg_diff.translation.translator import Translator, load_translator
from tests.tiny import save_untrained, tiny_config
from tests.translation_fixtures import AFFINE, paired, tiny_translator, write_pairs

KEYS: dict[str, Any] = {
    "name": "tiny",
    "recipe": "palette",
    "task": {"modality": "MR", "channels": ["T1"], "target": "FLAIR"},
    "plan": {
        "spatial_dims": 3,
        "spacing_mm": [1.2, 0.9, 2.0],
        "orientation": "RAS",
        "patch_size": [16, 12, 8],
        "normalisation": [{"kind": "range", "clip": [0, 100]}],
        "target_range": [20, 300],
        "batch_size": 1,
    },
    "model": {"features": [4, 8], "time_channels": 16},
    "prediction": {"draws": 2, "steps": 2, "overlap": 0.25},
}


class Copy(SegmentationModel):
    """The image itself as the state, plus a share of the draw's noise."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.codec, self.noise, self.stochastic = ImageCodec(1), noise, noise > 0
        self.weight = nn.Parameter(torch.zeros(1))

    def loss(self, batch: Any) -> Any:
        """Never trained."""
        raise NotImplementedError

    def context(self, image: Tensor) -> Context:
        """The image itself."""
        return Context(image)

    def trajectory(self, context: Any, noise: Tensor, sampling: Any, fresh_noise: Any = None):
        """One estimate."""
        state = (context.image + self.noise * noise).clamp(-1, 1)
        yield Estimate(0, 0.0, state, state, 1, self.codec.probabilities_from_state)


def copying(noise: float = 0.0, **plan: Any) -> Translator:
    """A translator of known answer: 0..100 of the input becomes 20..300 of the target."""
    config = parse_config({**KEYS, "plan": {**KEYS["plan"], **plan}})
    card = {"sha256": {"model.safetensors": "0"}}
    return Translator([LoadedRun(Path("stub"), Copy(noise).eval(), config, card)])


def scan(folder: Path, name: str = "head.nii.gz") -> tuple[Path, np.ndarray]:
    values = paired((15, 18, 13), 1)[0].clip(0, 100)
    folder.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, AFFINE), folder / name)
    return folder / name, values


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Exit code of ``medseg-diff words...``."""
    monkeypatch.setattr(sys, "argv", ["medseg-diff", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def test_the_answer_has_the_targets_units_and_the_scans_grid(tmp_path: Path):
    """An identity in the model's units: 20 + 2.8 x at every voxel, whatever the axes' order."""
    file, values = scan(tmp_path)
    answer = copying().translate(file)
    np.testing.assert_allclose(answer.image[0].numpy(), 20 + 2.8 * values, atol=1e-3)
    np.testing.assert_allclose(np.asarray(answer.image.affine), AFFINE, atol=1e-6)
    assert float(answer.spread.abs().max()) == 0
    assert answer.record["range"] == [20, 300]
    assert answer.record["draws_made"] == 1


def test_the_spread_is_the_draws_standard_deviation_in_the_targets_units(tmp_path: Path):
    """Where nothing is clipped noise of 0.1 in a range of 2 spreads by 0.1 * 280 / 2."""
    file, values = scan(tmp_path)
    answer = copying(0.1, patch_size=[20, 16, 14]).translate(file, draws=150, batch_size=150)
    inside = (values > 25) & (values < 75)
    assert float(answer.spread[0].numpy()[inside].mean()) == pytest.approx(14, rel=0.05)
    error = answer.image[0].numpy()[inside] - (20 + 2.8 * values[inside])
    assert abs(float(error.mean())) < 1


def test_what_the_crop_did_not_see_is_the_ranges_lowest_value(tmp_path: Path):
    file, values = scan(tmp_path)
    answer = copying(centre_crop=[8, 8, 8]).translate(file)
    seen = answer.image[0].numpy() > 20.001
    assert 0 < seen.sum() <= 512
    assert float(answer.image.min()) == pytest.approx(20)
    np.testing.assert_allclose(answer.image[0].numpy()[seen], (20 + 2.8 * values)[seen], atol=1e-3)


def untrained(folder: Path, **changes: Any) -> Path:
    torch.manual_seed(0)
    config = parse_config({**KEYS, **changes})
    save_model(folder, build_model(config), config, {"name": "tiny"})
    return folder


def test_same_seed_same_answer_whatever_the_batch(tmp_path: Path):
    file, _ = scan(tmp_path)
    translator = load_translator(untrained(tmp_path / "run"))
    first, again = (translator.translate(file, seed=3) for _ in range(2))
    assert torch.equal(first.image.as_tensor(), again.image.as_tensor())
    other = translator.translate(file, seed=3, batch_size=2)
    torch.testing.assert_close(other.image.as_tensor(), first.image.as_tensor(), atol=1e-2, rtol=0)
    assert not torch.equal(
        translator.translate(file, seed=4).image.as_tensor(), first.image.as_tensor()
    )
    assert float(first.spread.max()) > 0


def test_models_of_images_and_of_masks_are_not_confused(tmp_path: Path, capsys, monkeypatch):
    """Each command refuses the other's models in one line that names the right command."""
    file, _ = scan(tmp_path / "scans")
    images = untrained(tmp_path / "images")
    masks = save_untrained(tmp_path / "masks", tiny_config())
    for command, run, right in (("predict", images, "translate"), ("translate", masks, "predict")):
        words = (command, "--model", run, "--input", file, "--out", tmp_path / "out")
        assert call(monkeypatch, *words) == 2
        told = capsys.readouterr().err.strip().splitlines()
        assert len(told) == 1
        assert f"use `medseg-diff {right}`" in told[0].lower()
    assert not list(tmp_path.glob("out/*.nii.gz"))
    with pytest.raises(UsageError, match="translate"):
        load_translator(images).predict(file)
    with pytest.raises(UsageError, match="Use `medseg-diff translate`"):
        Predictor(load_translator(images).runs)


def test_a_constant_scan_is_refused(tmp_path: Path):
    nib.save(nib.Nifti1Image(np.full((9, 9, 9), 7.0), AFFINE), tmp_path / "flat.nii.gz")
    with pytest.raises(InputError, match="nothing to translate"):
        copying().translate(tmp_path / "flat.nii.gz")


@pytest.mark.parametrize("change", [{"draws": 0}, {"sampler": "nonsense"}])
def test_settings_out_of_range_are_refused(tmp_path: Path, change: dict[str, Any]):
    file, _ = scan(tmp_path)
    with pytest.raises(UsageError):
        copying().translate(file, **change)


def test_from_training_to_score_by_the_command_line(tmp_path: Path, monkeypatch, capsys):
    """train, info, translate, --continue and evaluate; files say SYNTHETIC, the grid is exact."""
    cases, run, out = write_pairs(tmp_path / "data"), tmp_path / "run", tmp_path / "out"
    config: Config = tiny_translator("bbdm", cases)
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    assert call(monkeypatch, "train", tmp_path / "c.yaml", "--out", run) == 0
    card = read_card(run)
    assert card["target"]["name"] == "FLAIR"
    assert card["target"]["range"][0] == pytest.approx(20)
    assert 0 < card["training"]["validation_mae"] < 300
    assert "validation_mae" in (run / "log.csv").read_text()
    assert call(monkeypatch, "info", run) == 0
    assert "SYNTHETIC" in capsys.readouterr().out
    words = ("translate", "--model", run, "--input", cases, "--out", out)
    assert call(monkeypatch, *words) == 0
    names = {p.name for p in out.iterdir()}
    assert names == {
        "head_4.json", "head_4_SYNTHETIC.nii.gz", "head_4_SYNTHETIC_spread.nii.gz",
        "manifest.sqlite",
    }  # fmt: skip
    made, source = (
        nib.load(p) for p in (out / "head_4_SYNTHETIC.nii.gz", tmp_path / "data/T1/head_4.nii.gz")
    )
    np.testing.assert_array_equal(made.affine, source.affine)
    assert made.shape == source.shape
    assert bytes(made.header["descrip"]).startswith(b"SYNTHETIC FLAIR")
    record = json.loads((out / "head_4.json").read_text())
    assert (record["synthetic"], record["status"], record["draws_made"]) == (True, "ok", 2)
    before = (out / "head_4_SYNTHETIC.nii.gz").stat().st_mtime_ns
    assert call(monkeypatch, *words, "--continue") == 0
    assert (out / "head_4_SYNTHETIC.nii.gz").stat().st_mtime_ns == before
    score = ("evaluate", "--pred", out, "--ref", cases, "--out", tmp_path / "score")
    assert call(monkeypatch, *score) == 0
    assert "MAE" in capsys.readouterr().out
    assert call(monkeypatch, "calibrate", "--model", run) == 2


def test_a_scan_that_fails_leaves_its_line_and_no_image(tmp_path: Path, monkeypatch):
    file, _ = scan(tmp_path / "scans")
    (tmp_path / "scans" / "broken.nii.gz").write_bytes(b"no scan")
    run, out = untrained(tmp_path / "run"), tmp_path / "out"
    words = ("translate", "--model", run, "--input", file.parent, "--out", out)
    assert call(monkeypatch, *words, "--draws", 1, "--steps", 1) == 8
    record = json.loads((out / "broken.json").read_text())
    assert record["status"] == "failed"
    assert record["error"]
    assert not list(out.glob("broken*.nii.gz"))
    assert (out / "head_SYNTHETIC.nii.gz").is_file()


def test_a_raster_image_becomes_a_tiff_that_says_what_it_is(tmp_path: Path, monkeypatch):
    import tifffile

    cases = write_pairs(tmp_path / "data", (21, 26))
    run = fit(tiny_translator("one_step", cases, 2), tmp_path / "run")
    words = ("translate", "--model", run, "--input", cases, "--out", tmp_path / "out")
    assert call(monkeypatch, *words) == 0
    with tifffile.TiffFile(tmp_path / "out" / "head_4_SYNTHETIC.tif") as file:
        assert file.pages[0].description.startswith("SYNTHETIC FLAIR")
        assert file.asarray().shape == (21, 26)


def content(**changes: Any) -> dict[str, Any]:
    case = {"case": "a", "patient": "a", "part": "train", "channels": {"T1": "a.nii"}}
    return {
        "name": "pairs", "licence": "CC0", "modality": "MR", "channels": ["T1"],
        "target": "FLAIR", "cases": [{**case, "target": "b.nii"}], **changes,
    }  # fmt: skip


def test_a_case_list_with_targets(tmp_path: Path):
    cases = load_caselist(write_pairs(tmp_path))
    assert cases.target == "FLAIR"
    case = cases.part("test")[0]
    assert cases.target_path(case) == tmp_path / "FLAIR" / "head_4.nii.gz"
    assert cases.paths(case)[-1] == cases.target_path(case)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target": None}, "without a name"),
        ({"target": "T1"}, "also a channel"),
        (
            {
                "cases": [
                    {"case": "a", "patient": "a", "part": "train", "channels": {"T1": "a.nii"}}
                ]
            },
            "without a target image",
        ),
        (
            {
                "cases": [
                    {
                        "case": "a", "patient": "a", "part": "train",
                        "channels": {"T1": "a.nii"}, "target": "a.nii",
                    }
                ]
            },
            "the answer would be in the question",
        ),
    ],
)  # fmt: skip
def test_case_lists_that_cannot_be_translated_are_refused(change: dict[str, Any], words: str):
    with pytest.raises(InputError, match=words):
        build_caselist(content(**change))


def test_one_target_in_two_parts_is_a_leak():
    cases = [
        {
            "case": part, "patient": part, "part": part, "channels": {"T1": f"{part}.nii"},
            "target": "same.nii",
        }
        for part in ("train", "test")
    ]  # fmt: skip
    with pytest.raises(InputError, match="more than one part"):
        build_caselist(content(cases=cases))


def test_the_plan_keeps_the_range_that_inverts_it(tmp_path: Path):
    config, _, _ = prepare(tiny_translator("palette", write_pairs(tmp_path)))
    targets = [paired((15, 18, 13), number)[1] for number in range(4)]
    low = min(float(np.percentile(t, 0.05)) for t in targets)
    high = max(float(np.percentile(t, 99.95)) for t in targets)
    assert config.plan.target_range == pytest.approx((low, high))
    assert [n.kind for n in config.plan.normalisation or ()] == ["percentile"]
    assert config.task is not None
    assert (config.task.target, config.task.target_planes) == ("FLAIR", 1)


def test_a_range_and_percentiles_become_minus_one_and_one():
    values = np.linspace(-50, 150, 2001, dtype=np.float32).reshape(1, -1)
    np.testing.assert_allclose(to_range(values, (-50, 150))[0, [0, 1000, 2000]], [-1, 0, 1])
    assert not to_range(values, (5, 5)).any()
    from medseg_diff.config import Normalisation

    fixed = normalise(values, [Normalisation(kind="range", clip=(0, 100))])
    assert (float(fixed.min()), float(fixed.max())) == (-1, 1)
    own = normalise(values, [Normalisation(kind="percentile")])
    np.testing.assert_allclose(own[0, [10, 1990]], [-1, 1], atol=1e-5)


def test_a_target_on_another_grid_is_refused(tmp_path: Path):
    cases = write_pairs(tmp_path)
    moved = AFFINE.copy()
    moved[1, 3] += 4
    file = tmp_path / "FLAIR" / "head_0.nii.gz"
    nib.save(nib.Nifti1Image(np.asarray(nib.load(file).dataobj), moved), file)
    with pytest.raises(InputError, match="another place"):
        prepare(tiny_translator("palette", cases))
