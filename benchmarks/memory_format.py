"""Seconds of one training step of the U-Net: channels last against contiguous, side by side.

    OMP_NUM_THREADS=2 python benchmarks/memory_format.py --repetitions 15

The network as it is (channels last, group norm with one channel a group) and the same network as it
would be written otherwise (contiguous, instance norm) take turns in one process, so that whatever
else the machine does falls on both.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import time

import torch
from torch import Tensor, nn

from medseg_diff.networks.unet import UNet

PATCHES = [(40, 56, 40), (256, 256)]
BATCH, CLASSES, FEATURES = 4, 3, (16, 32, 64, 168)


def contiguous(network: UNet) -> UNet:
    """Change a network in place to contiguous maps and instance norm; the same numbers."""
    norm = nn.InstanceNorm3d if network.layout == torch.channels_last_3d else nn.InstanceNorm2d
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.GroupNorm):
                replacement = norm(child.num_channels, eps=child.eps, affine=True)
                replacement.load_state_dict(child.state_dict())
                setattr(parent, name, replacement)
    network.layout = torch.contiguous_format
    return network.to(memory_format=torch.contiguous_format)


def step(network: UNet, image: Tensor) -> tuple[float, Tensor]:
    """Seconds of one forward and backward pass, and the output."""
    network.zero_grad()
    began = time.perf_counter()
    output = network(image)
    output.square().mean().backward()
    return time.perf_counter() - began, output.detach()


def compare(patch: tuple[int, ...], repetitions: int) -> dict[str, float]:
    """Median seconds a step of both networks, after one step each to warm up."""
    image = torch.randn(BATCH, 1, *patch)
    made = [UNet(len(patch), 1, CLASSES, FEATURES) for _ in range(2)]
    made[1].load_state_dict(made[0].state_dict())
    networks = {"channels last": made[0], "contiguous": contiguous(made[1])}
    first, second = (step(network, image)[1] for network in networks.values())
    # The two must compute the same; only the order of summation differs.
    torch.testing.assert_close(first, second, rtol=0, atol=1e-3)
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(repetitions):
        for name, network in networks.items():
            seconds[name].append(step(network, image)[0])
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def main() -> None:
    """Print one line a patch, then machine and date."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repetitions", type=int, default=5)
    repetitions = parser.parse_args().repetitions
    torch.manual_seed(0)
    print("patch         channels last s  contiguous s  ratio")
    for patch in PATCHES:
        found = compare(patch, repetitions)
        last, plain = found["channels last"], found["contiguous"]
        name = "x".join(map(str, (BATCH, 1, *patch)))
        print(f"{name:<13} {last:15.3f} {plain:13.3f} {plain / last:6.2f}", flush=True)
    print(
        f"median of {repetitions}; {platform.platform()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {datetime.date.today()}"
    )


if __name__ == "__main__":
    main()
