"""A pool of Ray actors: each has a child process that loads its agent once, and works through calls, lowest unit first.

One thread per pool holds all of its state and takes events one after the other, so there is nothing to lock. Ray
places, starts and kills actors; the order of work, the window and what a loss costs are decided here. What an agent
does to its process stays in that process (`infra.ray_worker`): the actor says which call it was and how it ended, and
works on with a new one. An actor itself is lost with its node or by a kill from outside. It neither restarts nor
retries by itself: with `max_restarts=0` that is told within milliseconds, and the pool starts a new actor. Calls are
served in order, so that of those in flight the oldest was at work, unless its answer was lost on the way: an actor that
dies of the next call takes along what it has not sent. So calls that were in flight together at a loss go out alone
from then on, and none is blamed twice for another.
"""

import contextlib
import heapq
import itertools
import pickle
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Self

import cloudpickle
import ray
from ray.exceptions import RayError

from infra.pool import Batch, BatchDone, PoolError, PoolRun, batches_of, check_sizes
from infra.ray_health import RayHealth
from infra.ray_worker import RayWorker, Reply, death_text
from infra.workbench import JobT, OutT, PoolAgent

MAX_STRIKES = 4
"""Losses in a row, for each worker of the pool, that no agent's process at work explains; then the pool gives up."""

_CLOSE_S = 3.0
_LOOK_S = 2.0


@dataclass(order=True, slots=True)
class _Call(Generic[JobT, OutT]):
    """Some jobs of one batch, to be worked in one go; sorts by who is served first."""

    priority: int
    number: int
    run: PoolRun[JobT, OutT] = field(compare=False)
    batch: Batch[JobT, OutT] = field(compare=False)
    positions: tuple[int, ...] = field(compare=False)
    is_alone: bool = field(compare=False)
    """Whether its worker gets no other call meanwhile, so that a loss is its own beyond doubt."""


@dataclass(eq=False, slots=True)
class _Slot(Generic[JobT, OutT]):
    """A worker as the pool sees it; `since_s` is when it was asked for, got a place, began once more to set its agent
    up, or took up the first of `calls`.
    """

    actor: Any
    since_s: float
    is_placed: bool = False
    is_ready: bool = False
    calls: "deque[_Call[JobT, OutT]]" = field(default_factory=deque)

    def has_room(self, call: _Call[JobT, OutT], window: int) -> bool:
        """Whether the call may be in flight here beside those that are."""
        shares = not call.is_alone and not any(other.is_alone for other in self.calls)
        return self.is_ready and len(self.calls) < (window if shares else 1)


