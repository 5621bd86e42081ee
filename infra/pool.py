"""Pools put agents to work on jobs: the interface, the accounting of batches, and the form that runs in this process.

Promises of every pool: jobs of the lowest priority number are served first, whoever calls; every job comes back once,
as an output or as a failure; ids are checked; one bad job costs itself only, because the jobs of a batch that failed
are tried again one by one.
"""

import contextlib
import heapq
import itertools
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, Protocol, Self

from infra.token_count import TokenCount, added
from infra.workbench import JobT, LogLine, OutT, PoolAgent, Workbench, WorkResult, clip_id_of
from schemas.record import Record

MAX_BATCH_SIZE = 32

MAX_LOSSES = 3
"""How often a job may lose its worker, from outside as far as one can tell, before it is suspected of doing that."""

FailureReason = Literal["agent_error", "agent_timeout", "agent_died", "no_answer", "request_declined"]
"""`no_answer` and `request_declined` are a chat server's doing: no reply to this job, and a plain no to it."""


class PoolError(RuntimeError):
    """The pool itself cannot work: its agent does not start or has lost its server, its workers keep dying between
    jobs, or it is closed.
    """


class JobFailure(Record):
    """Why a job has no output; `attempts` is how often it was tried, of which losses of the worker are none."""

    reason: FailureReason
    evidence: str
    attempts: int


@dataclass(frozen=True, slots=True)
class Outcome(Generic[JobT, OutT]):
    """A job and what became of it."""

    job: JobT
    result: OutT | JobFailure


@dataclass(frozen=True, slots=True)
class BatchDone(Generic[JobT, OutT]):
    """A micro-batch of which every job is settled, in job order; `worker` served it last.

    `busy_s` is how long a worker worked on it; behind chat servers, how long it would have kept one full.
    `tokens` is what its jobs, all their tries, spent at chat servers; None where they asked none.
    """

    outcomes: tuple[Outcome[JobT, OutT], ...]
    log_lines: tuple[LogLine, ...]
    busy_s: float
    worker: str
    tokens: TokenCount | None = None


class Pool(Protocol[JobT, OutT]):
    """Workers that share a queue."""

    def run(self, priority: int, jobs: Sequence[JobT]) -> Iterator[BatchDone[JobT, OutT]]:
        """Serve the jobs in micro-batches, yielded as they finish; may be called from many threads at once.

        Work begins when the first batch is asked for. Closing the iterator early abandons what is not finished.
        Raises PoolError.
        """

    def close(self) -> None:
        """Stop the workers; callers that still wait get a PoolError."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...


@dataclass(eq=False, slots=True)
class PoolRun(Generic[JobT, OutT]):
    """One call of `Pool.run` on a pool that works in a thread of its own."""

    priority: int
    results: "queue.SimpleQueue[BatchDone[JobT, OutT] | PoolError]" = field(default_factory=queue.SimpleQueue)

    def next_result(self, thread: threading.Thread, error: Callable[[], PoolError | None]) -> BatchDone[JobT, OutT]:
        """Wait for a micro-batch; raises PoolError, that of the pool where its thread ended without a word here."""
        while True:
            try:
                result = self.results.get(timeout=1.0)
            except queue.Empty:
                if not thread.is_alive():
                    raise error() or PoolError("the pool is closed") from None
                continue
            if isinstance(result, PoolError):
                raise result
            return result


class Batch(Generic[JobT, OutT]):
    """A micro-batch on its way: which of its jobs are settled, and how often each was tried."""

    def __init__(self, jobs: Sequence[JobT], max_attempts: int) -> None:
        self.jobs = tuple(jobs)
        self._max_attempts = max_attempts
        self._attempts = [0] * len(self.jobs)
        self._losses = [0] * len(self.jobs)
        self._results: dict[int, OutT | JobFailure] = {}
        self._log_lines: list[LogLine] = []
        self._busy_s = 0.0
        self._worker = ""
        self._tokens: TokenCount | None = None

    @property
    def all_positions(self) -> tuple[int, ...]:
        """Every job of the batch by its place."""
        return tuple(range(len(self.jobs)))

    @property
    def is_done(self) -> bool:
        """Whether every job is settled."""
        return len(self._results) == len(self.jobs)

    def jobs_at(self, positions: Sequence[int]) -> list[JobT]:
        """The jobs at some places."""
        return [self.jobs[position] for position in positions]

    def settle(self, positions: Sequence[int], work: WorkResult[OutT], worker: str) -> list[tuple[int, ...]]:
        """Take in a call's result; returns what must be tried again, each alone."""
        self.take_in(work.log_lines, work.busy_s, worker)
        self.spend(work.tokens)
        if work.outputs is None:
            return self.fail(positions, "agent_error", work.error)
        self._results.update(zip(positions, work.outputs, strict=True))
        return []

    def take_in(self, log_lines: Sequence[LogLine], busy_s: float, worker: str) -> None:
        """Note what a call logged and how long it worked, whatever came of it."""
        self._log_lines.extend(log_lines)
        self._busy_s += busy_s
        self._worker = worker

    def spend(self, tokens: TokenCount | None) -> None:
        """Note what a call spent at chat servers, whatever came of it."""
        self._tokens = added(self._tokens, tokens)

    def fail(self, positions: Sequence[int], reason: FailureReason, evidence: str) -> list[tuple[int, ...]]:
        """Count an attempt that gave nothing; returns what must be tried again, each alone."""
        return self._count(self._attempts, self._max_attempts, positions, reason, evidence)

    def lose(self, positions: Sequence[int], reason: FailureReason, evidence: str) -> list[tuple[int, ...]]:
        """Whoever does the work was lost meanwhile, of a cause other than the agent: a node that goes, a server.

        That is no attempt, up to `MAX_LOSSES`; returns what must be tried again, each alone.
        """
        return self._count(self._losses, MAX_LOSSES, positions, reason, evidence)

    def give_up(self, position: int, reason: FailureReason, evidence: str) -> None:
        """Settle a job that would come to the same at every try."""
        self._count(self._attempts, 1, (position,), reason, evidence)

    def _count(
        self, counts: list[int], limit: int, positions: Sequence[int], reason: FailureReason, evidence: str
    ) -> list[tuple[int, ...]]:
        again: list[tuple[int, ...]] = []
        for position in positions:
            counts[position] += 1
            if counts[position] < limit:
                again.append((position,))
                continue
            self._results[position] = JobFailure(reason=reason, evidence=evidence, attempts=counts[position])
        if again:
            clips = " ".join(clip_id_of(self.jobs[position]) for (position,) in again)
            message = f"{reason}, clips {clips} are tried again one by one: {evidence.partition(chr(10))[0]}"
            self._log_lines.append(LogLine(level=logging.WARNING, logger="pool", message=message))
        return again

    def done(self) -> BatchDone[JobT, OutT]:
        """The settled batch."""
        outcomes = tuple(Outcome(job, self._results[position]) for position, job in enumerate(self.jobs))
        return BatchDone(outcomes, tuple(self._log_lines), self._busy_s, self._worker, self._tokens)


