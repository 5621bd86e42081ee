import contextlib
import ctypes
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import pytest

from infra import child as child_module
from infra.child import AgentSetupError, Child, ChildLostError, ChildTimeoutError, death_of
from infra.workbench import WorkResult
from schemas.clip import Clip
from schemas.mention import MentionSet

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a child cannot import tests


class Scripted:
    """Does what the caption of each clip says."""

    def __init__(self, at_setup: str = "") -> None:
        self.at_setup = at_setup

    def setup(self) -> None:
        self.act(self.at_setup)

    def process(self, jobs) -> list[MentionSet]:
        for job in jobs:
            self.act(job.caption)
        return [MentionSet(clip_id=job.clip_id, mentions=(), rejected=()) for job in jobs]

    def close(self) -> None:
        pass

    def act(self, what: str) -> None:
        how, _, argument = what.partition(" ")
        match how:
            case "touch":
                Path(argument).touch()
            case "say":
                print(argument, file=sys.stderr, flush=True)
            case "raise":
                raise FileNotFoundError(argument)
            case "signal":
                os.kill(os.getpid(), signal.Signals[argument])
            case "crash":
                ctypes.string_at(0)
            case "exit":
                print("last words", file=sys.stderr, flush=True)
                os._exit(int(argument))
            case "fork":
                if os.fork() == 0:
                    time.sleep(3)
                    os._exit(0)
            case "hang":
                ctypes.PyDLL(None).sleep(60)  # in C, holding the interpreter's lock
            case "bomb":
                resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))
                bytearray(2**33)
            case "modules":
                raise RuntimeError(" ".join(name for name in sys.modules if "." not in name))


def clip(caption: str, name: str = "c") -> Clip:
    return Clip(
        clip_id=name, source_id="s", video="a.mp4", video_sha256="0" * 64, license="CC0", start_s=0, end_s=1,
        start_frame=0, end_frame=30, fps=30, height_px=4, width_px=4, caption=caption,
    )  # fmt: skip


@contextlib.contextmanager
def stderr_in(path: Path) -> Iterator[None]:
    """As in Ray's workers, whose stderr is a file."""
    kept = os.dup(2)
    with path.open("ab") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@pytest.fixture
def child():
    with Child(cloudpickle.dumps(Scripted)) as made:
        yield made


def work(child: Child, *captions: str, timeout_s: float = 30.0) -> WorkResult:
    return pickle.loads(child.work(pickle.dumps([clip(caption) for caption in captions]), timeout_s))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pid: int, within_s: float) -> None:
    end = time.monotonic() + within_s
    while is_running(pid):
        assert time.monotonic() < end, f"process {pid} is still there"
        time.sleep(0.02)


def test_calls_are_answered_in_one_process(child):
    assert [work(child, f"say {n}").outputs[0].clip_id for n in range(3)] == ["c", "c", "c"]
    assert is_running(child.pid)


@pytest.mark.parametrize(
    ("caption", "told"),
    [
        ("signal SIGKILL", "its process died of SIGKILL"),
        ("signal SIGTERM", "its process died of SIGTERM"),
        ("crash", "its process died of SIGSEGV"),
        ("exit 3", "its process exited with status 3"),
        ("exit 0", "its process exited with status 0"),
    ],
)
def test_a_death_at_work_is_told_by_its_signal_or_status(child, caption, told):
    with pytest.raises(ChildLostError, match=f"^{told}") as info:
        work(child, "fine", caption)
    assert info.value.was_at_work
    assert not is_running(child.pid)


def test_what_was_written_to_stderr_during_the_call_is_told_and_nothing_older(tmp_path):
    with stderr_in(tmp_path / "stderr.txt"), Child(cloudpickle.dumps(Scripted)) as child:
        work(child, "say of an earlier call")
        with pytest.raises(ChildLostError) as info:
            work(child, "say of this call", "exit 3")
    assert str(info.value).splitlines()[1:] == ["its stderr:", "of this call", "last words"]


def test_a_crash_in_c_code_is_told_with_the_python_stack(tmp_path):
    with (
        stderr_in(tmp_path / "stderr.txt"),
        Child(cloudpickle.dumps(Scripted)) as child,
        pytest.raises(ChildLostError, match=r"Segmentation fault(.|\n)*in act"),
    ):
        work(child, "crash")


def test_an_exception_is_no_death(child):
    result = work(child, "raise weights.onnx")
    assert "weights.onnx" in result.error
    assert work(child, "fine").outputs


def test_memory_beyond_a_limit_is_an_exception_and_no_death(child):
    assert work(child, "bomb").error.startswith("MemoryError")
    assert work(child, "fine").outputs


