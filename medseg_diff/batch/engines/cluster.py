"""Cases spread over the workers of a Ray cluster, an existing one or one on this computer.

Only names travel: a worker gets the model's folder once and then one case at a time (paths and
settings), reads the scan and writes the answer itself, and sends the case's JSON back. All folders
must therefore lie at the same place for every worker. The manifest stays with the driver.

Ray pickles what it sends between its processes. These are this package's own classes and names of
files; no content of a user's file is unpickled.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from medseg_diff.batch.cases import Case
from medseg_diff.batch.engines import ModelSource
from medseg_diff.batch.one_case import Claim, Outcome, predict_one, write_failure
from medseg_diff.errors import InputError, UsageError

RETRIES = 2
KILLED = "killed by the operating system, probably memory"
# Importing and loading take seconds; a worker for which the cluster has no room takes for ever.
START_SECONDS = 300
START_TRIES = 3
_QUIET = {"log_to_driver": False, "logging_level": logging.ERROR}
# A worker's share of memory where nobody says how many there shall be.
WORKER_BYTES = 2 * 2**30
# Scans and masks never pass through Ray's store, so its smallest size will do.
STORE_BYTES = 80 * 2**20


class CaseWorker:
    """A process that holds the models and predicts the cases it is given."""

    def __init__(self, source: ModelSource) -> None:
        self.predictor = source.load()

    def ready(self) -> bool:
        """Answers once the models are loaded."""
        return True

    def predict(self, claim: Claim, folder: Path, settings: Mapping[str, Any]) -> Outcome:
        """One case, from its files to its files."""
        return predict_one(self.predictor, claim, folder, settings)


class RayEngine:
    """Workers of a Ray cluster, each with one case at a time.

    Args:
        source: What the workers load.
        address: Of an existing cluster, ``HOST:PORT``; None starts one on this computer, which
            only this computer can reach and which ends with the batch.
        workers: How many; None takes one per CPU (or GPU) as far as memory allows.
        retries: How often a case goes back into the queue when its worker dies.
        say: Told a line when a worker dies.
    """

    reads_ahead = False

    def __init__(
        self,
        source: ModelSource,
        *,
        address: str | None = None,
        workers: int | None = None,
        retries: int = RETRIES,
        say: Callable[[str], None] | None = None,
    ) -> None:
        for flag, value, least in (("--workers", workers, 1), ("--retries", retries, 0)):
            if value is not None and value < least:
                raise UsageError("too small", field=flag, found=value, expected=f">= {least}")
        self.source, self.address = source.absolute(), address
        self.workers, self.retries = workers, retries
        self.say = say or (lambda line: print(line, file=sys.stderr, flush=True))
        self.ray = import_ray(local=address is None)

    def outcomes(
        self, claims: Iterator[Claim], folder: Path, settings: Mapping[str, Any]
    ) -> Generator[Outcome, None, None]:
        """See :class:`medseg_diff.batch.engines.Engine`.

        Raises:
            InputError: if the cluster does not answer, or a worker cannot load the models.
        """
        with self._cluster() as workers:
            yield from self._spread(workers, claims, folder.absolute(), settings)

    def _spread(
        self, idle: list[Any], claims: Iterator[Claim], folder: Path, settings: Mapping[str, Any]
    ) -> Generator[Outcome, None, None]:
        """Keep every worker busy with one case; replace the workers that die."""
        lost: Counter[str] = Counter()
        again: deque[Claim] = deque()
        flying: dict[Any, tuple[Any, Claim]] = {}
        died = (self.ray.exceptions.RayActorError, self.ray.exceptions.OutOfMemoryError)
        while True:
            while idle and (claim := _next(again, claims)) is not None:
                worker = idle.pop()
                reference = worker.predict.remote(_absolute(claim), folder, settings)
                flying[reference] = (worker, claim)
            if not flying:
                return
            (done, *_), _ = self.ray.wait(list(flying), num_returns=1)
            worker, claim = flying.pop(done)
            try:
                outcome: Outcome = self.ray.get(done)
            except died:
                name = claim.case.name
                lost[name] += 1
                if lost[name] > self.retries:
                    line = f"its worker was {KILLED} ({lost[name]} times)"
                    yield write_failure(name, folder, line, claim.made_from or "")
                else:
                    self.say(
                        f"{name}: its worker was {KILLED}; "
                        f"trying again ({lost[name]} of {self.retries})"
                    )
                    again.append(claim)
                idle += self._start(1)
            except self.ray.exceptions.RayTaskError as error:
                raise _cause(error) from None
            else:
                idle.append(worker)
                yield outcome

    @contextlib.contextmanager
    def _cluster(self) -> Iterator[list[Any]]:
        """Workers that are ready, for the time of the block."""
        # Sockets have short names; Ray's logs go when the batch is over.
        scratch = tempfile.mkdtemp(prefix="msd_", dir="/tmp" if os.name == "posix" else None)
        try:
            if self.address is None:
                self._begin(scratch)
            else:
                self._connect(self.address)
            yield self._start(self._count())
        finally:
            self.ray.shutdown()
            shutil.rmtree(scratch, ignore_errors=True)

    def _begin(self, scratch: str) -> None:
        """A cluster of this computer; on a busy one Ray's own patience (30 s) may not suffice."""
        failure = ""
        for _ in range(START_TRIES):
            try:
                self.ray.init(
                    num_cpus=self.workers or _local_workers(),
                    include_dashboard=False,
                    object_store_memory=STORE_BYTES,
                    _temp_dir=scratch,
                    **_QUIET,
                )
                return
            except Exception as error:  # Ray raises bare ones here
                failure = _short(error)
                self.ray.shutdown()
        raise InputError(
            f"Ray did not start on this computer in {START_TRIES} tries: {failure}",
            field="--engine ray",
            remedy="free the computer of other work, or use --engine local",
        )

    def _connect(self, address: str) -> None:
        try:
            self.ray.init(address=address, **_QUIET)
        except Exception as error:  # whatever Ray calls it, nobody answers
            raise InputError(
                f"no Ray cluster answers there: {_short(error)}",
                field="--ray-address",
                found=address,
                remedy="start one with `ray start --head`",
            ) from None

    def _count(self) -> int:
        """How many workers, by what is asked for and what the cluster has."""
        kind = "GPU" if self._on_gpu() else "CPU"
        room = int(self.ray.cluster_resources().get(kind, 0))
        if (self.workers or 1) > room:
            raise InputError(
                "the cluster is too small",
                field="--workers",
                found=self.workers or 1,
                expected=f"at most {room}, one per {kind}",
            )
        return self.workers or room

    def _on_gpu(self) -> bool:
        if self.source.device == "auto":
            return self.ray.cluster_resources().get("GPU", 0) >= 1
        return self.source.device.startswith("cuda")

    def _start(self, count: int) -> list[Any]:
        """New workers, their models loaded.

        Raises:
            InputError: if one does not come up.
        """
        # A dead worker's case is this class's business, not Ray's: nothing is restarted by itself.
        kind = self.ray.remote(
            num_cpus=1, num_gpus=int(self._on_gpu()), max_restarts=0, max_task_retries=0
        )(CaseWorker)
        workers = [kind.remote(self.source) for _ in range(count)]
        try:
            self.ray.get([worker.ready.remote() for worker in workers], timeout=START_SECONDS)
        except self.ray.exceptions.GetTimeoutError:
            raise InputError(
                f"the cluster had no worker ready after {START_SECONDS} s", field="--engine ray"
            ) from None
        except self.ray.exceptions.RayError as error:
            raise InputError(
                f"a worker could not load the model, or was {KILLED}",
                field="--engine ray",
                found=_short(error),
                remedy="use fewer --workers; every worker needs this package and the same folders",
            ) from None
        return workers


