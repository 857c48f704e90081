"""Where the cases of a batch are computed: in this process, or by workers of a Ray cluster.

An engine turns claims into outcomes and knows nothing of manifests. It takes the next claim only
when it has room for it, so that no more cases are under way than it has workers.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from medseg_diff.batch.one_case import Claim, Outcome, predict_one
from medseg_diff.config.directions import Direction
from medseg_diff.errors import UsageError
from medseg_diff.inference.predictor import Predictor, load
from medseg_diff.translation.unpaired import load_any_translator

ENGINES = ("local", "ray")


class Engine(Protocol):
    """What a batch asks of the place where its cases are computed.

    Attributes:
        reads_ahead: Whether the batch should read (and hash) the next scan in this process while
            one is computed.
    """

    reads_ahead: bool

    def outcomes(
        self, claims: Iterator[Claim], folder: Path, settings: Mapping[str, Any]
    ) -> Generator[Outcome, None, None]:
        """Compute claims, in whatever order; closing it stops the work that is under way."""
        ...


class LocalEngine:
    """One case after the other, in this process.

    Args:
        predictor: Loaded model.
    """

    reads_ahead = True

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def outcomes(
        self, claims: Iterator[Claim], folder: Path, settings: Mapping[str, Any]
    ) -> Generator[Outcome, None, None]:
        """See :class:`Engine`."""
        for claim in claims:
            yield predict_one(self.predictor, claim, folder, settings)


@dataclass(frozen=True)
class ModelSource:
    """How to load what predicts, in any process that sees the same folders.

    Attributes:
        models: Run folders or names of shipped models.
        device: As for :func:`medseg_diff.load`.
        guide: Run folder of a U-Net that the draws lean towards.
        guide_scale: How strongly.
        translates: Whether the models make images.
        direction: Of images without pairs: ``"backward"`` swaps source and target.
        adapter: File or run folder of an adapter that was trained on the model.
        source_model: Run folder of the source's prior, for unpaired translation.
    """

    models: tuple[str, ...]
    device: str = "auto"
    guide: str | None = None
    guide_scale: float = 1.0
    translates: bool = False
    adapter: str | None = None
    direction: Direction = "forward"
    source_model: str | None = None

    def load(self, device: str | None = None) -> Predictor:
        """The predictor, on the source's device or another."""
        if self.translates:
            return load_any_translator(
                self.models, device or self.device, self.direction, self.source_model
            )
        predictor = load(self.models, device or self.device, self.adapter)
        if self.guide is None:
            return predictor
        from medseg_diff.inference.guided import guided

        return guided(predictor, self.guide, self.guide_scale)

    def absolute(self) -> ModelSource:
        """The same with folders named from the root, for processes that stand elsewhere."""
        models = tuple(str(Path(m).absolute()) if Path(m).exists() else m for m in self.models)
        guide = None if self.guide is None else str(Path(self.guide).absolute())
        adapter = None if self.adapter is None else str(Path(self.adapter).absolute())
        source = None if self.source_model is None else str(Path(self.source_model).absolute())
        return replace(self, models=models, guide=guide, adapter=adapter, source_model=source)


def engine_by_name(
    name: str,
    predictor: Predictor,
    source: ModelSource,
    ray_address: str | None = None,
    workers: int | None = None,
    retries: int = 2,
) -> Engine:
    """The engine that a user names.

    Raises:
        UsageError: if there is none of that name, or it is not installed.
    """
    if name not in ENGINES:
        raise UsageError(
            "unknown engine", field="--engine", found=name, expected=" or ".join(ENGINES)
        )
    if name == "local":
        if ray_address is not None or workers is not None:
            flag = "--workers" if ray_address is None else "--ray-address"
            raise UsageError("needs --engine ray", field=flag)
        return LocalEngine(predictor)
    from medseg_diff.batch.engines.cluster import RayEngine

    return RayEngine(source, address=ray_address, workers=workers, retries=retries)