def test_a_call_that_hangs_in_c_is_killed_in_time(child):
    start = time.monotonic()
    with pytest.raises(ChildTimeoutError, match=r"^no answer within 0\.4 s; its process was killed"):
        work(child, "hang", timeout_s=0.4)
    assert time.monotonic() - start < 3
    assert not is_running(child.pid)


@pytest.mark.parametrize("at_setup", ["exit 3", "signal SIGSEGV"])
def test_a_death_before_the_first_call_blames_no_call(at_setup):
    with pytest.raises(ChildLostError, match=r"exited with status 3|died of SIGSEGV") as info:
        Child(cloudpickle.dumps(lambda: Scripted(at_setup)))
    assert not info.value.was_at_work


def test_a_death_between_calls_blames_no_call(child):
    work(child, "fine")
    os.kill(child.pid, signal.SIGKILL)
    time.sleep(0.1)
    with pytest.raises(ChildLostError, match="SIGKILL") as info:
        work(child, "fine")
    assert not info.value.was_at_work


def test_an_exception_of_the_set_up_is_told():
    with pytest.raises(AgentSetupError, match=r"weights\.onnx"):
        Child(cloudpickle.dumps(lambda: Scripted("raise weights.onnx")))


def test_a_death_is_seen_though_a_fork_of_the_child_holds_the_pipe(child):
    start = time.monotonic()
    with pytest.raises(ChildLostError, match="status 3"):
        work(child, "fork", "exit 3")
    assert time.monotonic() - start < 2


def test_a_child_does_not_load_ray(child):
    modules = work(child, "modules").error.split()
    assert "pydantic" in modules
    assert "ray" not in modules


def test_interrupts_are_left_to_the_parent(tmp_path):
    with stderr_in(tmp_path / "stderr.txt"), Child(cloudpickle.dumps(Scripted)) as child:
        os.kill(child.pid, signal.SIGINT)
        assert work(child, "signal SIGINT").outputs
        child.close(5)
    assert (tmp_path / "stderr.txt").read_text() == ""


def test_an_interrupt_while_a_child_starts_is_left_to_the_parent_too(tmp_path, monkeypatch):
    monkeypatch.setattr(child_module, "_MAIN", f"import os; os.kill(os.getpid(), 2); {child_module._MAIN}")
    with (tmp_path / "stderr.txt").open("wb") as file, Child(cloudpickle.dumps(Scripted), file.fileno()) as child:
        assert work(child, "fine").outputs
    assert (tmp_path / "stderr.txt").read_text() == ""


def test_a_child_that_is_ended_from_another_thread_is_lost(child):
    threading.Timer(0.3, child.end).start()
    with pytest.raises(ChildLostError, match="SIGKILL"):
        work(child, "hang")
    assert not is_running(child.pid)


def test_errors_may_go_to_a_file_of_their_own(tmp_path):
    with (tmp_path / "stderr.txt").open("wb") as file, Child(cloudpickle.dumps(Scripted), file.fileno()) as child:
        work(child, "say of an earlier call")
        with pytest.raises(ChildLostError) as info:
            work(child, "exit 3")
    assert str(info.value).splitlines()[1:] == ["its stderr:", "last words"]


def test_close_ends_the_process_and_kills_what_does_not_end(child):
    start = time.monotonic()
    child.close(5)
    assert not is_running(child.pid)
    stuck = Child(cloudpickle.dumps(Scripted))
    os.kill(stuck.pid, signal.SIGSTOP)
    stuck.close(0.5)
    assert not is_running(stuck.pid)
    assert time.monotonic() - start < 5


PARENT = """
import pickle, sys
from pathlib import Path
from infra.child import Child
child = Child(Path(sys.argv[1]).read_bytes())
print(child.pid, flush=True)
child.work(Path(sys.argv[2]).read_bytes(), 60.0)
"""


def test_a_child_dies_with_its_parent_in_the_middle_of_a_call(tmp_path):
    factory, jobs, begun = tmp_path / "factory", tmp_path / "jobs", tmp_path / "begun"
    factory.write_bytes(cloudpickle.dumps(Scripted))
    jobs.write_bytes(pickle.dumps([clip(f"touch {begun}"), clip("hang")]))
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(factory), str(jobs)], env=env, stdout=subprocess.PIPE, text=True
    )
    pid = int(parent.stdout.readline())
    while not begun.exists():
        assert is_running(pid)
    parent.kill()
    parent.wait()
    wait_until_gone(pid, within_s=1)


def test_signals_without_a_name_are_told_by_number():
    assert death_of(-signal.SIGABRT) == "died of SIGABRT"
    assert death_of(-63) == "died of signal 63"
    assert death_of(1) == "exited with status 1"
