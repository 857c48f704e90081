"""How much memory a case needs, how much is free, and how to make do with less.

The estimate counts the arrays that are alive together in the hungriest moment of a case; what
`benchmarks/memory_large.py` measures stays below it. Weighted sums over windows always lie in host
memory, so the device holds the network and one batch of windows, whatever the scan's size.

Legend: V voxels on the model's grid, U on the scan's, K classes or regions, N draws.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from medseg_diff.errors import InputError

GIB = 2**30
# The interpreter, libraries and allocator waste that come on top of a case's arrays.
MARGIN = GIB // 2
# Reading a voxel: packed and unpacked bytes of the file, scaled float64, float32.
READ_BYTES = 16
_CGROUP = Path("/sys/fs/cgroup")
_SELF = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Need:
    """What the memory of one case depends on.

    Attributes:
        model_shape: Voxels of the model's grid along each axis.
        scan_voxels: U.
        planes: Image planes C, coordinates included.
        channels: K of the diffused state.
        structures: Structures of a mask.
        draws: N of all models together.
        patch: Voxels of a window along each axis.
        batch: Windows x draws in a network call.
        sample_bytes: What the network takes for one of them.
        compact: Probabilities in 16 bits.
        maps: Whether probability maps are asked for.
        save_draws: Whether the draws' own masks are.
        whole: Whether draws are fused again as whole maps: rules on masks, or ``settle``.
    """

    model_shape: tuple[int, ...]
    scan_voxels: int
    planes: int
    channels: int
    structures: int
    draws: int
    patch: tuple[int, ...]
    batch: int
    sample_bytes: float
    compact: bool = False
    maps: bool = True
    save_draws: bool = False
    whole: bool = False

    def host_bytes(self, *, on_host: bool = True) -> int:
        """Host memory at the worst moment, beyond what holds the scan as read.

        Args:
            on_host: Whether the network, too, runs in host memory.
        """
        v, u, k = math.prod(self.model_shape), self.scan_voxels, self.channels
        image = 4 * self.planes * v
        bits = self.structures * v * math.ceil(self.draws / 8)
        kept = (2 if self.compact else 4) * k * v + bits + 8 * v
        rows = min(1.0, self.patch[0] / max(1, self.model_shape[0]))
        window = math.prod(self.patch)
        tallies = 4 * window * (6 * k + 4) * max(1, self.batch // max(1, self.draws))
        network = (self.sample_bytes + 12 * k * window) * self.batch
        drawing = image + kept + 4 * (k + 5) * v * rows + tallies + (network if on_host else 0)
        if self.whole:
            drawing = max(drawing, image + 3 * kept)
        asked = 4 * k * u if self.maps else 0
        asked += self.draws * u + self.structures * v if self.save_draws else 0
        # Per plane on the way back: resampled copies, best so far, label, entropy.
        back = kept + asked + 4 * v + 34 * u
        written = bits + asked + 8 * v + 42 * u
        # Normalising works in float64.
        placing = image + 12 * u + 28 * v
        return int(max(placing, drawing, back, written)) + MARGIN

    def device_bytes(self) -> int:
        """Memory of a GPU for one batch of windows."""
        window = 12 * self.channels * math.prod(self.patch)
        return int((self.sample_bytes + window) * self.batch)


@dataclass(frozen=True)
class Plan:
    """How a case is predicted within the memory there is.

    Attributes:
        batch: Windows x draws in a network call.
        compact: Probabilities in 16 bits, at most 7.6e-6 off.
        notes: What was lowered and why, for the case's JSON.
    """

    batch: int
    compact: bool = False
    notes: tuple[str, ...] = ()


def fit(need: Need, host: int, device: int | None, *, file: str | Path | None = None) -> Plan:
    """Lower what a case takes until it fits: smaller batches, then 16 bits, or refuse.

    Args:
        need: The case as asked for.
        host: Free bytes of host memory.
        device: Free bytes of the GPU; None where the network runs on the CPU.
        file: The scan, for the refusal.

    Raises:
        InputError: if it does not fit in any way, with what it needs, what is free, and what would
            make it fit.
    """
    notes, now = [], need
    while now.batch > 1 and _lacks(now, host, device):
        now = replace(now, batch=now.batch // 2)
    if not now.whole and now.host_bytes(on_host=device is None) > host:
        # Smaller batches alone do not do: 16 bits, with the largest batch that fits then.
        now = replace(need, compact=True)
        while now.batch > 1 and _lacks(now, host, device):
            now = replace(now, batch=now.batch // 2)
    if _lacks(now, host, device):
        _refuse(now, host, device, file)
    before = _numbers(need, host, device)
    if now.batch < need.batch:
        notes.append(f"memory: {now.batch} instead of {need.batch} windows x draws a call{before}")
    if now.compact:
        notes.append(f"memory: probabilities kept in 16 bits, at most 1e-5 off{before}")
    return Plan(now.batch, now.compact, tuple(notes))


def _lacks(need: Need, host: int, device: int | None) -> bool:
    short = need.host_bytes(on_host=device is None) > host
    return short or (device is not None and need.device_bytes() > device)


def _numbers(need: Need, host: int, device: int | None) -> str:
    parts = [f"host {_gib(need.host_bytes(on_host=device is None))}, {_gib(host)} free"]
    if device is not None:
        parts.append(f"GPU {_gib(need.device_bytes())}, {_gib(device)} free")
    return f" (needs {'; '.join(parts)})"


def _refuse(need: Need, host: int, device: int | None, file: str | Path | None) -> None:
    if device is not None and need.device_bytes() > device:
        raise InputError(
            "not enough GPU memory for one window",
            file=file,
            field="memory",
            found=f"{_gib(device)} free",
            expected=_gib(need.device_bytes()),
            remedy="use --device cpu, or free the GPU",
        )
    lesser = replace(need, maps=False, save_draws=False, draws=min(need.draws, 8), compact=True)
    lesser = replace(lesser, whole=False)
    asked = [word for word, on in (("--no-probability", need.maps),) if on]
    asked += ["no --save-draws"] if need.save_draws else []
    asked += ["--fuse mean without --settle"] if need.whole else []
    asked += ["at most 8 draws"] if need.draws > 8 else []
    least = _gib(lesser.host_bytes(on_host=device is None))
    ways = f"with {', '.join(asked)} it needs {least}; or " if asked else ""
    raise InputError(
        "not enough memory for this case",
        file=file,
        field="memory",
        found=f"{_gib(host)} free",
        expected=_gib(need.host_bytes(on_host=device is None)),
        remedy=f"{ways}close other programs, or give --memory-gb if this is wrong",
    )


def check_reading(voxels: int, host: int, file: str | Path | None = None) -> None:
    """Refuse to read a scan that the free memory cannot hold.

    Raises:
        InputError: with both numbers.
    """
    if voxels * READ_BYTES > host:
        raise InputError(
            "not enough memory to read it",
            file=file,
            field="memory",
            found=f"{_gib(host)} free",
            expected=_gib(voxels * READ_BYTES),
            remedy="close other programs, or crop the scan",
        )


def check_shared(batch_bytes: int, workers: int, folder: Path = Path("/dev/shm")) -> None:
    """Refuse data workers whose batches the shared memory cannot hold (F74).

    Each worker has two batches on the way, and one is in use. A container often gives 64 MiB.

    Args:
        batch_bytes: Size of one batch.
        workers: Processes that load data.
        folder: Where shared memory lies; where there is none nothing is checked.

    Raises:
        InputError: with both numbers.
    """
    if workers == 0 or not folder.is_dir():
        return
    wanted, free = batch_bytes * (2 * workers + 1), shutil.disk_usage(folder).free
    if wanted > free:
        raise InputError(
            "not enough shared memory for the data workers",
            file=folder,
            field="training.workers",
            found=f"{_mib(free)} free",
            expected=_mib(wanted),
            remedy="set training.workers: 0, or start the container with more (--shm-size)",
        )


def free_host_bytes() -> int:
    """Host memory that this process may still take, a container's limit respected."""
    return min([int(psutil.virtual_memory().available), *_cgroup_rooms()])


