"""Seconds of a training step and of a sample, with and without mixed precision, side by side.

    python benchmarks/speed.py --device cuda --out benchmarks/results/speed \
        "medsegdiff_v1_b=configs/nuclei_medsegdiff_v1.yaml recipe=medsegdiff_v1_b" ...

A row is NAME=YAML and settings, as `train --set` takes them. The batch is real (the first of the
training), the loader is not in the figures. A training step is forward, backward, clipping, AdamW
and the running average; precisions take turns, and each figure is the median of its steps after
three to warm up. "a draw" is one window through the row's own steps of its own sampler, float32.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")

import pandas as pd  # noqa: E402
import torch  # noqa: E402
from tables import markdown  # noqa: E402

WARM = 3


def main() -> None:
    """Measure the missing rows, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("rows", nargs="+", help="NAME=YAML and settings")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--precisions", nargs="+", default=["no"], choices=["no", "bf16"])
    parser.add_argument("--most-steps", type=int, default=20, help="of a draw; more: extrapolated")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "rows.csv"
    rows: list[dict[str, Any]] = pd.read_csv(file).to_dict("records") if file.is_file() else []
    for name, _, words in (row.partition("=") for row in given.rows):
        if name in {row["row"] for row in rows}:
            continue
        rows.append({"row": name, **measure(words.split(), given)})
        pd.DataFrame(rows).to_csv(file, index=False, float_format="%.4g")
        print(rows[-1], flush=True)
    lines = markdown([{k: shown(v) for k, v in row.items()} for row in rows])
    (given.out / "table.md").write_text(lines + "\n", encoding="utf-8")
    print(lines)


def shown(value: object) -> object:
    """Three digits of a number that is no count."""
    return f"{value:.3g}" if isinstance(value, float) else value


def measure(words: list[str], given: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    from medseg_diff.config import load_config
    from medseg_diff.data.dataset import TrainingSet, batches, cached_cases
    from medseg_diff.data.prepare import prepare
    from medseg_diff.model import build_model
    from medseg_diff.training.resume import Average

    yaml, *settings = words
    config, cases, _ = prepare(load_config(yaml, [*settings, "data.limit=16"]))
    model = build_model(config).train().to(given.device)
    part = cases.part("train")[:16]
    cached = cached_cases(cases, part, config.known_task, config.plan)
    batch = next(batches(TrainingSet(cached, config, model.codec.channels), 0, 1))
    batch = batch.to(torch.device(given.device))
    rate = config.training.learning_rate
    optimisers = {p: torch.optim.AdamW(model.parameters(), lr=rate / 100) for p in given.precisions}
    average = Average(model, config.training.ema_decay)
    seconds: dict[str, list[float]] = {p: [] for p in given.precisions}
    peak: dict[str, float] = dict.fromkeys(given.precisions, 0.0)

    def step(precision: str) -> None:
        optimiser = optimisers[precision]
        optimiser.zero_grad()
        device = torch.device(given.device).type
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            loss = model(batch).total
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.training.clip_norm)
        optimiser.step()
        average.update(model, 1)

    for number in range(WARM + given.repetitions):
        for precision in given.precisions:
            if number == WARM:
                reset_peak(given.device)
            taken = timed(lambda precision=precision: step(precision), given.device)
            if number >= WARM:
                seconds[precision].append(taken)
                peak[precision] = max(peak[precision], peak_gib(given.device))
    result: dict[str, Any] = {
        "patch": "x".join(map(str, config.plan.patch_size or ())),
        "batch": len(batch.image),
        "M parameters": sum(p.numel() for p in model.parameters()) / 1e6,
    }
    for precision in given.precisions:
        name = "float32" if precision == "no" else precision
        result[f"s/step {name}"] = statistics.median(seconds[precision])
    if peak_gib(given.device):
        result["GiB"] = max(peak.values())
    if len(given.precisions) > 1:
        first, second = (statistics.median(seconds[p]) for p in given.precisions[:2])
        result["ratio"] = first / second
    result |= drawing(model.eval(), config, batch, given)
    device = given.device
    if device.startswith("cuda"):
        device = torch.cuda.get_device_name()
    result["machine"] = f"{platform.machine()}, {device}, torch {torch.__version__}"
    result["date"] = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    return result


def drawing(model: Any, config: Any, batch: Any, given: argparse.Namespace) -> dict[str, Any]:
    """Seconds of one draw of one window; a long trajectory by its first steps."""
    from medseg_diff.model import Sampling

    own = config.prediction
    steps = min(own.steps, given.most_steps)
    image, noise = batch.image[:1], batch.noise[:1]

    def draw() -> None:
        with torch.inference_mode():
            context = model.context(image)
            sampling = Sampling(own.sampler, steps, own.grid)
            for _ in model.trajectory(context, noise, sampling, lambda _: torch.randn_like(noise)):
                pass

    taken = [timed(draw, given.device) for _ in range(4)][1:]
    seconds = statistics.median(taken) * own.steps / steps
    return {"steps of a draw": own.steps, "s/draw": seconds}


def timed(call: Any, device: str) -> float:
    """Seconds of a call, the device's work included."""
    wait(device)
    began = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - began


def wait(device: str) -> None:
    """Until the device has done all that was asked."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def reset_peak(device: str) -> None:
    """Forget the peak of memory."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()


def peak_gib(device: str) -> float:
    """Peak of the GPU's memory since the last reset; 0 on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**30 if device.startswith("cuda") else 0.0


if __name__ == "__main__":
    main()
