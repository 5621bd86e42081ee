"""The actor behind `infra.ray_pool`, and what can be learnt of one that died."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

import ray
from ray.exceptions import RayError
from ray.experimental.internal_kv import _internal_kv_put

from infra.workbench import JobT, OutT, PoolAgent, Workbench, WorkResult, error_text, tail

_STDERR_TAIL_BYTES = 2000


@dataclass(frozen=True, slots=True)
class WorkerPlace:
    """Where a worker runs, or why its agent did not start."""

    name: str
    node_id: str
    stderr_path: str
    error: str


class RayWorker(Generic[JobT, OutT]):
    """The actor. Before each call it leaves the call's number in Ray's key-value store, so that after a death the
    pool knows which of the calls in flight was at work: replies of earlier calls may die with the process.
    """

    def __init__(self, factory: Callable[[], PoolAgent[JobT, OutT]], key: str) -> None:
        self._factory = factory
        self._key = key
        self._bench: Workbench[JobT, OutT] | None = None

    def start(self) -> WorkerPlace:
        """Set the agent up; an exception of its own comes back as text, so that only deaths are deaths."""
        logging.getLogger().setLevel(logging.INFO)
        context = ray.get_runtime_context()
        node_id = context.get_node_id()
        error = ""
        try:
            self._bench = Workbench(self._factory, own_thread_only=False)
        except Exception as raised:  # noqa: BLE001 - told to the pool, which stops with it
            error = error_text(raised)
        return WorkerPlace(f"{node_id[:8]}:{os.getpid()}", node_id, _stderr_path(), error)

    def work(self, number: int, jobs: Sequence[JobT]) -> WorkResult[OutT]:
        """Announce the call, then do it."""
        assert self._bench is not None
        _internal_kv_put(self._key, str(number), overwrite=True)
        return self._bench.work(jobs)

    def close(self) -> None:
        """Close the agent."""
        if self._bench is not None:
            self._bench.close()


def death_text(error: RayError) -> str:
    """What Ray says of a death, without its advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "exit" in line.lower() or "memory" in line.lower()]
    text = " ".join(told or lines[:1]).partition(" Some common causes include")[0]
    return tail(f"{type(error).__name__}: {text}")


def _stderr_path() -> str:
    try:
        return str(Path("/proc/self/fd/2").readlink())
    except OSError:
        return ""


def stderr_tail(place: WorkerPlace | None) -> str:
    """The end of what a worker of this node wrote to stderr: the dump of a crash, or what was printed before."""
    if place is None or not place.stderr_path or place.node_id != ray.get_runtime_context().get_node_id():
        return ""
    try:
        text = Path(place.stderr_path).read_bytes()[-_STDERR_TAIL_BYTES:].decode(errors="replace")
    except OSError:
        return ""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(":")]
    return "\n".join(["stderr of the worker:", *lines]) if lines else ""
