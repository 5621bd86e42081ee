"""Cutting rows into clips in processes of their own: a video that crashes its decoder costs its rows only.

FFmpeg and OpenCV parse whatever a user brings. What ends the process that does it, a fault in C code or want of
memory, would end the build, and the same command would die of the same row again.
"""

import contextlib
import os
import pickle
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Self

import cloudpickle

from infra.child import Child, ChildLostError, ChildTimeoutError
from infra.evidence import steady
from infra.fingerprint import Fingerprint, fingerprint_key
from infra.given_masks import MaskReader
from infra.source_rows import rejection
from infra.sources import ClipConfig, ClipSet, SourceRow, printed_clips_of
from infra.workbench import PoolAgent, WorkResult
from schemas.given import GivenMasks
from schemas.record import Record

ROW_TIMEOUT_S = 3600.0
"""A row that takes longer hangs: the shots of two hours of HD video take 35 minutes on a CPU that is busy besides."""

_TRIES = 2
"""A process may be killed from outside, or for memory that others took; the second death is the row's own doing."""


class CutJob(Record):
    """A row to cut; `clip_id` is the workbench's name for what a job and its output have in common."""

    row: SourceRow

    @property
    def clip_id(self) -> str:
        """The row's id: its clips have none yet."""
        return self.row.source_id


class RowCut(Record):
    """The clips of a row, by id the masks that its source gives of them, and by key the fingerprints of the clips."""

    clips: ClipSet
    masks: dict[str, GivenMasks]
    fingerprints: dict[str, Fingerprint]

    @property
    def clip_id(self) -> str:
        """The row's id."""
        return self.clips.source_id


class Cutter:
    """What works in the process: `printed_clips_of`, then `MaskReader.give`; keeps what the rows of a video share."""

    def __init__(self, videos_root: Path, config: ClipConfig) -> None:
        self._videos_root = videos_root
        self._config = config
        self._masks = MaskReader(videos_root)

    def setup(self) -> None:
        """Let the kernel end this process before all others where memory runs out."""
        with contextlib.suppress(OSError):  # Linux only
            Path("/proc/self/oom_score_adj").write_text("1000")

    def process(self, jobs: Sequence[CutJob]) -> list[RowCut]:
        """The clips and masks of each row."""
        return [self._cut(job.row) for job in jobs]

    def close(self) -> None:
        """Nothing is held."""

    def _cut(self, row: SourceRow) -> RowCut:
        (clips, found), masks = printed_clips_of(row, self._videos_root, self._config), dict[str, GivenMasks]()
        if row.masks:
            clips, masks = self._masks.give(clips, row.masks)
        keys = [fingerprint_key(clip.video_sha256, clip.start_frame, clip.end_frame) for clip in clips.clips]
        return RowCut(clips=clips, masks=masks, fingerprints={key: found[key] for key in keys})


class CutPool:
    """Processes that cut rows, no more than there is work or CPUs for this process; none before the first row.

    Leaving the block ends them at once, whatever they are at.
    """

    def __init__(
        self, factory: Callable[[], PoolAgent[CutJob, RowCut]], num_runs: int, row_timeout_s: float = ROW_TIMEOUT_S
    ) -> None:
        """`factory`, which is pickled, makes the agent in each process; `num_runs` is how many runs will come."""
        num = max(1, min(_num_cpus(), num_runs))
        made = cloudpickle.dumps(factory)
        self._hands = [_Hand(made, row_timeout_s) for _ in range(num)]
        self._idle: SimpleQueue[_Hand] = SimpleQueue()
        for hand in self._hands:
            self._idle.put(hand)
        self._threads = ThreadPoolExecutor(num, thread_name_prefix="cut")

    def cut(self, runs: Iterable[Sequence[SourceRow]]) -> Iterator[RowCut]:
        """The cuts of all rows in order; the rows of a run are cut by one process, one after the other.

        A row that twice ends its process, does not end in time or raises becomes an entry `unreadable_video`. Raises
        AgentSetupError, and ChildLostError where no process lives long enough to be given a row.
        """
        for lot in self._threads.map(self._cut_run, runs):
            yield from lot

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for hand in self._hands:
            hand.end()
        self._threads.shutdown()
        for hand in self._hands:
            hand.close()

    def _cut_run(self, run: Sequence[SourceRow]) -> list[RowCut]:
        hand = self._idle.get()
        try:
            return [hand.cut(row) for row in run]
        finally:
            self._idle.put(hand)


class _Hand:
    """A process that is started when a row comes and there is none.

    Its stderr goes to a file of its own: its last words are evidence, and the terminal is the build's.
    """

    def __init__(self, factory: bytes, row_timeout_s: float) -> None:
        self._factory = factory
        self._row_timeout_s = row_timeout_s
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._is_ended = False

    def cut(self, row: SourceRow) -> RowCut:
        jobs = pickle.dumps([CutJob(row=row)], pickle.HIGHEST_PROTOCOL)
        for tries_left in reversed(range(_TRIES)):
            try:
                answer = self._running().work(jobs, self._row_timeout_s)
                break
            except ChildTimeoutError as error:
                self._child = None
                return _unreadable(row, str(error))
            except ChildLostError as error:
                self._child = None
                if self._is_ended or not (tries_left or error.was_at_work):
                    raise
                if not tries_left:
                    return _unreadable(row, str(error))
        result: WorkResult[RowCut] = pickle.loads(answer)  # noqa: S301 - pickled by our own child process
        return result.outputs[0] if result.outputs else _unreadable(row, result.error.partition("\n")[0])

    def end(self) -> None:
        """From another thread: end the process; what it is at is not tried again."""
        with self._lock:
            self._is_ended = True
            if child := self._child:  # its own thread may drop it meanwhile
                child.end()

    def close(self) -> None:
        """Free what is held; nobody may be at work."""
        if self._child is not None:
            self._child.kill()
        self._stderr.close()

    def _running(self) -> Child:
        if self._child is None:
            if self._is_ended:
                raise ChildLostError("cutting was stopped", was_at_work=False)
            child = Child(self._factory, self._stderr.fileno())
            with self._lock:
                self._child = child
                if self._is_ended:
                    child.end()
        return self._child


def _unreadable(row: SourceRow, why: str) -> RowCut:
    entry = rejection(row.source_id, "unreadable_video", f"{row.video}: {steady(why)}")
    return RowCut(clips=ClipSet(source_id=row.source_id, clips=(), rejected=(entry,)), masks={}, fingerprints={})


def _num_cpus() -> int:
    """Those that this process may run on, fewer than the machine's in many a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
