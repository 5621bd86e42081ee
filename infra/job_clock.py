"""The clock of one job behind chat servers: its time limit, and how busy its requests keep the servers.

A server is sent `concurrency` requests at once (`infra.chat.ChatSettings`) and what is more waits in this process for
its turn. That wait is nobody's fault, so the limit stands still meanwhile.
"""

import asyncio
import contextlib
import contextvars
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Self

from infra.chat import ChatSettings


class JobClock:
    """Runs inside its `async with`, for what this task, and the tasks that it starts, ask; made there, too.

    Raises TimeoutError as `asyncio.timeout` does.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit = asyncio.timeout(limit_s)
        self._left_s = 0.0
        self._num_waiting = 0
        self._is_over = False
        self._shares_s: defaultdict[ChatSettings, float] = defaultdict(float)

    @property
    def has_expired(self) -> bool:
        """Whether the job took longer than it may."""
        return self._limit.expired()

    @property
    def busy_s(self) -> float:
        """Seconds in which the job's requests were at a server, divided by the server's concurrency; of several servers
        the one that had most of the job counts. Over all jobs and per second of the clock, 1.0 is a full server.
        """
        return max(self._shares_s.values(), default=0.0)

    @property
    def _holds(self) -> bool:
        return not self._is_over and not self.has_expired

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Stand still, as long as any request of the job waits."""
        loop = asyncio.get_running_loop()
        if not self._num_waiting and self._holds:
            self._left_s = (self._limit.when() or 0.0) - loop.time()
            self._limit.reschedule(None)
        self._num_waiting += 1
        try:
            yield
        finally:
            self._num_waiting -= 1
            if not self._num_waiting and self._holds:
                self._limit.reschedule(loop.time() + self._left_s)

    def add(self, settings: ChatSettings, seconds: float) -> None:
        """Note a request that was at the server for so long."""
        self._shares_s[settings] += seconds / settings.concurrency

    async def __aenter__(self) -> Self:
        await self._limit.__aenter__()
        self._token = _CLOCK.set(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over = True  # a request that outlives its job changes nothing
        _CLOCK.reset(self._token)
        await self._limit.__aexit__(kind, error, trace)


_CLOCK: contextvars.ContextVar[JobClock | None] = contextvars.ContextVar("clock", default=None)


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """A request of this task waits for its turn; the job's clock, if there is one, stands still."""
    clock = _CLOCK.get()
    with clock.stopped() if clock else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def at_server(settings: ChatSettings) -> Iterator[None]:
    """A request of this task is at one of the server's places; another such block within this one counts no more."""
    clock = _CLOCK.get()
    token = _CLOCK.set(None)
    start_s = time.monotonic()
    try:
        yield
    finally:
        _CLOCK.reset(token)
        if clock:
            clock.add(settings, time.monotonic() - start_s)


@contextlib.asynccontextmanager
async def turn(places: asyncio.Semaphore, settings: ChatSettings) -> AsyncIterator[None]:
    """One of the server's places, once there is one."""
    with waiting():
        await places.acquire()
    try:
        with at_server(settings):
            yield
    finally:
        places.release()
