"""A child process for risky work: whatever ends it, its parent lives and can say what it was.

Ray says the same of SIGKILL, of a crash in C code and of `os._exit`, and takes the calls in flight along. A child
tells by its exit code, and `infra.child_main` runs in it. This is not `multiprocessing.Process`, which would import the
parent's main module again, with Ray in it; nor `ProcessPoolExecutor`, which does not say who died or of what.

The protocol, over a socket pair: the parent sends the pickled factory, then pickled jobs. The child answers READY or
the text of the agent's exception; then for each call BEGUN and the pickled result. An empty message asks it to close.
"""

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Self

READY = BEGUN = b"\0"
"""What the child answers when its agent is set up, and when it takes up a call."""

_MAIN = "import sys; sys.path[:] = sys.argv[3:]; from infra.child_main import main; main(*map(int, sys.argv[1:3]))"
_POLL_S = 0.2
_STDERR_TAIL_BYTES = 20_000
_STDERR_TOLD_CHARS = 2000
_NOT_TOLD = "Extension modules: "
"""How the longest line of `faulthandler` begins, which stands last and says nothing of the fault."""


class AgentSetupError(RuntimeError):
    """The agent raised while it was set up."""


class ChildLostError(RuntimeError):
    """The child died; `was_at_work` is whether it had taken up the call."""

    def __init__(self, text: str, was_at_work: bool) -> None:
        super().__init__(text)
        self.was_at_work = was_at_work


class ChildTimeoutError(RuntimeError):
    """The child did not answer in time and was killed."""


class Child:
    """A process with an agent in it; it dies with its parent. Raises AgentSetupError and ChildLostError."""

    def __init__(self, factory: bytes, stderr: int = 2) -> None:
        """Start the process and set its agent up; `factory` is pickled.

        `stderr` is the descriptor that the process writes errors to; of a file the tail can be told.
        """
        self._stderr = stderr
        ours, theirs = socket.socketpair()
        with theirs, _interrupts_held_back():
            self._process = subprocess.Popen(
                [sys.executable, "-c", _MAIN, str(theirs.fileno()), str(os.getpid()), *map(os.path.abspath, sys.path)],
                stdin=subprocess.DEVNULL,
                stderr=stderr,
                pass_fds=[theirs.fileno()],
            )
        self._pipe = Connection(ours.detach())
        self._stderr_start = self._stderr_size()
        try:
            answer = self._ask(factory, None)
        except BaseException:
            self.kill()
            raise
        if answer != READY:
            self.kill()
            raise AgentSetupError(answer.decode())

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def work(self, jobs: bytes, timeout_s: float) -> bytes:
        """One call of the agent: pickled jobs to a pickled result.

        After a ChildLostError or a ChildTimeoutError, both with the tail of what the child wrote to stderr during the
        call, this child is dead.
        """
        self._stderr_start = self._stderr_size()
        end_s = time.monotonic() + timeout_s
        try:
            self._ask(jobs, end_s)
            return self._receive(end_s, was_at_work=True)
        except TimeoutError:
            self.kill()
            text = f"no answer within {timeout_s:g} s; its process was killed"
            raise ChildTimeoutError(text + self._stderr_tail()) from None

    def close(self, timeout_s: float) -> None:
        """Let the agent close; kill what has not ended in time."""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self._pipe.send_bytes(b"")
            self._process.wait(timeout_s)
        self.kill()

    def kill(self) -> None:
        """End the process at once, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        self._pipe.close()

    def end(self) -> None:
        """End the process from another thread: the call under way raises ChildLostError."""
        self._process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()

    def _ask(self, message: bytes, end_s: float | None) -> bytes:
        try:
            self._pipe.send_bytes(message)
        except OSError:
            raise self._lost(was_at_work=False) from None
        return self._receive(end_s, was_at_work=False)

    def _receive(self, end_s: float | None, was_at_work: bool) -> bytes:
        # a process that the child forked may hold the pipe open after its death: hence the look at the process
        while not wait([self._pipe], _POLL_S):
            if self._process.poll() is not None and not self._pipe.poll():
                raise self._lost(was_at_work)
            if end_s is not None and time.monotonic() > end_s:
                raise TimeoutError
        try:
            return self._pipe.recv_bytes()
        except (EOFError, OSError):
            raise self._lost(was_at_work) from None

    def _lost(self, was_at_work: bool) -> ChildLostError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_POLL_S)  # the pipe may be closed a moment before the process has ended
        self.kill()
        return ChildLostError("its process " + death_of(self._process.returncode) + self._stderr_tail(), was_at_work)

    def _stderr_size(self) -> int:
        return os.fstat(self._stderr).st_size

    def _stderr_tail(self) -> str:
        # where the child shares the parent's stderr, that is a file in Ray's workers
        if not stat.S_ISREG(os.fstat(self._stderr).st_mode):
            return ""
        try:
            with Path(f"/proc/self/fd/{self._stderr}").open("rb") as file:
                file.seek(max(self._stderr_start, self._stderr_size() - _STDERR_TAIL_BYTES))
                text = file.read().decode(errors="replace")
        except OSError:  # no such folder but on Linux
            return ""
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith(_NOT_TOLD)]
        return "\nits stderr:\n" + "\n".join(lines)[-_STDERR_TOLD_CHARS:] if lines else ""


def death_of(exit_code: int) -> str:
    """How a process ended, from its exit code as `subprocess` gives it: minus the signal's number, or the status."""
    if exit_code >= 0:
        return f"exited with status {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    cause = " (killed from outside, or for want of memory)" if name == "SIGKILL" else ""
    return f"died of {name}{cause}"


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """A process that is started meanwhile is deaf to Ctrl-C until it ignores it: else it would die with a traceback."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
