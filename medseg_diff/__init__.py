"""Diffusion models that segment and translate medical images.

    import medseg_diff as md
    model = md.load("hippocampus")
    answer = model.predict("scan.nii.gz", draws=5, seed=0)
    answer.mask, answer.probability, answer.doubt   # MetaTensors on the scan's own grid

Importing the package is cheap; torch and MONAI load with the first name that needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medseg_diff.errors import InputError

if TYPE_CHECKING:
    from medseg_diff.answer import Answer
    from medseg_diff.inference import Predictor, load

__version__ = "0.1.0"
__all__ = ["Answer", "InputError", "Predictor", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name in ("load", "Predictor", "Answer"):
        from medseg_diff import inference

        return getattr(inference, name)
    raise AttributeError(f"module 'medseg_diff' has no attribute {name!r}")
