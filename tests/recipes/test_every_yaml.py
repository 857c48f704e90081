"""Every shipped YAML trains, is cut off, resumes, predicts and is scored by the same commands."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medseg_diff.cli.main import main
from medseg_diff.config import load_config
from medseg_diff.data.caselist import build_caselist, save_caselist
from medseg_diff.training.fit import Options, fit
from tests.training_fixtures import write_dataset

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# Some go on from another run: tests/posthoc/test_reflow.py, tests/test_lora.py. Images:
# tests/translation/test_translation.py, tests/training/test_unpaired_training.py,
# tests/test_synthesis.py, tests/translation/test_restoration.py.
APART = (
    "*_reflow", "*_lora", "flair_*", "*_syndiff", "*_image_prior", "*_mask_to_image",
    "*_latent_synthesis", "super_resolution_*", "inpainting_*",
)  # fmt: skip
NAMES = [
    path.stem
    for path in sorted(CONFIGS.glob("*.yaml"))
    if not any(path.match(f"{pattern}.yaml") for pattern in APART)
]
STEPS, CUT = 4, 3


class _Cut(Exception):
    pass


def write_discs(folder: Path, cases: int = 5, size: int = 24) -> Path:
    """A 2-D data set: bright discs on noise; returns the case list's path."""
    rng = np.random.default_rng(0)
    grid, listed = np.indices((size, size)), []
    for number in range(cases):
        centre = rng.uniform(size * 0.4, size * 0.6, 2)[:, None, None]
        disc = np.square(grid - centre).sum(0) < (size * 0.2) ** 2
        image = disc * 90.0 + rng.normal(80, 10, disc.shape)
        name = f"disc_{number}"
        for kind, values in (("images", image), ("labels", disc)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values.astype(np.uint8)).save(folder / kind / f"{name}.png")
        listed.append(
            {
                "case": name,
                "patient": name,
                "part": {3: "validation", 4: "test"}.get(number, "train"),
                "channels": {"grey": f"images/{name}.png"},
                "references": [f"labels/{name}.png"] * 2,
            }
        )
    content = {"name": "discs", "licence": "CC0", "modality": "other", "channels": ["grey"]}
    content |= {"labels": {"background": 0, "disc": 1}, "cases": listed}
    save_caselist(build_caselist(content, root=folder), folder / "cases.json")
    return folder / "cases.json"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Case lists by the number of axes."""
    return {
        2: write_discs(tmp_path_factory.mktemp("discs")),
        3: write_dataset(tmp_path_factory.mktemp("balls")),
    }


def overrides(name: str, cases: Path) -> list[str]:
    """The YAML at a width and length for a test; what it is made of stays."""
    config = load_config(CONFIGS / f"{name}.yaml")
    # A latent's grid is coarser: three levels would leave one voxel of it.
    levels = len(config.model.features) if config.model.latent is None else 2
    keys = {
        "data.cases": json.dumps(str(cases)),
        "plan.patch_size": [16] * len(config.plan.patch_size or ()),
        "plan.batch_size": 2,
        "model.features": [4, 8, 8, 8][:levels],
        "model.time_channels": 8,
        "training.steps": STEPS,
        "training.warmup_steps": 1,
        "training.validate_every": STEPS,
        "training.validation_cases": 1,
        "training.save_every": 1,
        "prediction.draws": 2,
        "prediction.steps": 2,
    }
    if config.model.denoiser == "dit":
        keys |= {"model.features": [12, 12], "model.token_size": 4}
    if config.model.conditioner_features is not None:
        keys["model.conditioner_features"] = [4, 8, 8, 8][:levels]
    if config.prediction.window is not None:
        keys["prediction.window"] = [24, 24]
    if config.plan.centre_crop is not None:
        keys["plan.centre_crop"] = [16, 16]
    if config.model.coarse is not None:
        keys |= {"model.coarse.features": [4, 8]}
    if config.model.latent is not None:
        keys |= {"model.latent.steps": 2}
    return [f"{key}={value}" for key, value in keys.items()]


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Exit code of ``medseg-diff words...``."""
    monkeypatch.setattr(sys, "argv", ["medseg-diff", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_yaml_from_training_to_score(
    name: str, data: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = CONFIGS / f"{name}.yaml"
    cases = data[3 if name.startswith(("hippocampus", "slices")) else 2]
    settings = overrides(name, cases)

    def cut(progress, values):
        if progress.step == CUT:
            raise _Cut

    run, out = tmp_path / "run", tmp_path / "out"
    with pytest.raises(_Cut):
        fit(load_config(file, settings), run, Options(report=cut))
    assert not (run / "model.safetensors").exists()
    words = [word for setting in settings for word in ("--set", setting)]
    assert call(monkeypatch, "train", file, "--out", run, *words, "--resume") == 0
    log = pd.read_csv(run / "log.csv")
    assert list(log["step"]) == list(range(1, STEPS + 1))
    assert np.isfinite(log["loss"]).all()
    predict = ("predict", "--model", run, "--input", cases, "--out", out)
    assert call(monkeypatch, *predict) == 0
    record = json.loads(next(out.glob("*_4.json")).read_text())
    assert record["error"] is None
    score = ("evaluate", "--pred", out, "--ref", cases, "--out", tmp_path / "score")
    assert call(monkeypatch, *score) == 0
    scored = pd.read_csv(tmp_path / "score" / "per_case.csv")
    assert len(scored) == 1
    assert 0 <= scored["dice"][0] <= 1
