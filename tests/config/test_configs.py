"""Shipped YAMLs: they parse, and the rows of one table share their budget."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from medseg_diff.adaptation.definition import load_experiments
from medseg_diff.config import Config, load_config, merged, parse_config
from medseg_diff.model import build_model
from medseg_diff.recipes import RECIPES
from medseg_diff.recipes.priors import PRIORS
from medseg_diff.recipes.translators import TRANSLATORS

TASK = {"channels": ["image"], "labels": {"background": 0, "a": 1, "b": 2}, "input_channels": [1]}

# Rows that no table asks for.
MISSING = {
    (data, name)
    for data in ("hippocampus", "slices")
    for name in ("mc_dropout", "probabilistic_unet")
} | {("hippocampus", name) for name in ("ccdm", "berdiff", "hidiff", "diffatlas")}
MISSING |= {(data, "feature_translation") for data in ("hippocampus", "nuclei")}


def configurations(repository: Path, data: str) -> dict[str, Config]:
    files = sorted((repository / "configs").glob(f"{data}_*.yaml"))
    # Reflow and adapters are second trainings of rows that stand there already; syndiff and priors
    # make images: no row of a table of masks.
    apart = ("_reflow", "_lora", "_syndiff", *(f"_{name}" for name in PRIORS))
    return {p.stem: load_config(p) for p in files if not p.stem.endswith(apart)}


@pytest.mark.parametrize("data", ["hippocampus", "slices", "nuclei"])
def test_rows_of_a_table_share_their_budget(repository: Path, data: str) -> None:
    """Same steps, batches, patches, optimiser, augmentation, data and seed."""
    found = configurations(repository, data)
    assert set(found) == {f"{data}_{name}" for name in RECIPES if (data, name) not in MISSING}
    first = found[f"{data}_unet"]
    for name, config in found.items():
        assert config.name == name
        for part in ("training", "data", "plan", "seed"):
            assert getattr(config, part) == getattr(first, part), (name, part)


@pytest.mark.parametrize("data", ["hippocampus", "slices", "nuclei"])
def test_parameters_agree_within_ten_percent(repository: Path, data: str) -> None:
    """The baseline is as large as the diffusion models."""
    sizes = {}
    for name, config in configurations(repository, data).items():
        dims = len(config.plan.patch_size or ())
        keys = config.model_dump() | {"task": TASK}
        keys["plan"] |= {"spatial_dims": dims}
        model = build_model(parse_config(keys))
        sizes[name] = sum(p.numel() for p in model.parameters())
    unet = sizes[f"{data}_unet"]
    # A latent model has an autoencoder besides, and MedSegDiff-V2 attention layers whose share
    # of a 2-D network is larger: no other row has them.
    wide = ("lsegdiff", "feature_translation", "medsegdiff_v2")
    allowed = {name: 0.3 if name.endswith(wide) else 0.1 for name in sizes}
    assert all(abs(size / unet - 1) < allowed[name] for name, size in sizes.items()), sizes


@pytest.mark.parametrize("data", ["hippocampus", "slices", "nuclei"])
def test_the_default_recipes_denoiser_is_cheap(repository: Path, data: str) -> None:
    """At most a fifth of its pyramid's FLOPs, so that draws and steps cost little."""
    keys = load_config(repository / "configs" / f"{data}_anchored.yaml").model_dump()
    dims = len(keys["plan"]["patch_size"])
    model = build_model(parse_config(merged(keys, {"task": TASK, "plan": {"spatial_dims": dims}})))
    image, size = torch.zeros(1, 1, *[16] * dims), (1, 3, *[16] * dims)
    counts = []
    with torch.no_grad():
        context = model.context(image)
        for call in (
            lambda: model.context(image),
            lambda: model.denoised(torch.zeros(size), torch.ones(1), context),
        ):
            with FlopCounterMode(display=False) as counter:
                call()
            counts.append(counter.get_total_flops())
    assert 0 < counts[1] <= counts[0] / 5, counts


def test_translators_share_budget_and_size(repository: Path) -> None:
    """One network, one budget: rows differ in what is diffused."""
    found = configurations(repository, "flair")
    assert set(found) == {f"flair_{name}" for name in TRANSLATORS}
    first, sizes = found["flair_one_step"], []
    for config in found.values():
        for part in ("training", "data", "plan", "seed"):
            assert getattr(config, part) == getattr(first, part), config.name
        task = {"channels": ["T1"], "target": "FLAIR", "input_channels": [1]}
        model = build_model(parse_config(config.model_dump() | {"task": task}))
        sizes.append(sum(p.numel() for p in model.parameters()))
    assert max(sizes) / min(sizes) < 1.1, sizes


def test_reflow_goes_on_from_its_teacher(repository: Path) -> None:
    """The same networks, data and plan, so that --init finds every weight."""
    found = [
        load_config(repository / "configs" / f"nuclei_{name}.yaml")
        for name in ("reflow", "rectified_flow")
    ]
    for part in ("model", "objective", "data", "plan", "seed"):
        assert getattr(found[0], part) == getattr(found[1], part), part
    assert found[0].training.reflow_from == "runs/nuclei_rectified_flow"
    assert found[0].prediction.steps == 1


def test_adapters_fit_the_shipped_model(repository: Path) -> None:
    """The same networks, so that --init finds what it adapts."""
    ours = load_config(repository / "configs" / "hippocampus_lora.yaml")
    shipped = load_config(repository / "medseg_diff" / "models" / "hippocampus" / "config.yaml")
    assert ours.model == shipped.model
    assert ours.training.lora is not None


def test_every_key_of_a_yaml_is_explained(repository: Path) -> None:
    """Each file opens with what it is, where its data come from and how it is trained."""
    for file in (repository / "configs").glob("*.yaml"):
        head = file.read_text().splitlines()[:3]
        assert all(line.startswith("# ") for line in head), file.name
        assert "data_prep/" in head[1]
        assert f"configs/{file.name}" in head[2]


def test_the_default_model_learns_its_time(repository: Path) -> None:
    """Gradients reach the time embedding of the default recipe."""
    keys = load_config(repository / "configs" / "hippocampus_anchored.yaml").model_dump()
    keys |= {"task": TASK}
    keys["plan"] |= {"spatial_dims": 3}
    model = build_model(parse_config(keys))
    from medseg_diff.data.records import Batch

    size = (2, 1, 16, 16, 16)
    batch = Batch(
        torch.randn(size),
        torch.zeros(size, dtype=torch.int16),
        torch.tensor([0.3, 0.9], dtype=torch.float64),
        torch.randn(2, 3, 16, 16, 16),
        torch.rand(2, 2),
    )
    model(batch).total.backward()
    gradients = [p.grad for n, p in model.named_parameters() if "embedding" in n]
    assert gradients
    assert all(g is not None and float(g.abs().max()) > 0 for g in gradients)


def test_shipped_experiments(repository: Path) -> None:
    """They parse, and have the two rows that every gap is counted from."""
    files = sorted((repository / "configs" / "experiments").glob("*.yaml"))
    assert files
    for file in files:
        for one in load_experiments(file).values():
            assert {"source_only", "oracle"} <= set(one.rows)
