"""Diffusion models that segment and translate medical images.

    import medseg_diff as md
    model = md.load("hippocampus")
    answer = model.predict("scan.nii.gz", draws=5, seed=0)
    answer.mask, answer.probability, answer.doubt   # MetaTensors on the scan's own grid

Importing the package is cheap; torch and MONAI load with the first name that needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from medseg_diff.errors import InputError

if TYPE_CHECKING:
    from medseg_diff.inference.answer import Answer
    from medseg_diff.inference.predictor import Predictor, load
    from medseg_diff.synthesis import load_synthesizer
    from medseg_diff.translation.translator import load_translator

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "InputError",
    "Predictor",
    "__version__",
    "load",
    "load_synthesizer",
    "load_translator",
]

# Where the names that load torch are.
_HOMES = {
    "load": "inference.predictor",
    "Predictor": "inference.predictor",
    "Answer": "inference.answer",
    "load_translator": "translation.translator",
    "load_synthesizer": "synthesis",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"medseg_diff.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'medseg_diff' has no attribute {name!r}")
