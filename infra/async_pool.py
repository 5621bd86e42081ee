"""A pool for agents that wait for a server: one event loop in one thread, a window of jobs in flight.

The job of the lowest unit begins as soon as any other ends, of whatever micro-batch, so that a server that batches
continuously stays full. Everything but `run` and `close` happens in the pool's own thread, so there is nothing to lock.
"""

import asyncio
import contextlib
import contextvars
import heapq
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Generic, Self

from infra.chat import ChatDeclinedError, ChatLostError, ChatRefusedError
from infra.job_clock import JobClock
from infra.pool import Batch, BatchDone, PoolError, PoolRun, batches_of, check_sizes
from infra.token_count import start_meter
from infra.workbench import AsyncAgent, JobT, LogLine, OutT, WorkResult, check_ids, clip_id_of, error_text

WORKER = "chat"
"""Stands where other pools name the worker of a batch."""

MAX_DECLINED = 32
"""How many jobs may be declined running, none answered between, before all are taken to be."""

_CLOSE_S = 3.0
_MAX_LOG_LINES = 500
_LINES: contextvars.ContextVar["tuple[_Collector, list[LogLine]] | None"] = contextvars.ContextVar(
    "lines", default=None
)
_NUM_THREADS = max(32, os.cpu_count() or 1)
"""For what jobs do beside asking: more than processors, as it reads files, and a look at kept answers must not wait for
another job's frames.
"""


@dataclass(eq=False, slots=True)
class _Call(Generic[JobT, OutT]):
    """One job of one batch; of equal priority, the lowest number is served first."""

    number: int
    run: PoolRun[JobT, OutT]
    batch: Batch[JobT, OutT]
    position: int

    @property
    def job(self) -> JobT:
        return self.batch.jobs[self.position]


