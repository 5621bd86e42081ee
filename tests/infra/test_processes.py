"""Processes: a number and a beginning tell one from another that bears the same number later."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.processes import ProcessMark, began


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_a_process_runs_until_it_ends(sleeper: "subprocess.Popen[bytes]") -> None:
    mark = ProcessMark.of(sleeper.pid)
    assert mark.is_here
    assert mark.runs
    assert ProcessMark.of(sleeper.pid) == mark
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert not mark.runs, "one that ended and was not waited for runs no more"
    sleeper.wait()
    assert not mark.runs
    assert ProcessMark.of(sleeper.pid).began == ""


def test_another_process_of_that_number_is_another(sleeper: "subprocess.Popen[bytes]") -> None:
    earlier = ProcessMark.of(sleeper.pid).model_copy(update={"began": "1"})
    assert not earlier.runs


def test_a_name_with_brackets_and_spaces_does_not_mislead(tmp_path: Path) -> None:
    odd = tmp_path / "a) S 1 (b"
    odd.symlink_to("/bin/sleep")
    with subprocess.Popen([str(odd), "60"]) as process, subprocess.Popen(["sleep", "60"]) as beside:
        time.sleep(0.1)
        assert abs(int(began(process.pid) or 0) - int(began(beside.pid) or 0)) < 1000
        process.kill()
        beside.kill()


def test_a_process_of_another_machine_is_not_here() -> None:
    assert not ProcessMark(host=f"not-{platform.node()}", pid=os.getpid(), began=began(os.getpid()) or "").is_here


@pytest.mark.skipif(sys.platform != "linux", reason="where there is no /proc, ps is asked anyway")
def test_without_proc_the_beginning_is_asked_of_ps(
    sleeper: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: False)
    told = began(sleeper.pid)
    assert told == began(sleeper.pid)
    assert told is not None
    assert time.strptime(told)
    sleeper.kill()
    sleeper.wait()
    assert began(sleeper.pid) is None