class RayPool(Generic[JobT, OutT]):
    """Agents in Ray actors; see `infra.pool.Pool`. Ray must be running (`infra.ray_cluster.start_ray`).

    `factory` must be picklable, `functools.partial` of a module-level function say. A call may take `timeout_s`
    (a batch, or one job tried again); then the agent's process is killed. `window` calls are in flight per worker, one
    at work and the rest behind it. `num_cpus` and `num_gpus` are what Ray sets aside for each worker; Ray sets
    OMP_NUM_THREADS to the whole CPUs among them, at least 1. Workers start when there is work, those with GPUs spread
    over the nodes of a cluster.

    Ray may take `start_timeout_s` to place a worker, and its agent as long to be set up. One late with its agent is
    replaced, unless none of the pool ever was ready: then the next would be late too, and the pool gives up.
    """

    def __init__(
        self,
        factory: Callable[[], PoolAgent[JobT, OutT]],
        *,
        num_workers: int,
        batch_size: int,
        timeout_s: float,
        max_attempts: int = 2,
        num_cpus: float = 1.0,
        num_gpus: float = 0.0,
        window: int = 2,
        start_timeout_s: float = 600.0,
    ) -> None:
        check_sizes(batch_size, max_attempts)
        if num_workers < 1 or window < 1:
            raise ValueError(f"a pool needs a worker and a call in flight, got {num_workers} and {window}")
        self._factory = cloudpickle.dumps(factory)
        self._num_workers = num_workers
        self._batch_size = batch_size
        self._timeout_s = timeout_s
        self._max_attempts = max_attempts
        self._window = window
        self._start_timeout_s = start_timeout_s
        self._needs = f"{num_cpus:g} CPUs and {num_gpus:g} GPUs"
        # left to itself, Ray fills a node half before it takes the next, but keeps actors without GPUs off GPU nodes
        strategy = "SPREAD" if num_gpus else "DEFAULT"
        self._actor_class = ray.remote(RayWorker).options(
            num_cpus=num_cpus, num_gpus=num_gpus, max_restarts=0, max_task_retries=0, scheduling_strategy=strategy
        )
        self._numbers = itertools.count()
        self._slots: list[_Slot[JobT, OutT]] = []
        self._waiting: list[_Call[JobT, OutT]] = []
        self._runs: set[PoolRun[JobT, OutT]] = set()
        self._strikes = 0
        self._losses = 0
        self._was_ready = False
        self._health = RayHealth()
        self._error: PoolError | None = None
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="ray-pool", daemon=True)
        self._thread.start()

    @property
    def losses(self) -> int:
        """How many processes were lost so far, agents' and actors', each replaced by another."""
        return self._losses

    def run(self, priority: int, jobs: Sequence[JobT]) -> Iterator[BatchDone[JobT, OutT]]:
        """Serve the jobs; see `infra.pool.Pool.run`."""
        batches = [Batch[JobT, OutT](slice_, self._max_attempts) for slice_ in batches_of(jobs, self._batch_size)]
        run = PoolRun[JobT, OutT](priority)
        self._events.put(partial(self._submit, run, batches))
        try:
            for _ in batches:
                yield run.next_result(self._thread, lambda: self._error)
        finally:
            self._events.put(partial(self._drop, run))

    def close(self) -> None:
        """Close agents that are idle, kill workers that are not; callers that still wait get a PoolError."""
        self._events.put(partial(self._stop, PoolError("the pool is closed")))
        self._thread.join(timeout=_CLOSE_S + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # From here on everything runs in the pool's own thread.

    def _loop(self) -> None:
        try:
            while self._error is None:
                self._start_workers()
                self._hand_out()
                try:
                    event = self._events.get(timeout=self._until_next_deadline_s())
                except queue.Empty:
                    self._kill_overdue()  # only with no answer left unread
                else:
                    event()
                if self._runs and (trouble := self._health.trouble()):
                    self._stop(PoolError(trouble), without_ray=True)
        except BaseException as error:
            self._stop(PoolError(f"the pool failed: {error!r}"))
            raise

    def _submit(self, run: PoolRun[JobT, OutT], batches: Sequence[Batch[JobT, OutT]]) -> None:
        self._runs.add(run)
        for batch in batches:
            self._queue(run, batch, batch.all_positions)

    def _queue(
        self, run: PoolRun[JobT, OutT], batch: Batch[JobT, OutT], positions: tuple[int, ...], is_alone: bool = False
    ) -> None:
        if run in self._runs:
            heapq.heappush(self._waiting, _Call(run.priority, next(self._numbers), run, batch, positions, is_alone))

    def _drop(self, run: PoolRun[JobT, OutT]) -> None:
        self._runs.discard(run)
        self._waiting = [call for call in self._waiting if call.run is not run]
        heapq.heapify(self._waiting)

    def _start_workers(self) -> None:
        starting = sum(not slot.is_ready for slot in self._slots)
        while len(self._slots) < self._num_workers and starting < len(self._waiting):
            slot = _Slot[JobT, OutT](self._actor_class.remote(self._factory, self._timeout_s), time.monotonic())
            self._slots.append(slot)
            self._watch(slot.actor.__ray_ready__.remote(), partial(self._placed, slot))
            self._start(slot)
            starting += 1

    def _start(self, slot: _Slot[JobT, OutT]) -> None:
        self._watch(slot.actor.start.remote(), partial(self._started, slot))

    def _watch(self, ref: Any, then: Callable[[Future[Any]], None]) -> None:
        ref.future().add_done_callback(lambda future: self._events.put(partial(then, future)))

    def _placed(self, slot: _Slot[JobT, OutT], future: Future[Any]) -> None:
        if slot in self._slots and future.exception() is None:  # a death is told by the call behind this one, too
            slot.is_placed = True
            slot.since_s = time.monotonic()

    def _started(self, slot: _Slot[JobT, OutT], future: Future[Reply]) -> None:
        reply = self._reply(slot, future)
        if reply is None:
            return
        if not reply.trouble:
            slot.is_ready = self._was_ready = True
            return
        self._strike(reply)
        slot.since_s = time.monotonic()
        self._start(slot)

    def _hand_out(self) -> None:
        while self._waiting:
            free = [slot for slot in self._slots if slot.has_room(self._waiting[0], self._window)]
            if not free:
                return
            slot = min(free, key=lambda slot: len(slot.calls))
            call = heapq.heappop(self._waiting)
            if not slot.calls:
                slot.since_s = time.monotonic()
            slot.calls.append(call)
            jobs = pickle.dumps(call.batch.jobs_at(call.positions), pickle.HIGHEST_PROTOCOL)
            self._watch(slot.actor.work.remote(jobs), partial(self._worked, slot, call))

    def _worked(self, slot: _Slot[JobT, OutT], call: _Call[JobT, OutT], future: Future[Reply]) -> None:
        reply = self._reply(slot, future)
        if reply is None:
            return
        slot.calls.remove(call)
        slot.since_s = time.monotonic()
        match reply.trouble:
            case "":
                self._strikes = 0
                work = pickle.loads(reply.result)  # noqa: S301 - pickled by our own child process
                if work.gone:
                    self._stop(PoolError(work.gone))
                    return
                self._settled(call, call.batch.settle(call.positions, work, reply.worker))
            case "agent_died" | "agent_timeout" as reason:
                self._strikes = 0
                self._losses += 1
                self._settled(call, call.batch.fail(call.positions, reason, reply.evidence))
            case "not_at_work" | "does_not_start":
                self._queue(call.run, call.batch, call.positions, call.is_alone)
                self._strike(reply)

    def _reply(self, slot: _Slot[JobT, OutT], future: Future[Reply]) -> Reply | None:
        """What the actor answered; None if it died, which is seen to, or was given up before."""
        if slot not in self._slots:
            return None
        try:
            return future.result()
        except RayError as error:
            self._lose(slot, death_text(error))
            return None

    def _settled(self, call: _Call[JobT, OutT], again: Sequence[tuple[int, ...]]) -> None:
        for positions in again:
            self._queue(call.run, call.batch, positions, call.is_alone)
        if call.batch.is_done and call.run in self._runs:
            call.run.results.put(call.batch.done())

    def _lose(self, slot: _Slot[JobT, OutT], evidence: str) -> None:
        """Take a worker out; the oldest call bears the loss, those behind are queued as they were, and all go alone."""
        if trouble := self._health.trouble(at_once=True):  # to end or start an actor now would wait for what died
            self._stop(PoolError(trouble), without_ray=True)
            return
        self._slots.remove(slot)
        _end(slot)
        for number, call in enumerate(slot.calls):
            call.is_alone = True
            if number == 0:
                self._settled(call, call.batch.lose(call.positions, "agent_died", evidence))
            else:
                self._queue(call.run, call.batch, call.positions, call.is_alone)
        self._strike(Reply("", trouble="not_at_work", evidence=evidence))

    def _strike(self, reply: Reply) -> None:
        if reply.trouble == "does_not_start":
            self._stop(PoolError(f"the agent does not start: {reply.evidence}"))
            return
        self._losses += 1
        self._strikes += 1
        if self._strikes >= MAX_STRIKES * self._num_workers:
            self._stop(PoolError(f"{self._strikes} workers in a row were lost without a result; {reply.evidence}"))

    def _until_next_deadline_s(self) -> float:
        """How long to wait for an event at most; Ray is looked after meanwhile."""
        deadlines = [slot.since_s + self._limit_s(slot) for slot in self._slots if slot.calls or not slot.is_ready]
        return min(_LOOK_S, max(0.0, min(deadlines) - time.monotonic())) if deadlines else _LOOK_S

    def _limit_s(self, slot: _Slot[JobT, OutT]) -> float:
        # a worker keeps the time of its calls itself; this is for one that cannot, and a new process may come first
        return self._start_timeout_s + self._timeout_s * slot.is_ready

    def _kill_overdue(self) -> None:
        now = time.monotonic()
        for slot in [slot for slot in self._slots if slot.calls or not slot.is_ready]:
            if now - slot.since_s < self._limit_s(slot):
                continue
            if slot.is_ready:
                self._lose(slot, f"the worker does not answer, {self._limit_s(slot):g} s after it took up a call")
            elif slot.is_placed and self._was_ready:
                self._lose(slot, f"the worker's agent was not set up in {self._start_timeout_s:g} s")
            elif not slot.is_placed and any(other.is_placed for other in self._slots):
                slot.since_s = now  # the others work; a place may yet be found for this one
            else:
                self._stop(PoolError(self._why_none_is_ready()))

    def _why_none_is_ready(self) -> str:
        placed = sum(slot.is_placed for slot in self._slots)
        if placed:
            return (
                f"no worker was ready {self._start_timeout_s:g} s after Ray had placed it: {placed} of "
                f"{self._num_workers} have a place and still set their agents up; where that is for slow disks, or "
                "many that read from one, raise start_timeout_s of the agent's resources"
            )
        has = {name: amount for name, amount in ray.cluster_resources().items() if name in ("CPU", "GPU")}
        return (
            f"Ray found no place for a worker in {self._start_timeout_s:g} s; each needs {self._needs}, "
            f"the cluster has {has} and other pools share them"
        )

    def _stop(self, error: PoolError, *, without_ray: bool = False) -> None:
        """Let the callers know and end the workers; `without_ray`, these have died or end with this process."""
        if self._error is not None:
            return
        self._error = error
        for run in self._runs:
            run.results.put(error)
        if ray.is_initialized() and not without_ray:
            with contextlib.suppress(RayError):
                idle = [slot.actor.close.remote() for slot in self._slots if slot.is_ready and not slot.calls]
                ray.wait(idle, num_returns=len(idle), timeout=_CLOSE_S) if idle else None
            for slot in self._slots:
                _end(slot)
        self._slots.clear()


def _end(slot: _Slot[Any, Any]) -> None:
    if not ray.is_initialized():
        return  # `ray.kill` would start one
    with contextlib.suppress(RayError, ValueError):
        ray.kill(slot.actor)