class AsyncPool(Generic[JobT, OutT]):
    """Async agents in this process; see `infra.pool.Pool`. Logging levels are the host's.

    `window` jobs are in flight at most: more than a server is sent at once, as jobs do other things, too. Each may take
    `timeout_s`, waits for the server's turn left out, then it is cancelled. `batch_size` jobs make a micro-batch, which
    is yielded once all of them are settled. `BatchDone.busy_s` is how busy they kept the servers
    (`infra.job_clock.JobClock.busy_s`).

    A job that gets no answer (ChatLostError) is tried again as one that lost its worker is, and one that is declined
    (ChatDeclinedError) fails at once. Where nobody was answered meanwhile, it may be the job or the server, and the
    agent's `probe` decides. The pool gives up, with a PoolError, where the server refuses (ChatRefusedError), where it
    does not answer the probe, and where it declines `window` jobs running, MAX_DECLINED at least: the probe shows no
    pictures, and a server may take none. What was yielded before stands.
    """

    def __init__(
        self,
        factory: Callable[[], AsyncAgent[JobT, OutT]],
        *,
        window: int,
        batch_size: int,
        timeout_s: float,
        max_attempts: int = 2,
    ) -> None:
        check_sizes(batch_size, max_attempts)
        if window < 1:
            raise ValueError(f"a pool needs a job in flight, got a window of {window}")
        self._factory = factory
        self._window = window
        self._batch_size = batch_size
        self._timeout_s = timeout_s
        self._max_attempts = max_attempts
        self._numbers = itertools.count()
        self._waiting: list[tuple[int, int, _Call[JobT, OutT]]] = []
        self._in_flight: dict[asyncio.Task[None], _Call[JobT, OutT]] = {}
        self._runs: set[PoolRun[JobT, OutT]] = set()
        self._num_answered = 0
        self._num_declined = 0
        self._collector = _Collector()
        self._probe: asyncio.Task[None] | None = None
        self._agent: AsyncAgent[JobT, OutT] | None = None
        self._starting: asyncio.Task[None] | None = None
        self._error: PoolError | None = None
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self._thread = threading.Thread(target=self._main, name="async-pool", daemon=True)
        self._thread.start()

    def run(self, priority: int, jobs: Sequence[JobT]) -> Iterator[BatchDone[JobT, OutT]]:
        """Serve the jobs; see `infra.pool.Pool.run`. Closing the iterator early cancels what is in flight of it."""
        batches = [Batch[JobT, OutT](slice_, self._max_attempts) for slice_ in batches_of(jobs, self._batch_size)]
        run = PoolRun[JobT, OutT](priority)
        if not self._tell(partial(self._submit, run, batches)):
            raise self._error or PoolError("the pool is closed")
        try:
            for _ in batches:
                yield run.next_result(self._thread, lambda: self._error)
        finally:
            self._tell(partial(self._drop, run))

    def close(self) -> None:
        """Cancel what is in flight; callers that still wait get a PoolError."""
        self._tell(partial(self._stop, PoolError("the pool is closed")))
        self._thread.join(timeout=_CLOSE_S + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _tell(self, what: Callable[[], None]) -> bool:
        """Have the pool's thread do something; False where it has ended."""
        try:
            self._loop.call_soon_threadsafe(what)
        except RuntimeError:
            return False
        return True

    # From here on everything runs in the pool's own thread.

    def _main(self) -> None:
        logging.getLogger().addHandler(self._collector)
        self._loop.set_default_executor(ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="async-pool"))
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:
            self._stop(PoolError(f"the pool failed: {error!r}"))
            raise
        finally:
            logging.getLogger().removeHandler(self._collector)
            self._loop.close()

    async def _serve(self) -> None:
        await self._stopped.wait()
        tasks = [*self._in_flight, *(task for task in (self._starting, self._probe) if task and not task.done())]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CLOSE_S)
        if self._agent is not None:
            await _close(self._agent)

    def _submit(self, run: PoolRun[JobT, OutT], batches: Sequence[Batch[JobT, OutT]]) -> None:
        if self._error:
            run.results.put(self._error)
            return
        self._runs.add(run)
        for batch in batches:
            for position in batch.all_positions:
                self._queue(_Call(next(self._numbers), run, batch, position))
        self._hand_out()

    def _queue(self, call: _Call[JobT, OutT]) -> None:
        heapq.heappush(self._waiting, (call.run.priority, call.number, call))

    def _drop(self, run: PoolRun[JobT, OutT]) -> None:
        self._runs.discard(run)
        self._waiting = [entry for entry in self._waiting if entry[2].run is not run]
        heapq.heapify(self._waiting)
        for task, call in self._in_flight.items():
            if call.run is run:
                task.cancel()

    def _hand_out(self) -> None:
        if self._waiting and self._starting is None:
            self._starting = self._loop.create_task(self._start())
        while self._agent is not None and self._waiting and len(self._in_flight) < self._window and not self._error:
            call = heapq.heappop(self._waiting)[2]
            task = self._loop.create_task(self._work(self._agent, call))
            self._in_flight[task] = call
            task.add_done_callback(self._ended)

    async def _start(self) -> None:
        agent: AsyncAgent[JobT, OutT] | None = None
        try:
            agent = self._factory()
            await agent.setup()
            self._agent = agent
        except ChatRefusedError as error:
            why = PoolError(str(error))
        except Exception as error:  # noqa: BLE001 - whatever it is, the agent does not start
            why = PoolError(f"the agent does not start: {error}")
        else:
            self._hand_out()
            return
        finally:
            if self._agent is None and agent is not None:
                await _close(agent)  # of what it opened before that
        self._stop(why)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._in_flight[task]
        if not task.cancelled() and (error := task.exception()):
            self._stop(PoolError(f"the pool failed: {error!r}"))
        self._hand_out()

    async def _work(self, agent: AsyncAgent[JobT, OutT], call: _Call[JobT, OutT]) -> None:
        """One try of one job; never raises but when it is cancelled by the pool."""
        lines = self._collector.begin()
        meter = start_meter()
        answered_before, start_s = self._num_answered, time.monotonic()
        output: OutT | None = None
        error: BaseException | None = None
        clock = JobClock(self._timeout_s)
        try:
            async with clock:
                output = await agent.process_one(call.job)
            check_ids([call.job], [output])
        except asyncio.CancelledError as cancelled:
            if _is_cancelled():
                raise
            error = cancelled  # the agent's own doing
        except Exception as raised:  # noqa: BLE001 - whatever an agent raises costs its job, not the build
            error = raised
        call.batch.spend(meter.count)
        took_s = time.monotonic() - start_s
        clip_id = clip_id_of(call.job)
        told = [line.model_copy(update={"message": f"clip {clip_id}: {line.message}"}) for line in lines]
        if error is None and output is not None:
            ended = LogLine(level=logging.INFO, logger="worker", message=f"clip {clip_id} in {took_s:.2f} s")
            self._answered()
            work = WorkResult([output], "", (*told, ended), clock.busy_s)
            self._go_on(call, call.batch.settle((call.position,), work, WORKER))
            return
        assert error is not None, "an agent that raises nothing gives an output"
        call.batch.take_in(told, clock.busy_s, WORKER)
        timed_out = isinstance(error, TimeoutError) and clock.has_expired
        is_open = isinstance(error, ChatLostError | ChatDeclinedError) or timed_out
        if is_open and self._num_answered == answered_before and not await self._is_there(agent):
            return
        self._go_on(call, self._blame(call, error, timed_out=timed_out))

    def _blame(self, call: _Call[JobT, OutT], error: BaseException, *, timed_out: bool) -> list[tuple[int, ...]]:
        """Count a try of a job that gave nothing; returns what must be tried again."""
        positions = (call.position,)
        if isinstance(error, ChatDeclinedError) and not self._declines_all():
            call.batch.give_up(call.position, "request_declined", str(error))
            return []
        if isinstance(error, ChatRefusedError):
            self._stop(PoolError(str(error)))
            return []
        if isinstance(error, ChatLostError):
            return call.batch.lose(positions, "no_answer", str(error))
        if timed_out:
            return call.batch.fail(positions, "agent_timeout", f"no output in {self._timeout_s:g} s")
        self._answered()
        return call.batch.fail(positions, "agent_error", error_text(error))

    def _answered(self) -> None:
        self._num_answered += 1
        self._num_declined = 0

    def _declines_all(self) -> bool:
        """Count a job that was declined; whether there were so many that the server declines each."""
        self._num_declined += 1
        return self._num_declined >= max(MAX_DECLINED, self._window)

    async def _is_there(self, agent: AsyncAgent[JobT, OutT]) -> bool:
        """Whether the server answers the probe, one at a time for all who ask; if not, the pool has given up."""
        if self._probe is None or self._probe.done():
            self._probe = self._loop.create_task(agent.probe())
        try:
            await asyncio.shield(self._probe)
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            self._stop(PoolError("the server is gone: the probe was cancelled"))
        except ChatRefusedError as error:
            self._stop(PoolError(str(error)))
        except Exception as error:  # noqa: BLE001 - no answer is no answer
            self._stop(PoolError(f"the server is gone: {error}"))
        return self._error is None

    def _go_on(self, call: _Call[JobT, OutT], again: Sequence[tuple[int, ...]]) -> None:
        if call.run not in self._runs:
            return
        if again:
            self._queue(call)
        elif call.batch.is_done:
            call.run.results.put(call.batch.done())

    def _stop(self, error: PoolError) -> None:
        if self._error is not None:
            return
        self._error = error
        self._waiting.clear()
        for run in self._runs:
            run.results.put(error)
        self._runs.clear()
        self._stopped.set()


def _is_cancelled() -> bool:
    """Whether someone cancelled this task, rather than its own code raised the error that says so."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _close(agent: AsyncAgent[JobT, OutT]) -> None:
    with contextlib.suppress(Exception):
        await asyncio.wait_for(agent.close(), 1.0)


class _Collector(logging.Handler):
    """Gives each line of a pool's jobs to the job in whose context it was logged."""

    def begin(self) -> list[LogLine]:
        """Collect what is logged from now on in this task, and in what it starts."""
        lines: list[LogLine] = []
        _LINES.set((self, lines))
        return lines

    def emit(self, record: logging.LogRecord) -> None:
        told = _LINES.get()
        if told is not None and told[0] is self and len(told[1]) < _MAX_LOG_LINES:
            told[1].append(LogLine(level=record.levelno, logger=record.name, message=self.format(record)))
