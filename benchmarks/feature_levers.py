"""What each lever of latent feature translation does, on validation cases alone.

    python benchmarks/feature_levers.py --out runs/feature_levers [--rows every_skip ...]
        [--ways "one step" ...]

Hippocampus slices (`datasets/hippocampus`, see data_prep/hippocampus.py), 600 steps a training, of
which 200 go to the segmenting network; Dice of 12 validation cases as they are, under the frozen
contrast inversion and under low field. Nothing here looks at a test case. One training a row; a
second call takes up what the first has done, trainings in their middle too.

Rows from `cross_attention` on change one thing of `edges_scaled`, but for `image_every_skip`, which
does of `image_scaled`, `features_scaled` (the network's own features as condition, under strong
changes) and `cycle_contrast`: the same condition, with target crops of the
contrast inversion's training scans without masks, of the second domain alone.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from tables import markdown

from medseg_diff.adaptation.cycle import FeatureCycle
from medseg_diff.adaptation.definition import Domain, Experiment
from medseg_diff.adaptation.experiment import domain_cases
from medseg_diff.adaptation.source_diffusion import sections
from medseg_diff.adaptation.work import Work
from medseg_diff.batch.run import Case, predict_many
from medseg_diff.config import load_config, merged
from medseg_diff.data.caselist import CaseList
from medseg_diff.data.prepare import prepare
from medseg_diff.evaluation.masks import score_part
from medseg_diff.inference.predictor import checked, load
from medseg_diff.recipes import RECIPES
from medseg_diff.training.fit import Options

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "slices_unet.yaml"
SET = (
    "model.features=[8,16,32,64]",
    *("training.steps=600", "training.warmup_steps=20", "training.validate_every=600"),
    *("training.validation_cases=4", "training.save_every=300", "training.workers=0"),
)


def _latent(condition: str, change: str, **model: Any) -> dict[str, Any]:
    return {"model": {"latent": {"condition": condition, "change": change, "steps": 200}, **model}}


def _edges(**model: Any) -> dict[str, Any]:
    return merged(_latent("edges", "none", input_scale=0.2), {"model": model})


ROWS = {
    "edges_strong": _latent("edges", "strong", input_scale=1.0),
    "edges_plain": _latent("edges", "none", input_scale=1.0),
    "edges_scaled": _latent("edges", "none", input_scale=0.2),
    "image_strong": _latent("image", "strong", input_scale=1.0),
    "image_scaled": _latent("image", "strong", input_scale=0.2),
    "cross_attention": _edges(mixer="cross_attention"),
    "zero_convolution": _edges(mixer="zero_convolution"),
    # The latent on a quarter and an eighth of the grid.
    "three_levels": _edges(latent={"features": [16, 32, 64]}),
    "four_levels": _edges(latent={"features": [16, 32, 64, 64]}),
    # Two depths and no skip at full resolution; all depths of two and of three.
    "two_of_three_depths": _edges(latent={"features": [16, 32, 64], "depths": 2}),
    "every_skip": _edges(latent={"depths": 2}),
    "every_skip_of_three": _edges(latent={"features": [16, 32, 64], "depths": 3}),
    "image_every_skip": merged(
        _latent("image", "strong", input_scale=0.2), {"model": {"latent": {"depths": 2}}}
    ),
    "slice_position": _edges() | {"plan": {"slice_position": True}},
    "features_scaled": _latent("features", "strong", input_scale=0.2),
    "cycle_contrast": _latent("features", "strong", input_scale=0.2),
}
# Rows with a companion, and the domain whose training scans it is shown.
CYCLES = {"cycle_contrast": "contrast"}
# The segmenting network alone; one step; ten steps, three draws; its own features, noised to t.
WAYS: dict[str, dict[str, Any]] = {
    "network alone": {"sampler": "anchor"},
    "one step": {"steps": 1},
    "ten steps": {"steps": 10, "draws": 3},
    "noised to 0.5": {"start": "image", "t_max": 0.5, "guidance": 0.0, "steps": 5},
    "noised to 0.8": {"start": "image", "t_max": 0.8, "guidance": 0.0, "steps": 8},
}


def domains(out: Path) -> dict[str, CaseList]:
    """Validation and training cases as they are and under two shifts."""
    cases = str(ROOT / "datasets" / "hippocampus" / "cases.json")
    shifts = {"source": None, "contrast": "contrast_inversion", "low_field": "low_field"}
    wanted = {
        name: Domain(cases=cases, shift=shift, level=None if shift is None else "strong")
        for name, shift in shifts.items()
    }
    whole = Experiment(
        name="levers",
        config=str(CONFIG),
        source=wanted["source"],
        targets={name: wanted[name] for name in ("contrast", "low_field")},
        part="validation",
    )
    return {name: domain_cases(whole, one, out / "domains" / name) for name, one in wanted.items()}


def dice(run: Path, settings: dict[str, Any], cases: CaseList, folder: Path) -> float:
    """Mean Dice of the first 12 validation cases."""
    chosen = cases.with_cases(cases.part("validation")[:12])
    predictor = load(run, "cpu")
    predictor.defaults = checked(predictor.defaults, settings)
    asked = [Case(c.case, chosen.channel_paths(c)) for c in chosen.cases]
    predict_many(predictor, asked, folder, go_on=True, maps=False)
    return float(score_part(folder, chosen, part="validation")["dice"].mean())


def trained(row: str, work: Work, seen: dict[str, CaseList]) -> Path:
    """The row's one training."""
    recipe = merged(RECIPES["feature_translation"](), ROWS[row])
    changes = sections(work.config, recipe, prediction={"draws": 1, "steps": 1})
    changes["plan"] = ROWS[row].get("plan", {})
    options = Options()
    if row in CYCLES:
        work = replace(work, target=seen[CYCLES[row]])
        target = work.unlabelled
        options = Options(companion=lambda config: FeatureCycle(target, config))
    return work.train(row, seen["source"], options, **changes)


def main() -> None:
    """Train every row, draw every way, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    given = parser.parse_args()
    seen = domains(given.out)
    config = prepare(load_config(CONFIG, (*SET, f"data.cases={seen['source'].root}")))[0]
    work = Work(config, seen["source"], seen["source"], given.out / "seed0", given.out / "own")
    lines = []
    for row in given.rows:
        run = trained(row, work, seen)
        for way in given.ways:
            settings = WAYS[way]
            line = {"row": row, "way": way}
            for name, cases in seen.items():
                place = given.out / "predictions" / row / way.replace(" ", "_") / name
                line[name] = f"{dice(run, settings, cases, place):.3f}"
            lines.append(line)
            print(line, flush=True)
    print(markdown(lines))


if __name__ == "__main__":
    main()