class LocalPool(Generic[JobT, OutT]):
    """One worker in this process: callers take turns, lowest priority number first.

    Exceptions and ids are handled as in every pool. There is no time-out, and an agent that ends the process ends the
    build: what must survive that runs on Ray. Logging levels are the host's.
    """

    def __init__(self, factory: Callable[[], PoolAgent[JobT, OutT]], *, batch_size: int, max_attempts: int = 2) -> None:
        check_sizes(batch_size, max_attempts)
        self._factory = factory
        self._batch_size = batch_size
        self._max_attempts = max_attempts
        self._turns = _Turns()
        self._bench: Workbench[JobT, OutT] | None = None
        self._is_closed = False

    def run(self, priority: int, jobs: Sequence[JobT]) -> Iterator[BatchDone[JobT, OutT]]:
        """Serve the jobs in order; see `Pool.run`."""
        for batch in batches_of(jobs, self._batch_size):
            state: Batch[JobT, OutT] = Batch(batch, self._max_attempts)
            with self._turns.take(priority):
                self._serve(state)
            yield state.done()

    def close(self) -> None:
        """Close the agent once the batch in work is through."""
        with self._turns.take(-1):
            self._is_closed = True
            if self._bench is not None:
                self._bench.close()
                self._bench = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _serve(self, batch: Batch[JobT, OutT]) -> None:
        if self._is_closed:
            raise PoolError("the pool is closed")
        if self._bench is None:
            try:
                self._bench = Workbench(self._factory, own_thread_only=True)
            except Exception as error:
                raise PoolError(f"the agent does not start: {error}") from error
        calls = [batch.all_positions]
        while calls:
            positions = calls.pop(0)
            work = self._bench.work(batch.jobs_at(positions))
            if work.gone:
                raise PoolError(work.gone)
            calls += batch.settle(positions, work, "local")


def check_sizes(batch_size: int, max_attempts: int) -> None:
    """Refuse sizes that no pool works with."""
    if not 1 <= batch_size <= MAX_BATCH_SIZE:
        raise ValueError(f"a batch holds 1 to {MAX_BATCH_SIZE} jobs, got {batch_size}")
    if max_attempts < 2:
        raise ValueError(
            f"max_attempts must be 2 or more, so that a bad job fails without its batch; got {max_attempts}"
        )


def batches_of(jobs: Sequence[JobT], batch_size: int) -> list[Sequence[JobT]]:
    """The jobs in slices of at most `batch_size`."""
    return [jobs[start : start + batch_size] for start in range(0, len(jobs), batch_size)]


class _Turns:
    """One holder at a time; of those who wait, the lowest priority number comes next, then who came first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[tuple[int, int]] = []
        self._count = itertools.count()
        self._is_taken = False

    @contextlib.contextmanager
    def take(self, priority: int) -> Iterator[None]:
        with self._changed:
            ticket = (priority, next(self._count))
            heapq.heappush(self._waiting, ticket)
            try:
                self._changed.wait_for(lambda: not self._is_taken and self._waiting[0] == ticket)
                self._is_taken = True
            finally:
                self._waiting.remove(ticket)
                heapq.heapify(self._waiting)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._is_taken = False
                self._changed.notify_all()
