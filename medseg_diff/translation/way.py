"""How a scan goes from its domain to another's, and which two priors can take it there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from medseg_diff.checkpoint import LoadedRun
from medseg_diff.errors import UsageError

Encoder = Literal["noise", "inversion"]
Units = Literal["target", "source"]
STRENGTH = 0.5
# What two priors must share, for their noise to mean the same.
PATH_KEYS = (
    "path", "schedule", "zero_terminal_snr", "betas", "input_scale", "sigma_min", "sigma_max",
)  # fmt: skip


@dataclass(frozen=True)
class Way:
    """How far and how a scan goes from its domain to the target's.

    Attributes:
        strength: Time up to which it is noised, in [0, 1]; 0 leaves it as it is, at 1 little but
            noise is left. Small keeps the scan's structure, large takes the target's looks.
        encoder: With a source prior, how its noise is found: ``"noise"`` recovers that of random
            ancestral steps (CycleDiffusion), ``"inversion"`` walks its probability flow (DDIM).
        units: Whose units the answer has: the target's typical ones, or the scan's own.
    """

    strength: float = STRENGTH
    encoder: Encoder = "noise"
    units: Units = "target"

    def __post_init__(self) -> None:
        """Refuse what does not exist."""
        if not 0 <= self.strength <= 1:
            raise UsageError(
                "out of range", field="--strength", found=self.strength, expected="0 to 1"
            )
        for flag, known in (("encoder", Encoder), ("units", Units)):
            if getattr(self, flag) not in get_args(known):
                raise UsageError(
                    "unknown choice", field=f"--{flag}", found=getattr(self, flag),
                    expected=" or ".join(get_args(known)),
                )  # fmt: skip


def check_pair(target: LoadedRun, source: LoadedRun) -> None:
    """Refuse two priors whose noise, grids or planes are not the same.

    Raises:
        UsageError: naming the key that differs.
    """
    told: dict[str, tuple[Any, Any]] = {
        f"model.{key}": (getattr(target.config.model, key), getattr(source.config.model, key))
        for key in PATH_KEYS
    }
    for key in ("spatial_dims", "orientation", "spacing_mm", "coordinates"):
        told[f"plan.{key}"] = getattr(target.config.plan, key), getattr(source.config.plan, key)
    told["prediction.window"] = target.config.window, source.config.window
    told["the scans' planes"] = (
        target.config.known_task.image_planes, source.config.known_task.image_planes,
    )  # fmt: skip
    for key, (wanted, found) in told.items():
        if wanted != found:
            raise UsageError(
                f"its {key} is not the target's: the two priors cannot share noise",
                file=source.folder, field="--source-model", found=found, expected=wanted,
                remedy=f"train both with the same {key}",
            )  # fmt: skip
