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
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, Self

from infra.chat import ChatLostError, ChatRefusedError
from infra.pool import Batch, BatchDone, PoolError, PoolRun, batches_of, check_sizes
from infra.token_count import start_meter
from infra.workbench import AsyncAgent, JobT, LogLine, OutT, WorkResult, check_ids, clip_id_of, error_text

WORKER = "chat"
"""Stands where other pools name the worker of a batch."""

_CLOSE_S = 3.0
_MAX_LOG_LINES = 500
_LINES: contextvars.ContextVar[list[LogLine] | None] = contextvars.ContextVar("lines", default=None)


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

    `window` jobs are in flight at most. Each may take `timeout_s`, then it is cancelled. `batch_size` jobs make a
    micro-batch, which is yielded once all of them are settled. `BatchDone.busy_s` is the seconds that its jobs were in
    flight, divided by `window`: per second of the clock, 1.0 means that the window was full.

    A job that gets no answer (ChatLostError) is tried again as one that lost its worker is. Where nobody was answered
    meanwhile, it may be the job or the server, and the agent's `probe` decides. The pool gives up, with a PoolError,
    where the server refuses (ChatRefusedError) and where it does not answer the probe. What was yielded before stands.
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
        collector = _Collector()
        logging.getLogger().addHandler(collector)
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:
            self._stop(PoolError(f"the pool failed: {error!r}"))
            raise
        finally:
            logging.getLogger().removeHandler(collector)
            self._loop.close()

    async def _serve(self) -> None:
        await self._stopped.wait()
        tasks = [*self._in_flight, *(task for task in (self._starting, self._probe) if task and not task.done())]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CLOSE_S)
        if self._agent is not None:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self._agent.close(), 1.0)

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
        try:
            agent = self._factory()
            await agent.setup()
        except ChatRefusedError as error:
            self._stop(PoolError(str(error)))
        except Exception as error:  # noqa: BLE001 - whatever it is, the agent does not start
            self._stop(PoolError(f"the agent does not start: {error}"))
        else:
            self._agent = agent
            self._hand_out()

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._in_flight[task]
        if not task.cancelled() and (error := task.exception()):
            self._stop(PoolError(f"the pool failed: {error!r}"))
        self._hand_out()

    async def _work(self, agent: AsyncAgent[JobT, OutT], call: _Call[JobT, OutT]) -> None:
        """One try of one job; never raises but when it is cancelled by the pool."""
        lines: list[LogLine] = []
        _LINES.set(lines)
        meter = start_meter()
        answered_before, start_s = self._num_answered, time.monotonic()
        limit = asyncio.timeout(self._timeout_s)
        output: OutT | None = None
        error: BaseException | None = None
        try:
            async with limit:
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
            self._num_answered += 1
            work = WorkResult([output], "", (*told, ended), took_s / self._window)
            self._go_on(call, call.batch.settle((call.position,), work, WORKER))
            return
        assert error is not None, "an agent that raises nothing gives an output"
        call.batch.take_in(told, took_s / self._window, WORKER)
        timed_out = isinstance(error, TimeoutError) and limit.expired()
        is_open = isinstance(error, ChatLostError) or timed_out
        if is_open and self._num_answered == answered_before and not await self._is_there(agent):
            return
        self._go_on(call, self._blame(call, error, timed_out=timed_out))

    def _blame(self, call: _Call[JobT, OutT], error: BaseException, *, timed_out: bool) -> list[tuple[int, ...]]:
        """Count a try of a job that gave nothing; returns what must be tried again."""
        positions = (call.position,)
        if isinstance(error, ChatRefusedError):
            self._stop(PoolError(str(error)))
            return []
        if isinstance(error, ChatLostError):
            return call.batch.lose(positions, str(error))
        if timed_out:
            return call.batch.fail(positions, "agent_timeout", f"no output in {self._timeout_s:g} s")
        self._num_answered += 1
        return call.batch.fail(positions, "agent_error", error_text(error))

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


class _Collector(logging.Handler):
    """Gives each line to the job in whose context it was logged."""

    def emit(self, record: logging.LogRecord) -> None:
        lines = _LINES.get()
        if lines is not None and len(lines) < _MAX_LOG_LINES:
            lines.append(LogLine(level=record.levelno, logger=record.name, message=self.format(record)))
