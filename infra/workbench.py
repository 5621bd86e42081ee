"""The workbench: an agent in the process that does the work, its exceptions and log lines made into values."""

import contextlib
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from infra.token_count import TokenCount, start_meter
from schemas.record import Record

JobT = TypeVar("JobT", bound=Record)
OutT = TypeVar("OutT", bound=Record)
JobT_contra = TypeVar("JobT_contra", bound=Record, contravariant=True)
OutT_co = TypeVar("OutT_co", bound=Record, covariant=True)

_LOG = logging.getLogger("worker")
_MAX_LOG_LINES = 500
_EVIDENCE_CHARS = 1500


class ServerGoneError(Exception):
    """Raised by an agent whose server serves nobody: it is no job's fault, and its pool gives up with this message."""


class PoolAgent(Protocol[JobT_contra, OutT]):
    """What a pool needs of an agent."""

    def setup(self) -> None:
        """Load what is heavy; called once, where the work is done."""

    def process(self, jobs: Sequence[JobT_contra]) -> list[OutT]:
        """One output per job, in order, each with its job's clip id; may raise ServerGoneError."""

    def close(self) -> None:
        """Free what `setup` took."""


class AsyncAgent(Protocol[JobT_contra, OutT_co]):
    """What a pool needs of an agent that waits for others, a chat server say, and serves many jobs at once."""

    async def setup(self) -> None:
        """Open what the jobs share; called once, in the event loop that serves them."""

    async def process_one(self, job: JobT_contra) -> OutT_co:
        """The job's output, with its clip id; called again while other calls wait."""

    async def probe(self) -> None:
        """Ask the server what it can answer, and raise where it does not."""

    async def close(self) -> None:
        """Free what `setup` took."""


class LogLine(Record):
    """A line that an agent logged; `level` is that of the logging module."""

    level: int
    logger: str
    message: str


@dataclass(frozen=True, slots=True)
class WorkResult(Generic[OutT]):
    """What one call of an agent gave: outputs in job order, or None and the exception's text.

    `tokens` is what it spent at chat servers, None where it asked none. `gone` is why there is no use in further calls.
    """

    outputs: list[OutT] | None
    error: str
    log_lines: tuple[LogLine, ...]
    busy_s: float
    tokens: TokenCount | None = None
    gone: str = ""


class Workbench(Generic[JobT, OutT]):
    """An agent in the process that does the work, its exceptions turned into text and its log lines collected.

    Only lines of the calling thread are taken where `own_thread_only`, for processes that do other things besides.
    """

    def __init__(self, factory: Callable[[], PoolAgent[JobT, OutT]], own_thread_only: bool) -> None:
        self._own_thread_only = own_thread_only
        with _captured_logs(own_thread_only) as lines:
            start = time.perf_counter()
            self._agent = factory()
            self._agent.setup()
            _LOG.info("%s ready in %.1f s", type(self._agent).__name__, time.perf_counter() - start)
        self._setup_lines = lines

    def work(self, jobs: Sequence[JobT]) -> WorkResult[OutT]:
        """Call the agent; never raises an Exception."""
        start = time.perf_counter()
        outputs: list[OutT] | None = None
        error = gone = ""
        meter = start_meter()
        with _captured_logs(self._own_thread_only) as lines:
            try:
                outputs = list(self._agent.process(jobs))
                check_ids(jobs, outputs)
                _LOG.info("clips %s in %.2f s", " ".join(map(clip_id_of, jobs)), time.perf_counter() - start)
            except ServerGoneError as raised:
                error = gone = str(raised)
            except Exception as raised:  # noqa: BLE001 - whatever an agent raises costs its jobs, not the build
                outputs, error = None, error_text(raised)
        log_lines, self._setup_lines = (*self._setup_lines, *lines), []
        return WorkResult(outputs, error, log_lines, time.perf_counter() - start, meter.count, gone)

    def close(self) -> None:
        """Close the agent."""
        self._agent.close()


def error_text(error: BaseException) -> str:
    """An exception and the tail of its traceback, short enough to stand as evidence."""
    summary = "".join(traceback.format_exception_only(error)).strip()
    trace = "".join(traceback.format_tb(error.__traceback__)).rstrip()
    return f"{tail(summary)}\n{tail(trace)}".rstrip()


def tail(text: str) -> str:
    """The end of a long text."""
    return text if len(text) <= _EVIDENCE_CHARS else f"... {text[-_EVIDENCE_CHARS:]}"


def check_ids(jobs: Sequence[Record], outputs: Sequence[Record]) -> None:
    """Raises ValueError where outputs are not of these jobs' clips, in order."""
    if len(outputs) != len(jobs):
        raise ValueError(f"the agent gave {len(outputs)} outputs for {len(jobs)} jobs")
    for job, output in zip(jobs, outputs, strict=True):
        wanted, got = clip_id_of(job), clip_id_of(output)
        if wanted != got:
            raise ValueError(f"the agent answered clip {wanted} with an output for clip {got}")


def clip_id_of(record: object) -> str:
    """The clip that a job or an output is about: its own `clip_id`, or that of its `clip`."""
    clip_id = getattr(getattr(record, "clip", record), "clip_id", None)
    if not isinstance(clip_id, str):
        raise TypeError(f"{type(record).__name__} has no clip_id")
    return clip_id


class _LogCollector(logging.Handler):
    def __init__(self, lines: list[LogLine], thread_id: int | None) -> None:
        super().__init__()
        self._lines = lines
        self._thread_id = thread_id

    def emit(self, record: logging.LogRecord) -> None:
        if self._thread_id not in (None, record.thread) or len(self._lines) >= _MAX_LOG_LINES:
            return
        self._lines.append(LogLine(level=record.levelno, logger=record.name, message=self.format(record)))


@contextlib.contextmanager
def _captured_logs(own_thread_only: bool) -> Iterator[list[LogLine]]:
    """What is logged meanwhile, up to a bound that no sane call reaches."""
    lines: list[LogLine] = []
    collector = _LogCollector(lines, threading.get_ident() if own_thread_only else None)
    root = logging.getLogger()
    root.addHandler(collector)
    try:
        yield lines
    finally:
        root.removeHandler(collector)
