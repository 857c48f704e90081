"""The embedded sample: real hippocampus scans that travel with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from medseg_diff.data.caselist import CaseList, load_caselist


def sample_folder() -> Path:
    """Folder of the sample: ``images/``, ``labels/``, ``cases.json`` and ``LICENSE.md``."""
    return Path(str(files("medseg_diff.data") / "sample"))


def sample_caselist() -> CaseList:
    """The sample's cases: 20 test, 6 validation, the rest for training.

    Raises:
        InputError: if the installation lacks files of the sample.
    """
    return load_caselist(sample_folder())


def sample_attribution() -> str:
    """Licence, sources and citations of the sample, as Markdown."""
    return (sample_folder() / "LICENSE.md").read_text(encoding="utf-8")