def _next(again: deque[Claim], claims: Iterator[Claim]) -> Claim | None:
    """A case to repeat before a new one, or None where neither is left."""
    return again.popleft() if again else next(claims, None)


def _absolute(claim: Claim) -> Claim:
    """The claim with its files named from the root."""
    channels = {name: path.absolute() for name, path in claim.case.channels.items()}
    return Claim(Case(claim.case.name, channels), claim.made_from)


def _cause(error: Any) -> Exception:
    """What a worker raised, as this process would have."""
    cause = error.cause
    if isinstance(cause, UsageError):
        return UsageError(str(cause))
    return InputError(f"a worker failed: {_short(error)}", field="--engine ray")


def _short(error: BaseException) -> str:
    """The last line of Ray's long ones."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:200]


def _local_workers() -> int:
    """One worker per CPU, as far as the free memory reaches."""
    fit = psutil.virtual_memory().available // WORKER_BYTES
    return int(max(1, min(os.cpu_count() or 1, fit)))


def import_ray(*, local: bool) -> Any:
    """Ray, told to be silent towards the world before it loads.

    No usage statistics; a local cluster listens on the loopback interface alone and asks for a
    token that is made for it and kept in memory.

    Raises:
        UsageError: if it is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # What a dead worker means is said here in one line.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died or was killed")
    if local:
        # Ray's name for it is historic; off means loopback addresses on every system.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import ray
    except ImportError:
        raise UsageError(
            "Ray is not installed",
            field="--engine",
            found="ray",
            remedy="install it with `pip install -c constraints.txt '.[cluster]'`, or leave "
            "--engine out",
        ) from None
    return ray
