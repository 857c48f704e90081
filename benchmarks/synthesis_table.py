"""Does a segmenter learn from synthetic pairs? Alone and beside real ones.

    python benchmarks/synthesis_table.py --cases datasets/hippocampus/cases.json --work runs/made
        [--real 5 20 all] [--count 144] [--steps 20] [--set-maker KEY=VALUE ...] [--set ...]

For each number of real training cases: a model of scans given label maps
(`configs/slices_mask_to_image.yaml`) is trained on them alone, makes --count pairs from their own
masks, and a U-Net (`configs/slices_unet.yaml`) is trained on the real cases, on the synthetic
pairs and on both, with the same steps. Validation cases are the list's, the same for all; the test
part is scored once. Everything goes through the command line; what is done is not done again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tables import finish, known, markdown

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
TRAINED_ON = ("real", "synthetic", "both")


def command(*words: object) -> None:
    """Run `medseg-diff`; its refusal ends the benchmark."""
    line = [sys.executable, "-m", "medseg_diff.cli", *map(str, words)]
    if subprocess.run(line, check=False).returncode != 0:
        sys.exit(f"failed: {' '.join(line)}")


def train(config: str, cases: Path, run: Path, settings: Sequence[str]) -> None:
    """Train unless that was done before; go on where it was stopped."""
    asked = [config, *settings]
    if known(run, asked):
        return
    words = [word for one in settings for word in ("--set", one)]
    resume = ["--resume"] if any((run / "checkpoints").glob("*")) else []
    if not resume:
        shutil.rmtree(run, ignore_errors=True)
    command("train", CONFIGS / config, "--data", cases, "--out", run, *words, *resume)
    finish(run, asked)


def fewer(cases: Path, n: int | None, file: Path) -> Path:
    """The list with its first n training cases, the other parts whole."""
    from medseg_diff.data.caselist import load_caselist, save_caselist

    listed = load_caselist(cases)
    kept = {case.case for case in listed.part("train")[:n]}
    whole = listed.with_cases(c for c in listed.cases if c.part != "train" or c.case in kept)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_caselist(whole, file)
    return file


def without_real(cases: Path, file: Path) -> Path:
    """The list of both without its real training cases."""
    from medseg_diff.data.caselist import load_caselist, save_caselist

    listed = load_caselist(cases)
    made = listed.with_cases(c for c in listed.cases if c.part != "train" or c.site == "synthetic")
    save_caselist(made, file)
    return file


def lists(n: int | None, given: argparse.Namespace, folder: Path) -> dict[str, tuple[Path, Path]]:
    """Case list and root of what each segmenter is trained on; makes the pairs."""
    root = given.cases.resolve().parent
    real = fewer(given.cases, n, folder / "real.json")
    rooted = f"data.root={json.dumps(str(root))}"
    maker, made = folder / "maker", folder / "pairs"
    train("slices_mask_to_image.yaml", real, maker, [rooted, *given.set_maker])
    asked = [given.count, given.steps]
    if not known(made, asked):
        command(
            "synthesize", "--model", maker, "--masks", real, "--with", real, "--root", root,
            "--count", given.count, "--steps", given.steps, "--out", made, "--continue",
        )  # fmt: skip
        finish(made, asked)
    alone = without_real(made / "cases.json", made / "synthetic.json")
    return {"real": (real, root), "synthetic": (alone, made), "both": (made / "cases.json", made)}


def scored(run: Path, given: argparse.Namespace, folder: Path) -> pd.Series[float]:
    """Dice of every test case."""
    from medseg_diff.batch.run import Case, predict_many
    from medseg_diff.data.caselist import load_caselist
    from medseg_diff.evaluation.masks import evaluate_part
    from medseg_diff.inference.predictor import load
    from medseg_diff.metrics.statistics import case_means

    listed = load_caselist(given.cases)
    if not (folder / "scores" / "per_case.csv").is_file():
        cases = [Case(c.case, listed.channel_paths(c)) for c in listed.part("test")]
        predict_many(load(run, "cpu"), cases, folder / "masks", go_on=True, maps=False)
        evaluate_part(folder / "masks", listed, folder / "scores")
    return case_means(pd.read_csv(folder / "scores" / "per_case.csv"))["dice"]


def main() -> None:
    """Parse, train, make, train, score, print."""
    from medseg_diff.metrics.statistics import compare, summarise

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="runs, pairs and scores")
    parser.add_argument("--real", nargs="+", default=["5", "20", "all"])
    parser.add_argument("--count", type=int, default=144, help="pairs to make")
    parser.add_argument("--steps", type=int, default=20, help="of the sampler that makes scans")
    parser.add_argument("--set-maker", nargs="*", default=[], help="keys of the model of scans")
    parser.add_argument("--set", dest="overrides", nargs="*", default=[], help="of the U-Net")
    given = parser.parse_args()
    rows = []
    for number in given.real:
        folder = given.work / f"real_{number}"
        found: dict[str, pd.Series[float]] = {}
        sources = lists(None if number == "all" else int(number), given, folder)
        for kind in TRAINED_ON:
            cases, root = sources[kind]
            settings = [f"data.root={json.dumps(str(root))}", *given.overrides]
            train("slices_unet.yaml", cases, folder / f"unet_{kind}", settings)
            found[kind] = scored(folder / f"unet_{kind}", given, folder / f"out_{kind}")
            mean = summarise(found[kind].to_numpy())
            pair = compare(found[kind].to_numpy() * 100, found["real"].to_numpy() * 100)
            change = f"{pair.difference:+.1f} [{pair.low:+.1f}, {pair.high:+.1f}]"
            rows.append({
                "real cases": number,
                "trained on": kind,
                "Dice [95 % CI]": f"{mean.mean:.3f} [{mean.low:.3f}, {mean.high:.3f}]",
                "against real alone, points": "-" if kind == "real" else change,
            })  # fmt: skip
            print(rows[-1], flush=True)
            pd.DataFrame(rows).to_csv(given.work / "rows.csv", index=False)
    print(markdown(rows))


if __name__ == "__main__":
    main()
