"""Rows are cut in processes of their own: what ends one costs the row that did it."""

import ctypes
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from infra import cutting as cutting_module
from infra.cutting import CutJob, CutPool, Cutter, RowCut
from infra.sources import ClipConfig, SourceRow, clips_of
from schemas.quarantine import QuarantineEntry

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a child cannot import tests


class Scripted(Cutter):
    """Does what the caption of each row says, then cuts it."""

    def process(self, jobs: Sequence[CutJob]) -> list[RowCut]:
        for job in jobs:
            how, _, argument = job.row.caption.partition(" ")
            if how == "crash":
                ctypes.string_at(0)
            elif how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif how == "once" and not Path(argument).exists():
                Path(argument).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            elif how == "raise":
                raise RuntimeError(f"{argument}\nand more")
            elif how == "pid":
                raise RuntimeError(f"by {os.getpid()}")
            elif how == "hang":
                Path(argument).write_text(str(os.getpid()))
                ctypes.PyDLL(None).sleep(60)  # in C, holding the interpreter's lock
        return super().process(jobs)


def row(caption: str, name: str = "", video: str = "a.mp4") -> SourceRow:
    return SourceRow(source_id=name or caption, video=video, caption=caption, start_s=None, end_s=None, license="")


def pool_for(root: Path, num_runs: int, **options: Any) -> CutPool:
    return CutPool(functools.partial(Scripted, root, ClipConfig()), num_runs, **options)


def cut(root: Path, *runs: Sequence[str], **options: Any) -> list[RowCut]:
    with pool_for(root, len(runs), **options) as pool:
        return list(pool.cut([row(caption) for caption in run] for run in runs))


def entry_of(part: RowCut) -> QuarantineEntry:
    (entry,) = part.clips.rejected
    assert part.clips.clips == ()
    return entry


def pids(parts: Sequence[RowCut]) -> set[str]:
    return {entry_of(part).evidence.rpartition("by ")[2] for part in parts}


def wait_until(is_so: Callable[[], bool], within_s: float = 10.0) -> None:
    end_s = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < end_s
        time.sleep(0.02)


def test_rows_are_cut_as_in_one_process_and_in_order(make_video: Any, tmp_path: Path) -> None:
    make_video("a.mp4", cuts=(20,))
    make_video("b.mp4", num_frames=50)
    rows = [
        row("A cat."),
        row("A dog."),
        row("A bird.", video="b.mp4"),
        row("", "silent"),
        row("A cow.", video="c.mp4"),
    ]
    with CutPool(functools.partial(Cutter, tmp_path, ClipConfig()), 4) as pool:
        parts = list(pool.cut([rows[:2], *([item] for item in rows[2:])]))
    assert [part.clips for part in parts] == [clips_of(item, tmp_path, ClipConfig()) for item in rows]
    assert [bool(part.clips.clips) for part in parts] == [True, True, True, False, False]


@pytest.mark.parametrize(("caption", "told"), [("crash", "SIGSEGV"), ("kill", "SIGKILL")])
def test_a_row_that_ends_its_process_costs_itself_only(
    make_video: Any, tmp_path: Path, caption: str, told: str
) -> None:
    make_video()
    parts = cut(tmp_path, ["A cat.", caption, "A dog."], ["A bird."])
    assert [bool(part.clips.clips) for part in parts] == [True, False, True, True]
    entry = entry_of(parts[1])
    assert (entry.source_id, entry.stage, entry.reason, entry.retryable) == (
        caption, "source", "unreadable_video", False,
    )  # fmt: skip
    assert entry.evidence.startswith(f"a.mp4: its process died of {told}")


def test_last_words_are_evidence_and_two_processes_say_the_same(tmp_path: Path) -> None:
    first, second = (entry_of(cut(tmp_path, ["crash"])[0]).evidence for _ in range(2))
    assert "Segmentation fault" in first
    assert "in process" in first
    assert first == second


def test_nothing_is_written_to_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cut(tmp_path, ["crash"])
    assert capfd.readouterr() == ("", "")


def test_a_process_that_dies_once_costs_nothing(make_video: Any, tmp_path: Path) -> None:
    make_video()
    (part,) = cut(tmp_path, [f"once {tmp_path / 'died'}"])
    assert (tmp_path / "died").exists()
    assert part.clips.clips


@pytest.mark.slow
def test_a_row_that_hangs_is_given_up_in_time(make_video: Any, tmp_path: Path) -> None:
    make_video()
    parts = cut(tmp_path, [f"hang {tmp_path / 'pid'}", "A cat."], row_timeout_s=5.0)
    assert entry_of(parts[0]).evidence.startswith("a.mp4: no answer within 5 s; its process was killed")
    assert parts[1].clips.clips


def test_an_exception_costs_its_row_in_one_line(make_video: Any, tmp_path: Path) -> None:
    make_video()
    parts = cut(tmp_path, ["raise odd", "A cat."])
    assert (entry_of(parts[0]).reason, entry_of(parts[0]).evidence) == ("unreadable_video", "a.mp4: RuntimeError: odd")
    assert parts[1].clips.clips


def test_the_rows_of_a_run_are_cut_by_one_process(tmp_path: Path) -> None:
    assert len(pids(cut(tmp_path, ["pid 1", "pid 2", "pid 3"]))) == 1


def test_there_are_no_more_processes_than_cpus_for_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)
    assert len(pids(cut(tmp_path, *([f"pid {n}"] for n in range(4))))) == 1


def test_without_rows_there_is_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(cutting_module, "Child", refuse)
    assert cut(tmp_path) == []


def test_processes_stay_for_the_next_rows_and_end_with_the_block(tmp_path: Path) -> None:
    with pool_for(tmp_path, 1) as pool:
        found = pids([*pool.cut([[row("pid 1")]]), *pool.cut([[row("pid 2")]])])
    assert len(found) == 1
    assert not Path(f"/proc/{found.pop()}").exists()


def test_an_interrupt_ends_a_cut_that_hangs_at_once(tmp_path: Path) -> None:
    pid_file, second = tmp_path / "pid", tmp_path / "second"
    interrupted_s: list[float] = []

    def interrupt() -> None:
        wait_until(lambda: pid_file.exists() and pid_file.read_text() != "")
        interrupted_s.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in a shell's background
    try:
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            cut(tmp_path, [f"hang {pid_file}", f"hang {second}"])
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join()
    assert time.monotonic() - interrupted_s[0] < 5
    assert not Path(f"/proc/{pid_file.read_text()}").exists()
    assert not second.exists()