def free_device_bytes(device: object) -> int | None:
    """Free bytes of a CUDA device, what torch holds for reuse included; None for the CPU."""
    import torch

    where = torch.device(str(device))
    if where.type != "cuda":
        return None
    held = torch.cuda.memory_reserved(where) - torch.cuda.memory_allocated(where)
    return int(torch.cuda.mem_get_info(where)[0]) + int(held)


def _cgroup_rooms(root: Path = _CGROUP, own: Path = _SELF) -> list[int]:
    """What the limits of this process's control groups (version 1 or 2) leave, in bytes.

    Inside a container the group's own path may not be visible; its limit is at the root then.
    Cached files count as used but are given back on demand.
    """
    rooms = []
    for line in _text(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names = ("memory.max", "memory.current", "inactive_file")
            bases = [root, root / "unified"]
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            bases = [root / "memory"]
        else:
            continue
        for base in bases:
            inner = base / path.lstrip("/")
            chain = [inner, *inner.parents]
            for folder in chain[: chain.index(base) + 1]:
                room = _room(folder, names)
                rooms += [] if room is None else [room]
    return rooms


def _room(folder: Path, names: Sequence[str]) -> int | None:
    limit, used = _text(folder / names[0]).strip(), _text(folder / names[1]).strip()
    if not (limit.isdigit() and used.isdigit()):
        return None
    stat = dict(line.split(" ", 1) for line in _text(folder / "memory.stat").splitlines())
    return max(0, int(limit) - int(used) + int(stat.get(names[2], 0)))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else _mib(size)


def _mib(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"
