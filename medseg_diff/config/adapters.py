"""What a training adds to a frozen model."""

from __future__ import annotations

from pydantic import Field

from medseg_diff.config.base import Section


class LoraConfig(Section):
    """Low-rank adapters; see :mod:`medseg_diff.networks.lora`."""

    rank: int = Field(4, ge=1, description="of each adapter's two thin matrices")
    alpha: float = Field(8.0, gt=0, description="gain of the adapters, divided by the rank")
    layers: tuple[str, ...] = Field(
        ("*",),
        min_length=1,
        description="patterns of names of linear, convolution and attention layers to adapt, e.g. "
        "denoiser.*; a latent's autoencoder never is",
    )
    whole: tuple[str, ...] = Field(
        (),
        description="patterns of names of further parameters to train as they are, e.g. *.adn.N.* "
        "(norms of a U-Net) or denoiser.head.* (its last layer)",
    )
