"""Latent noising: the scan's own features, noised half-way, then denoised by the source's prior."""

from __future__ import annotations

from medseg_diff.adaptation.features import LATENT_ONLY, source_features
from medseg_diff.adaptation.work import Adapted, Work

T_START = 0.5


def adapt(work: Work) -> Adapted:
    """SDEdit (Meng et al. 2022, arXiv 2108.01073) among features; the denoiser is shown no scan.

    The prior is the network that `latent_translation` draws with, with its condition left out.
    """
    settings = {"start": "image", "t_max": T_START, "guidance": 0.0}
    return Adapted(source_features(work), settings=settings, baseline=LATENT_ONLY)
