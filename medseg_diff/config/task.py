"""What a model is asked to make of which images."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from medseg_diff.config.base import Section


class TaskConfig(Section):
    """What is segmented, or into what images are translated; copied from the case list."""

    modality: Literal["MR", "CT", "RGB", "other"] = "other"
    channels: tuple[str, ...] = Field(min_length=1)
    labels: dict[str, int] = Field({})
    regions: dict[str, tuple[int, ...]] | None = None
    ignore_label: int | None = None
    target: str | None = Field(
        None, description="name of the image that is made; a task without one makes masks"
    )
    target_modality: Literal["MR", "CT", "RGB", "other"] | None = None
    target_channel: str | None = Field(
        None,
        description="of a target without pairs, its channel in the case list of its own, which the "
        "backward direction reads",
    )
    target_planes: int = Field(1, ge=1, description="planes of the target's file: 1, or 3 for RGB")
    input_channels: tuple[int, ...] | None = Field(
        None, description="planes of each channel's file: 1, or 3 for RGB"
    )

    @property
    def structures(self) -> dict[str, tuple[int, ...]]:
        """Foreground structures by name, with the label values each holds."""
        if self.regions is not None:
            return dict(self.regions)
        # The codec's channels go by label value, in whatever order a case list names them.
        by_value = sorted(self.labels.items(), key=lambda item: item[1])
        return {name: (value,) for name, value in by_value if value != 0}

    @property
    def restores(self) -> bool:
        """Whether the target is the channel itself, whose source is made from it."""
        return self.target in self.channels

    def source_slice(self, source: str | None) -> slice:
        """Planes of the image input that a source channel holds; None is the first channel."""
        widths = list(self.input_channels or [1] * len(self.channels))
        index = 0 if source not in self.channels else self.channels.index(source)
        return slice(sum(widths[:index]), sum(widths[: index + 1]))

    def source_planes(self, source: str | None) -> int:
        """How many planes :meth:`source_slice` spans."""
        held = self.source_slice(source)
        return int(held.stop - held.start)

    @property
    def image_planes(self) -> int:
        """Channels of the network's image input."""
        return sum(self.input_channels or [1] * len(self.channels))
